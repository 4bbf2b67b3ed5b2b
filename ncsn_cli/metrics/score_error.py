"""Where a score differs from the true one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.metrics.base import ScoreMetric
from ncsn_cli.scores import STRICT, Dataset, Score


@dataclass(frozen=True, config=STRICT)
class ScoreError(ScoreMetric):
    """Squared relative error of a score, level by level.

        E||s - grad log p_sigma||^2 / E||grad log p_sigma||^2,   x ~ p_sigma.

    0.01 means 10 % in root mean square. It belongs to the score, not to the samples; its floor
    is 0.

    Args:
        num_points: Exact draws a level.
    """

    num_points: PositiveInt

    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """The mean over the levels ``sigmas`` (L,), and each level's."""
        per_level = []
        for sigma in sigmas.tolist():
            divergence, information = fisher_divergence(
                score, truth, sigma, self.num_points, generator
            )
            per_level.append(divergence / information)
        return {"value": float(np.mean(per_level)), "per_level": per_level}


def fisher_divergence(
    score: Score, truth: Dataset, sigma: float, num: int, generator: torch.Generator
) -> tuple[float, float]:
    """E||s - grad log p_sigma||^2 and E||grad log p_sigma||^2, from ``num`` draws x ~ p_sigma."""
    x = truth.sample(num, sigma=sigma, generator=generator)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    error = information = 0.0
    for part in x.split(max(1, 2_000_000 // len(truth.weights))):  # for the memory that K asks
        true_score = truth.score(part, level)
        difference = score(part, level) - true_score
        error += float(difference.square().sum(-1).cpu().double().sum())
        information += float(true_score.square().sum(-1).cpu().double().sum())
    return error / num, information / num
