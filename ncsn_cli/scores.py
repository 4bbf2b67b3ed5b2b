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


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Pydantic's rules for every constructor; by default it accepts unknown keys, nan and True."""

Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of steps or the size of an array: torch counts in 64 bits, and more never ends."""

Modes = Annotated[int, Field(gt=0, le=10_000)]
"""A number of modes, each of which is written out."""


def random_stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for ``seed`` and ``name``; those of different names are independent."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


class Dataset(ABC):
    """A distribution p on R^D known exactly, with every p_sigma = p * N(0, sigma^2 I).

    Moments and densities are float64 or, where points are given, like the points.

    Args:
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    dim: int

    def __init__(self, num_samples: int | None, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x], (D,)."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[x], (D, D)."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Weights of the K modes, (K,)."""

    @property
    @abstractmethod
    def modes(self) -> Tensor:
        """Centres of the modes, (K, D)."""

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

    @abstractmethod
    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Independent draws from p_sigma, (num, D), float32, on the generator's device."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Grad log p_sigma(x), (B, D), units 1/length; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """P(mode | x) at level sigma, (B, K)."""

    @abstractmethod
    def fisher_information(self, sigma: float) -> float:
        """I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2."""

    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Cov[x] + sigma^2 I under p_sigma, (D, D), float64."""
        return self.covariance + sigma**2 * torch.eye(self.dim).double()

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """P(X <= x) under p_sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """E[max(x - X, 0)] under p_sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def training_set(self) -> Tensor | None:
        """The ``num_samples`` points (N, D) of the training set on the CPU; None if endless."""
        if self.num_samples is None:
            return None
        return self.sample(self.num_samples, generator=random_stream(self.seed, "training set"))
