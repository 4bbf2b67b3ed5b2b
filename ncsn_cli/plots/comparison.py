"""Runs against each other: a metric along what was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ncsn_cli.plots.canvas import SERIES, log_scale, new_figure

_MARKERS = "osD^vPX"


def metric_against(
    key: str, metric: str, lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]]
) -> Figure:
    """The mean of ``metric`` along ``key``, a line a label, each run a faint dot."""
    figure, (axes,) = new_figure(1, 1, width=8)
    everything = [v for points in lines.values() for _, values in points for v in values]
    for i, (label, points) in enumerate(lines.items()):
        colour, marker = SERIES[i % len(SERIES)], _MARKERS[i % len(_MARKERS)]
        x = [place for place, _ in points]
        axes.plot(x, [np.mean(v) for _, v in points], color=colour, marker=marker, label=label)
        runs = [(place, value) for place, values in points for value in values]
        axes.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.4)
    places = [place for points in lines.values() for place, _ in points]
    if min(places) > 0 and max(places) >= 10 * min(places):
        log_scale(axes, "x", places)
    if metric.endswith(".ratio"):
        axes.axhline(1, color="0.5", linestyle="--", linewidth=1)
        everything.append(1)
    if min(everything) > 0:
        log_scale(axes, "y", everything)
    axes.set(xlabel=key, ylabel=metric)
    axes.grid(alpha=0.25)
    if len(lines) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def heat_map_of(
    keys: Sequence[str],
    metric: str,
    xs: Sequence[float],
    ys: Sequence[float],
    table: Sequence[Sequence[float]],
) -> Figure:
    """The mean of ``metric`` over two swept keys, ``table[y][x]``, each cell with its number."""
    values = np.array(table)
    values[np.isinf(values)] = np.nan  # no such run
    figure, (axes,) = new_figure(1, 1, width=2.5 + 0.8 * len(xs), height=2 + 0.5 * len(ys))
    shade = np.log10(values) if np.nanmin(values) > 0 else values
    axes.imshow(shade, cmap="cividis", origin="lower", aspect="auto")
    middle = (np.nanmin(shade) + np.nanmax(shade)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if shade[row, column] > middle else "white"
            text = axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour)
            text.set_in_layout(False)  # inside the axes anyway, and the layout is slow
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set(xlabel=keys[0], ylabel=keys[1], title=metric)
    return figure
