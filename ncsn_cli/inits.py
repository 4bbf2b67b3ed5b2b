"""Distributions of the points where chains start."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.quasirandom import SobolEngine

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.gaussian import Gaussian
from ncsn_cli.core.settings import STRICT, random_stream

__all__ = ["Data", "Normal", "Prior", "Uniform"]


_STDS = 7.0  # a box reaches so far: 3e-12 of a Gaussian lies outside, per axis


@dataclasses.dataclass(frozen=True)
class StartLaw:
    """The law of the points where chains start, for those who need its density.

    Args:
        log_prob: The log-density, from (B, D) to (B,), nats.
        low: Lower corner of a box that holds the mass, (D,), float64.
        high: Upper corner, (D,).
        scale: The shortest length over which the density changes, data units.
        has_edges: Whether there is nothing at all outside of the box.
        whiten: For a Gaussian, from its draws to the z ~ N(0, I) that they are made of, (B, D).
    """

    log_prob: Callable[[Tensor], Tensor]
    low: Tensor
    high: Tensor
    scale: float
    has_edges: bool = False
    whiten: Callable[[Tensor], Tensor] | None = None

    def around(self, origin: Tensor) -> StartLaw:
        """Return this law in coordinates around ``origin`` (D,)."""
        whiten = self.whiten
        return dataclasses.replace(
            self,
            log_prob=lambda x: self.log_prob(x + origin.to(x)),
            low=self.low - origin,
            high=self.high - origin,
            whiten=None if whiten is None else lambda x: whiten(x + origin.to(x)),
        )


class Init(ABC):
    """The distribution of the points where chains start.

    To write your own, implement ``__call__``, or write a function with the same arguments.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Take the inherited ``law`` from a subclass that draws its points in another way."""
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls) and "law" not in vars(cls):
            cls.law = Init.law  # type: ignore[method-assign]

    @abstractmethod
    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""

    def law(self, truth: Dataset, sigma_max: float) -> StartLaw | None:
        """Return the law of these points; None if its density is not known."""
        return None


@dataclass(frozen=True, config=STRICT)
class Transformed(Init):
    """Points x = T(u), with u uniform on the unit cube (0, 1)^D, one x for each u.

    With ``quasi_random`` the u of all chains are a scrambled Sobol sequence: each u is uniform,
    but they avoid one another, so that means over the samples err less. They are not independent,
    whereas noise floors and bands are those of independent draws: such samples of a perfect
    sampler often lie below the floor. A chain's u depends on the seed and on its position alone.

    Source: Joe & Kuo (2008), doi:10.1137/070709359 (the directions); Matousek (1998),
    doi:10.1006/jcom.1998.0489 (a random linear scramble and a digital shift).

    Args:
        quasi_random: Whether the chains start at scrambled Sobol points, which cover space more
            evenly than independent draws.
    """

    quasi_random: bool = field(default=False, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Take the inherited ``transformed`` from a subclass that draws its points itself."""
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls) and "transformed" not in vars(cls):
            cls.transformed = _not_transformed  # type: ignore[assignment, method-assign]

    @abstractmethod
    def transformed(self, u: Tensor, truth: Dataset, sigma_max: float) -> Tensor:
        """Return the points T(u), both (num, D), float64."""

    def quasi(self, num: int, first: int, truth: Dataset, sigma_max: float, seed: int) -> Tensor:
        """Return the points (num, D) of the chains ``first``, ``first + 1``, ..., float32."""
        if truth.dim > SobolEngine.MAXDIM:
            raise ConfigError(f"init.quasi_random: there are {SobolEngine.MAXDIM} dimensions only")
        numbers = random_stream(seed, "quasi-random start").initial_seed() % 2**63
        sequence = SobolEngine(truth.dim, scramble=True, seed=numbers).fast_forward(first)
        # Its numbers are k / 2^30, the first ones rounded: from the middles, and never 0 or 1.
        u = (sequence.draw(num, dtype=torch.float64) + 2.0**-31).clamp(max=1 - 2.0**-31)
        return self.transformed(u, truth, sigma_max).float()


def _not_transformed(init: Transformed, u: Tensor, truth: Dataset, sigma_max: float) -> Tensor:
    raise ConfigError(
        f"init.quasi_random: {type(init).__name__} draws its points itself; give it a method"
        " transformed(u, truth, sigma_max), too"
    )


