"""Mixtures of equal Gaussians in a named arrangement, D = 2."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, validate_call

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.settings import STRICT, Count, Modes
from ncsn_cli.datasets.mixture import GaussianMixture


@validate_call(config=STRICT)
def ring(
    num_modes: Modes = 8,
    radius: PositiveFloat = 4.0,
    std: NonNegativeFloat = 0.3,
    num_samples: Count | None = None,
    seed: NonNegativeInt = 0,
) -> GaussianMixture:
    """Return ``num_modes`` equal Gaussians N(mu_k, std^2 I) on a circle of ``radius``, D = 2.

    Args:
        num_modes: Number of Gaussians.
        radius: Radius of the circle, data units.
        std: Their standard deviation, data units.
        num_samples: Size of the training set; null for endless fresh draws.
        seed: Seed of the training set.
    """
    angles = [2 * math.pi * k / num_modes for k in range(num_modes)]
    means = [[radius * math.cos(angle), radius * math.sin(angle)] for angle in angles]
    return GaussianMixture([1 / num_modes] * num_modes, means, std, None, num_samples, seed)


@validate_call(config=STRICT)
def grid(
    side: Annotated[int, Field(gt=0, le=100)] = 5,
    spacing: PositiveFloat = 2.0,
    std: NonNegativeFloat = 0.1,
    num_samples: Count | None = None,
    seed: NonNegativeInt = 0,
) -> GaussianMixture:
    """Return ``side`` x ``side`` equal Gaussians N(mu_k, std^2 I) on a grid around 0, D = 2.

    Args:
        side: Number of Gaussians along an axis.
        spacing: Distance between neighbours, data units.
        std: Their standard deviation, data units.
        num_samples: Size of the training set; null for endless fresh draws.
        seed: Seed of the training set.
    """
    ticks = [spacing * (i - (side - 1) / 2) for i in range(side)]
    means = [[x, y] for x in ticks for y in ticks]
    return GaussianMixture([1 / side**2] * side**2, means, std, None, num_samples, seed)


@validate_call(config=STRICT)
def moons(
    num_components: Modes = 64,
    radius: PositiveFloat = 2.0,
    std: NonNegativeFloat = 0.2,
    num_samples: Count | None = None,
    seed: NonNegativeInt = 0,
) -> GaussianMixture:
    """Return two interleaved half circles of equal Gaussians N(mu_k, std^2 I), D = 2.

        mu_k = radius (cos t - 1/2, sin t - 1/4) and its mirror image -mu_k, 0 <= t <= pi

    Source: ``make_moons`` of scikit-learn, scaled and centred on the origin. Half of the
    components lie on each moon, evenly spaced. The default 64 components are one std apart, so
    that the density along a moon ripples by 2 exp(-2 pi^2 std^2/spacing^2) = 1e-8 and looks
    continuous. If they were two std apart, the ripple would be 1.4 %.

    Args:
        num_components: Number of Gaussians, even.
        radius: Radius of the half circles, data units.
        std: Standard deviation of the Gaussians, data units.
        num_samples: Size of the training set; null for endless fresh draws.
        seed: Seed of the training set.

    Raises:
        ConfigError: If ``num_components`` is odd.
    """
    if num_components % 2:
        raise ConfigError(
            f"num_components: must be even (half lie on each moon), got {num_components}"
        )
    angles = torch.linspace(0, math.pi, num_components // 2, dtype=torch.float64)
    upper = radius * torch.stack([angles.cos() - 0.5, angles.sin() - 0.25], dim=-1)  # (K/2, 2)
    means = torch.cat([upper, -upper]).tolist()
    weights = [1 / num_components] * num_components
    return GaussianMixture(weights, means, std, None, num_samples, seed)


@validate_call(config=STRICT)
def spiral(
    num_components: Modes = 100,
    turns: PositiveFloat = 1.5,
    radius: PositiveFloat = 4.0,
    std: NonNegativeFloat = 0.2,
    num_samples: Count | None = None,
    seed: NonNegativeInt = 0,
) -> GaussianMixture:
    """Return equal Gaussians N(mu_k, std^2 I) along one arm of a spiral of Archimedes, D = 2.

        mu = a t (cos t, sin t), 0 <= t <= 2 pi turns, a = radius/(2 pi turns)
        length from the centre to t: a/2 (t sqrt(1 + t^2) + asinh t)

    The components are evenly spaced in arc length from the centre to ``radius``, so that the
    density is even along the arm (to 2 % after the first quarter turn, in which the arm bends as
    sharply as std). The default 100 components are one std apart (the arm is 19.6 long), so that
    the density ripples by 1e-8 and looks continuous. If they were two std apart, the ripple would
    be 1.4 %.

    Args:
        num_components: Number of Gaussians.
        turns: Number of turns of the arm.
        radius: Distance of its end from the centre, data units.
        std: Standard deviation of the Gaussians, data units.
        num_samples: Size of the training set; null for endless fresh draws.
        seed: Seed of the training set.
    """
    t = np.linspace(0, 2 * math.pi * turns, 100_001)
    length = (t * np.sqrt(1 + t**2) + np.arcsinh(t)) / 2  # in units of a
    angles = np.interp(np.linspace(0, length[-1], num_components), length, t)  # (K,)
    distances = radius * angles / t[-1]
    means = np.stack([distances * np.cos(angles), distances * np.sin(angles)], axis=-1).tolist()
    weights = [1 / num_components] * num_components
    return GaussianMixture(weights, means, std, None, num_samples, seed)
