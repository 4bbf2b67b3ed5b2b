"""Noise levels sigma_1 > ... > sigma_L, always descending, in data units, and how to choose them.

Techniques 1 and 2 are those of Song & Ermon (2020), arXiv:2006.09011, section 3.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.core.settings import STRICT

__all__ = ["FromData", "Geometric", "Karras", "Linear", "Listed", "Single"]

log = logging.getLogger(__name__)

POINTS_FOR_TECHNIQUE_1 = 10_000

_LEAST_OVERLAP = 0.1  # of neighbouring levels: with less, few chains are typical of the next


class Schedule:
    """A ladder of noise levels.

    To write your own, set ``sigmas`` in ``__init__``, or make it a property. A list, a numpy array
    and a tensor will do: ``checked_levels`` makes a tensor of them.

    Attributes:
        sigmas: Standard deviations (L,), strictly descending, float64, data units:
            sigmas[0] = sigma_max. All are > 0, except that a single level may be 0.
    """

    sigmas: Tensor


def checked_levels(schedule: Schedule) -> Schedule:
    """Return the levels of ``schedule`` as a tensor, if they are levels.

    Raises:
        ConfigError: If they are not finite numbers > 0 (or a single 0), strictly descending.
    """
    name = type(schedule).__name__
    try:
        given = schedule.sigmas
    except Exception as error:  # of a property of the user's own
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError(f"schedule: {name}.sigmas failed: {reason}") from error
    try:
        # Numpy first: torch takes no array that was reversed by [::-1].
        numbers = given if isinstance(given, Tensor) else np.array(given, dtype=np.float64)
        sigmas = torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        sigmas = torch.empty(0, 0)
    if sigmas.ndim != 1 or len(sigmas) == 0:
        shape = one_line(repr(given), 80)
        raise ConfigError(f"schedule: {name}.sigmas should be a list of numbers, got {shape}")
    values = sigmas.tolist()
    if wrong := _why_no_levels(values):
        raise ConfigError(f"schedule: {name}.sigmas{wrong}")
    return schedule if given is sigmas else Listed(values)


def _why_no_levels(values: list[float]) -> str | None:
    """Return which of the ``values`` cannot be a level, and why; None if all can."""
    for i, sigma in enumerate(values):
        if not math.isfinite(sigma) or sigma < 0 or (sigma == 0 and len(values) > 1):
            return f".{i} should be finite and above 0 (a single level may be 0), got {sigma:g}"
        if i > 0 and sigma >= values[i - 1]:
            return f".{i} should descend from the level before, {values[i - 1]:g}, got {sigma:g}"
    return None if values else " should hold a level"


@dataclass(frozen=True, config=STRICT)
class Listed(Schedule):
    """Levels one by one, such as those that ``sampler.fit_levels`` found.

    Args:
        levels: Standard deviations, strictly descending, > 0 (a single level may be 0), data
            units.
    """

    levels: list[float] = field(default_factory=lambda: [10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1])

    @model_validator(mode="after")
    def _check(self) -> Self:
        if reason := _why_no_levels(self.levels):
            raise ValueError(f"levels{reason}")
        return self

    @cached_property
    def sigmas(self) -> Tensor:  # type: ignore[override]  # computed once, from the fields
        """The levels (L,), float64."""
        return torch.tensor(self.levels, dtype=torch.float64)


@dataclass(frozen=True, config=STRICT)
class _Ladder(Schedule, ABC):
    """Levels from ``sigma_max`` down to ``sigma_min``; a subclass spaces them.

    Args:
        sigma_max: The first, largest level, > 0, data units.
        sigma_min: The last, smallest level, > 0, below ``sigma_max``.
        num_levels: L >= 2.
    """

    sigma_max: PositiveFloat = 10.0
    sigma_min: PositiveFloat = 0.1
    num_levels: Annotated[int, Field(gt=0, le=10_000)] = 20

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g})"
            )
        if self.num_levels < 2:
            raise ValueError("num_levels must be at least 2; schedule=single has one level")
        middle = float(self._space(torch.tensor([0.5], dtype=torch.float64)))
        if not self.sigma_min * (1 - 1e-6) <= middle <= self.sigma_max * (1 + 1e-6):
            raise ValueError(f"the middle level would be {middle:g}: take less extreme values")
        return self

    @abstractmethod
    def _space(self, fractions: Tensor) -> Tensor:
        """Return levels (L,) at ``fractions`` (L,): 0 is at sigma_max and 1 at sigma_min."""

    @cached_property
    def sigmas(self) -> Tensor:  # type: ignore[override]  # computed once, from the fields
        """Standard deviations (L,), descending, float64."""
        sigmas = self._space(torch.linspace(0, 1, self.num_levels, dtype=torch.float64))
        sigmas[0], sigmas[-1] = self.sigma_max, self.sigma_min
        return sigmas


@dataclass(frozen=True, config=STRICT)
class Geometric(_Ladder):
    """sigma_i = sigma_max (sigma_min/sigma_max)^t, t = (i-1)/(L-1): equal ratios.

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

    rho: PositiveFloat = 7.0

    def _space(self, fractions: Tensor) -> Tensor:
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64)
        first, last = ends ** (1 / self.rho)  # inf or 0 for extreme values
        return (first + fractions * (last - first)) ** self.rho


