"""Levels fitted to the score: where a flow with few evaluations stays nearest to the exact flow.

The probability flow with L levels leads from a point x to y(x), and with hundreds of levels to
y*(x). From the same start these are coupled samples of two laws, whose distance is at most

    W1(law of y, law of y*)  <=  E ||y - y*||.

The levels between sigma_max and sigma_min are chosen to make that mean small over a few hundred
chains, and used for all chains. The mean is then taken over as many other chains: on those that
the levels were fitted to it is smaller.

Source: Tong et al. (2025), "Learning to Discretize Denoising Diffusion ODEs", arXiv:2405.15506,
who fit the levels to the distance from the exact flow too, by gradients. Here the levels are the
only unknowns, few enough for Gauss-Newton steps with differences.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.score import Score
from ncsn_cli.samplers import ProbabilityFlow
from ncsn_cli.sampling.tile import Counted
from ncsn_cli.schedules import Geometric, Karras

PILOTS = 1024
"""Number of chains; levels are fitted with half of them, chosen and measured with the others."""

_EXACT, _FINER = 400, 4  # least levels of the flow that counts as exact; levels for one of ours
_MOST_KNOTS = 16  # unknowns; with more levels, their spacing is interpolated
_MOST_STEPS = 60  # of Gauss-Newton, from a first guess
_SHORT = 1e-3  # of the samples' standard deviation: above, errors count by size, not squared
_OFFSET = 10.0  # of the unknowns: scipy's steps are relative, and should not vanish near 0


class Fitted(NamedTuple):
    """What was fitted, and what it cost.

    Args:
        sigmas: The levels (L,), with the first and the last of the schedule.
        before: E ||y - y*|| with the schedule's own levels, over the second half, data units.
        after: The same with ``sigmas``.
        evaluations: Evaluations of the score, each for half of the chains.
    """

    sigmas: Tensor
    before: float
    after: float
    evaluations: int


@torch.no_grad()
def fit_levels(sampler: ProbabilityFlow, score: Score, x: Tensor, sigmas: Tensor) -> Fitted:
    """Return levels for ``sampler``, fitted with chains that start at ``x`` (B, D).

    ``sigmas`` (L,) are the schedule's; the first guesses are these and geometric ones. Where the
    flow does not lead to finite points, or there is no level to move, they stay as they are.
    """
    from scipy.optimize import least_squares  # here: scipy is slow to import

    first, last, num = float(sigmas[0]), float(sigmas[-1]), len(sigmas)
    counted, stream = Counted(score, 0), torch.Generator(x.device)  # the flow draws nothing
    sampler = replace(sampler, denoise=False)  # the flow itself, without what may follow it
    fine = Karras(first, last, max(_EXACT, _FINER * num)).sigmas
    fitting, others = x.chunk(2)

    def end(solver: ProbabilityFlow, x: Tensor, levels: Tensor) -> Tensor:
        return solver(counted, x, levels, generator=stream).double()

    exact, exact_of_others = (end(ProbabilityFlow(), part, fine) for part in (fitting, others))
    scale = _SHORT * float(exact.std(0, correction=0).max())

    def distance(levels: Tensor) -> float:
        return float((end(sampler, others, levels) - exact_of_others).norm(dim=1).mean())

    before = distance(sigmas)
    if num == 2 or not (math.isfinite(before) and scale > 0) or before == 0:
        return Fitted(sigmas, before, before, counted.evaluations)

    def residuals(unknowns: NDArray[np.float64]) -> NDArray[np.float64]:
        y = end(sampler, fitting, _ladder(unknowns, first, last, num))
        return ((y - exact) / scale).flatten().cpu().numpy()

    guesses = [sigmas, Geometric(first, last, num).sigmas]
    found = [(before, sigmas)]
    for guess in guesses:
        unknowns = _unknowns(guess)
        best = least_squares(
            residuals, unknowns, loss="soft_l1", diff_step=np.full(len(unknowns), 3e-4),
            xtol=1e-4, ftol=1e-4, max_nfev=_MOST_STEPS,
        )  # fmt: skip
        levels = _ladder(best.x, first, last, num)
        found.append((distance(levels), levels))
    after, levels = min(found, key=lambda pair: pair[0])
    return Fitted(levels, before, after, counted.evaluations)


def _unknowns(sigmas: Tensor) -> NDArray[np.float64]:
    """Return the logarithms of the steps in log sigma, at knots: what ``_ladder`` reads."""
    steps = -np.diff(np.log(sigmas.numpy()))
    places = np.linspace(0, 1, min(len(steps), _MOST_KNOTS))
    logs = np.interp(places, np.linspace(0, 1, len(steps)), np.log(steps))
    return _OFFSET + logs - logs.mean()


def _ladder(unknowns: NDArray[np.float64], first: float, last: float, num: int) -> Tensor:
    """Return ``num`` levels from ``first`` to ``last`` with steps as exp(``unknowns``)."""
    places = np.linspace(0, 1, num - 1)
    logs = np.interp(places, np.linspace(0, 1, len(unknowns)), unknowns)
    steps = np.exp(logs - logs.max())
    depths = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
    sigmas = torch.from_numpy(first * (last / first) ** depths)
    sigmas[0], sigmas[-1] = first, last
    return sigmas
