"""Noise levels sigma_1 > ... > sigma_L, always descending, in data units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.scores import STRICT

__all__ = ["Geometric", "Single"]


class Schedule(ABC):
    """A ladder of noise levels."""

    @property
    @abstractmethod
    def sigmas(self) -> Tensor:
        """Standard deviations (L,), descending, float64: sigmas[0] = sigma_max."""


@dataclass(frozen=True, config=STRICT)
class Geometric(Schedule):
    """sigma_i = sigma_max (sigma_min/sigma_max)^((i-1)/(L-1)), i = 1, ..., L.

    Source: Song & Ermon (2019), arXiv:1907.05600, section 4.1.

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, at most ``sigma_max``.
        num_levels: L >= 2.
    """

    sigma_max: PositiveFloat
    sigma_min: PositiveFloat
    num_levels: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Geometric:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g})"
            )
        if self.num_levels < 2:
            raise ValueError("num_levels must be at least 2; schedule=single has one level")
        return self

    @cached_property
    def sigmas(self) -> Tensor:
        """Standard deviations (L,), descending, float64."""
        exponents = torch.linspace(0, 1, self.num_levels, dtype=torch.float64)
        sigmas = self.sigma_max * (self.sigma_min / self.sigma_max) ** exponents
        sigmas[-1] = self.sigma_min
        return sigmas


@dataclass(frozen=True, config=STRICT)
class Single(Schedule):
    """One level, L = 1.

    Args:
        sigma: Its standard deviation, >= 0, data units; 0 is the data itself.
    """

    sigma: NonNegativeFloat

    @cached_property
    def sigmas(self) -> Tensor:
        """The level, (1,), float64."""
        return torch.tensor([self.sigma], dtype=torch.float64)
