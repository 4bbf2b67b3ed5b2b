"""Distributions of the points where chains start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.gaussian import Gaussian
from ncsn_cli.core.settings import STRICT

__all__ = ["Data", "Normal", "Prior", "Uniform"]


class Init(ABC):
    """The distribution of the points where chains start.

    To write your own, implement ``__call__``, or write a function with the same arguments.
    """

    @abstractmethod
    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""


@dataclass(frozen=True, config=STRICT)
class Normal(Init):
    """N(mean (1, ..., 1), std^2 I).

    Args:
        std: > 0, data units.
        mean: The mean of every coordinate, data units.
    """

    std: PositiveFloat = 1.0
    mean: float = 0.0

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        z = torch.randn(num, truth.dim, generator=generator, device=generator.device)
        return self.mean + self.std * z


@dataclass(frozen=True, config=STRICT)
class Uniform(Init):
    """Uniform on the cube [low, high]^D.

    Args:
        low: Lower bound, data units.
        high: Upper bound, above ``low``.
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
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, config=STRICT)
class Prior(Init):
    """The Gaussian N(E[x], Cov[x] + sigma_max^2 I) with the moments of p_sigma_max itself.

    A zero-mean prior, which is usual for the variance-exploding process, biases the mode weights
    unless sigma_max is far larger than the data.
    """

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Return initial points (num, D), float32, on the generator's device."""
        covariance = truth.perturbed_covariance(sigma_max)
        return Gaussian(truth.mean, covariance).sample(num, generator)


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