@dataclass(frozen=True, config=STRICT)
class Normal(Transformed):
    """N(mean (1, ..., 1), std^2 I).

    Args:
        std: > 0, data units.
        mean: The mean of every coordinate, data units.
        quasi_random: See ``Transformed``.
    """

    std: PositiveFloat = 1.0
    mean: float = 0.0

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        z = torch.randn(num, truth.dim, generator=generator, device=generator.device)
        return self.mean + self.std * z

    def transformed(self, u: Tensor, truth: Dataset, sigma_max: float) -> Tensor:
        """Return mean + std z with z ~ N(0, I), both (num, D)."""
        return self.mean + self.std * torch.special.ndtri(u)

    def law(self, truth: Dataset, sigma_max: float) -> StartLaw:
        """Return the law of these points."""
        mean = torch.full((truth.dim,), self.mean, dtype=torch.float64)
        return _gaussian_law(mean, self.std**2 * torch.eye(truth.dim, dtype=torch.float64))


@dataclass(frozen=True, config=STRICT)
class Uniform(Transformed):
    """Uniform on the cube [low, high]^D.

    Args:
        low: Lower bound, data units.
        high: Upper bound, above ``low``.
        quasi_random: See ``Transformed``.
    """

    low: float = -8.0
    high: float = 8.0

    @model_validator(mode="after")
    def _check(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        u = torch.rand(num, truth.dim, generator=generator, device=generator.device)
        return self.transformed(u, truth, sigma_max)

    def transformed(self, u: Tensor, truth: Dataset, sigma_max: float) -> Tensor:
        """Return low + (high - low) u, both (num, D)."""
        return self.low + (self.high - self.low) * u

    def law(self, truth: Dataset, sigma_max: float) -> StartLaw:
        """Return the law of these points, whose density jumps at the edges of the cube."""
        length = self.high - self.low
        middle = (self.high + self.low) / 2
        half = (1 + 1e-9) * length / 2  # an edge is inside, though rounded

        def log_prob(x: Tensor) -> Tensor:
            is_inside = ((x - middle).abs() <= half).all(-1)
            inside = x.new_full((len(x),), -truth.dim * math.log(length))
            return inside.masked_fill(~is_inside, -math.inf)

        low, high = (
            torch.full((truth.dim,), end, dtype=torch.float64) for end in (self.low, self.high)
        )
        return StartLaw(log_prob, low, high, length, has_edges=True)


@dataclass(frozen=True, config=STRICT)
class Prior(Transformed):
    """The Gaussian N(E[x], Cov[x] + sigma_max^2 I) with the moments of p_sigma_max itself.

    A zero-mean prior, which is usual for the variance-exploding process, biases the mode weights
    unless sigma_max is far larger than the data.

    Args:
        quasi_random: See ``Transformed``.
    """

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        return self._gaussian(truth, sigma_max).sample(num, generator)

    def transformed(self, u: Tensor, truth: Dataset, sigma_max: float) -> Tensor:
        """Return draws of this Gaussian made of z ~ N(0, I), both (num, D)."""
        return self._gaussian(truth, sigma_max).transformed(torch.special.ndtri(u))

    def _gaussian(self, truth: Dataset, sigma_max: float) -> Gaussian:
        return Gaussian(truth.mean, truth.perturbed_covariance(sigma_max))

    def law(self, truth: Dataset, sigma_max: float) -> StartLaw:
        """Return the law of these points."""
        return _gaussian_law(truth.mean, truth.perturbed_covariance(sigma_max))


@dataclass(frozen=True, config=STRICT)
class Data(Init):
    """Exact draws from p_sigma, the ideal start.

    Args:
        sigma: >= 0, data units; null takes the schedule's sigma_max.
    """

    sigma: Annotated[float, Field(ge=0)] | None = None

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        sigma = sigma_max if self.sigma is None else self.sigma
        return truth.sample(num, sigma=sigma, generator=generator)

    def law(self, truth: Dataset, sigma_max: float) -> StartLaw | None:
        """Return p_sigma; None if it has no density, or if the density is not known."""
        sigma = sigma_max if self.sigma is None else self.sigma
        if not truth.is_known or truth.smallest_std is None or not truth.has_density(sigma):
            return None
        low, high = box_of(truth, sigma)
        scale = math.hypot(truth.smallest_std, sigma)
        return StartLaw(partial(truth.log_prob, sigma=sigma), low, high, scale)


def box_of(truth: Dataset, sigma: float, stds: float = _STDS) -> tuple[Tensor, Tensor]:
    """Return the corners (D,) of a box that reaches ``stds`` standard deviations past the modes.

    The standard deviations are those of the whole of p_sigma, along each axis.
    """
    margin = stds * truth.perturbed_covariance(sigma).diagonal().sqrt()
    return truth.modes.amin(0) - margin, truth.modes.amax(0) + margin


def _gaussian_law(mean: Tensor, covariance: Tensor) -> StartLaw:
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0)  # ascending
    margin = _STDS * covariance.diagonal().sqrt()
    law, scale = Gaussian(mean, covariance), float(variances[0].sqrt())
    return StartLaw(law.log_prob, mean - margin, mean + margin, scale, whiten=law.whiten)
