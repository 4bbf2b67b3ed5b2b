"""Score-matching losses. Each is smallest at the true score; its value there is the floor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import Score, derivative_along, score_and_jacobian
from ncsn_cli.core.settings import STRICT

__all__ = ["Denoising", "Explicit", "Implicit", "ImplicitRegularized", "Sliced"]

_FEWEST_NODES, _NODES_PER_E, _MOST_NODES = 16, 6, 128  # of the quadrature over log sigma


class Draws(NamedTuple):
    """The random numbers in a loss on B points.

    Args:
        place: The place of each point's sigma: a row of the levels (B,), or t in [0, 1) (B,).
            Empty where every level is used.
        z: The noise (B, D), or (B, L, D) where every level is used.
        v: A direction (P, D) for each perturbed point; empty where none is needed.
    """

    place: Tensor
    z: Tensor
    v: Tensor


class Perturbed(NamedTuple):
    """Points x = data + sigma z (P, D), with sigma (P,), z (P, D), and the inputs of some losses.

    These inputs are the directions v (P, D) and the true score.
    """

    x: Tensor
    sigma: Tensor
    z: Tensor
    v: Tensor
    true_score: Score | None


Levels = Literal["all", "random", "continuous"]

_VALUE = (
    "draw",
    "given",
    "terms",
    "term",
    "weights",
)  # the methods on which a loss's value depends


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
            t ~ U[0, 1].
        weight_power: Exponent of sigma in ``weights``.
    """

    levels: Levels = "all"
    weight_power: float = 2.0

    def __init__(self, *, levels: Levels = "all", weight_power: float = 2.0) -> None:
        self.levels, self.weight_power = levels, weight_power

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Give a subclass no floor and no weight that were stated for another term."""
        super().__init_subclass__(**kwargs)

        def place(name: str) -> int:
            return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))

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
            z = _normal((batch, len(sigmas), dim), x, generator) if noise is None else noise
        else:
            if self.levels == "random":
                place = torch.randint(len(sigmas), (batch,), generator=generator, device=x.device)
            else:
                place = torch.rand(batch, generator=generator, device=x.device, dtype=x.dtype)
            if noise is None:
                z = _normal((batch, dim), x, generator)
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
        dim = x.shape[-1]
        if self.levels == "all":
            x_noisy = (x[:, None] + sigmas[:, None] * draws.z).reshape(-1, dim)  # (B L, D)
            z = draws.z.reshape(-1, dim)
            sigma = sigmas.repeat(len(x))  # (B L,)
        else:
            if self.levels == "random":
                sigma = sigmas[draws.place]  # (B,)
            else:
                sigma = sigmas[0] * (sigmas[-1] / sigmas[0]) ** draws.place  # (B,)
            z = draws.z
            x_noisy = x + sigma[:, None] * z
        return self.term(score, Perturbed(x_noisy, sigma, z, draws.v, true_score))

    def quadrature(self, sigmas: Tensor) -> tuple[list[float], list[float]]:
        """Return levels and weights: this loss is the weighted sum of its values at single levels.

        The levels are ``sigmas`` (L,), descending, with equal weights. For ``levels=continuous``
        they are the nodes of Gauss's rule for the integral over t, whose error is below 1e-6 on
        all datasets that were tried. Every level is returned once: with a single level, all nodes
        are the same.
        """
        if self.levels != "continuous":
            return sigmas.tolist(), [1 / len(sigmas)] * len(sigmas)
        ratio = float(sigmas[-1]) / float(sigmas[0])
        num = max(_FEWEST_NODES, math.ceil(-_NODES_PER_E * math.log(ratio)))
        nodes, weights = np.polynomial.legendre.leggauss(min(num, _MOST_NODES))
        levels = (float(sigmas[0]) * ratio ** ((1 + nodes) / 2)).tolist()
        found = dict.fromkeys(levels, 0.0)
        for level, weight in zip(levels, (weights / 2).tolist(), strict=True):
            found[level] += weight
        return [*found], [*found.values()]

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

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return noise (N, L, D) drawn once for the training set ``x`` (N, D).

        Return None if every step draws fresh noise.
        """
        return None

    @property
    def without_penalty(self) -> Loss:
        """This loss without its penalty, if it has one: the loss whose floor is known."""
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Weighted(Loss):
    """A loss whose excess over its floor is the Fisher divergence, weighted by lambda(sigma).

    A subclass computes the term, and states ``floor`` and ``weight`` with it.

    Args:
        levels: See ``Loss``.
        weight_power: Exponent of sigma in lambda(sigma) = sigma^weight_power; lambda(0) = 1.
    """

    levels: Levels = "all"
    weight_power: float = 2.0

    def weight(self, sigma: float) -> float:
        """Return lambda(sigma) = sigma^weight_power, or 1 at sigma = 0."""
        return self._lambda(sigma)

    def _lambda(self, sigma: float) -> float:
        return sigma**self.weight_power if sigma > 0 else 1.0


