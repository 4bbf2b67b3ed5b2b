"""What every module shares: the score's interface, datasets, strict settings, random streams.

Shapes: B points, D dimensions, K mixture components, L noise levels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from ncsn_cli.expectation import (
    Draws,
    FisherInformation,
    ModeMoments,
    fisher_by_draws,
    moments_by_draws,
    nearest_centre,
)

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(x, sigma)``: grad_x log p_sigma(x), units 1/length; x (B, D), sigma () or (B,).

The exact mixture and the network share it, so each sampler, metric and plot takes either.
"""


def at_level(score: Score, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """X (B, D) -> ``score(x, sigma)`` for one sigma (), valid until the next evaluation.

    Without gradients it is the score's own method ``at_level(sigma)``, where it has one.
    """
    for kind in () if torch.is_grad_enabled() else type(score).__mro__:
        if "at_level" in vars(kind):
            quick: Callable[[Tensor], Tensor] = vars(kind)["at_level"](score, sigma)
            return quick
        if "forward" in vars(kind):  # a method inherited from beyond knows nothing of this one
            break
    return lambda x: score(x, sigma)


def derivative_along(v: Tensor, score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """S and (grad s) v, both (B, D), in one forward differentiation; ``v`` and ``x`` (B, D)."""
    result: Any = torch.func.jvp(lambda points: score(points, sigma), (x,), (v,))
    return result[0], result[1]


def score_and_jacobian(score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """S (B, D) and d_j s_i (B, i, j), by forward differentiation along each axis."""
    columns = []
    for axis in range(x.shape[-1]):
        tangent = torch.zeros_like(x)
        tangent[:, axis] = 1
        s, along = derivative_along(tangent, score, x, sigma)
        columns.append(along)
    return s, torch.stack(columns, dim=-1)


def detached_jacobian(score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return s (B, D) and d_j s_i (B, i, j), where nothing differentiates them again.

    By D backward differentiations: of networks they take a third of the time of forward ones.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, sigma)
        rows = [
            torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)[0]
            for value in s.sum(0)  # (D,): each point's score depends on that point alone
        ]
    return s.detach(), torch.stack(rows, dim=1)


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Pydantic's rules for every constructor; by default it accepts unknown keys, nan and True."""

Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of steps or the size of an array: torch counts in 64 bits, and more never ends."""

NUM_DRAWS = 200_000
"""Exact draws behind a number without a closed form, whose error it reports."""

Modes = Annotated[int, Field(gt=0, le=10_000)]
"""A number of modes, each of which is written out."""


def random_stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for ``seed`` and ``name``; those of different names are independent."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


class Law(ABC):
    """What samples are measured against: a distribution for every level sigma.

    ``Dataset`` is one, and so are its draws after a denoising step. Moments are float64.
    """

    dim: int

    @property
    def origin(self) -> Tensor:
        """What is to be added to this law's coordinates for data units, (D,), float64.

        It is 0, but for what ``Dataset.centred`` returns.
        """
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x], (D,), at every level."""

    @property
    @abstractmethod
    def modes(self) -> Tensor:
        """Centres of the modes, (K, D)."""

    @abstractmethod
    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws at level sigma, (num, D), float32, on its device."""

    @abstractmethod
    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Return Cov[x] at level sigma, (D, D)."""

    def covariance_error(self, sigma: float) -> Tensor:
        """Return the standard errors of ``perturbed_covariance``, (D, D)."""
        return torch.zeros(self.dim, self.dim, dtype=torch.float64)

    @abstractmethod
    def strata(self, num: int, sigma: float, generator: torch.Generator) -> Draws:
        """Return draws from each part of the law, ``num`` in all or a few more."""

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return shares and moments of the points nearest to each mode at level sigma."""
        stream = random_stream(0, "mode moments")
        return moments_by_draws(self.modes, self.strata(NUM_DRAWS, sigma, stream))

    def nearest_mode(self, x: Tensor) -> Tensor:
        """Return the mode whose centre is nearest to each of the points (B, D), (B,)."""
        return nearest_centre(x, self.modes)

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return P(X <= x) at level sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return E[max(x - X, 0)] at level sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def projected_cdf(self, direction: Tensor, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Return nodes (G,) that resolve the law of <v, x>, and P(<v, x> <= node) (G,).

        None where it has no closed form. ``direction`` is v (D,), float64.
        """
        return None


class Dataset(Law):
    """A distribution p on R^D known exactly, with every p_sigma = p * N(0, sigma^2 I).

    Moments and densities are float64 or, where points are given, like the points.

    Args:
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    def __init__(self, num_samples: int | None, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    @property
    def truth(self) -> Dataset:
        """The distribution that numbers are measured against.

        It is the dataset itself, but for one whose ``score`` is a mistake on purpose.
        """
        return self

    def centred(self) -> Dataset:
        """Return this distribution in coordinates around its mean, which ``origin`` then is.

        So float32 resolves the data however far from 0 they are. A subclass that cannot move
        returns itself.
        """
        return self

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[x], (D, D)."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Weights of the K modes, (K,)."""

    @property
    def num_components(self) -> int:
        """Terms of the density, for the memory and time that they ask."""
        return len(self.weights)

    @property
    @abstractmethod
    def extent(self) -> tuple[Tensor, Tensor]:
        """The box that pictures show: lower and upper corner, (D,)."""

    @property
    @abstractmethod
    def smallest_std(self) -> float:
        """Standard deviation of the narrowest component along its narrowest axis, data units.

        0 for a point.
        """

    @abstractmethod
    def has_density(self, sigma: float) -> bool:
        """Whether p_sigma has one, and so a score."""

    def strata(self, num: int, sigma: float, generator: torch.Generator) -> Draws:
        """Return ``num`` draws from p_sigma as one part, whose probability is 1."""
        x = self.sample(num, sigma=sigma, generator=generator).double()
        return Draws(x.new_ones(1), torch.zeros(num, dtype=torch.int64, device=x.device), x)

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Grad log p_sigma(x), (B, D), units 1/length; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """P(mode | x) at level sigma, (B, K)."""

    def fisher(self, sigma: float) -> FisherInformation:
        """Return the Fisher information E[s s^T] of p_sigma and its standard error.

        From draws, where a subclass has no better way.
        """
        stream = random_stream(0, "fisher")

        def squares(_: Tensor, x: Tensor) -> Tensor:
            score = self.score(x, sigma)
            return score[:, :, None] * score[:, None]  # (n, D, D)

        return fisher_by_draws(
            lambda num: self.strata(num, sigma, stream),
            squares,
            num_terms=self.num_components * self.dim**2,
            known=torch.zeros(self.dim, self.dim, dtype=torch.float64),
        )

    def fisher_information(self, sigma: float) -> float:
        """Return I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2."""
        return float(self.fisher(sigma).matrix.trace())

    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Return Cov[x] + sigma^2 I, the covariance of p_sigma, (D, D), float64."""
        return self.covariance + sigma**2 * torch.eye(self.dim).double()

    def training_set(self) -> Tensor | None:
        """The ``num_samples`` points (N, D) of the training set on the CPU; None if endless."""
        if self.num_samples is None:
            return None
        return self.sample(self.num_samples, generator=random_stream(self.seed, "training set"))
