"""The part of a score's error that reaches the samples of a diffusion, for D = 2."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.metrics.score_error import in_parts

Array = NDArray[np.float64]

_REACH = 6.0  # of the box around the modes, in standard deviations: there p has fallen by e^-18
_STEPS = 3  # per narrowest standard deviation; with 3, Gaussian presets are exact to 4e-5
_MOST_POINTS = 513**2
# Of the largest density: edges below it are left out, and matrices stay regular.
_NEGLIGIBLE = 1e-12
_MASS_ERROR = 1e-3  # max error of the mass of p_sigma: a larger one shows that a part is missed


class SplitError(NamedTuple):
    """The error e = s - s* of a score s at one level, in two parts that are orthogonal under p.

    Args:
        visible: E||Pe||^2, the gradient part, units 1/length^2. nan after a failure.
        invisible: E||e - Pe||^2, the rest.
        information: E||s*||^2 on the same grid, the Fisher information.
        change: How much either part changed when the step of the grid was halved for the last
            time. The discretisation has order 2 or higher, so that its error is about a third of
            this or less; the solver's own is about 1e-10 of the whole.
        failure: Why there are no numbers; empty if there are.
    """

    visible: float = math.nan
    invisible: float = math.nan
    information: float = math.nan
    change: float = math.nan
    failure: str = ""


class _Solution(NamedTuple):
    """Pe on the edges of a grid where p_sigma is not negligible.

    Args:
        kept: Which edges of the grid these are: first those along x_1, then those along x_2.
        p: p_sigma times the area of a cell, at the middle of each edge (E,).
        true: The component of s* along each edge, at its middle (E,).
        error: That of s - s* (E,).
        gradient: That of Pe (E,).
    """

    kept: NDArray[np.bool_]
    p: Array
    true: Array
    error: Array
    gradient: Array


def split_error(
    score: Score, truth: Dataset, sigma: float, device: torch.device | None = None
) -> SplitError:
    r"""Return how much of the error e = s - s* of ``score`` is visible, for D = 2.

        Pe = grad phi with div(p grad phi) = div(p e),   p = p_sigma

    is the projection of e on gradients in L^2(p). The samples' law depends on e through div(p e)
    alone (the Fokker-Planck equation), and therefore through Pe alone: e - Pe turns samples round
    and leaves their law. Source: Khelifa, Turner & Venkataramanan (2026), arXiv:2606.06179.

    phi minimises sum p (difference of phi/h - e)^2 over the edges of a square grid, with p and e
    exact at the middle of each edge. This is the five-point scheme, and nothing flows through the
    boundary. The box reaches 6 standard deviations sqrt(s^2 + sigma^2) beyond the modes, and the
    step h is a third of the narrowest. ``score`` runs in float32 on ``device`` (by default the
    CPU).
    """
    sums = []
    for factor in (1, 2):
        found = _solve(score, truth, sigma, factor * _step(truth, sigma), device)
        if isinstance(found, str):
            return SplitError(failure=found)
        fields = found.gradient, found.error - found.gradient, found.true
        sums.append([float(found.p @ field**2) for field in fields])
    (visible, invisible, information), (*coarse, _) = sums
    change = max(abs(visible - coarse[0]), abs(invisible - coarse[1]))
    return SplitError(visible, invisible, information, change)


def visible_field(
    score: Score, truth: Dataset, sigma: float, places: Tensor, device: torch.device | None = None
) -> tuple[Array, float]:
    """Return Pe of ``split_error`` at ``places`` (B, 2), and E||Pe||^2/E||e||^2.

    Between the edges Pe is linear. It is nan where p_sigma is negligible. Where ``split_error``
    has no numbers, all are nan.
    """
    from scipy.interpolate import RegularGridInterpolator  # here: scipy is slow to import

    step = _step(truth, sigma)
    found = _solve(score, truth, sigma, step, device)
    if isinstance(found, str):
        return np.full(places.shape, math.nan), math.nan
    values = np.full(len(found.kept), math.nan)
    values[found.kept] = found.gradient
    columns, first = [], 0
    for middles in _middles(_axes(truth, sigma, step)):
        shape = [len(axis) for axis in middles]
        part = values[first : first + math.prod(shape)].reshape(shape)
        axes = [axis.numpy() for axis in middles]
        columns.append(RegularGridInterpolator(axes, part, bounds_error=False)(places.numpy()))
        first += math.prod(shape)
    total = found.p @ found.error**2
    share = found.p @ found.gradient**2 / total if total > 0 else math.nan
    return np.stack(columns, axis=-1), float(share)


def _step(truth: Dataset, sigma: float) -> float:
    return math.hypot(truth.smallest_std or 0.0, sigma) / _STEPS


def _box(truth: Dataset, sigma: float) -> list[tuple[float, float]]:
    """Return the ends of the box along each axis.

    ``extent`` reaches 5 standard deviations of the data beyond the modes.
    """
    ends = (truth.extent[0], truth.modes.amin(0), truth.modes.amax(0), truth.extent[1])
    return [
        (
            first - math.hypot(_REACH / 5 * (first - low), _REACH * sigma),
            last + math.hypot(_REACH / 5 * (high - last), _REACH * sigma),
        )
        for low, first, last, high in zip(*(each.tolist() for each in ends), strict=True)
    ]


def _shape(truth: Dataset, sigma: float, step: float) -> list[int]:
    return [math.ceil((b - a) / step) + 1 for a, b in _box(truth, sigma)]


def _axes(truth: Dataset, sigma: float, step: float) -> list[Tensor]:
    """Return the axes of the grid. It has the centre of the box, and is a little wider."""
    return [
        (a + b) / 2 + step * (torch.arange(num, dtype=torch.float64) - (num - 1) / 2)
        for (a, b), num in zip(_box(truth, sigma), _shape(truth, sigma, step), strict=True)
    ]


def _middles(axes: list[Tensor]) -> list[list[Tensor]]:
    """Return the axes of the middles of the edges along x_1, and of those along x_2."""
    x, y = axes
    return [[(x[1:] + x[:-1]) / 2, y], [x, (y[1:] + y[:-1]) / 2]]


@torch.no_grad()
def _solve(
    score: Score, truth: Dataset, sigma: float, step: float, device: torch.device | None
) -> _Solution | str:
    """Return Pe on a grid, or the reason why there is none."""
    if not truth.has_density(sigma):
        return "p has no density there"
    if step == 0 or math.prod(_shape(truth, sigma, step)) > _MOST_POINTS:
        return f"the grid would have more than {_MOST_POINTS} points"
    # Keep the edges where p is not negligible.
    axes = _axes(truth, sigma, step)
    points = torch.cat([torch.cartesian_prod(*middles) for middles in _middles(axes)])
    log_p = torch.cat([truth.log_prob(part, sigma) for part in in_parts(points, truth)])
    kept = log_p > log_p.max() + math.log(_NEGLIGIBLE)
    p = (log_p[kept].exp() * step**2).numpy()
    if abs(p.sum() / 2 - 1) > _MASS_ERROR:  # a sum over the edges of each direction
        return "the grid around the modes misses a part of p"
    # Evaluate both scores at the same points, in float32 as the network's own.
    places = points[kept].float().to(device)
    level = torch.tensor(sigma, dtype=torch.float32, device=device)
    parts = in_parts(places, truth)
    learned = torch.cat([score(part, level).cpu().double() for part in parts])
    true = torch.cat([truth.score(part.cpu().double(), sigma) for part in parts])
    if not bool(learned.isfinite().all()):
        return "the score is not finite on the grid"
    # Take the components along the edges.
    node = np.arange(len(axes[0]) * len(axes[1])).reshape(len(axes[0]), len(axes[1]))
    ends = np.stack([np.append(node[:-1], node[:, :-1]), np.append(node[1:], node[:, 1:])])
    axis = (torch.arange(len(points)) >= node[1:].size)[kept].long()[:, None]  # (E, 1)
    along, error = (field.gather(1, axis)[:, 0].numpy() for field in (true, learned - true))
    gradient = _gradient_part(ends[:, kept.numpy()], p, error)
    return _Solution(kept.numpy(), p, along, error, gradient)


def _gradient_part(ends: NDArray[np.int64], p: Array, error: Array) -> Array:
    """Return the component of Pe along each edge (E,), from the nodes at its ``ends`` (2, E).

    The nodes' equations are scaled to the diagonal 1, because p falls by many orders of magnitude.
    A constant added to phi changes nothing: 1e-12 on the diagonal chooses one, on each part of the
    grid that hangs together.
    """
    from scipy.sparse import coo_array, eye_array
    from scipy.sparse.linalg import splu

    nodes, numbers = np.unique(ends, return_inverse=True)
    (start, end), num = numbers.reshape(2, -1), len(nodes)
    scale = 1 / np.sqrt(np.bincount(start, p, num) + np.bincount(end, p, num))
    flow = p * error
    source = scale * (np.bincount(end, flow, num) - np.bincount(start, flow, num))
    coupling = coo_array((-p * scale[start] * scale[end], (start, end)), shape=(num, num))
    matrix = coupling + coupling.T + (1 + 1e-12) * eye_array(num)
    solver = splu(
        matrix.tocsc(),
        permc_spec="MMD_AT_PLUS_A",  # for symmetric matrices
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )
    phi = scale * solver.solve(source)  # over the step
    gradient: Array = phi[end] - phi[start]
    return gradient
