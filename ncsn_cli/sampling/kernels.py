"""The law of a chain in 1D, moved from grid to grid by the transition kernels of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.inits import StartLaw, box_of
from ncsn_cli.samplers import Place
from ncsn_cli.sampling.grid_law import NEGLIGIBLE, GridLaw, law_at
from ncsn_cli.sampling.transition import Move, NoLaw

Array = NDArray[np.float64]

_REACH = 10.0  # widths of a kernel; 2e-23 of its mass lies beyond
_KEPT = 1e-16  # mass of a point that a grid has to hold, with 8 widths beyond
_LEAST = -700.0  # log q of nothing, whose exponential is a number
_FINER, _FINEST = 4, 30  # the last grid resolves such fractions of the last kernel's width
_PILOTS = 200  # points where the density is looked up, to find its ends
_MOST_ENTRIES, _MOST_PRODUCTS = 3e7, 2e10  # of a matrix: 400 MB; of all steps: half a minute

DEEPEST = 46.0
"""Nats below the largest density, from where on it shows that kernels are cut off."""


@dataclass(frozen=True)
class Resolution:
    """How the grids are made.

    Args:
        truth: Its p_sigma lies in the grid of every level.
        ends: No grid reaches beyond them.
        stds: How far a grid reaches beyond the modes, in standard deviations of p_sigma.
        parts: Points of a grid per width of a kernel.
    """

    truth: Dataset
    ends: tuple[float, float]
    stds: float
    parts: float

    def last_scale(self, move: Move) -> float:
        """Return the width that the last grid resolves, data units, where ``move`` is the last.

        It resolves a target's narrowest mode if possible, and is fine enough that the corners of
        |p - q| are seen.
        """
        narrowest = min(self.truth.smallest_std or math.inf, move.width / _FINER)
        return max(narrowest, move.width / _FINEST)

    def axis(self, move: Move, scale: float, points: Array) -> Array:
        """Return the grid for the states after ``move``, whose means are ``points`` (n,).

        It resolves kernels whose width is ``scale``.
        """
        low, high = self._box(move.sigma)
        low = max(self.ends[0], min(low, points.min(initial=low) - 8 * move.width))
        high = min(self.ends[1], max(high, points.max(initial=high) + 8 * move.width))
        num = math.ceil((high - low) / scale * self.parts) + 1
        if num * self._reached(move, scale) > _MOST_ENTRIES:
            raise NoLaw(f"its steps are so short that a grid of {num} points would be needed")
        return np.linspace(low, high, num)

    def check(self, moves: list[Move]) -> None:
        """Raise ``NoLaw`` if ``moves`` are too many for their widths."""
        boxes = [self._box(move.sigma) for move in moves]
        products = sum(
            (high - low) / move.width * self.parts * self._reached(move, move.width) * move.repeats
            for (low, high), move in zip(boxes, moves, strict=True)
            if move.width
        )
        if products > _MOST_PRODUCTS:
            raise NoLaw(
                f"its steps are so short and so many that their grids would need {products:.0e}"
                " products"
            )

    def _box(self, sigma: float) -> tuple[float, float]:
        """Return the ends of the part of the box where p_sigma has mass."""
        low, high = box_of(self.truth, sigma, self.stds)
        step = float(high - low) / _PILOTS
        x = torch.cat([low + step * torch.arange(_PILOTS + 1), self.truth.modes[:, 0]])
        log_p = self.truth.log_prob(x[:, None], sigma)
        x = x[log_p >= log_p.max() - self.stds**2 / 2]
        return float(x.min()) - step, float(x.max()) + step

    def _reached(self, move: Move, scale: float) -> float:
        """Return how many points a kernel reaches on a grid that resolves ``scale``."""
        return 2 * _REACH * self.parts * move.width / scale


def by_kernels(moves: list[Move], start: StartLaw, how: Resolution) -> tuple[GridLaw, float]:
    """Return the law after all ``moves``, and the mass that left the grids.

    The steps have no Metropolis test.
    """
    how.check(moves)
    widths = [move.width or math.inf for move in moves]
    low, high, step = float(start.low), float(start.high), min(start.scale, widths[0]) / how.parts
    law = _start_on(np.linspace(low, high, math.ceil((high - low) / step) + 1), start)
    for move, width, following in zip(
        moves, widths, [*widths[1:], how.last_scale(moves[-1])], strict=True
    ):
        if not move.width:
            for _ in range(move.repeats):
                law = law.image(move.mean, 1)
            law = _unfolded(law)
            continue
        if move.repeats > 1:
            law = _moved(law, move, width, how)
            x, volume = law.x[:, 0].numpy(), float(law.weight[1])
            matrix = volume * _kernel(_means(move, law), move.width, x)
            q = law.log_q.exp().numpy()
            for _ in range(move.repeats - 2):
                q = matrix @ q
            law = _on(x, q)
        law = _moved(law, move, min(width, following), how)
    return law, abs(1 - float(law.masses.sum()))


def _start_on(x: Array, start: StartLaw) -> GridLaw:
    """Return the law ``start`` on the grid ``x`` (n,), with the weights of the trapezoid rule."""
    points = _column(x)
    weight = torch.full((len(x),), x[1] - x[0], dtype=torch.float64)
    weight[[0, -1]] /= 2
    return law_at(points, start.log_prob(points), weight)


def _unfolded(law: GridLaw) -> GridLaw:
    """Return ``law`` without the points where a map folds."""
    if (folded := float(law.masses[law.is_folded].sum())) > NEGLIGIBLE:
        raise NoLaw(f"a step without noise has a slope <= 0 for {100 * folded:.2g} % of the mass")
    return law[~law.is_folded]


def _column(x: Array) -> Tensor:
    """Return the points ``x`` (n,) as (n, 1)."""
    return torch.from_numpy(x)[:, None]


def _means(move: Move, law: GridLaw) -> Array:
    return move.mean(law.x)[:, 0].numpy()


def _on(x: Array, q: Array) -> GridLaw:
    """Return the law whose density is ``q`` (n,) at the points of the grid ``x`` (n,)."""
    log_q = torch.from_numpy(q).log()
    log_q[log_q < log_q.max() - DEEPEST] = -math.inf
    return law_at(_column(x), log_q, torch.full_like(log_q, x[1] - x[0]))


def _moved(law: GridLaw, move: Move, scale: float, how: Resolution) -> GridLaw:
    """Return the law after one step, on a grid that resolves the width ``scale``."""
    means, masses = _means(move, law), law.masses.numpy()
    x = how.axis(move, scale, means[masses > _KEPT])
    return _on(x, _kernel(means, move.width, x) @ masses)


def _windows(means: Array, width: float, x: Array) -> NDArray[np.int64]:
    """Return which points of the grid ``x`` (n,) kernels around ``means`` (G,) reach, (G, M)."""
    step = x[1] - x[0]
    num = min(len(x), math.ceil(2 * _REACH * width / step) + 1)
    first = np.ceil((means - _REACH * width - x[0]) / step).clip(0, len(x) - num)
    return first.astype(np.int64)[:, None] + np.arange(num)


def _sparse(values: Array, rows: NDArray[np.int64], num: int) -> Any:  # noqa: ANN401
    """Return the matrix (num, G) whose column j holds ``values`` (G, M) in ``rows`` (G, M)."""
    from scipy.sparse import csc_array  # here, because importing scipy is slow

    ends = np.arange(len(values) + 1) * values.shape[1]
    return csc_array((values.ravel(), rows.ravel(), ends), shape=(num, len(values)))


def _kernel(means: Array, width: float, x: Array) -> Any:  # noqa: ANN401
    """Return N(x_i; means_j, width^2), (n, G), in units of 1/length."""
    rows = _windows(means, width, x)
    z = (x[rows] - means[:, None]) / width
    return _sparse(np.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * width), rows, len(x))


def by_metropolis(moves: list[Move], start: StartLaw, how: Resolution) -> tuple[GridLaw, float]:
    """Return the law after all ``moves``, and the mass that was proposed to leave the grids.

    Each proposal is accepted or refused; one that leads out of a grid is refused. The law is
    interpolated from the grid of a level to that of the next one, and keeps its mass.
    """
    how.check(moves)
    first, left = moves[0], 0.0
    ends = np.array([float(start.low), float(start.high)])
    law = _start_on(how.axis(first, min(first.width, start.scale), ends), start)
    for k, move in enumerate(moves):
        if k > 0:
            law = _interpolated(law, how.axis(move, move.width, _kept(law)), moves[k - 1])
        x, volume = law.x[:, 0].numpy(), float(law.weight[1])
        matrix, refused, outwards = _tested(law.x, move)
        q = law.log_q.exp().numpy()
        q = q / (q.sum() * volume)
        for _ in range(move.repeats):
            left += float(outwards @ q) * volume
            q = volume * (matrix @ q) + refused * q
        law = _on(x, q)
    return _interpolated(law, how.axis(move, how.last_scale(move), _kept(law)), move), left


def _tested(points: Tensor, move: Move) -> tuple[Any, Array, Array]:
    """Return what a step does on the grid ``points`` (n, 1): its matrix, and two shares (n,).

    The matrix (n, n) is that of the accepted proposals, in units of 1/length. The shares are those
    of the proposals that are refused, and of those that lead out of the grid.
    """
    assert move.proposed_by is not None
    tau = move.proposed_by.tau
    x, here = points[:, 0].numpy(), Place.at(points, move.proposed_by)
    means = move.mean(points)[:, 0].numpy()
    rows = _windows(means, move.width, x)
    z = (x[rows] - means[:, None]) / move.width
    there = Place(*(each[torch.from_numpy(rows)] for each in here))
    column = Place(*(each[:, None] for each in here))
    log_ratio = column.log_ratio(there, torch.from_numpy(z)[..., None], tau).numpy()
    proposed = np.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * move.width)
    accepted = proposed * np.exp(np.minimum(log_ratio, 0))
    volume = x[1] - x[0]
    refused, outwards = (1 - each.sum(1) * volume for each in (accepted, proposed))
    return _sparse(accepted, rows, len(x)), refused.clip(0), outwards.clip(0)


def _kept(law: GridLaw) -> Array:
    """Return the points of ``law`` (n,) that the next grid has to hold."""
    return law.x[law.masses > _KEPT, 0].numpy()


def _interpolated(law: GridLaw, x: Array, move: Move) -> GridLaw:
    """Return ``law``, which ``move`` has led to, on the grid ``x`` (n,).

    The logarithm of q over the density that the test keeps is interpolated, by a cubic spline.
    Where q jumps, a spline swings: it stays within a factor 2 of the two neighbours.
    """
    from scipy.interpolate import CubicSpline  # here, because importing scipy is slow

    assert move.proposed_by is not None
    log_p = [Place.at(points, move.proposed_by).log_density for points in (law.x, _column(x))]
    nodes, ratio = law.x[:, 0].numpy(), (law.log_q.clamp(min=_LEAST) - log_p[0]).numpy()
    left = np.searchsorted(nodes, x, side="right").clip(1, len(nodes) - 1) - 1
    low, high = (f(ratio[left], ratio[left + 1]) for f in (np.minimum, np.maximum))
    found = CubicSpline(nodes, ratio)(x).clip(low - math.log(2), high + math.log(2))
    found += log_p[1].numpy()
    found[(x < nodes[0]) | (x > nodes[-1])] = _LEAST
    return _on(x, np.exp(found))
