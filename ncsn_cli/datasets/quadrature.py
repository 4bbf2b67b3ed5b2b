"""The Fisher information on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.expectation import FisherInformation

MOST_GRID_TERMS = 3e7
"""Max points times components of a grid. A grid of this size takes a second or two."""

_TERMS_AT_ONCE = 2_000_000  # 16 MB per number of a term, in float64


def fisher_on_grid(truth: Dataset, sigma: float, axes: list[Tensor]) -> FisherInformation:
    """Return E[s s^T], s = grad log p_sigma, by the trapezoid rule.

    With equal steps the rule converges geometrically for smooth densities.

    Args:
        truth: The dataset.
        sigma: The level, data units.
        axes: Ascending nodes of each axis (n,), float64. Outside them p_sigma is negligible.
    """
    steps = [torch.nn.functional.pad(axis.diff(), (1, 1)) for axis in axes]
    widths = [step[1:] + step[:-1] for step in steps]  # twice the rule's weights
    chunk = max(1, _TERMS_AT_ONCE // truth.num_components)
    points, areas = (
        torch.cartesian_prod(*values).reshape(-1, truth.dim).split(chunk)
        for values in (axes, widths)
    )
    total, mass = torch.zeros(truth.dim, truth.dim, dtype=torch.float64), 0.0
    for x, area in zip(points, areas, strict=True):
        density = area.prod(-1) * truth.log_prob(x, sigma).exp()  # (chunk,)
        score = truth.score(x, sigma)  # (chunk, D)
        total += score.mT @ (density[:, None] * score)
        mass += float(density.sum())
    return FisherInformation(total / mass, 0.0, torch.zeros_like(total))
