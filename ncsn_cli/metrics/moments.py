"""Mode weights, moments and the width of the modes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.expectation import ModeMoments
from ncsn_cli.core.settings import STRICT
from ncsn_cli.metrics.base import Distance, SampleMetric
from ncsn_cli.metrics.binomial import mean_absolute_deviation

_APART = 0.02  # modes count as apart if sigma^2 is added to their variance, to this share of it


@functools.lru_cache(maxsize=4)
def _mode_moments(truth: Law, sigma: float) -> ModeMoments:
    return truth.mode_moments(sigma)


@dataclass(frozen=True, config=STRICT)
class ModeWeights(SampleMetric):
    """The total variation between the shares of samples in each mode and the true shares.

        1/2 sum_k |n_k/n - q_k|,   a sample belongs to the mode with the nearest centre,

    where q_k is P(nearest centre is k) under p_sigma itself: w_k plus the leakage between modes.
    The mean for n exact draws is 1/2 sum_k MAD(n, q_k)/n, where MAD is the mean absolute deviation
    of the binomial law.
    """

    is_cheap: ClassVar[bool] = True
    floor_draws: ClassVar[int] = 10_000

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes the total variation for ``num`` samples."""
        expected = _mode_moments(truth, sigma).shares

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            return float((_shares(samples, truth) - expected).abs().sum() / 2)

        return distance

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return the mean total variation of ``num`` exact draws; None if shares are estimated."""
        found = _mode_moments(truth, sigma)
        if bool((found.errors[0] > 0).any()):
            return None
        return float(mean_absolute_deviation(num, found.shares.numpy()).sum()) / num / 2

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return shares, true shares, and the binomial interval that holds 99 % of exact shares.

        If the true shares are estimated, return their standard errors, too.
        """
        from scipy.special import bdtrik  # here: scipy is slow to import

        found = _mode_moments(truth, sigma)
        expected = found.shares.clamp(0, 1)
        n, q = len(samples), expected.numpy()
        low, high = (np.ceil(np.clip(bdtrik(p, n, q), 0, n)) / n for p in (0.005, 0.995))
        # scipy has no answer where the share q is 0 or 1; the interval is then [q, q].
        low, high = (np.where(np.isfinite(bound), bound, q) for bound in (low, high))
        return {
            "weights": _shares(samples, truth).tolist(),
            "expected": expected.tolist(),
            **_error("expected", found.errors[0]),
            "interval": np.stack([low, high], axis=1).tolist(),
        }


def _shares(samples: Tensor, truth: Law) -> Tensor:
    counts = torch.bincount(truth.nearest_mode(samples), minlength=len(truth.modes))
    return counts.double() / len(samples)


def _error(name: str, error: Tensor) -> dict[str, Any]:
    """Return ``error`` under its key if the number is estimated; otherwise an empty dict."""
    return {f"{name}_standard_error": error.tolist()} if bool((error > 0).any()) else {}


@dataclass(frozen=True, config=STRICT)
class Moments(SampleMetric):
    """The Gaussian Frechet distance d between the samples' moments and the true ones, data units.

        d^2 = ||m - m*||^2 + tr(C + C* - 2 (C*^1/2 C C*^1/2)^1/2)

    Source: Dowson & Landau (1982), doi:10.1016/0047-259X(82)90077-X; d = |m - m*| for a shift.
    """

    is_cheap: ClassVar[bool] = True
    floor_draws: ClassVar[int] = 10_000

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes d for ``num`` samples."""
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

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return the mean and covariance of the samples, and the true ones.

        If the law has several modes, also return both for each mode's points: the points nearest
        to the mode's centre. True moments that are estimated come with their standard errors.
        The moments of a mode without points are None.
        """
        overall = {
            **_moments(samples, truth.origin),
            "expected_mean": (truth.mean + truth.origin).tolist(),
            **_error("expected_mean", truth.mean_error()),
            "expected_covariance": truth.perturbed_covariance(sigma).tolist(),
            **_error("expected_covariance", truth.covariance_error(sigma)),
        }
        if len(truth.modes) < 2:
            return overall
        found, labels = _mode_moments(truth, sigma), truth.nearest_mode(samples)
        names = ("expected_mean", "expected_covariance")
        modes = []
        for k, share in enumerate(found.shares.tolist()):
            of_mode = _moments(samples[labels == k], truth.origin)
            true = (found.means[k] + truth.origin, found.covariances[k])
            for name, value, error in zip(names, true, found.errors[1:], strict=True):
                of_mode[name] = value.tolist() if share > 0 else None
                of_mode |= _error(name, error[k]) if share > 0 else {}
            modes.append(of_mode)
        return {**overall, "modes": modes}


