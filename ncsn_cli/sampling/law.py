"""The law of a sampler's last state on a grid, without sampling, and its divergence from a target.

Two ways lead to it. Steps without noise are a map T, whose Jacobian is computed, for D = 1 and 2:

    log q(T(x)) = log q_0(x) - log det dT/dx

Steps with noise are transition kernels, for D = 1. From a law at points x_j, where each stands for
the volume w_j, a step x <- m(x) + s z, z ~ N(0, 1), leads to the density

    q'(y) = sum_j w_j q(x_j) N(y; m(x_j), s^2)

at the points y of a new grid. This is the trapezoid rule. For smooth functions its error falls as
exp(-2 pi^2 l^2/h^2), where h is the step of the grid and l the length over which the product under
the sum changes. So each grid follows the widths s of the kernels that lead to it and from it, and
nothing is interpolated. A Metropolis test, with the probability a(x, y) to accept, keeps a part of
the law where it is:

    q'(y) = sum_j w_j q(x_j) k(x_j, y) + q(y) (1 - sum_j w_j k(y, x_j)),
    k(x, y) = N(y; m(x), s^2) a(x, y)

Because p_sigma(x) k(x, y) = p_sigma(y) k(y, x), p_sigma is invariant on the grid, too. The part
that is kept is no smoother than it was. So q/p_sigma has to be interpolated when the grid changes
with the level, and the error falls as h^2.

Source: the change of variables and the Chapman-Kolmogorov equation; Trefethen & Weideman (2014),
doi:10.1137/130932132, section 5 (the trapezoid rule); Roberts & Tweedie (1996),
doi:10.2307/3318418, section 1.4.2 (the test).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.datasets import Denoised
from ncsn_cli.inits import StartLaw, box_of
from ncsn_cli.metrics import in_float64
from ncsn_cli.samplers import Level, LogProb, Sampler
from ncsn_cli.sampling.grid_law import (
    FOLDED,
    NEGLIGIBLE,
    RESOLVED,
    GridLaw,
    LogDensity,
    distances,
    mass_at,
)
from ncsn_cli.sampling.kernels import DEEPEST, Resolution, by_kernels, by_metropolis
from ncsn_cli.sampling.maps import PARTS, RIM, depth, lattice
from ncsn_cli.sampling.transition import NoLaw, last_state, moves_of

_STDS = 7.0, 14.0, 28.0  # of the boxes that are tried, beyond the modes
_PER_WIDTH = 3.0, 1.5  # points of a grid per width of a kernel
_POINTS = {1: (1025, 4097), 2: (49, 97, 193)}  # of the grids that are tried for maps, per axis
_HOPELESS = 5 * FOLDED  # where more is folded, it is not a seam that a finer grid resolves
_CLOSE = 1e-3, 0.2  # with this error of KL or TV a map's grid is good: in nats, and relative


@dataclass(frozen=True)
class ChainLaw:
    """The law of a sampler's last state.

    Args:
        fine: The law, on a grid.
        coarse: The same law, each time on a grid whose step is two or four times as long.
        is_at_rim: The points of the fine grid beyond which there are none (G,).
        lost: The mass that left the grids.
        is_partial: Whether the grid lacks points of the target.
    """

    fine: GridLaw
    coarse: list[GridLaw]
    is_at_rim: Tensor
    lost: float = 0.0
    is_partial: bool = False


@dataclass(frozen=True)
class Divergence:
    """Distances of a chain's law q from a target p, and their errors.

    An error is twice the largest change on a coarser grid, and the masses that were lost or are
    folded. For KL it is also 46 nats for the mass of p at the rim of the grid, or where q is not
    known. The change is taken twice because thin seams of a map are hit by chance.

    Args:
        kl: KL(p || q), nats; None for the ``reason``.
        kl_error: Its error, nats.
        tv: Total variation 1/2 integral of |p - q|, from 0 to 1; None for the ``reason``.
        tv_error: Its error.
        folded: See ``Distances``.
        reason: Why a number is None, in a sentence without a full stop; empty if none is.
    """

    kl: float | None
    kl_error: float | None
    tv: float | None
    tv_error: float | None
    folded: float
    reason: str = ""


@torch.no_grad()
def law_of_chain(
    sampler: Sampler,
    plan: list[Level],
    score: Score,
    start: StartLaw | None,
    truth: Dataset,
    log_prob: LogProb | None = None,
) -> ChainLaw:
    """Return the law of the last state of ``sampler``'s chains, in the coordinates of ``truth``.

    Args:
        sampler: The sampler.
        plan: Its levels.
        score: The score that the chains follow. A function, unlike a network, has to take float64.
        start: The law of the initial points; None if it is not known.
        truth: The distribution from which the chains' boxes and the narrowest mode are known. Maps
            are refined until the divergence of its p_sigma at the last level is accurate.
        log_prob: The log-density, for a sampler that ``needs_log_prob``, which takes float64.

    Raises:
        NoLaw: If the law cannot be computed.
    """
    if start is None or not start.scale > 0:
        raise NoLaw("the density of its initial points is not known")
    if not truth.is_known or truth.dim > 2:
        raise NoLaw("the law is computed for D = 1 and 2, and where the truth is known")
    if sampler.denoise and not truth.has_density(0.0):
        raise NoLaw("p has no density, and nor have perfect samples that are denoised")
    score = in_float64(score)
    low, high = box_of(truth, plan[0].sigma, 1.0)
    moves = moves_of(sampler, plan, score, log_prob, torch.stack([low, high]))
    end = partial(last_state, sampler, plan, score, log_prob)
    if not any(move.width for move in moves):
        return _by_map(sampler, plan, partial(end, 0), start, truth)
    if truth.dim > 1:
        raise NoLaw("of steps with noise, the law is computed for D = 1 alone")
    evolve = by_metropolis if sampler.needs_log_prob else by_kernels
    for stds in _STDS:
        ends = _ends(start, truth, max(level.sigma for level in plan), stds)
        fine, lost = evolve(moves, start, Resolution(truth, ends, stds, _PER_WIDTH[0]))
        if lost <= NEGLIGIBLE:
            break
    else:
        raise NoLaw(f"{100 * lost:.2g} % of its mass leaves any grid around the modes")
    coarse, _ = evolve(moves, start, Resolution(truth, ends, stds, _PER_WIDTH[1]))
    is_at_rim = depth(truth, fine.x, plan[-1].sigma) > (RIM * stds) ** 2 / 2
    if sampler.denoise:
        still = [*plan[:-1], plan[-1]._replace(steps=0)]
        denoise = partial(last_state, sampler, still, score, log_prob, len(plan) - 1)
        fine, coarse = (law.image(denoise, 1) for law in (fine, coarse))
    parts = _parts(fine, torch.arange(len(fine.x)) % PARTS)
    return ChainLaw(fine, [coarse, *parts], is_at_rim, lost)


def divergence(law: ChainLaw, log_p: LogDensity) -> Divergence:
    """Return how far the chains' ``law`` is from the target whose log-density is ``log_p``.

    The target is one in the coordinates of the chains, such as ``truth.log_prob`` at a level.
    """
    grids = [distances(each, log_p) for each in (law.fine, *law.coarse)]
    fine = grids[0]
    if fine.folded > FOLDED:
        reason = f"the map of the chains has a determinant <= 0 where {_share(fine.folded)}"
        return Divergence(None, None, None, None, fine.folded, reason)
    if not law.is_partial and abs(fine.mass - 1) > RESOLVED:
        reason = f"the grid of the law holds {fine.mass:.2g} of the target's mass instead of 1"
        return Divergence(None, None, None, None, fine.folded, reason)
    inexact = law.lost + fine.folded
    # What the chains do not reach is a part of TV.
    tvs = [each.tv + law.is_partial * max(0.0, 1 - each.mass) for each in grids]
    tv, tv_error = tvs[0], 2 * max(abs(other - tvs[0]) for other in tvs) + inexact
    if law.is_partial:
        reason = "the chains do not reach all of the target"
        return Divergence(None, None, tv, tv_error, fine.folded, reason)
    if fine.unseen > NEGLIGIBLE:
        reason = f"the chains have too little mass to be computed where {_share(fine.unseen)}"
        return Divergence(None, None, tv, tv_error, fine.folded, reason)
    at_rim = mass_at(law.fine, log_p, law.is_at_rim)
    kl_change = 2 * max(abs(each.kl - fine.kl) for each in grids)
    kl_error = kl_change + DEEPEST * (fine.unseen + at_rim) + inexact
    return Divergence(fine.kl, kl_error, tv, tv_error, fine.folded)


def _ends(start: StartLaw, truth: Dataset, sigma: float, stds: float) -> tuple[float, float]:
    """Return the ends of an interval twice as long as one that holds ``start`` and p_sigma."""
    low, high = box_of(truth, sigma, stds)
    low, high = torch.minimum(low, start.low), torch.maximum(high, start.high)
    return float(low - (high - low) / 2), float(high + (high - low) / 2)


def _parts(law: GridLaw, part: Tensor) -> list[GridLaw]:
    """Return the parts of ``law``, each with the whole volume, from the number (G,) of each."""
    parts = [law[part == k] for k in range(PARTS)]
    return [replace(each, weight=PARTS * each.weight) for each in parts]


def _share(mass: float) -> str:
    return f"{100 * min(mass, 1.0):.2g} % of the target lies"


def _by_map(
    sampler: Sampler, plan: list[Level], end: Callable[[Tensor], Tensor], start: StartLaw,
    truth: Dataset,
) -> ChainLaw:  # fmt: skip
    """Return the law of ``end(x)``, x ~ ``start``.

    The grid is refined until its divergence from perfect samples is good. It is made wider where
    its rim leads to a part of them.
    """
    perfect = Denoised(truth) if sampler.denoise else truth
    log_p, sigma = partial(perfect.log_prob, sigma=plan[-1].sigma), plan[0].sigma
    for stds in _STDS:
        for num in _POINTS[truth.dim]:
            before, part, is_at_rim = lattice(start, truth, sigma, stds, num)
            fine = before.image(end, sampler.ends(plan)[-1])
            law = ChainLaw(fine, _parts(fine, part), is_at_rim, is_partial=start.has_edges)
            if _is_settled(divergence(law, log_p)):
                break
        if start.has_edges or mass_at(fine, log_p, is_at_rim) <= NEGLIGIBLE:
            return law
    return replace(law, is_partial=True)


def _is_settled(found: Divergence) -> bool:
    """Return whether a finer grid is not needed, or would not help."""
    if found.tv is None or found.tv_error is None:
        return found.folded > _HOPELESS
    kl, kl_error = found.kl or 0.0, found.kl_error or 0.0
    is_good = kl_error <= max(_CLOSE[0], _CLOSE[1] * kl)
    return is_good and found.tv_error <= max(_CLOSE[0], _CLOSE[1] * found.tv)
