"""The points at which pictures show truth and scores: on a grid, or in projection."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.scene import GRID, Paths, Scene
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import in_float64, recovered_density, visible_field
from ncsn_cli.samplers import some_levels

Array = NDArray[np.float64]
S = TypeVar("S", bound=Scene)

_LEVELS = 3  # levels for which a picture has room, for D > 1
_DRAWS, _MOST_NUMBERS = 200_000, 20_000_000  # limits for a projected density
_ARROWS = 150  # exact draws at which a projected score is shown


class Grid:
    """The grid on which pictures of D = 1 and 2 show densities and scores.

    Args:
        dataset: The truth.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        axes, self._points = grid_of(dataset)
        self.axes = tuple(axis.numpy() for axis in axes)

    def points(self, sigma: float) -> Tensor:
        """Return all points of the grid (G, D), float64."""
        return self._points

    def project(self, x: ArrayLike) -> Array:
        """Return ``x`` (..., D) unchanged, as float64."""
        return np.asarray(x, dtype=np.float64)

    def density(self, sigma: float) -> Array:
        """Return p_sigma on the grid (G,)."""
        return self._dataset.log_prob(self._points, sigma).exp().numpy()


class SampledGrid(Grid):
    """The same grid for a dataset of which only draws are known, whose histogram stands for p."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        draws = dataset.sample(_DRAWS, generator=random_stream(0, "exact draws in pictures"))
        self._cells = np.array([axis[1] - axis[0] for axis in self.axes])
        edges = [
            np.append(axis, axis[-1] + cell) - cell / 2
            for axis, cell in zip(self.axes, self._cells, strict=True)
        ]
        counts, _ = np.histogramdd(draws.numpy(), edges)
        self._histogram = counts / (_DRAWS * self._cells.prod())

    def density(self, sigma: float) -> Array:
        """Return p_sigma on the grid (G,), blurred by a cell or more."""
        return _blurred(self._histogram, sigma / self._cells)


class Projection:
    """The plane on which pictures of D > 2 show points, along two principal axes of the truth.

    The axes are the two eigenvectors of Cov[x] with the largest eigenvalues. The projection of
    p_sigma = p * N(0, sigma^2 I) is the projection of p convolved with N(0, sigma^2 I_2). Here, a
    histogram of exact draws stands for the projection of p.

    Args:
        dataset: The truth.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._stream = random_stream(0, "exact draws in projection")
        basis = torch.linalg.eigh(dataset.covariance).eigenvectors[:, [-1, -2]]
        largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        self._basis = (basis * largest.sign()).double().numpy()  # (D, 2); fixes the sign
        num = min(_DRAWS, _MOST_NUMBERS // dataset.dim)
        draws = self.project(dataset.sample(num, generator=self._stream))
        x, y = draws.T
        self._histogram, *edges = np.histogram2d(x, y, bins=GRID[2], density=True)
        self.axes = tuple((edge[:-1] + edge[1:]) / 2 for edge in edges)
        self._cells = np.array([axis[1] - axis[0] for axis in self.axes])

    def points(self, sigma: float) -> Tensor:
        """Return A exact draws of p_sigma (A, D), float64; draws inside the picture come first."""
        x = self._dataset.sample(20 * _ARROWS, sigma=sigma, generator=self._stream)
        low, high = ([axis[end] for axis in self.axes] for end in (0, -1))
        places = self.project(x)
        is_outside = ((places < low) | (places > high)).any(1)
        return x[np.argsort(is_outside, kind="stable")[:_ARROWS]].double()

    def project(self, x: ArrayLike) -> Array:
        """Return the coordinates (..., 2) of ``x`` (..., D) along the axes."""
        return np.asarray(x, dtype=np.float64) @ self._basis

    def density(self, sigma: float) -> Array:
        """Return the projected density of p_sigma on the grid (G,), blurred by a cell or more."""
        return _blurred(self._histogram, sigma / self._cells)


def _blurred(histogram: Array, widths: Array) -> Array:
    """Return ``histogram``, flat, convolved with a Gaussian of ``widths`` >= 1, in cells."""
    from scipy.ndimage import gaussian_filter  # here: scipy is slow to import

    blurred: Array = gaussian_filter(histogram, np.maximum(widths, 1), mode="constant")
    return blurred.ravel()


def grid_of(dataset: Dataset) -> tuple[list[Tensor], Tensor]:
    """Return the axes that pictures show and all points of their grid (G, D), for D = 1 and 2.

    The last axis varies fastest.
    """
    low, high = dataset.extent
    axes = [
        torch.linspace(a, b, GRID[dataset.dim], dtype=torch.float64)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    ]
    return axes, torch.cartesian_prod(*axes).reshape(-1, dataset.dim)


def levels_shown(dim: int, sigmas: Tensor) -> Tensor:
    """Return the levels (M,) of ``sigmas`` (L,) that pictures show: for D > 1, at most three."""
    shown = sigmas.double().cpu()
    if dim > 1 and len(shown) > _LEVELS:
        shown = shown[some_levels(len(shown), _LEVELS)]
    return shown


def view_of(dataset: Dataset) -> Grid | Projection:
    """Return where pictures show ``dataset``: on a grid or, for D > 2, in projection."""
    if dataset.dim > 2:
        return Projection(dataset)
    return Grid(dataset) if dataset.is_known else SampledGrid(dataset)


def visible_on_grid(
    score: Score, dataset: Dataset, sigmas: Tensor, device: torch.device
) -> dict[str, Any]:
    """Return a scene's visible errors and their shares.

    Return {} unless D = 2 and the true score is known.
    """
    if dataset.dim != 2 or not dataset.is_known:
        return {}
    _, points = grid_of(dataset)
    levels = levels_shown(2, sigmas).tolist()
    found = [visible_field(score, dataset, sigma, points, device) for sigma in levels]
    fields, shares = zip(*found, strict=True)
    return {"visible_errors": np.stack(fields), "visible_shares": np.array(shares)}


@torch.no_grad()
def recovered_on_grid(score: Score, dataset: Dataset, sigmas: Tensor) -> dict[str, Any]:
    """Return a scene's densities recovered from the score, and their KL divergences.

    Return {} unless D = 1 and the true score is known.
    """
    if dataset.dim != 1 or not dataset.is_known:
        return {}
    (axis,), _ = grid_of(dataset)
    precise = in_float64(score)  # one copy for all levels
    levels = levels_shown(1, sigmas).tolist()
    found = [recovered_density(precise, dataset, sigma) for sigma in levels]
    densities = [np.interp(axis.numpy(), each.x, each.log_prob.exp()) for each in found]
    kl = np.array([each.kl for each in found], dtype=float)
    return {"recovered": np.stack(densities), "recovered_kl": kl}


@torch.no_grad()
def compose_scene(
    kind: type[S],
    dataset: Dataset,
    sigmas: Tensor,
    device: torch.device,
    *,
    score: Score | None = None,
    paths: tuple[NDArray[np.float32], NDArray[np.int64], Array] | None = None,
    denoised: Law | None = None,
    **arrays: Any,  # noqa: ANN401
) -> S:
    """Return a scene: the truth and the learned ``score``, evaluated where pictures show them.

    ``score`` runs on ``device``. ``paths`` are chains over time (frames, chains, D), with the step
    and the level of each frame. ``denoised`` is the law of the exact draws if they are denoised.
    The other ``arrays`` go into the scene, whose class is ``kind``. Points among them are given in
    the dataset's coordinates: this function adds the dataset's origin and, for D > 2, projects the
    points.
    """
    levels = (shown := levels_shown(dataset.dim, sigmas)).tolist()
    view = view_of(dataset)
    points = [view.points(s) for s in levels]  # where scores are shown

    if denoised is not None:
        arrays |= {"is_denoised": True} | _denoised_density(denoised, levels[-1], view)
    # Points, projected and in data units.
    offset = view.project(dataset.origin)
    if isinstance(view, Projection):
        arrays["places"] = np.stack([view.project(x) + offset for x in points])
    if paths is not None:
        x, steps, path_sigmas = paths
        places, densities = view.project(x) + offset, _densities(view, path_sigmas)
        arrays["paths"] = Paths(places, steps, path_sigmas, densities)
    for name in ("data", "samples", "exact"):
        if arrays.get(name) is not None:
            arrays[name] = view.project(arrays[name]) + offset
    # Densities and scores at the levels shown.
    pairs = list(zip(points, levels, strict=True))
    return kind(
        dim=dataset.dim,
        axes=tuple(axis + start for axis, start in zip(view.axes, offset, strict=True)),
        modes=(dataset.modes + dataset.origin).numpy(),
        sigmas=shown.numpy(),
        clean_density=view.density(0.0) if dataset.has_density(0.0) else None,
        densities=_densities(view, shown.numpy()),
        true_scores=_true(dataset, pairs, view),
        scores=None if score is None else _learned(score, pairs, view, device),
        **arrays,
    )


def _densities(view: Grid | Projection, sigmas: Array) -> Array:
    """Return p_sigma on the grid at each of ``sigmas`` (M, G)."""
    found = {sigma: view.density(sigma) for sigma in set(sigmas.tolist())}
    return np.stack([found[sigma] for sigma in sigmas.tolist()])


def _true(
    dataset: Dataset, pairs: list[tuple[Tensor, float]], view: Grid | Projection
) -> Array | None:
    """Return the true score at each pair of points and level (M, G, D); None if unknown."""
    if not dataset.is_known:
        return None
    return np.stack([view.project(dataset.score(x, sigma)) for x, sigma in pairs])


def _learned(
    score: Score,
    pairs: list[tuple[Tensor, float]],
    view: Grid | Projection,
    device: torch.device,
) -> Array:
    """Return the score that runs on ``device``, at each pair of points and level (M, G, D)."""
    return np.stack([
        view.project(score(x.float().to(device), torch.tensor(sigma, device=device)).cpu())
        for x, sigma in pairs
    ])  # fmt: skip


def _denoised_density(law: Law, sigma: float, view: Grid | Projection) -> dict[str, Array]:
    """Return the density of ``law`` at level sigma, a mean over each cell, (G,); {} for D > 1."""
    if law.dim > 1:
        return {}
    (axis,) = view.axes
    width = axis[1] - axis[0]
    edges = torch.from_numpy(np.append(axis, 2 * axis[-1] - axis[-2]) - width / 2)
    return {"denoised_density": law.cdf(edges, sigma).diff().numpy() / width}