@dataclass(frozen=True, config=STRICT)
class Single(Schedule):
    """One level, L = 1.

    Args:
        sigma: Its standard deviation, >= 0, data units; 0 is the data itself.
    """

    sigma: NonNegativeFloat = 0.0

    @cached_property
    def sigmas(self) -> Tensor:  # type: ignore[override]  # computed once, from the fields
        """The level, (1,), float64."""
        return torch.tensor([self.sigma], dtype=torch.float64)


@dataclass(frozen=True, config=STRICT)
class FromData:
    """The geometric levels that Techniques 1 and 2 find for a training set.

    sigma_max is the largest distance between two training points; the ratio of neighbouring
    levels is ``level_ratio``, reduced so that the levels end at ``sigma_min``.

    Args:
        sigma_min: The last, smallest level, > 0, data units; choose it small compared with the
            data's detail.
    """

    sigma_min: PositiveFloat = 0.1

    def fit(self, data: Tensor) -> Geometric:
        """Return the levels for the points ``data`` (N, D).

        Raises:
            ConfigError: If no two points are farther apart than ``sigma_min``.
        """
        sigma_max, dim = technique_1(data), data.shape[-1]
        if sigma_max <= self.sigma_min:
            raise ConfigError(
                f"sigma_min: it should be below the largest distance between training points,"
                f" {sigma_max:.3g}, got {self.sigma_min:g}"
            )
        ratio = level_ratio(dim)
        if ratio != technique_2_ratio(dim):
            log.warning(
                "schedule=from_data: Technique 2 has no %ssolution for D = %d (it is meant for"
                " large D), so neighbouring levels overlap by half instead",
                "" if technique_2_ratio(dim) is None else "useful ", dim,
            )  # fmt: skip
        num_levels = num_levels_between(sigma_max, self.sigma_min, ratio)
        log.info(
            "schedule=from_data: sigma_max = %.4g, the largest distance between %d points;"
            " sigma_min = %g; %d levels with a ratio of at most %.3f (%s)",
            sigma_max, min(len(data), POINTS_FOR_TECHNIQUE_1), self.sigma_min, num_levels, ratio,
            describe_ratios(dim),
        )  # fmt: skip
        return Geometric(sigma_max, self.sigma_min, num_levels)