@dataclass(frozen=True, config=STRICT)
class Denoising(_Weighted):
    r"""Denoising score matching at every noise level.

        1/L sum_i lambda(sigma_i)/2 E || s(x + sigma_i z, sigma_i) + z/sigma_i ||^2,   z ~ N(0, I)

    summed over dimensions. Its floor is lambda/2 (D/sigma^2 - I(p_sigma)), which is not 0: no
    network, however good, reaches 0.

    Source: Vincent (2011), doi:10.1162/NECO_a_00142, eq. 9; Song & Ermon (2019),
    arXiv:1907.05600, eq. 5 and 6 (weight_power = 2).

    Args:
        levels: See ``Loss``.
        weight_power: See ``Loss``.
        noise: ``fresh`` draws z at every step; ``fixed`` draws z once for each training point and
            level.
    """

    noise: Literal["fresh", "fixed"] = "fresh"

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda/2 ||s + z/sigma||^2, (P,)."""
        x, sigma, z, *_ = perturbed
        residual = sigma[:, None] * score(x, sigma) + z  # sigma (s + z/sigma)
        return sigma ** (self.weight_power - 2) * residual.square().sum(-1) / 2

    weight = _Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return lambda/2 (D/sigma^2 - I(p_sigma))."""
        return self._lambda(sigma) / 2 * (dim / sigma**2 - fisher_information)

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at sigma = 0, where there is no noise to remove.

        Raise it also for fixed noise at continuous levels.
        """
        if bool((sigmas == 0).any()):
            raise ConfigError("schedule: loss=denoising needs every sigma above 0")
        if self.noise == "fixed" and self.levels == "continuous":
            raise ConfigError("loss.noise: fixed needs loss.levels=all or random")

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return noise (N, L, D) drawn once if ``noise`` is ``fixed``, otherwise None."""
        if self.noise == "fresh":
            return None
        return _normal((len(x), len(sigmas), x.shape[-1]), x, generator)


@dataclass(frozen=True, config=STRICT)
class Explicit(_Weighted):
    """Explicit score matching: lambda/2 E||s - grad log p_sigma||^2, from the exact score.

    Its floor is 0. Source: Hyvarinen (2005), JMLR 6:695-709, eq. 2.
    """

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda/2 ||s - grad log p_sigma||^2, (P,)."""
        x, sigma, *_, true_score = perturbed
        assert true_score is not None
        error = score(x, sigma) - true_score(x, sigma)
        return self.weights(sigma) * error.square().sum(-1) / 2

    weight = _Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True, config=STRICT)
class Implicit(_Weighted):
    """Implicit score matching: lambda E[||s||^2/2 + tr(grad s)], with the exact trace for any D.

    Its floor is -lambda/2 I(p_sigma). Source: Hyvarinen (2005), JMLR 6:695-709, eq. 4.
    """

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda (||s||^2/2 + tr(grad s)), (P,)."""
        x, sigma, *_ = perturbed
        s, jacobian = score_and_jacobian(score, x, sigma)
        diagonal = jacobian.diagonal(dim1=1, dim2=2)  # (P, D)
        return self.weights(sigma) * (s.square().sum(-1) / 2 + self._divergence(diagonal))

    def _divergence(self, diagonal: Tensor) -> Tensor:
        """Return the trace (P,) from the diagonal (P, D) of the Jacobian."""
        return diagonal.sum(-1)

    weight = _Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return -lambda/2 I(p_sigma)."""
        return -self._lambda(sigma) / 2 * fisher_information


@dataclass(frozen=True, config=STRICT)
class ImplicitRegularized(Implicit):
    """Implicit score matching with a penalty on curvature.

        lambda E[||s||^2/2 + tr(grad s) + regularization sum_i (d_i s_i)^2]

    The penalty is the sum of squares, not the square of the trace. The minimiser of this loss is
    not the score. Floor and excess are those of the part without penalty.

    Source: Kingma & LeCun (2010), "Regularized estimation of image statistics by score matching".

    Args:
        levels: See ``Loss``.
        weight_power: See ``Loss``.
        regularization: >= 0, data units squared.
    """

    regularization: NonNegativeFloat = 0.1

    def _divergence(self, diagonal: Tensor) -> Tensor:
        return diagonal.sum(-1) + self.regularization * diagonal.square().sum(-1)

    @property
    def without_penalty(self) -> Loss:
        """The implicit loss alone."""
        return replace(self, regularization=0.0)


@dataclass(frozen=True, config=STRICT)
class Sliced(_Weighted):
    """Sliced score matching: the trace from one random direction v per point, E[v v^T] = I.

        lambda E[||s||^2/2 + v^T (grad s) v],   or with (v^T s)^2/2 for the first term

    Its floor is -lambda/2 I(p_sigma). (A unit-norm v would learn score/D.)

    Source: Song et al. (2019), arXiv:1905.07088, eq. 7 (plain) and 8 (variance-reduced).

    Args:
        levels: See ``Loss``.
        weight_power: See ``Loss``.
        directions: ``gaussian``: v ~ N(0, I); ``rademacher``: +1 or -1 in each coordinate.
        variance_reduced: Whether the first term is replaced by its exact mean ||s||^2/2.
    """

    directions: Literal["gaussian", "rademacher"] = "rademacher"
    variance_reduced: bool = True

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda (||s||^2/2 + v^T (grad s) v), (P,)."""
        x, sigma, _, v, _ = perturbed
        s, along = derivative_along(v, score, x, sigma)
        square = s.square().sum(-1) if self.variance_reduced else (v * s).sum(-1).square()
        return self.weights(sigma) * (square / 2 + (v * along).sum(-1))

    def _directions(self, z: Tensor, generator: torch.Generator) -> Tensor:
        v = _normal((z.numel() // z.shape[-1], z.shape[-1]), z, generator)
        return v if self.directions == "gaussian" else torch.where(v < 0, -1.0, 1.0)

    weight = _Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return -lambda/2 I(p_sigma)."""
        return -self._lambda(sigma) / 2 * fisher_information


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
