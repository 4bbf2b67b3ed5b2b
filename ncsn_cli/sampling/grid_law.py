"""A law on a grid: its image under a map, and its distance from a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_cli.core.score import detached_jacobian

LogDensity = Callable[[Tensor], Tensor]
"""From points (B, D), float64, to log-densities (B,), nats."""

NEGLIGIBLE = 1e-6
"""Mass that may be lost, or lie where a law is not known.

KL and TV change by about as much: far less than what any number of chains shows.
"""

FOLDED = 0.01
"""Mass that may lie where a map turns space over, as part of the error.

There the map is not one-to-one, and q is a sum over several points of the start. A mass m changes
KL and TV by about m.
"""

RESOLVED = 0.05
"""Error up to which a grid holds the mass of a target once."""

_FEW = 1e-4  # a mass of q that may come on top of others: part of the error
_POINT_STEPS = 100_000  # points times steps that are differentiated at once: up to 1 GB


@dataclass(frozen=True)
class GridLaw:
    """A law q at G points, each of which stands for a volume around it.

    Args:
        x: The points (G, D), float64.
        log_q: log q (G,), nats; -inf where q is too small to be known.
        weight: The volumes (G,), data units to the power D.
        is_folded: Where a map that led here turns space over, or ends nowhere, at nan (G,).
    """

    x: Tensor
    log_q: Tensor
    weight: Tensor
    is_folded: Tensor

    @property
    def masses(self) -> Tensor:
        """The mass q times volume at each point (G,)."""
        return self.log_q.exp() * self.weight

    def __getitem__(self, some: Tensor) -> GridLaw:
        """Return this law at ``some`` of the points, with the same volumes."""
        return GridLaw(self.x[some], self.log_q[some], self.weight[some], self.is_folded[some])

    def image(self, end: Callable[[Tensor], Tensor], num_steps: int) -> GridLaw:
        """Return the law of ``end(x)`` for x of this law: log q - log |det| at the images.

        The determinant is that of the Jacobian of ``end``, by D backward differentiations, which
        take a third to a tenth of the time of forward ones. ``end`` makes ``num_steps`` steps: the
        memory that it needs grows with them. A point that is folded keeps its mass.
        """
        size, nothing = max(100, _POINT_STEPS // num_steps), torch.zeros(())
        parts = [detached_jacobian(lambda x, _: end(x), x, nothing) for x in self.x.split(size)]
        ends, jacobians = (torch.cat(both) for both in zip(*parts, strict=True))
        determinant = torch.linalg.det(jacobians)  # (G,)
        is_finite = ends.isfinite().all(-1) & determinant.isfinite() & (determinant != 0)
        volume = determinant.abs().where(is_finite, 1)
        is_folded = self.is_folded | ~is_finite | (determinant < 0)
        ends = ends.where(is_finite[:, None], math.nan)
        return GridLaw(ends, self.log_q - volume.log(), self.weight * volume, is_folded)


def law_at(x: Tensor, log_q: Tensor, weight: Tensor) -> GridLaw:
    """Return the law of these points (G, D), log-densities (G,) and volumes (G,), as it starts."""
    return GridLaw(x, log_q, weight, torch.zeros_like(log_q, dtype=torch.bool))


class Distances(NamedTuple):
    """Distances of a law q on a grid from a target p.

    Args:
        kl: KL(p || q), over the points where q is known, nats.
        tv: Total variation, 1/2 integral of |p - q|, from 0 to 1.
        mass: The mass of p on the grid.
        unseen: The part of p's mass where q is too small to be known.
        folded: The mass of q where a map folds, or takes points to places where others are, or
            that of p if it is larger. If that of q is at most 1e-4, that of p does not count: then
            the other points give q.
    """

    kl: float
    tv: float
    mass: float
    unseen: float
    folded: float


def distances(law: GridLaw, log_p: LogDensity) -> Distances:
    r"""Return the distances of ``law`` q from the target p, both of mass 1.

        KL = sum_j w_j (p_j log(p_j/q_j) - p_j) + 1,    TV = sum_j w_j max(p_j - q_j, 0)

    Since the sum of w_j q_j is 1, or would be on a grid that resolves q, every point adds to KL
    something positive, p log(p/q) - p + q, which is 0 where p = q. So the error of the sum is a
    part of KL, not of the masses. q need not be resolved where p is 0.
    """
    log_target = _log_target(law, log_p)
    all_p = log_target.exp() * law.weight
    p, is_again = _once(law, all_p)
    is_unseen = (law.log_q == -math.inf) & ~law.is_folded
    seen = ~is_unseen & ~law.is_folded & (p > 0)
    log_ratio = (log_target - law.log_q)[seen]
    unseen = float(p[is_unseen].sum())
    excess = p[seen] * (-torch.expm1(-log_ratio)).clamp(min=0)  # p - q where it is positive
    folded = [each[is_again | law.is_folded].sum() for each in (law.masses, all_p)]
    return Distances(
        kl=float((p[seen] * (log_ratio - 1)).sum()) + 1,
        tv=float(excess.sum()) + unseen,
        mass=float(p.sum()),
        unseen=unseen,
        folded=float(folded[0] if folded[0] <= _FEW else max(folded)),
    )


def mass_at(law: GridLaw, log_p: LogDensity, some: Tensor) -> float:
    """Return the mass of the target at ``some`` of the points, a mask (G,)."""
    return float(_once(law, _log_target(law, log_p).exp() * law.weight)[0][some].sum())


def _log_target(law: GridLaw, log_p: LogDensity) -> Tensor:
    """Return log p (G,), nats; -inf at points that a map has taken nowhere."""
    is_somewhere = law.x.isfinite().all(-1)
    found = torch.full_like(law.log_q, -math.inf)
    found[is_somewhere] = log_p(law.x[is_somewhere])
    return found


def _once(law: GridLaw, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target's masses ``p`` (G,), each counted once, and where they were before (G,).

    Where a map folds, several points of the start end at the same place, and mass of p is counted
    several times: at points where the determinant is negative, and up to as much at others. What
    exceeds 1 is taken from the points with the smallest masses of q: far out, a network may take
    points back to where others are.
    """
    is_again, folded = torch.zeros_like(law.is_folded), p[law.is_folded].sum()
    p = p.masked_fill(law.is_folded, 0)
    if (extra := min(folded, p.sum() - 1)) > 0:
        order = law.masses.masked_fill(law.is_folded, 0).argsort()
        is_again[order] = p[order].cumsum(0) < extra
    return p.masked_fill(is_again, 0), is_again
