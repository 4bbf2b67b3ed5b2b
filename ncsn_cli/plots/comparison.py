"""Compare runs: plot a metric against the swept keys."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ncsn_cli.plots.canvas import SERIES, log_scale, new_figure

_MARKERS = "osD^vPX"
_LABEL = 48  # characters per line of a legend or a title


Place = float | str
"""A value along an axis: a number, or a word such as auto."""


def metric_against(
    key: str,
    metric: str,
    lines: Mapping[str, Sequence[tuple[Place, Sequence[float]]]],
    legend: str = "",
    averaged: Sequence[str] = (),
) -> Figure:
    """Plot the mean of ``metric`` against ``key``, with one line per label and a dot per run.

    ``lines`` maps a label to pairs of a value of ``key`` and the metrics of its runs. Words among
    the values have places beside the axis of numbers. ``legend`` is the title of the legend.
    ``averaged`` are the other keys in which the runs of a line differ.
    """
    places = dict.fromkeys(place for points in lines.values() for place, _ in points)
    numbers = [place for place in places if not isinstance(place, str)]
    words = [place for place in places if isinstance(place, str)]
    figure, axes, beside = _axes(len(words))
    for i, (label, points) in enumerate(lines.items()):
        again, colour = divmod(i, len(SERIES))
        style: dict[str, Any] = {"color": SERIES[colour], "marker": _MARKERS[colour]}
        label = " " + _in_lines(label)  # matplotlib hides "_..."
        along = [(place, values) for place, values in points if not isinstance(place, str)]
        _plot(axes, along, style | {"linestyle": "--" if again else "-", "label": label})
        if beside is not None:
            at = [(words.index(p), v) for p, v in points if isinstance(p, str)]
            _plot(beside, at, style | {"linestyle": ""})
    if numbers and min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        log_scale(axes, "x", numbers)
    everything = [v for points in lines.values() for _, values in points for v in values]
    everything += [1] if metric.endswith(".ratio") else []
    if min(everything) > 0:
        log_scale(axes, "y", everything)
    for panel in (axes, beside):
        if panel is not None:
            panel.grid(alpha=0.25)
            if metric.endswith(".ratio"):
                panel.axhline(1, color="0.5", linestyle="--", linewidth=1)
    if beside is not None:
        beside.set_xticks(range(len(words)), words)
        beside.set_xlim(-0.6, len(words) - 0.4)
        beside.tick_params(axis="y", which="both", length=0)
    axes.set(xlabel=key, ylabel=metric, title=_mean_over(averaged))
    if len(lines) > 1:
        _add_legend(figure, legend)
    return figure


def _axes(num_words: int) -> tuple[Figure, Axes, Axes | None]:
    """Return a figure with an axis of numbers and, beside it, one of words if there are any."""
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    if not num_words:
        return figure, figure.subplots(), None
    share = min(4, num_words)
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[8 - share, share])
    return figure, axes, beside


def _plot(
    axes: Axes, points: Sequence[tuple[float, Sequence[float]]], style: Mapping[str, Any]
) -> None:
    """Plot the mean at each place, and a dot per run."""
    axes.plot([x for x, _ in points], [np.mean(values) for _, values in points], **style)
    runs = [(x, value) for x, values in points for value in values]
    axes.plot([x for x, _ in runs], [y for _, y in runs], ".", color=style["color"], alpha=0.4)


def _mean_over(keys: Sequence[str]) -> str:
    return _in_lines(f"mean over {', '.join(keys)}") if keys else ""


def _in_lines(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _LABEL))


def _add_legend(figure: Figure, title: str) -> None:
    """Put the legend beside the axes, and enlarge the figure to make room for it."""
    legend = figure.legend(loc="outside right upper", title=_in_lines(title), alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    needed = legend.get_window_extent(renderer)
    width, height = figure.get_size_inches()
    figure.set_size_inches(
        width + needed.width / figure.dpi, max(height, needed.height / figure.dpi + 0.3)
    )


def heat_map_of(
    keys: Sequence[str],
    metric: str,
    xs: Sequence[Place],
    ys: Sequence[Place],
    table: Sequence[Sequence[float]],
    averaged: Sequence[str] = (),
) -> Figure:
    """Draw the mean of ``metric`` over two swept keys, ``table[y][x]``, as a heat map.

    Each cell shows its number. ``averaged`` are the other keys in which the runs of a cell differ.
    """
    values = np.array(table)
    values[np.isinf(values)] = np.nan  # inf: the cell has no run
    figure, (axes,) = new_figure(1, 1, width=max(5, 2.5 + 0.8 * len(xs)), height=2 + 0.5 * len(ys))
    shade = np.log10(values) if np.nanmin(values) > 0 else values
    axes.imshow(shade, cmap="cividis", origin="lower", aspect="auto")
    middle = (np.nanmin(shade) + np.nanmax(shade)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if shade[row, column] > middle else "white"
            text = axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour)
            text.set_in_layout(False)  # inside the axes anyway, and the layout is slow
    for axis, places in ((axes.xaxis, xs), (axes.yaxis, ys)):
        names = [place if isinstance(place, str) else f"{place:g}" for place in places]
        axis.set_ticks(range(len(places)), names)
    title = f"{metric}\n{_mean_over(averaged)}".strip()
    axes.set(xlabel=keys[0], ylabel=keys[1], title=title)
    return figure
