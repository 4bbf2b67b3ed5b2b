"""The Fisher information of a density that has no closed form for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncsn_cli.scores import Dataset, random_stream

_MOST_TERMS = 3e7
_DRAWS = 200_000  # where it takes more terms


def fisher_information(
    truth: Dataset, sigma: float, low: Tensor, high: Tensor, step: float
) -> float:
    """I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2.

    By the trapezoid rule, which converges geometrically for smooth densities. For D > 2, or
    where that takes over 3e7 terms, the mean over 200 000 exact draws.

    Args:
        truth: The dataset, with K components.
        sigma: The level, data units.
        low: Lower corner of a box outside which p_sigma is negligible, (D,).
        high: Its upper corner, (D,).
        step: Largest step of the rule: a third of the shortest length on which p_sigma varies.
    """
    num_components = len(truth.weights)
    sizes = ((high - low) / step).ceil().tolist()
    chunk = max(1, 2_000_000 // num_components)  # of points, for the memory that K asks
    if truth.dim > 2 or math.prod(sizes) * num_components > _MOST_TERMS:
        x = truth.sample(_DRAWS, sigma=sigma, generator=random_stream(0, "fisher")).double()
        squares = [truth.score(part, sigma).square().sum() for part in x.split(chunk)]
        return float(sum(squares)) / len(x)
    axes = [
        torch.linspace(float(a), float(b), int(n) + 1, dtype=torch.float64)
        for a, b, n in zip(low, high, sizes, strict=True)
    ]
    total = mass = 0.0
    for x in torch.cartesian_prod(*axes).reshape(-1, truth.dim).split(chunk):
        density = truth.log_prob(x, sigma).exp()  # (chunk,)
        total += float(density @ truth.score(x, sigma).square().sum(-1))
        mass += float(density.sum())
    return total / mass
