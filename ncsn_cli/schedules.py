"""Noise levels sigma_1 > ... > sigma_L, always descending, in data units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.scores import STRICT

__all__ = ["Geometric", "Karras", "Linear", "Single"]


class Schedule(ABC):
    """A ladder of noise levels."""

    @property
    @abstractmethod
    def sigmas(self) -> Tensor:
        """Standard deviations (L,), descending, float64: sigmas[0] = sigma_max."""


@dataclass(frozen=True, config=STRICT)
class _Ladder(Schedule):
    """Levels from ``sigma_max`` down to ``sigma_min``; a subclass spaces them.

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, below ``sigma_max``.
        num_levels: L >= 2.
    """

    sigma_max: PositiveFloat
    sigma_min: PositiveFloat
    num_levels: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g})"
            )
        if self.num_levels < 2:
            raise ValueError("num_levels must be at least 2; schedule=single has one level")
        return self

    @abstractmethod
    def _space(self, fractions: Tensor) -> Tensor:
        """Levels (L,) at ``fractions`` (L,) of the way, 0 at sigma_max and 1 at sigma_min."""

    @cached_property
    def sigmas(self) -> Tensor:
        """Standard deviations (L,), descending, float64."""
        sigmas = self._space(torch.linspace(0, 1, self.num_levels, dtype=torch.float64))
        sigmas[0], sigmas[-1] = self.sigma_max, self.sigma_min
        return sigmas


@dataclass(frozen=True, config=STRICT)
class Geometric(_Ladder):
    """sigma_i = sigma_max (sigma_min/sigma_max)^t, t = (i-1)/(L-1): one ratio between levels.

    Source: Song & Ermon (2019), arXiv:1907.05600, section 4.1.

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, below ``sigma_max``.
        num_levels: L >= 2.
    """

    def _space(self, fractions: Tensor) -> Tensor:
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** fractions


@dataclass(frozen=True, config=STRICT)
class Linear(_Ladder):
    """sigma_i = sigma_max + t (sigma_min - sigma_max), t = (i-1)/(L-1): equal steps.

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, below ``sigma_max``.
        num_levels: L >= 2.
    """

    def _space(self, fractions: Tensor) -> Tensor:
        return self.sigma_max + fractions * (self.sigma_min - self.sigma_max)


@dataclass(frozen=True, config=STRICT)
class Karras(_Ladder):
    """sigma_i = (sigma_max^(1/rho) + t (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    t = (i-1)/(L-1). rho = 1 is linear, large rho nearly geometric.

    Source: Karras et al. (2022), arXiv:2206.00364, eq. 5 (without its last level 0).

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, below ``sigma_max``.
        num_levels: L >= 2.
        rho: > 0; the paper's is 7.
    """

    rho: PositiveFloat

    def _space(self, fractions: Tensor) -> Tensor:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (first + fractions * (last - first)) ** self.rho


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
