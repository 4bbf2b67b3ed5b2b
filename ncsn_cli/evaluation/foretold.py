"""Two noise levels at which chains change their nature, foretold from the law alone.

Source: Biroli, Bonnaire, de Bortoli & Mezard (2024), arXiv:2402.18491, "Dynamical regimes of
diffusion models": speciation (section 3) and collapse (section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.expectation import mean_over_draws
from ncsn_cli.core.settings import random_stream

_MOST_TERMS, _MOST_DRAWS = 100_000, 40_000  # draws times components, draws: good to a percent
_FEWEST_DRAWS = 1000
_MOST_STEPS, _TOLERANCE = 30, 1e-4  # of the secant method in log sigma, which needs about five
_FLAT = 0.02  # smallest slope, in units of D, of a difference that still has a root to find


def speciation_level(law: Dataset) -> float | None:
    """Return the level at which chains choose a mode, data units; None if it is not known.

        sigma_S^2 = lambda_max - v^T C v

    with lambda_max the largest eigenvalue of the covariance, v its eigenvector, and C the mean
    covariance of the components. At sigma_S the noise on v is as wide as the modes lie apart.
    """
    within = law.within_covariance
    if within is None or len(law.modes) < 2:
        return None
    variances, axes = torch.linalg.eigh(law.covariance)
    excess = float(variances[-1] - axes[:, -1] @ within @ axes[:, -1])
    return math.sqrt(excess) if excess > 1e-12 * float(variances[-1]) else None


def collapse_level(law: Dataset, num: int) -> float | None:
    """Return the level below which ``num`` training points stand alone, data units.

    The smoothed training set then has the entropy of ``num`` Gaussians that do not overlap, while
    p_sigma has less. sigma_C is where both are equal:

        H(p_sigma) = log n + D/2 log(2 pi e sigma^2)

    By the secant method in log sigma, with the same random numbers at each sigma. Return None if
    there is no such level.
    """
    if not law.is_known or not law.smallest_std:
        return None
    largest = math.log(math.sqrt(float(law.covariance.trace())))

    def difference(log_sigma: float) -> float:
        separate = math.log(num) + law.dim * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
        return _entropy(law, math.exp(log_sigma)) - separate

    # Far below the law's own width, its entropy does not depend on sigma: the slope is -D.
    log_sigma, slope = math.log(1e-3 * law.smallest_std), -float(law.dim)
    value = difference(log_sigma)
    for _ in range(_MOST_STEPS):
        step = -value / slope
        log_sigma += step
        if abs(step) < _TOLERANCE:
            return math.exp(log_sigma)
        if log_sigma > largest:
            return None
        before, value = value, difference(log_sigma)
        slope = (value - before) / step
        if slope > -_FLAT * law.dim:
            return None
    return None


def _entropy(law: Dataset, sigma: float) -> float:
    """Return H(p_sigma) in nats, from exact draws."""
    stream = random_stream(0, "entropy")
    num = max(_FEWEST_DRAWS, min(_MOST_DRAWS, _MOST_TERMS // max(1, law.num_components)))

    def surprise(_: Tensor, x: Tensor) -> Tensor:
        return -law.log_prob(x, sigma)[:, None]

    terms = law.num_components * law.dim
    strata = law.strata(num, sigma, stream)
    return float(mean_over_draws(lambda _: strata, surprise, terms, lambda _: True).value)
