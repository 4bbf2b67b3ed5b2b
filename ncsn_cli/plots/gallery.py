"""Samples of several runs: small pictures on the same axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ncsn_cli.core.scene import Scene
from ncsn_cli.plots.canvas import MODEL, TRUTH, contours, scatter, square

Array = NDArray[np.float64]
Panel = Array | str
"""The samples (N, D) of a run, or a word for why there are none."""

_SIDE, _SMALL_SIDE = 2.9, 1.45  # inches: of a picture among up to 12, of a cell of a grid
_MOST_POINTS = 2000  # more hide each other
_BINS = 60
_TITLE = 30  # characters per line of a title


def side_by_side(scene: Scene, panels: Sequence[tuple[str, Panel]], note: str = "") -> Figure:
    """Draw the samples of each run beside each other, each under its title.

    Args:
        scene: The axes, and the truth if it is known.
        panels: A title and the samples (N, D), for each run.
        note: What the title of the figure says beside.
    """
    columns = min(len(panels), 3 if len(panels) in (3, 5, 6, 9) else 4)
    rows = math.ceil(len(panels) / columns)
    height = _height(scene, _SIDE)
    figure = Figure(figsize=(_SIDE * columns, (height + 0.3) * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False)
    top = _highest(scene, [samples for _, samples in panels])
    for axes, (title, samples) in zip(places.flat, panels, strict=False):
        _draw(axes, scene, samples, top)
        lines = "\n".join(textwrap.wrap(title, _TITLE, break_on_hyphens=False))
        axes.set_title(lines, fontsize=10, parse_math=False)
        axes.tick_params(labelsize=9)
        axes.set(xlabel="", ylabel="")
    for axes in places.flat[len(panels) :]:
        axes.remove()
    figure.suptitle(_caption(scene, note), fontsize=12)
    return figure


def grid(
    scene: Scene,
    keys: tuple[str, str],
    values: tuple[Sequence[str], Sequence[str]],
    panels: Sequence[Sequence[Panel]],
    note: str = "",
) -> Figure:
    """Draw the samples over two swept keys, a small picture for each pair of values.

    Args:
        scene: The axes, and the truth if it is known.
        keys: What varies from row to row, and from column to column.
        values: The values of both.
        panels: The samples (N, D), row by row.
        note: What the title of the figure says beside.
    """
    rows, columns = (len(some) for some in values)
    height = _height(scene, _SMALL_SIDE)
    left, above, below = 0.55 + 0.09 * max(map(len, values[0])), 0.65, 0.4  # inches
    width = max(left + _SMALL_SIDE * columns + 0.1, 5.5)
    whole = height * rows + above + below
    figure = Figure(figsize=(width, whole))
    places = figure.subplots(
        rows, columns, squeeze=False,
        gridspec_kw={
            "left": left / width, "right": (left + _SMALL_SIDE * columns) / width,
            "bottom": below / whole, "top": 1 - above / whole, "wspace": 0.06, "hspace": 0.06,
        },
    )  # fmt: skip
    top = _highest(scene, [samples for row in panels for samples in row])
    for i, row in enumerate(panels):
        for j, samples in enumerate(row):
            axes = places[i, j]
            _draw(axes, scene, samples, top)
            axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
            if j == 0:
                axes.set_ylabel(values[0][i], fontsize=10, rotation=0, ha="right", va="center")
            if i == 0:
                axes.set_title(values[1][j], fontsize=min(10, 150 / max(1, len(values[1][j]))))
    figure.supylabel(keys[0], fontsize=11, x=0.08 / width)
    middle = (left + _SMALL_SIDE * columns / 2) / width
    figure.supxlabel(keys[1], fontsize=11, x=middle, y=0.08 / whole)
    figure.suptitle(_caption(scene, note), fontsize=11, y=1 - 0.08 / whole)
    return figure


def _height(scene: Scene, width: float) -> float:
    """Return the height of a panel, in inches."""
    if scene.dim == 1:
        return 0.8 * width
    across, along = (float(np.ptp(axis)) for axis in scene.axes)
    return width * min(2.0, max(0.5, along / across))


def _caption(scene: Scene, note: str) -> str:
    truth = "" if _truth(scene) is None else f"; line{'' if scene.dim == 1 else 's'}: true density"
    return f"Samples{truth}{f'; {note}' if note else ''}"


def _truth(scene: Scene) -> Array | None:
    """Return p on the grid (G,), or p at the smallest level where p has no density."""
    if scene.clean_density is not None:
        return scene.clean_density
    return scene.densities[-1] if len(scene.densities) else None


def _bins(scene: Scene) -> Array:
    return np.linspace(scene.axes[0][0], scene.axes[0][-1], _BINS + 1)


def _heights(scene: Scene, samples: Array) -> Array:
    """Return the density of the samples in each bin, for D = 1; all count, also those outside."""
    counts, edges = np.histogram(samples[:, 0], _bins(scene))
    return counts / (len(samples) * (edges[1] - edges[0]))


def _highest(scene: Scene, panels: Sequence[Panel]) -> float:
    """Return the top of all panels for D = 1; bars above twice the truth are cut."""
    if scene.dim > 1:
        return 0.0
    truth = _truth(scene)
    bars = max((_heights(scene, x).max() for x in panels if not isinstance(x, str)), default=1.0)
    return 1.1 * float(bars if truth is None else np.clip(bars, truth.max(), 2 * truth.max()))


def _draw(axes: Axes, scene: Scene, samples: Panel, top: float) -> None:
    """Draw the samples of a run, and the truth, into ``axes``."""
    truth = _truth(scene)
    if isinstance(samples, str):
        axes.text(
            0.5, 0.5, samples, transform=axes.transAxes, ha="center", va="center", fontsize=9
        )
    if scene.dim == 1:
        if not isinstance(samples, str):
            axes.stairs(_heights(scene, samples), _bins(scene), fill=True, color=MODEL, alpha=0.5)
        if truth is not None:
            axes.plot(scene.axes[0], truth, color=TRUTH, linewidth=1.3)
        axes.set(xlim=scene.axes[0][[0, -1]], ylim=(0, top))
    else:
        if truth is not None:
            contours(axes, truth, scene, TRUTH)
        if not isinstance(samples, str):
            scatter(axes, samples[:_MOST_POINTS].astype(np.float32), scene, MODEL, size=3)
        square(axes, scene)
    if not isinstance(samples, str):
        _name_outside(axes, scene, samples)


def _name_outside(axes: Axes, scene: Scene, samples: Array) -> None:
    """Write which share of the samples is outside of the axes, from 1 %."""
    low, high = (np.array([axis[end] for axis in scene.axes]) for end in (0, -1))
    share = float(((samples < low) | (samples > high)).any(1).mean())
    if share >= 0.01:
        axes.text(
            0.97, 0.97, f"{share:.0%} outside", transform=axes.transAxes, ha="right", va="top",
            fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
