"""The density that a score implies by its probability flow, on a grid, and the true density."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.gaussian import Gaussian
from ncsn_cli.core.score import Score
from ncsn_cli.evaluation.grid import grid_of
from ncsn_cli.metrics import (
    NOT_RECOVERED,
    LogLikelihood,
    in_float64,
    in_parts,
    log_likelihood,
    recovered_density,
)

log = logging.getLogger(__name__)

_FLOW_STEPS = 2000  # max steps of the flow per point
_MOST_PER_AXIS = {1: 12_801, 2: 241}  # points, for D = 1 and 2: some minutes
_GRID_ERROR = 0.01  # max error of masses, and of KL relative to 1 + KL
_NEGLIGIBLE = 20.0  # nats below the largest density at which p_sigma is negligible


class _OnGrid(NamedTuple):
    """The true log-density and the one that a score implies, on a grid of G points.

    Args:
        axes: The D axes of the grid.
        log_p: log p_sigma (G,); the last axis varies fastest.
        matters: Where p_sigma is not negligible (G,).
        flow: log q (G,) and how accurate it is.
    """

    axes: list[Tensor]
    log_p: Tensor
    matters: Tensor
    flow: LogLikelihood


@torch.no_grad()
def evaluate_log_density(
    score: Score, truth: Dataset, sigmas: Tensor
) -> tuple[dict[str, float | None], dict[str, NDArray[np.float64]]]:
    """Return numbers and arrays of the density q that ``score`` implies at the last level.

    log q is computed by the probability flow over ``sigmas`` (L,) from the Gaussian of
    ``init=prior``.

    Numbers: ``sigma``, the last level; ``mass`` of q and ``true_mass`` of p_sigma on a grid;
    ``kl``, the integral of p log(p/q), nats; and for D = 1 ``recovered_kl``, the KL divergence of
    the density recovered by integrating the score. The grid is first that of the pictures. It is
    made wider if the masses are not 1, and finer if half the points give other numbers: up to
    12 801 points for D = 1, and 241 points per axis for D = 2. A number whose error may exceed a
    hundredth (for ``kl``, of 1 + kl) is None.

    Arrays, on the pictures' grid: the axes, ``log_density`` and ``true_log_density``, each (G,).
    """
    score = in_float64(score)
    axes, _ = grid_of(truth)
    shown = grid = _log_densities(score, truth, sigmas, axes)
    numbers, is_resolved, reason = _integrals(grid)
    while None in numbers.values() and not reason:
        axes = [_grown(axis, wider=is_resolved) for axis in grid.axes]
        if len(axes[0]) > _MOST_PER_AXIS[truth.dim]:
            reason = f"{len(grid.axes[0])} points per axis neither hold nor resolve the density"
            break
        grid = _log_densities(score, truth, sigmas, axes)
        found, is_resolved, reason = _integrals(grid)
        numbers = {
            name: found[name] if known is None else known for name, known in numbers.items()
        }
    if missing := ", ".join(name for name, value in numbers.items() if value is None):
        log.warning("log_density: no %s, because %s", missing, reason)
    if truth.dim == 1:
        numbers["recovered_kl"] = recovered_density(score, truth, float(sigmas[-1])).kl
        if numbers["recovered_kl"] is None:
            log.warning("log_density: no recovered_kl, because %s", NOT_RECOVERED)
    arrays = {f"x{i}": axis.numpy() for i, axis in enumerate(shown.axes, start=1)}
    return {"sigma": float(sigmas[-1]), **numbers}, {
        **arrays,
        "log_density": shown.flow.value.numpy(),
        "true_log_density": shown.log_p.numpy(),
    }


def _log_densities(score: Score, truth: Dataset, sigmas: Tensor, axes: list[Tensor]) -> _OnGrid:
    """Return log p and log q on a grid. Where p is negligible, the flow is solved only once."""
    sigma_max, sigma_min = float(sigmas[0]), float(sigmas[-1])
    points = torch.cartesian_prod(*axes).reshape(-1, truth.dim)
    log.info("log_density: the probability flow from %d points", len(points))
    log_p = torch.cat([truth.log_prob(part, sigma_min) for part in in_parts(points, truth)])
    matters = log_p > log_p.max() - _NEGLIGIBLE
    volume = math.prod(float(axis[-1] - axis[0]) for axis in axes)
    tolerance = _GRID_ERROR / 2 * (1 + 1 / (volume * log_p.exp()))  # mean over p: _GRID_ERROR
    flow = log_likelihood(
        score,
        points,
        sigma_min,
        sigma_max,
        Gaussian(truth.mean, truth.perturbed_covariance(sigma_max)).log_prob,
        _FLOW_STEPS,
        tolerance.masked_fill(~matters, math.inf),
    )
    return _OnGrid(axes, log_p, matters, flow)


def _integrals(grid: _OnGrid) -> tuple[dict[str, float | None], bool, str]:
    """Return ``mass``, ``true_mass`` and ``kl``, each None if the grid is not good enough for it.

    Also return whether half the points give the same numbers, and why a larger grid would not
    help: an empty string if a larger grid might help.
    """
    shape = [len(axis) for axis in grid.axes]
    log_q, change = grid.flow.value, grid.flow.change
    nothing = torch.zeros_like(log_q)
    ratio, change = (
        torch.where(grid.matters, values, nothing) for values in (grid.log_p - log_q, change)
    )
    p = grid.log_p.exp()
    fields = torch.stack([log_q.exp(), p, p * ratio, p * change]).reshape(4, *shape)

    def sums(step: int) -> Tensor:
        """Integrate q, p, p log(p/q) and p times the solver's change, over every step-th point."""
        cell = math.prod(step * float(axis[1] - axis[0]) for axis in grid.axes)
        return fields[:, *[slice(None, None, step)] * len(shape)].flatten(1).sum(1) * cell

    fine, coarse = sums(1), sums(2)
    mass, true_mass, kl, solver_error = fine.tolist()
    allowed = torch.tensor([1, 1, 1 + abs(kl)]) * _GRID_ERROR
    is_close = (fine - coarse)[:3].abs() <= allowed  # False if a sum is nan
    is_whole = abs(true_mass - 1) <= _GRID_ERROR
    is_solved = abs(solver_error) <= float(allowed[2])
    numbers = {
        "mass": mass if abs(mass - 1) <= _GRID_ERROR else None,
        "true_mass": true_mass if is_whole else None,
        "kl": kl if is_whole and bool(is_close[2]) and is_solved else None,
    }
    reason = ""
    if not (math.isfinite(kl) and math.isfinite(mass)):
        reason = grid.flow.failure
    elif not is_solved:
        reason = "the flow's solutions differ by more than a hundredth"
    return numbers, bool(is_close.all()), reason


def _grown(axis: Tensor, wider: bool) -> Tensor:
    """Return ``axis`` (n,) made twice as long if ``wider``, otherwise twice as fine, (2n - 1,)."""
    margin = float(axis[-1] - axis[0]) / 2 if wider else 0.0
    low, high = float(axis[0]) - margin, float(axis[-1]) + margin
    return torch.linspace(low, high, 2 * len(axis) - 1, dtype=torch.float64)