def technique_1(data: Tensor) -> float:
    """Return the sigma_max of Technique 1: the largest distance between two points of ``data``.

    ``data`` is (N, D); only the first 10 000 points are used.
    """
    points = data[:POINTS_FOR_TECHNIQUE_1].double()
    points = points - points.mean(0)
    radii = points.norm(dim=1)
    lower = (points - points[radii.argmax()]).norm(dim=1).max()
    # Two points at a distance of ``lower`` or more both lie at least this far from the centre.
    points = points[radii >= (lower - radii.max()) * (1 - 1e-9)]
    return max(float(torch.cdist(part, points).max()) for part in points.split(1000))


def technique_2(ratio: float, dim: int) -> float:
    """Return C = Phi(sqrt(2D)(gamma-1) + 3 gamma) - Phi(sqrt(2D)(gamma-1) - 3 gamma).

    Technique 2 asks that C be near 1/2. C is the probability that the norm of a draw from
    N(0, sigma_i^2 I) lies within three standard deviations of the norms of draws from
    N(0, sigma_{i-1}^2 I), where gamma = ``ratio`` = sigma_{i-1}/sigma_i > 1. It uses the Gaussian
    approximation of the norm, which holds for large D = ``dim``. For D <= 4, C is never below .99.
    """
    shift = math.sqrt(2 * dim) * (ratio - 1)
    low, high = ((shift + side * ratio) / math.sqrt(2) for side in (-3, 3))
    return (math.erfc(low) - math.erfc(high)) / 2


def overlap(ratio: float, dim: int) -> float:
    """Return the integral of min(N(x; 0, I), N(x; 0, gamma^2 I)) over R^D, gamma = ``ratio`` > 1.

    The densities cross where ||x||^2 = r^2 = 2 D ln(gamma)/(1 - gamma^-2). Inside, the density of
    the wider Gaussian is smaller; outside, that of the narrower one.
    """
    crossing = 2 * dim * math.log(ratio) / (1 - ratio**-2)
    half, inner, outer = (
        torch.tensor([dim, crossing / ratio**2, crossing], dtype=torch.float64) / 2
    )
    return float(torch.special.gammainc(half, inner) + torch.special.gammaincc(half, outer))


def level_ratio(dim: int) -> float:
    """Return the largest ratio gamma of neighbouring levels that is advised for D = ``dim``.

    From D = 148 on it is Technique 2's ratio: there the Gaussians of two such levels overlap by a
    tenth or more. For smaller D they hardly overlap, or Technique 2 has no solution. The ratio is
    then the one at which they overlap by half.
    """
    ratio = technique_2_ratio(dim)
    is_useful = ratio is not None and overlap(ratio, dim) >= _LEAST_OVERLAP
    return ratio if ratio is not None and is_useful else half_overlap_ratio(dim)


def technique_2_ratio(dim: int) -> float | None:
    """Return the gamma at which ``technique_2`` is 1/2; None for D <= 4, where there is none.

    For D = 5, 10, 150 it is 19.5, 3.04, 1.21, where ``overlap`` is .0001, .018, .1002.
    """
    return None if dim <= 4 else _where_half(technique_2, dim)


def half_overlap_ratio(dim: int) -> float:
    """Return the gamma at which ``overlap`` is 1/2: 3.133, 2.098, 1.798, 1.649 for D = 1 to 4."""
    return _where_half(overlap, dim)


def _where_half(rule: Callable[[float, int], float], dim: int) -> float:
    """Return the ratio at which ``rule``, which falls with the ratio, is 1/2, by bisection."""
    low, high = 1 + 1e-9, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rule(middle, dim) > 0.5 else (low, middle)
    return high


def describe_ratios(dim: int) -> str:
    """Return a text with both ratios that could be advised for D = ``dim``."""
    ratio, half = technique_2_ratio(dim), half_overlap_ratio(dim)
    probability = "none" if ratio is None else f"{ratio:.3f}, of overlap {overlap(ratio, dim):.2g}"
    return f"overlap 1/2: {half:.3f}; probability 1/2: {probability}"


def num_levels_between(sigma_max: float, sigma_min: float, ratio: float) -> int:
    """Return the smallest L for which L geometric levels have a ratio of at most ``ratio``."""
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(ratio))
