"""How far a score is from the true score."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.metrics.base import ScoreMetric

_POINTS_IN_CACHE = 4096  # a layer's 64 units per point, in float32, take 1 MB: a core's share


@dataclass(frozen=True, config=STRICT)
class ScoreError(ScoreMetric):
    """The squared relative error of a score, level by level.

        E||s - grad log p_sigma||^2 / E||grad log p_sigma||^2,   x ~ p_sigma.

    A value of 0.01 means 10 % in root mean square. The number describes the score, not samples;
    the true score has the value 0.

    Args:
        num_points: Number of exact draws per level.
    """

    num_points: Count = 10_000

    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """Return the mean over ``sigmas`` (L,), its standard error, and the value per level."""
        errors = [
            relative_error(compared_scores(score, truth, sigma, self.num_points, generator))
            for sigma in sigmas.tolist()
        ]
        values, variances = zip(*errors, strict=True)
        return {
            "value": float(np.mean(values)),
            "standard_error": math.sqrt(sum(variances)) / len(values),
            "per_level": list(values),
        }


class FisherDivergence(NamedTuple):
    """How far a score s is from the true score s* at one level; means over x ~ p_sigma.

    Args:
        divergence: E||s - s*||^2, units 1/length^2.
        information: E||s*||^2, the Fisher information.
        best_scale: The c that makes E||c s - s*||^2 smallest, E<s, s*>/E||s||^2; no unit.
    """

    divergence: float
    information: float
    best_scale: float

    @property
    def relative(self) -> float:
        """E||s - s*||^2 / E||s*||^2, no unit; nan if s* is 0 to the precision of floats."""
        return self.divergence / self.information if self.information > 0 else math.nan


def fisher_divergence(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> FisherDivergence:
    """Return the Fisher divergence of ``score`` from the truth, from ``num`` exact draws."""
    return divergence_of(compared_scores(score, truth, sigma, num, generator))


def compared_scores(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> Tensor:
    """Return ``products_at`` for ``score`` at ``num`` exact draws from p_sigma, (4, num)."""
    x = truth.sample(num, sigma=sigma, generator=generator)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    learned = torch.cat([score(part, level) for part in in_parts(x, truth)])
    return products_at(learned, x, truth, sigma)


def products_at(learned: Tensor, x: Tensor, truth: Dataset, sigma: float) -> Tensor:
    """Return ||s - s*||^2, ||s*||^2, <s, s*> and ||s||^2 at points ``x`` (B, D), (4, B).

    ``learned`` (B, D) is s at the points. The products are computed on the CPU in float64, because
    near narrow modes float32 rounds off the true score s*.
    """
    x, learned = x.cpu().double(), learned.cpu().double()
    true = torch.cat([truth.score(part, sigma) for part in in_parts(x, truth)])
    error = learned - true
    products = [(error, error), (true, true), (learned, true), (learned, learned)]
    ones = true.new_ones(true.shape[1])  # for D = 2 five times as fast as ``sum(-1)``
    return torch.stack([(a * b) @ ones for a, b in products])


def divergence_of(products: Tensor) -> FisherDivergence:
    """Return the means over the ``products`` (4, B) of ``products_at``."""
    divergence, information, product, square = products.mean(-1).tolist()
    return FisherDivergence(divergence, information, product / square if square > 0 else 0.0)


def relative_error(products: Tensor) -> tuple[float, float]:
    """Return E||s - s*||^2/E||s*||^2, from ``products`` of ``products_at``, and its variance.

    The variance is that of a ratio of means, to first order.
    """
    found = divergence_of(products)
    if not found.information > 0:
        return math.nan, math.nan
    error, information, *_ = products
    residual = error - found.relative * information
    return found.relative, float(residual.var()) / len(residual) / found.information**2


def in_parts(x: Tensor, truth: Dataset) -> tuple[Tensor, ...]:
    """Split points (B, D) into parts on which a network, or the true score, is evaluated fastest.

    On a CPU, the values between a network's layers then stay in the cache, and memory use is flat.
    On other devices, the memory that the truth's K components need limits the size of a part.
    """
    most = max(1, 2_000_000 // truth.num_components)
    return x.split(min(most, _POINTS_IN_CACHE) if x.device.type == "cpu" else most)