def _moments(x: Tensor, origin: Tensor) -> dict[str, Any]:
    """Return mean, in data units, and covariance of points (N, D); both None without points."""
    if len(x) == 0:
        return {"mean": None, "covariance": None}
    x = x.double().cpu()
    covariance = x.T.cov(correction=0).reshape(x.shape[1], x.shape[1])
    return {"mean": (x.mean(0) + origin).tolist(), "covariance": covariance.tolist()}


def _matrix_root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


@dataclass(frozen=True, config=STRICT)
class Width(SampleMetric):
    """How far the width w of the samples' modes is from the true one, |w - 1|.

        w^2 = mean over k of tr C_k / tr C*_k

    C_k is the covariance of the points nearest to the centre of mode k, and C*_k the true one
    under p_sigma. w is above 1 if the samples are too wide. Modes with fewer than two points, or
    without a true width, are left out. If none is left, w is 1.
    """

    is_cheap: ClassVar[bool] = True
    floor_draws: ClassVar[int] = 10_000

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes |w - 1| for ``num`` samples."""
        width = _width_of(truth, sigma)

        def distance(samples: Tensor, generator: torch.Generator) -> float:
            return abs(width(samples) - 1)

        return distance

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return w itself, and the level sigma at which p_sigma is as wide as the samples."""
        width = _width_of(truth, sigma)(samples)
        return {"width": width, "sigma": _level_as_wide(truth, sigma, width)}


def _level_as_wide(truth: Law, sigma: float, width: float) -> float | None:
    """Return the level at which the modes are ``width`` times as wide as under p_sigma.

    Where modes are apart, each coordinate of a mode has the variance sigma^2 more than in the
    data. Return None if modes are not apart, or if the samples are narrower than the data.
    """
    if not isinstance(truth, Dataset):  # of denoised draws the width does not grow so
        return None

    def variances(level: float) -> Tensor:  # (K,): of a coordinate, mean over coordinates
        return _mode_moments(truth, level).covariances.diagonal(dim1=1, dim2=2).mean(-1)

    def are_apart(level: float) -> bool:
        found = variances(level)
        return bool(((found - variances(0.0) - level**2).abs() <= _APART * found).all())

    wide = variances(sigma)
    if not bool(wide.all()):
        return None
    # At the level t, w^2 is the mean over k of (v_k + t^2) / (v_k + sigma^2).
    square = sigma**2 + (width**2 - 1) / float((1 / wide).mean())
    if square < 0 or not (are_apart(sigma) and are_apart(math.sqrt(square))):
        return None
    return math.sqrt(square)


def relative_width(truth: Law, sigma: float) -> float | None:
    """Return the width w of p_sigma relative to p, as in ``Width``; None if p has no width."""
    wide, narrow = (
        _mode_moments(truth, s).covariances.diagonal(dim1=1, dim2=2).sum(-1) for s in (sigma, 0.0)
    )
    ratios = (wide / narrow)[narrow > 0]
    return float(ratios.mean().sqrt()) if len(ratios) else None


def _width_of(truth: Law, sigma: float) -> Callable[[Tensor], float]:
    """Return the function that computes the width w of samples (N, D); see ``Width``."""
    found, num_modes = _mode_moments(truth, sigma), len(truth.modes)
    true = found.covariances.diagonal(dim1=1, dim2=2).sum(-1).cpu()  # (K,)

    def width(samples: Tensor) -> float:
        x, labels = samples.double().cpu(), truth.nearest_mode(samples).cpu()
        sums = x.new_zeros(num_modes, x.shape[1])
        counts = labels.bincount(minlength=num_modes)  # (K,)
        means = sums.index_add(0, labels, x) / counts.clamp(min=1)[:, None]  # (K, D)
        squares = ((x - means[labels]) ** 2).sum(1)  # (N,)
        traces = x.new_zeros(num_modes).index_add(0, labels, squares) / counts.clamp(min=1)
        has_width = (counts > 1) & (true > 0)
        ratios = traces[has_width] / true[has_width]
        return float(ratios.mean().sqrt()) if len(ratios) else 1.0

    return width
