"""Where a score differs from the true one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score, detached_jacobian
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.metrics.base import ScoreMetric

_POINTS_IN_CACHE = 4096  # of 64 units in float32: 1 MB, a core's share


@dataclass(frozen=True, config=STRICT)
class ScoreError(ScoreMetric):
    """Squared relative error of a score, level by level.

        E||s - grad log p_sigma||^2 / E||grad log p_sigma||^2,   x ~ p_sigma.

    0.01 means 10 % in root mean square. It belongs to the score, not to the samples; its floor
    is 0.

    Args:
        num_points: Exact draws a level.
    """

    num_points: Count

    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """The mean over the levels ``sigmas`` (L,), its standard error, and each level's."""
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
    """How a score s differs from the true s* at one level; means over x ~ p_sigma.

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
        """E||s - s*||^2 / E||s*||^2, no unit; nan where floats tell s* nowhere from 0."""
        return self.divergence / self.information if self.information > 0 else math.nan


def fisher_divergence(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> FisherDivergence:
    """The Fisher divergence of ``score`` from the truth, from ``num`` exact draws."""
    return divergence_of(compared_scores(score, truth, sigma, num, generator))


def compared_scores(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> Tensor:
    """Return ``products_at`` of ``score`` at ``num`` exact draws from p_sigma, (4, num)."""
    x = truth.sample(num, sigma=sigma, generator=generator)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    learned = torch.cat([score(part, level) for part in in_parts(x, truth)])
    return products_at(learned, x, truth, sigma)


def products_at(learned: Tensor, x: Tensor, truth: Dataset, sigma: float) -> Tensor:
    """Return ||s - s*||^2, ||s*||^2, <s, s*> and ||s||^2 at points ``x`` (B, D), (4, B).

    ``learned`` (B, D) is s there. On the CPU in float64: near narrow modes float32 rounds off the
    true score s*.
    """
    x, learned = x.cpu().double(), learned.cpu().double()
    true = torch.cat([truth.score(part, sigma) for part in in_parts(x, truth)])
    error = learned - true
    products = [(error, error), (true, true), (learned, true), (learned, learned)]
    return torch.stack([(a * b).sum(-1) for a, b in products])


def divergence_of(products: Tensor) -> FisherDivergence:
    """Return the means of what ``products_at`` returned."""
    divergence, information, product, square = products.mean(-1).tolist()
    return FisherDivergence(divergence, information, product / square if square > 0 else 0.0)


def relative_error(products: Tensor) -> tuple[float, float]:
    """Return E||s - s*||^2/E||s*||^2 from what ``products_at`` returned, and its variance.

    The variance is of first order, that of a ratio of means.
    """
    found = divergence_of(products)
    if not found.information > 0:
        return math.nan, math.nan
    error, information, *_ = products
    residual = error - found.relative * information
    return found.relative, float(residual.var()) / len(residual) / found.information**2


def in_parts(x: Tensor, truth: Dataset) -> tuple[Tensor, ...]:
    """Points (B, D) in parts at which a network, or the true score, is evaluated fastest.

    On a CPU, what its layers pass on then stays in the cache, and memory is flat. Elsewhere the
    memory that K components ask bounds a part.
    """
    most = max(1, 2_000_000 // truth.num_components)
    return x.split(min(most, _POINTS_IN_CACHE) if x.device.type == "cpu" else most)


def relative_curl(
    score: Score, truth: Dataset, sigmas: Tensor, num: int, generator: torch.Generator
) -> list[float]:
    """Return E(d_1 s_2 - d_2 s_1)^2 / E||grad s*||_F^2 for D = 2 at each of ``sigmas`` (L,).

    From ``num`` exact draws a level. The true score s* is a gradient and has no curl; a learned
    field circulates by this share of the true Jacobian's square.
    """
    level = torch.arange(len(sigmas), device=generator.device).repeat_interleave(num)
    sigma = sigmas.to(generator.device, torch.float32)[level]  # (L num,)
    x = truth.sample(len(sigma), sigma=sigma, generator=generator)
    curl, square = [], []
    parts = in_parts(x, truth)
    for part, at in zip(parts, sigma.split([len(part) for part in parts]), strict=True):
        (_, learned), (_, true) = (detached_jacobian(f, part, at) for f in (score, truth.score))
        curl.append((learned[:, 1, 0] - learned[:, 0, 1]).square().cpu().double())
        square.append(true.square().sum((1, 2)).cpu().double())
    curls, squares = (torch.cat(each).view(-1, num).sum(1) for each in (curl, square))
    found: list[float] = (curls / squares).tolist()
    return found
