"""Where a score differs from the true one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.metrics.base import ScoreMetric
from ncsn_cli.scores import STRICT, Count, Dataset, Score, score_and_jacobian


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
        """The mean over the levels ``sigmas`` (L,), and each level's."""
        errors = [
            fisher_divergence(score, truth, sigma, self.num_points, generator)
            for sigma in sigmas.tolist()
        ]
        per_level = [error.relative for error in errors]
        return {"value": float(np.mean(per_level)), "per_level": per_level}


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
    x = truth.sample(num, sigma=sigma, generator=generator)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    error = information = product = square = 0.0
    for part in x.split(max(1, 2_000_000 // len(truth.weights))):  # for the memory that K asks
        true, learned = truth.score(part, level), score(part, level)
        error += _sum(learned - true, learned - true)
        information += _sum(true, true)
        product += _sum(learned, true)
        square += _sum(learned, learned)
    best_scale = product / square if square > 0 else 0.0
    return FisherDivergence(error / num, information / num, best_scale)


def _sum(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(-1).cpu().double().sum())


def relative_curl(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> float:
    """E(d_1 s_2 - d_2 s_1)^2 / E||grad s*||_F^2 for D = 2, from ``num`` exact draws.

    The true score s* is a gradient and has no curl; a learned field circulates by this share of
    the true Jacobian's square.
    """
    x = truth.sample(num, sigma=sigma, generator=generator)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    learned, true = (score_and_jacobian(f, x, level)[1] for f in (score, truth.score))
    curl = learned[:, 1, 0] - learned[:, 0, 1]
    return float(curl.square().double().mean() / true.square().sum((1, 2)).double().mean())
