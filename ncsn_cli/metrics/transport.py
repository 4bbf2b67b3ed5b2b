"""Wasserstein distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.expectation import distances
from ncsn_cli.core.settings import STRICT, Count, random_stream
from ncsn_cli.metrics.base import Distance, SampleMetric, random_subset
from ncsn_cli.metrics.binomial import mean_absolute_deviation, mean_absolute_difference

_MOST_PROJECTIONS = 20_000_000  # projected points at a time: arrays of 160 MB
_MOST_QUANTILES = 100_000  # computed for all sets of samples at once, by 64 bisections
_MOST_AT_A_TIME = 1_000_000  # points at which F is computed; limits memory


@dataclass(frozen=True, config=STRICT)
class Wasserstein(SampleMetric):
    """The 1-Wasserstein distance W1 (Euclidean cost), data units.

    D = 1: exact against the true distribution function F, where it is known,

        W1 = integral |F_n(x) - F(x)| dx,

    where F_n is the distribution function of the n samples. For exact draws, the mean of W1 is
    integral MAD(n, F(x)) dx/n, where MAD is the mean absolute deviation of the binomial law. Where
    F is not known, W1 between the samples and as many exact draws, both sorted.

    D >= 2: by optimal assignment between ``max_points`` of the samples, chosen at random, and as
    many exact draws. Both sides are then random, so the noise floor is higher.

    Args:
        max_points: For D >= 2, use at most this many samples; the cost grows with the cube.
    """

    max_points: Count = 500

    floor_draws: ClassVar[int] = 10_000

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes W1 for ``num`` samples."""
        if truth.dim == 1:
            return (_wasserstein_1d if truth.has_cdf else _between_draws)(truth, sigma, num)
        from scipy.optimize import linear_sum_assignment  # here: scipy is slow to import

        num = self.num_points(num, truth.dim)

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            exact = truth.sample(num, sigma=sigma, generator=generator)
            cost = distances(
                random_subset(samples, num).cpu().double(), exact.cpu().double()
            ).numpy()
            return float(cost[linear_sum_assignment(cost)].mean())

        return distance

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return the mean W1 of ``num`` exact draws for D = 1; None if no formula gives it."""
        found = truth.projected_cdf(torch.ones(1).double(), sigma) if truth.dim == 1 else None
        if found is None:
            return None
        nodes, rises = (values.numpy() for values in found)
        return float(np.trapezoid(mean_absolute_deviation(num, rises), nodes)) / num

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return the number of samples that are compared."""
        return {"num_points": self.num_points(len(samples), truth.dim)}

    def num_points(self, num: int, dim: int) -> int:
        """Return how many of ``num`` samples are compared: for D = 1, all."""
        return num if dim == 1 else min(num, self.max_points)


def _wasserstein_1d(truth: Law, sigma: float, num: int) -> Distance:
    # Between neighbouring sorted samples, F_n is a constant c = i/num, and F - c changes sign at
    # F^-1(c).
    levels = torch.arange(1, num, dtype=torch.float64) / num  # (num - 1,)
    quantiles = _quantiles(truth, sigma, levels) if num <= _MOST_QUANTILES else None

    def at(function: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part, sigma) for part in x.split(_MOST_AT_A_TIME)])

    def crossings(x: Tensor) -> Tensor:
        """Return where F - c changes sign between neighbours, or the nearer one, (num - 1,)."""
        if quantiles is not None:
            return quantiles.clamp(x[:-1], x[1:])
        found, rises = x[:-1].clone(), at(truth.cdf, x)
        found[rises[1:] <= levels] = x[1:][rises[1:] <= levels]
        inside = (rises[:-1] < levels) & (levels < rises[1:])  # about sqrt(num) of num
        found[inside] = _quantiles(truth, sigma, levels[inside])
        return found.clamp(x[:-1], x[1:])

    def distance(samples: Tensor, generator: torch.Generator) -> float:
        x = torch.from_numpy(np.sort(samples[:, 0].double().cpu().numpy()))  # (num,)
        area = at(truth.integrated_cdf, x)  # integral of F up to x
        tails = area[0] + area[-1] - x[-1] + truth.mean[0]  # integrals: F below x, 1 - F above x
        crossing = crossings(x)
        area_crossing = at(truth.integrated_cdf, crossing)
        below = levels * (crossing - x[:-1]) - (area_crossing - area[:-1])
        above = (area[1:] - area_crossing) - levels * (x[1:] - crossing)
        return float(tails + (below + above).sum())

    return distance


def _between_draws(truth: Law, sigma: float, num: int) -> Distance:
    def distance(samples: Tensor, generator: torch.Generator) -> float:
        exact = truth.sample(num, sigma=sigma, generator=generator)
        x, y = (points[:, 0].double().cpu().sort().values for points in (samples, exact))
        return float((x - y).abs().mean())

    return distance


def _quantiles(truth: Law, sigma: float, probabilities: Tensor) -> Tensor:
    """Return F^-1 at ``probabilities`` (n,), for D = 1, by bisection to the last bit."""
    width = 40 * truth.perturbed_covariance(sigma)[0, 0].sqrt()
    low = torch.full_like(probabilities, float(truth.modes.min() - width))
    high = torch.full_like(probabilities, float(truth.modes.max() + width))
    for _ in range(64):
        middle = (low + high) / 2
        is_low = truth.cdf(middle, sigma) < probabilities
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return high


@dataclass(frozen=True, config=STRICT)
class SlicedWasserstein(SampleMetric):
    """The mean over directions v of W1 between the projections <v, x>, data units.

    W1 is computed between the samples and as many exact draws, both projected and sorted. The
    directions are uniform on the sphere and the same for every set of samples. For D = 1 the
    distance is W1 itself.

    Source: Bonneel et al. (2015), doi:10.1007/s10851-014-0506-3.

    Args:
        num_directions: The number of directions v.
    """

    num_directions: Count = 50

    floor_draws: ClassVar[int] = 1000
    is_cheap: ClassVar[bool] = True

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes the sliced distance for ``num`` samples."""
        # Some directions at a time, to limit memory.
        parts = self._directions(truth.dim).split(max(1, _MOST_PROJECTIONS // num))

        def projected(points: Tensor, directions: Tensor) -> NDArray[np.float64]:
            # (directions, num). numpy sorts ten times as fast as torch.
            return np.sort((directions @ (points.cpu().double() - truth.mean).T).numpy(), axis=-1)

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            exact = truth.sample(num, sigma=sigma, generator=generator)
            apart = (np.abs(projected(samples, v) - projected(exact, v)).sum() for v in parts)
            return float(sum(apart)) / (num * self.num_directions)

        return distance

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return the mean sliced distance of ``num`` exact draws from as many others.

            mean over v of integral E|K - K'| dx/n,   K, K' ~ Bin(n, F_v(x)) independent

        None if a projection has no distribution function in closed form.
        """
        total = 0.0
        for direction in self._directions(truth.dim):
            found = truth.projected_cdf(direction, sigma)
            if found is None:
                return None
            nodes, rises = (values.numpy() for values in found)
            total += float(np.trapezoid(mean_absolute_difference(num, rises), nodes))
        return total / num / self.num_directions

    def _directions(self, dim: int) -> Tensor:
        """Return unit vectors (directions, D), float64, the same at every call."""
        stream = random_stream(0, "directions")
        directions = torch.randn(dim, self.num_directions, generator=stream)
        return (directions / directions.norm(dim=0)).T.double()
