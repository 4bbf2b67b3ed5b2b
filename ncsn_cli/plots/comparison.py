"""Compare runs: plot a metric against the swept keys."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ncsn_cli.plots.canvas import SERIES, log_scale, new_figure

_MARKERS = "osD^vPX"
_LABEL = 48  # characters per line of a legend


def metric_against(
    key: str,
    metric: str,
    lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]],
    legend: str = "",
    averaged: Sequence[str] = (),
) -> Figure:
    """Plot the mean of ``metric`` against ``key``, with one line per label and a dot per run.

    ``lines`` maps a label to pairs of a value of ``key`` and the metrics of its runs. ``legend``
    is the title of the legend. ``averaged`` are the other keys in which the runs of a line differ.
    """
    figure, (axes,) = new_figure(1, 1, width=8)
    everything = [v for points in lines.values() for _, values in points for v in values]
    for i, (label, points) in enumerate(lines.items()):
        again, colour = divmod(i, len(SERIES))
        means = [(place, np.mean(values)) for place, values in points]
        runs = [(place, value) for place, values in points for value in values]
        axes.plot(
            *zip(*means, strict=True),
            color=SERIES[colour],
            linestyle="--" if again else "-",
            marker=_MARKERS[colour],
            label=" " + "\n".join(textwrap.wrap(label, _LABEL)),  # matplotlib hides "_..."
        )
        axes.plot(*zip(*runs, strict=True), ".", color=SERIES[colour], alpha=0.4)
    places = [place for points in lines.values() for place, _ in points]
    if min(places) > 0 and max(places) >= 10 * min(places):
        log_scale(axes, "x", places)
    if metric.endswith(".ratio"):
        axes.axhline(1, color="0.5", linestyle="--", linewidth=1)
        everything.append(1)
    if min(everything) > 0:
        log_scale(axes, "y", everything)
    axes.set(xlabel=key, ylabel=metric, title=_mean_over(averaged))
    axes.grid(alpha=0.25)
    if len(lines) > 1:
        _add_legend(figure, legend)
    return figure


def _mean_over(keys: Sequence[str]) -> str:
    return f"mean over {', '.join(keys)}" if keys else ""


def _add_legend(figure: Figure, title: str) -> None:
    """Put the legend beside the axes, and enlarge the figure to make room for it."""
    legend = figure.legend(loc="outside right upper", title=title, alignment="left")
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
    xs: Sequence[float],
    ys: Sequence[float],
    table: Sequence[Sequence[float]],
    averaged: Sequence[str] = (),
) -> Figure:
    """Draw the mean of ``metric`` over two swept keys, ``table[y][x]``, as a heat map.

    Each cell shows its number. ``averaged`` are the other keys in which the runs of a cell differ.
    """
    values = np.array(table)
    values[np.isinf(values)] = np.nan  # inf: the cell has no run
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
    title = f"{metric}\n{_mean_over(averaged)}".strip()
    axes.set(xlabel=keys[0], ylabel=keys[1], title=title)
    return figure
