"""What all losses share: the choice of levels, the perturbed points, and what is known of them."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT

_FEWEST_NODES, _NODES_PER_E, _MOST_NODES = 16, 6, 128  # of the quadrature over log sigma

_REACH = 5.5  # standard deviations of log sigma; 4e-8 of a normal law lies beyond

_LARGEST_LOG = 40.0  # of sigma: its square is computed, and e^88 is float32's largest number


class Draws(NamedTuple):
    """The random numbers in a loss on B points.

    Args:
        place: The place of each point's sigma: a row of the levels (B,), t in [0, 1) (B,), or a
            standard normal number (B,). Empty where every level is used.
        z: The noise (B, D), or (B, L, D) where every level is used.
        v: A direction (P, D) for each perturbed point, or the data (B, D), each row of which has
            P/B neighbouring points; empty where neither is needed.
    """

    place: Tensor
    z: Tensor
    v: Tensor


class Perturbed(NamedTuple):
    """Points x = data + sigma z (P, D), with sigma (P,), z (P, D), and the inputs of some losses.

    These inputs are v, see ``Draws``, and the true score.
    """

    x: Tensor
    sigma: Tensor
    z: Tensor
    v: Tensor
    true_score: Score | None


Levels = Literal["all", "random", "continuous", "lognormal"]

# A loss depends on these methods.
_VALUE = ("draw", "given", "terms", "perturbed", "term", "target", "weights")


class Loss(ABC):
    """A functional of the score: the mean of a term over perturbed points.

    The base class chooses levels and perturbs the data; a subclass computes each point's term.

    To write your own, implement ``term``. Two more methods are worth it if you know the formula,
    for what the run reports beside the loss:

    - ``floor``: the value at the true score, which becomes ``loss_floor``.
    - ``weight``: the lambda(sigma) for which, at one level, loss(s) - loss(grad log p_sigma) =
      lambda(sigma)/2 E||s - grad log p_sigma||^2, which becomes ``excess_loss``.

    Without them these numbers are null. They belong to the term: a subclass that replaces the
    term of a loss has to state both again.

    Args:
        levels: ``all`` uses every level for every point; ``random`` one level per point, uniform;
            ``continuous`` one sigma per point, sigma_max (sigma_min/sigma_max)^t with
            t ~ U[0, 1]; ``lognormal`` one sigma per point, log sigma ~ N(log_mean, log_std^2),
            whatever the schedule (Karras et al. 2022, arXiv:2206.00364, table 1).
        weight_power: Exponent of sigma in ``weights``.
        log_mean: Mean of log sigma for ``lognormal`` levels, sigma in data units.
        log_std: Standard deviation of log sigma for ``lognormal`` levels, > 0.
    """

    levels: Levels = "all"
    weight_power: float = 2.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __init__(
        self,
        *,
        levels: Levels = "all",
        weight_power: float = 2.0,
        log_mean: float = -1.2,
        log_std: float = 1.2,
    ) -> None:
        self.levels, self.weight_power = levels, weight_power
        self.log_mean, self.log_std = log_mean, log_std

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Give a subclass no floor and no weight that were stated for another term."""
        super().__init_subclass__(**kwargs)

        def place(name: str) -> int:
            bases = cls.__mro__
            return next((i for i, base in enumerate(bases) if name in vars(base)), len(bases))

        changed = min(place(name) for name in _VALUE)
        if changed < place("floor"):
            cls.floor = Loss.floor  # type: ignore[method-assign]
        if changed < place("weight"):
            cls.weight = Loss.weight  # type: ignore[method-assign]

    @abstractmethod
    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return the term (P,) of each perturbed point, with its weight."""

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float | None:
        """Return the loss of the true score at one level, from D and I(p_sigma).

        Return None if it is not known.
        """
        return None

    def weight(self, sigma: float) -> float | None:
        """Return lambda(sigma) of the excess over the floor; None if it is no such excess."""
        return None

    def weights(self, sigma: Tensor) -> Tensor:
        """Return sigma^weight_power (P,), or 1 at sigma = 0, for the points' ``sigma`` (P,)."""
        return torch.where(sigma > 0, sigma**self.weight_power, 1.0)

    def __call__(
        self,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator,
        noise: Tensor | None = None,
        true_score: Score | None = None,
    ) -> Tensor:
        """Return the loss, (), on data ``x`` (B, D) at the levels ``sigmas`` (L,), descending.

        ``noise`` (B, L, D) holds the draws to use at each point and level; None draws fresh noise.
        ``true_score`` is grad log p_sigma, for the losses that match it.
        """
        draws = self.draw(x, sigmas, generator, noise)
        return self.given(draws, score, x, sigmas, true_score)

    def draw(
        self, x: Tensor, sigmas: Tensor, generator: torch.Generator, noise: Tensor | None = None
    ) -> Draws:
        """Draw all random numbers of the loss on ``x`` (B, D) at ``sigmas`` (L,).

        ``noise`` is as in ``__call__``.
        """
        batch, dim = x.shape
        if self.levels == "all":
            place = x.new_empty(0)
            z = normal((batch, len(sigmas), dim), x, generator) if noise is None else noise
        else:
            if self.levels == "random":
                place = torch.randint(len(sigmas), (batch,), generator=generator, device=x.device)
            else:
                draw = torch.rand if self.levels == "continuous" else torch.randn
                place = draw(batch, generator=generator, device=x.device, dtype=x.dtype)
            if noise is None:
                z = normal((batch, dim), x, generator)
            else:
                z = noise[torch.arange(batch, device=x.device), place]
        return Draws(place, z, self._directions(z, generator))

    def given(
        self, draws: Draws, score: Score, x: Tensor, sigmas: Tensor, true_score: Score | None
    ) -> Tensor:
        """Return the loss for given ``draws``; nothing else in it is random."""
        return self.terms(draws, score, x, sigmas, true_score).mean()

    def terms(
        self, draws: Draws, score: Score, x: Tensor, sigmas: Tensor, true_score: Score | None
    ) -> Tensor:
        """Return the weighted term (P,) of each perturbed point, whose mean is the loss."""
        return self.term(score, self.perturbed(draws, x, sigmas, true_score))

    def perturbed(
        self, draws: Draws, x: Tensor, sigmas: Tensor, true_score: Score | None
    ) -> Perturbed:
        """Return the perturbed points of ``terms``, with what goes with them."""
        dim = x.shape[-1]
        if self.levels == "all":
            x_noisy = (x[:, None] + sigmas[:, None] * draws.z).reshape(-1, dim)  # (B L, D)
            z = draws.z.reshape(-1, dim)
            sigma = sigmas.repeat(len(x))  # (B L,)
        else:
            if self.levels == "random":
                sigma = sigmas[draws.place]  # (B,)
            elif self.levels == "continuous":
                sigma = sigmas[0] * (sigmas[-1] / sigmas[0]) ** draws.place  # (B,)
            else:
                sigma = (self.log_mean + self.log_std * draws.place).exp()  # (B,)
            z = draws.z
            x_noisy = x + sigma[:, None] * z
        return Perturbed(x_noisy, sigma, z, draws.v, true_score)

    def quadrature(self, sigmas: Tensor) -> tuple[list[float], list[float]]:
        """Return levels and weights: this loss is the weighted sum of its values at single levels.

        The levels are ``sigmas`` (L,), descending, with equal weights. For ``levels=continuous``
        they are the nodes of Gauss's rule for the integral over t, for ``levels=lognormal`` those
        of the trapezoid rule over log sigma. The error is below 1e-6 on all datasets that were
        tried. Every level is returned once: with a single level, all nodes are the same.
        """
        if self.levels == "lognormal":
            return self._lognormal_nodes()
        if self.levels != "continuous":
            return sigmas.tolist(), [1 / len(sigmas)] * len(sigmas)
        ratio = float(sigmas[-1]) / float(sigmas[0])
        num = max(_FEWEST_NODES, math.ceil(-_NODES_PER_E * math.log(ratio)))
        nodes, weights = np.polynomial.legendre.leggauss(min(num, _MOST_NODES))
        levels = (float(sigmas[0]) * ratio ** ((1 + nodes) / 2)).tolist()
        return _each_once(levels, (weights / 2).tolist())

    def _lognormal_nodes(self) -> tuple[list[float], list[float]]:
        """Return levels, descending, and weights of the trapezoid rule over t ~ N(0, 1).

        Here log sigma = log_mean + log_std t. A term that grows as sigma^p moves the mass of the
        integral by p log_std. The nodes reach as far, for p from weight_power - 2 (denoising) to
        weight_power (the target at the clean data).
        """
        low = min(0.0, (self.weight_power - 2) * self.log_std) - _REACH
        high = max(0.0, self.weight_power * self.log_std) + _REACH
        num = max(_FEWEST_NODES, math.ceil(_NODES_PER_E * self.log_std * (high - low)))
        t = np.linspace(high, low, min(num, _MOST_NODES))
        weights = np.exp(-t * t / 2)
        with np.errstate(over="ignore"):  # ``check`` refuses what is infinite
            levels = np.exp(self.log_mean + self.log_std * t).tolist()
        return _each_once(levels, (weights / weights.sum()).tolist())

    def _directions(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a direction (P, D) for each perturbed point, whose noise is ``z``.

        By default there are no directions, and an empty tensor is returned.
        """
        return z.new_empty(0)

    def points(self, batch: int, num_levels: int) -> int:
        """Return P, the number of perturbed points for ``batch`` data points."""
        return batch * num_levels if self.levels == "all" else batch

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at levels where the loss is not defined."""
        if self.levels not in get_args(Levels):
            choices = ", ".join(get_args(Levels))
            raise ConfigError(f"loss.levels: choose from {choices}, not {self.levels!r}")
        if self.levels == "continuous" and bool((sigmas == 0).any()):
            raise ConfigError("schedule: loss.levels=continuous needs every sigma above 0")
        if self.levels == "lognormal":
            logs = [
                abs(math.log(level)) if level else math.inf for level in self.quadrature(sigmas)[0]
            ]
            if max(logs) > _LARGEST_LOG:
                raise ConfigError(
                    f"loss.log_mean: levels around e^{self.log_mean:g} with loss.log_std="
                    f"{self.log_std:g} leave the range of float32; choose smaller numbers"
                )

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return noise (N, L, D) drawn once for the training set ``x`` (N, D).

        Return None if every step draws fresh noise.
        """
        return None

    def for_dataset(self, dataset: Dataset) -> Loss:
        """Return this loss with what it has to know of ``dataset``; by default it is this loss.

        Raises:
            ConfigError: If the dataset does not fit the loss.
        """
        return self

    @property
    def dependent_terms(self) -> int:
        """Number of neighbouring terms that share random numbers, so that their errors agree."""
        return 1

    @property
    def at_given_levels(self) -> Loss:
        """This loss at the levels that it is given, of which lognormal levels take no notice."""
        if self.levels != "lognormal":
            return self
        other = copy.copy(self)
        object.__setattr__(other, "levels", "all")
        return other

    @property
    def without_penalty(self) -> Loss:
        """This loss without its penalty, if it has one: the loss whose floor is known."""
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Weighted(Loss):
    """A loss whose excess over its floor is the Fisher divergence, weighted by lambda(sigma).

    A subclass computes the term, and states ``floor`` and ``weight`` with it.

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: Exponent of sigma in lambda(sigma) = sigma^weight_power; lambda(0) = 1.
    """

    levels: Levels = "all"
    weight_power: float = 2.0
    log_mean: float = -1.2
    log_std: PositiveFloat = 1.2

    def weight(self, sigma: float) -> float:
        """Return lambda(sigma) = sigma^weight_power, or 1 at sigma = 0."""
        return self._lambda(sigma)

    def _lambda(self, sigma: float) -> float:
        return sigma**self.weight_power if sigma > 0 else 1.0


def _each_once(levels: list[float], weights: list[float]) -> tuple[list[float], list[float]]:
    """Return each of the ``levels`` once, with the sum of its ``weights``."""
    found = dict.fromkeys(levels, 0.0)
    for level, weight in zip(levels, weights, strict=True):
        found[level] += weight
    return [*found], [*found.values()]


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of a shape, with dtype and device of ``like``."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
