"""Mode weights and moments."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.metrics.base import Distance, SampleMetric
from ncsn_cli.scores import STRICT, Dataset, random_stream


@dataclass(frozen=True, config=STRICT)
class ModeWeights(SampleMetric):
    """Total variation between the shares of samples in each mode and the true shares.

        1/2 sum_k |n_k/n - q_k|,   a sample belongs to the mode with the nearest centre,

    q_k being P(nearest centre is k) under p_sigma itself: w_k plus what leaks between modes.
    """

    def distance(self, truth: Dataset, sigma: float, num: int) -> Distance:
        """The total variation for ``num`` samples."""
        expected = _mode_shares(truth, sigma)

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            return float((_shares(samples, truth) - expected).abs().sum() / 2)

        return distance

    def details(self, samples: Tensor, truth: Dataset, sigma: float) -> dict[str, Any]:
        """Shares, true shares, and the binomial interval that holds 99 % of exact shares."""
        from scipy.special import bdtrik  # here, as scipy takes long to import

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


def nearest_mode(x: Tensor, truth: Dataset) -> Tensor:
    """The mode whose centre is nearest to each of the points (B, D), (B,)."""
    return torch.cdist(x, truth.modes.to(x)).argmin(-1)


def _shares(samples: Tensor, truth: Dataset) -> Tensor:
    counts = torch.bincount(nearest_mode(samples, truth).cpu(), minlength=len(truth.modes))
    return counts.double() / len(samples)


def _exact_draws(truth: Dataset, sigma: float) -> Tensor:
    return truth.sample(200_000, sigma=sigma, generator=random_stream(0, "exact draws"))


@functools.lru_cache(maxsize=4)
def _mode_shares(truth: Dataset, sigma: float) -> Tensor:
    """P(nearest centre is k), (K,), float64, from draws that are the same at every call.

    E[r_k] = w_k exactly, so w_k + E[1{nearest is k} - r_k] needs them for the leakage alone.
    """
    x = _exact_draws(truth, sigma).double()
    nearest = torch.nn.functional.one_hot(nearest_mode(x, truth), len(truth.modes)).double()
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

    def distance(self, truth: Dataset, sigma: float, num: int) -> Distance:
        """D for ``num`` samples."""
        mean = truth.mean
        covariance = truth.perturbed_covariance(sigma)
        root = _matrix_root(covariance)

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            x = samples.double().cpu()
            offset = x.mean(0) - mean
            sample_covariance = x.T.cov(correction=0).reshape(covariance.shape)
            cross = _matrix_root(root @ sample_covariance @ root)
            square = offset @ offset + (sample_covariance + covariance - 2 * cross).trace()
            return float(square.clamp(min=0).sqrt())

        return distance

    def details(self, samples: Tensor, truth: Dataset, sigma: float) -> dict[str, Any]:
        """Mean and covariance and the true ones; with several modes, of each mode's points too.

        A mode's points are those nearest to its centre. Their true moments are those of 200 000
        exact draws; None for a mode without points.
        """
        mean, covariance = _moments(samples)
        overall = {
            "mean": mean,
            "expected_mean": truth.mean.tolist(),
            "covariance": covariance,
            "expected_covariance": truth.perturbed_covariance(sigma).tolist(),
        }
        if len(truth.modes) < 2:
            return overall
        exact = _exact_draws(truth, sigma)
        labels, exact_labels = nearest_mode(samples, truth), nearest_mode(exact, truth)
        modes = []
        for k in range(len(truth.modes)):
            mean, covariance = _moments(samples[labels == k])
            expected_mean, expected_covariance = _moments(exact[exact_labels == k])
            modes.append(
                {
                    "mean": mean,
                    "expected_mean": expected_mean,
                    "covariance": covariance,
                    "expected_covariance": expected_covariance,
                }
            )
        return {**overall, "modes": modes}


def _moments(x: Tensor) -> tuple[list[float] | None, list[list[float]] | None]:
    """Mean and covariance of points (N, D)."""
    if len(x) == 0:
        return None, None
    x = x.double().cpu()
    covariance = x.T.cov(correction=0).reshape(x.shape[1], x.shape[1])
    return x.mean(0).tolist(), covariance.tolist()


def _matrix_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
