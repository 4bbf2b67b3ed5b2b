"""The law of chains without noise: the image of their start under the map that they make."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.inits import StartLaw, box_of
from ncsn_cli.sampling.grid_law import GridLaw, law_at

PARTS = 4
"""The number of coarser grids that a grid consists of.

Their step is twice as long for D = 2 and four times as long for D = 1.
"""

RIM = 0.9
"""Where the rim of a grid begins, as a share of the standard deviations that it reaches."""

_ANGLE = math.atan((math.sqrt(5) - 1) / 2)
_SHIFT = math.sqrt(2) - 1, math.sqrt(3) - 1  # in steps: no point of symmetry is on the grid


def lattice(
    start: StartLaw, truth: Dataset, sigma: float, stds: float, num: int
) -> tuple[GridLaw, Tensor, Tensor]:
    """Return ``start`` on a square grid, where it or p_sigma of ``truth`` has mass.

    There are ``num`` points along an axis of the box that holds both to ``stds`` standard
    deviations; of points with less than exp(-stds^2/2) of the highest density, none is kept. The
    grid is turned by an angle whose tangent is (sqrt(5) - 1)/2. Where a map divides space between
    modes, it leaves thin seams, which often are parallel to an axis. A grid that is parallel, too,
    would hit them with a whole row of points or with none.

    Returns:
        The law; the part of the grid (G,) that each point belongs to, of ``PARTS`` coarser grids
        that are alike; and whether the points are at the rim (G,).
    """
    low, high = start.low, start.high
    if not start.has_edges:
        below, above = box_of(truth, sigma, stds)
        low, high = torch.minimum(low, below), torch.maximum(high, above)
    dim, half, step = len(low), (high - low) / 2, 2 / num
    # A square grid of the numbers of rows and columns, turned, around the centre.
    most = math.ceil(num * math.sqrt(dim) / 2) + 1
    rows = torch.arange(-most, most + 1)
    places = torch.cartesian_prod(*[rows] * dim).reshape(-1, dim)
    cos, sin = math.cos(_ANGLE), math.sin(_ANGLE)
    turn = torch.tensor([[cos, -sin], [sin, cos]] if dim == 2 else [[1.0]], dtype=torch.float64)
    unit = step * (places + torch.tensor(_SHIFT[:dim], dtype=torch.float64)) @ turn  # -1 to 1
    is_in_box = (unit.abs() <= 1).all(-1)
    places, points = places[is_in_box], low + half * (1 + unit[is_in_box])
    # Keep the points where the start or p_sigma has mass.
    log_q = start.log_prob(points)
    if start.has_edges:
        below = torch.where(log_q > -math.inf, 0, math.inf)
    else:
        below = torch.minimum(log_q.max() - log_q, depth(truth, points, sigma))  # nats
    kept = below <= stds**2 / 2
    weight = torch.full_like(log_q, float(half.prod()) * step**dim)
    law = law_at(points, log_q, weight)[kept]
    rows = places[kept]
    part = rows[:, 0] % 2 + 2 * (rows[:, 1] % 2) if dim == 2 else rows[:, 0] % PARTS
    return law, part, below[kept] > (RIM * stds) ** 2 / 2


def depth(truth: Dataset, points: Tensor, sigma: float) -> Tensor:
    """Return how far log p_sigma is below its maximum at ``points`` (G, D), (G,), nats."""
    log_p = truth.log_prob(points, sigma)
    return log_p.max() - log_p
