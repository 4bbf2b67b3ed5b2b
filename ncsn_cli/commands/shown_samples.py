"""The samples of runs of one dataset, on the axes of their truth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ncsn_cli.commands.build import build_from_checkpoint
from ncsn_cli.commands.found_runs import Run
from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import BadSamplesError, NcsnError
from ncsn_cli.core.scene import GRID, Scene
from ncsn_cli.evaluation.grid import view_of
from ncsn_cli.runs.files import read_npz
from ncsn_cli.runs.folder import SAMPLES
from ncsn_cli.runs.records import read_yaml

Array = NDArray[np.float64]

_MOST = 100_000  # samples of each run; more change no picture
_INSIDE = (0.005, 0.995)  # quantiles of samples that span the axes where no truth is known


@torch.no_grad()
def shown_samples(runs: list[Run]) -> tuple[Scene, list[Array]]:
    """Return the axes with the true density, and the samples (N, D) of each run.

    The truth is that of the first run's configuration. A class of the user's own is not built:
    the files of a run must not run code. Then the samples alone span the axes. For D > 2, all is
    in projection on the truth's principal axes or, without it, on the first two coordinates.

    Raises:
        BadSamplesError: If the samples have another dimension than the truth.
    """
    points = [read_npz(run.folder / SAMPLES)["samples"][:_MOST].astype(float) for run in runs]
    truth = _truth_of(runs[0])
    if len({x.shape[1] for x in points} | ({truth.dim} if truth else set())) > 1:
        raise BadSamplesError("the runs have samples of different dimensions")
    if truth is None:
        return _around(points)
    view = view_of(truth)
    offset = view.project(truth.origin)
    last = runs[0].sigma if runs[0].sigma is not None else 0.0
    sigma = 0.0 if truth.has_density(0.0) else last
    density = view.density(sigma) if truth.has_density(sigma) else None
    axes = tuple(axis + start for axis, start in zip(view.axes, offset, strict=True))
    return _scene(axes, density), [view.project(x) for x in points]


def _truth_of(run: Run) -> Dataset | None:
    settings = with_new_names(read_yaml(run.folder / "config.yaml", {})).get("dataset")
    try:
        dataset: Dataset = build_from_checkpoint(settings, "dataset", [])
    except (NcsnError, TypeError):
        return None
    return dataset.truth.centred()


def _around(points: list[Array]) -> tuple[Scene, list[Array]]:
    """Return axes that most of the points span, and their first two coordinates."""
    points = [x[:, :2] for x in points]
    low, high = np.quantile(np.concatenate(points), _INSIDE, axis=0)
    margin = 0.2 * np.maximum(high - low, 1e-6)
    num = GRID[points[0].shape[1]]
    spans = zip(low - margin, high + margin, strict=True)
    return _scene(tuple(np.linspace(a, b, num) for a, b in spans), None), points


def _scene(axes: tuple[Array, ...], density: Array | None) -> Scene:
    return Scene(
        dim=len(axes),
        axes=axes,
        modes=np.empty((0, len(axes))),
        sigmas=np.empty(0),
        clean_density=density,
        densities=np.empty((0, 0)),
        true_scores=None,
    )
