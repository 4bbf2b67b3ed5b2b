"""The density recovered by integrating a score in one dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.metrics.likelihood import in_float64
from ncsn_cli.metrics.score_error import in_parts

Array = NDArray[np.float64]

NOT_RECOVERED = "integrating the score gives no density that falls at both ends and is resolved"
"""The reason, in messages, why there is no KL divergence."""

_MOST_POINTS = 1_000_000
_FIRST_POINTS = 501  # before any piece is halved, in addition to the points around each mode
_AROUND = np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8])  # offsets in narrowest standard deviations
_MASS_ERROR = 1e-3  # max error of the mass of p_sigma: a larger one shows that a part is missed
_MOST_WIDENINGS = 10  # each adds the whole width, at one end or at both
_NEGLIGIBLE = 30.0  # nats below the maximum at which a density is negligible
_ROUGH = 1e-4  # nats by which Simpson's and the trapezoid rule may differ on one piece
_STEEP = 0.25  # nats that a log-density may change on one piece, where it is not negligible


class RecoveredDensity(NamedTuple):
    """The density q recovered from its score at one level, D = 1.

    Args:
        x: Points (G,), ascending, closest where the score turns fastest.
        log_prob: log q at the points (G,), scaled so that q has mass 1 on the points.
        kl: KL(p_sigma || q) in nats, where p_sigma too is scaled to mass 1 on the points. None if
            q does not fall at both ends, if the score is not finite, if the score turns faster
            than the allowed number of points can resolve, or if the points miss a part of
            p_sigma. A part of q that lies between two points goes unnoticed.
    """

    x: Tensor
    log_prob: Tensor
    kl: float | None


def recovered_density(
    score: Score, truth: Dataset, sigma: float, most_points: int = _MOST_POINTS
) -> RecoveredDensity:
    """Return the density q whose score is ``score`` at the level ``sigma``, for D = 1.

        log q(x) = integral of s(u, sigma) du up to x, plus a constant,

    by Simpson's rule, in float64 on the CPU. The points reach 4 sigma beyond the extent of the
    pictures, and farther until q has fallen to e^-30 of its maximum at both ends. If q does not
    fall, the first points are kept. There are at most ``most_points`` points.
    """
    from scipy.integrate import simpson  # here: scipy is slow to import

    score, level = in_float64(score), torch.tensor(sigma, dtype=torch.float64)

    def columns(x: Array) -> Array:
        """Return x, and at x the score, the true score and log p_sigma, (4, G)."""
        parts = in_parts(torch.from_numpy(x)[:, None], truth)
        s, true = (torch.cat([f(part, level) for part in parts]) for f in (score, truth.score))
        log_p = torch.cat([truth.log_prob(part, level) for part in parts])
        return np.stack([x, s[:, 0].numpy(), true[:, 0].numpy(), log_p.numpy()])

    # First points: the extent of the pictures with a margin, and the surroundings of each mode.
    low, high = (float(end) for end in truth.extent)
    margin = 4 * sigma
    width = math.hypot(truth.smallest_std or 0.0, sigma)
    near = truth.modes[:, 0, None].numpy() + width * _AROUND
    whole = np.linspace(low - margin, high + margin, _FIRST_POINTS)
    first = _integrated(columns(np.union1d(whole, near.clip(whole[0], whole[-1]))))
    first, is_resolved = _refine(columns, first, most_points)
    # Widen the range until q is negligible at both ends, and refine what was added only then: q
    # may not fall at all.
    table, pieces = first, _beyond(first)
    for _ in range(_MOST_WIDENINGS):
        if not is_resolved or not pieces:
            break
        table = _integrated(table, *(columns(piece) for piece in pieces))
        pieces = _beyond(table)
        if not pieces:
            table, is_resolved = _refine(columns, table, most_points)
            pieces = _beyond(table)
    if pieces:
        table, is_resolved = first, False
    # Scale both densities to mass 1, and compute KL(p_sigma || q).
    x, _, _, log_p, log_q = table
    is_resolved &= abs(simpson(np.exp(log_p), x=x) - 1) <= _MASS_ERROR
    log_p, log_q = (f - f.max() for f in (log_p, log_q))  # exp cannot overflow
    masses = [float(simpson(np.exp(f), x=x)) for f in (log_p, log_q)]
    is_resolved &= min(masses) > 0  # Simpson's rule may fail where rounding merges points
    log_p, log_q = (
        f - (math.log(mass) if mass > 0 else 0.0)
        for f, mass in zip((log_p, log_q), masses, strict=True)
    )
    kl = float(simpson(np.exp(log_p) * (log_p - log_q), x=x))
    is_known = is_resolved and math.isfinite(kl)
    return RecoveredDensity(torch.from_numpy(x), torch.from_numpy(log_q), kl if is_known else None)


def _integrated(*tables: Array) -> Array:
    """Return all ``tables`` as one (5, G), x ascending, with the integral of the score last.

    Each table holds x, the score, the true score and log p_sigma. A fifth row, the integral of an
    earlier call, is not used.
    """
    from scipy.integrate import cumulative_simpson

    table = np.concatenate([each[:4] for each in tables], axis=1)
    table = table[:, table[0].argsort()]
    return np.vstack([table, cumulative_simpson(table[1], x=table[0], initial=0)])


def _refine(
    columns: Callable[[Array], Array], table: Array, most_points: int
) -> tuple[Array, bool]:
    """Return ``table`` (5, G) with its rough pieces halved, and whether no rough piece is left."""
    while (rough := _rough_pieces(table)).any():
        middles = ((table[0, :-1] + table[0, 1:]) / 2)[rough]
        if table.shape[1] + len(middles) > most_points or np.isin(middles, table[0]).any():
            return table, False
        table = _integrated(table, columns(middles))
    return table, True


def _rough_pieces(table: Array) -> NDArray[np.bool_]:
    """Return which of the pieces between points are too long, (G - 1,).

    On such a piece, Simpson's and the trapezoid rule differ, or a density that is not negligible
    on the piece changes too much. Where the log of a density is concave, its slopes at both ends
    bound its maximum on the piece.
    """
    x, s, true, log_p, log_q = table
    h = np.diff(x)
    rough = np.abs(np.diff(log_q) - h * (s[:-1] + s[1:]) / 2) > _ROUGH
    for log_f, slope in ((log_q, s), (log_p, true)):
        rise, fall = h * slope[:-1], -h * slope[1:]  # from either end into the piece
        largest = np.maximum(log_f[:-1] + rise.clip(0), log_f[1:] + fall.clip(0))
        is_steep = np.maximum(np.abs(rise), np.abs(fall)) > _STEEP
        rough |= is_steep & (largest > log_f.max() - _NEGLIGIBLE)
    return rough


def _beyond(table: Array) -> list[Array]:
    """Return new points beyond each end where q is not negligible, over the table's own width."""
    x, log_q = table[0], table[4]
    steps = (x[-1] - x[0]) * np.linspace(0, 1, _FIRST_POINTS // 2)[1:]
    left, right = (bool(log_q[end] > log_q.max() - _NEGLIGIBLE) for end in (0, -1))
    return [x[0] - steps[::-1]] * left + [x[-1] + steps] * right
