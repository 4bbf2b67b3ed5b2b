"""Distances from a kernel: energy distance and maximum mean discrepancy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.expectation import distances
from ncsn_cli.core.settings import STRICT, Count, random_stream
from ncsn_cli.metrics.base import Distance, SampleMetric, random_subset


@dataclass(frozen=True, config=STRICT)
class _Kernel(SampleMetric):
    """sqrt(E k(x, x') + E k(y, y') - 2 E k(x, y)), x the samples and y as many exact draws.

    The means are over all pairs, including each point with itself (a V-statistic, never negative).

    Args:
        max_points: Use at most this many samples, chosen at random; time grows with the square.
    """

    max_points: Count = 2000

    # The mean square for exact draws is 2 (E k(x, x) - E k(x, x'))/n for every n, exactly.
    floor_draws: ClassVar[int] = 150
    is_cheap: ClassVar[bool] = True

    @abstractmethod
    def _kernel(self, exact: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the kernel: a function from x (n, D) and y (m, D) to k(x, y), (n, m).

        ``exact`` (N, D) are exact draws, from which the kernel may take its scale.
        """

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes how far ``num`` samples are from p_sigma."""
        num = self.num_points(num, truth.dim)
        stream = random_stream(0, "kernel")
        kernel = self._kernel(truth.sample(1000, sigma=sigma, generator=stream).double())

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            x = random_subset(samples, num).double().cpu()
            y = truth.sample(num, sigma=sigma, generator=generator).double().cpu()
            square = kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()
            return float(square.clamp(min=0).sqrt())

        return distance

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return the number of samples that are compared."""
        return {"num_points": self.num_points(len(samples), truth.dim)}

    def num_points(self, num: int, dim: int) -> int:
        """Return how many of ``num`` samples are compared."""
        return min(num, self.max_points)


@dataclass(frozen=True, config=STRICT)
class EnergyDistance(_Kernel):
    """The energy distance sqrt(2 E||x - y|| - E||x - x'|| - E||y - y'||), data units^(1/2).

    The kernel is k(x, y) = -||x - y||. Source: Szekely & Rizzo (2013),
    doi:10.1016/j.jspi.2013.03.018.

    Args:
        max_points: Use at most this many samples, chosen at random; time grows with the square.
    """

    def _kernel(self, exact: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: -distances(x, y)


@dataclass(frozen=True, config=STRICT)
class MMD(_Kernel):
    """The maximum mean discrepancy with the kernel exp(-||x - y||^2/(2 h^2)); no unit.

    Source: Gretton et al. (2012), JMLR 13:723-773, eq. 5.

    Args:
        max_points: Use at most this many samples, chosen at random; time grows with the square.
        bandwidth: h > 0, data units. null: the median of the nonzero distances between 1000 exact
            draws, or 1 if all distances are 0.
    """

    bandwidth: PositiveFloat | None = None

    def _kernel(self, exact: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        apart = torch.pdist(exact)
        positive = apart[apart > 0]
        h = self.bandwidth or (float(positive.median()) if len(positive) else 1.0)
        return lambda x, y: torch.exp(-(distances(x, y) ** 2) / (2 * h**2))
