"""Distances between samples, or a score, and the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from scipy.optimize import linear_sum_assignment
from scipy.special import bdtrik
from torch import Tensor

from ncsn_cli.scores import STRICT, Dataset, Score, random_stream

__all__ = ["ModeWeights", "Moments", "SampleMetric", "ScoreError", "Wasserstein"]


class SampleMetric(ABC):
    """A distance from samples to p_sigma. Not 0 even for exact draws: it has a noise floor."""

    @abstractmethod
    def distance(
        self, truth: Dataset, sigma: float, num: int, generator: torch.Generator
    ) -> Callable[[Tensor], float]:
        """The function from ``num`` samples (num, D) to their distance from p_sigma.

        What depends on the truth alone is computed here, once.
        """

    def details(
        self, samples: Tensor, truth: Dataset, sigma: float, generator: torch.Generator
    ) -> dict[str, Any]:
        """What is worth knowing beside the distance."""
        return {}


@dataclass(frozen=True, config=STRICT)
class Wasserstein(SampleMetric):
    """The 1-Wasserstein distance W1 (Euclidean cost), data units.

    D = 1: exact against the true distribution function F,

        W1 = integral |F_n(x) - F(x)| dx,   F_n the samples' own.

    D >= 2: by optimal assignment between the first ``max_points`` samples and as many exact
    draws. Both sides are then random, so its floor is higher.

    Args:
        max_points: Points used for D >= 2, where the cost grows with their cube.
    """

    max_points: PositiveInt

    def distance(
        self, truth: Dataset, sigma: float, num: int, generator: torch.Generator
    ) -> Callable[[Tensor], float]:
        """The function from ``num`` samples (num, D) to W1."""
        if truth.dim == 1:
            return _wasserstein_1d(truth, sigma, num)
        num = min(num, self.max_points)

        def distance(samples: Tensor) -> float:
            exact = truth.sample(num, sigma=sigma, generator=generator)
            cost = torch.cdist(samples[:num].double(), exact.double()).cpu().numpy()
            return float(cost[linear_sum_assignment(cost)].mean())

        return distance

    def details(
        self, samples: Tensor, truth: Dataset, sigma: float, generator: torch.Generator
    ) -> dict[str, Any]:
        """The number of points compared."""
        num = len(samples)
        return {"num_points": num if truth.dim == 1 else min(num, self.max_points)}


def _wasserstein_1d(truth: Dataset, sigma: float, num: int) -> Callable[[Tensor], float]:
    # Between sorted samples F_n is a constant c = i/num, and F - c changes sign at F^-1(c).
    levels = torch.arange(num + 1, dtype=torch.float64) / num  # (num + 1,)
    quantiles = _quantiles(truth, sigma, levels[1:-1])

    def distance(samples: Tensor) -> float:
        x = samples[:, 0].double().cpu().sort().values  # (num,)
        area = truth.integrated_cdf(x, sigma)  # integral of F up to x
        tails = area[0] + area[-1] - x[-1] + truth.mean[0]  # of F below, of 1 - F above
        crossing = quantiles.clamp(x[:-1], x[1:])
        area_crossing = truth.integrated_cdf(crossing, sigma)
        below = levels[1:-1] * (crossing - x[:-1]) - (area_crossing - area[:-1])
        above = (area[1:] - area_crossing) - levels[1:-1] * (x[1:] - crossing)
        return float(tails + (below + above).sum())

    return distance


def _quantiles(truth: Dataset, sigma: float, probabilities: Tensor) -> Tensor:
    """F^-1 by bisection to the last bit, for D = 1."""
    width = 40 * (truth.covariance[0, 0] + sigma**2).sqrt()
    low = torch.full_like(probabilities, float(truth.modes.min() - width))
    high = torch.full_like(probabilities, float(truth.modes.max() + width))
    for _ in range(64):
        middle = (low + high) / 2
        is_low = truth.cdf(middle, sigma) < probabilities
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return high


@dataclass(frozen=True, config=STRICT)
class ModeWeights(SampleMetric):
    """Total variation between the shares of samples in each mode and the true shares.

        1/2 sum_k |n_k/n - q_k|,   a sample belongs to the mode with the nearest centre,

    q_k being P(nearest centre is k) under p_sigma itself: w_k plus what leaks between modes.
    """

    def distance(
        self, truth: Dataset, sigma: float, num: int, generator: torch.Generator
    ) -> Callable[[Tensor], float]:
        """The function from ``num`` samples (num, D) to the total variation."""
        expected = _mode_shares(truth, sigma)

        def distance(samples: Tensor) -> float:
            return float((_shares(samples, truth) - expected).abs().sum() / 2)

        return distance

    def details(
        self, samples: Tensor, truth: Dataset, sigma: float, generator: torch.Generator
    ) -> dict[str, Any]:
        """Shares, true shares, and the binomial interval that holds 99 % of exact shares."""
        expected = _mode_shares(truth, sigma)
        n, q = len(samples), expected.numpy()
        low, high = (np.ceil(np.clip(bdtrik(p, n, q), 0, n)) / n for p in (0.005, 0.995))
        # scipy has no answer where the share is 0 or 1, and it is the interval.
        low, high = (np.where(np.isfinite(bound), bound, q) for bound in (low, high))
        return {
            "weights": _shares(samples, truth).tolist(),
            "expected": expected.tolist(),
            "interval": np.stack([low, high], axis=1).tolist(),
        }


def _nearest_mode(x: Tensor, truth: Dataset) -> Tensor:
    return torch.cdist(x, truth.modes.to(x)).argmin(-1)


def _shares(samples: Tensor, truth: Dataset) -> Tensor:
    counts = torch.bincount(_nearest_mode(samples, truth).cpu(), minlength=len(truth.modes))
    return counts.double() / len(samples)


def _mode_shares(truth: Dataset, sigma: float) -> Tensor:
    """P(nearest centre is k), (K,), float64, from draws that are the same at every call.

    E[r_k] = w_k exactly, so w_k + E[1{nearest is k} - r_k] needs them for the leakage alone.
    """
    x = truth.sample(200_000, sigma=sigma, generator=random_stream(0, "mode shares")).double()
    nearest = torch.nn.functional.one_hot(_nearest_mode(x, truth), len(truth.modes)).double()
    if not truth.has_density(sigma):
        return nearest.mean(0)
    shares = truth.weights + (nearest - truth.posterior(x, sigma)).mean(0)
    return shares.clamp(0, 1)


@dataclass(frozen=True, config=STRICT)
class Moments(SampleMetric):
    """Gaussian Frechet distance between the samples' moments and the true ones, data units.

        d^2 = ||m - m*||^2 + tr(C + C* - 2 (C*^1/2 C C*^1/2)^1/2)

    Source: Dowson & Landau (1982), doi:10.1016/0047-259X(82)90077-X; d = |m - m*| for a shift.
    """

    def distance(
        self, truth: Dataset, sigma: float, num: int, generator: torch.Generator
    ) -> Callable[[Tensor], float]:
        """The function from ``num`` samples (num, D) to d."""
        mean = truth.mean
        covariance = truth.covariance + sigma**2 * torch.eye(truth.dim).double()
        root = _matrix_root(covariance)

        def distance(samples: Tensor) -> float:
            x = samples.double().cpu()
            offset = x.mean(0) - mean
            sample_covariance = x.T.cov(correction=0).reshape(covariance.shape)
            cross = _matrix_root(root @ sample_covariance @ root)
            square = offset @ offset + (sample_covariance + covariance - 2 * cross).trace()
            return float(square.clamp(min=0).sqrt())

        return distance

    def details(
        self, samples: Tensor, truth: Dataset, sigma: float, generator: torch.Generator
    ) -> dict[str, Any]:
        """Mean and covariance, and the true ones."""
        x = samples.double().cpu()
        return {
            "mean": x.mean(0).tolist(),
            "expected_mean": truth.mean.tolist(),
            "covariance": x.T.cov(correction=0).reshape(truth.covariance.shape).tolist(),
            "expected_covariance": (
                truth.covariance + sigma**2 * torch.eye(truth.dim).double()
            ).tolist(),
        }


def _matrix_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


@dataclass(frozen=True, config=STRICT)
class ScoreError:
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
