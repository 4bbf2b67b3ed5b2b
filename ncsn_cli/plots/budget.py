"""The error budget of a sampling run: one bar per metric, stacked from its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ncsn_cli.core.scene import SamplingScene, Scene
from ncsn_cli.plots.canvas import MODEL, NEUTRAL, new_figure

_COLOURS = {
    "smallest_level": "#56B4E9",
    "steps": "#009E73",
    "start": "#E69F00",
    "network": MODEL,
}


def budget(scene: Scene) -> Figure | None:
    """Draw the parts of the samples' error in each metric, and in nats where these are known.

    A metric's unit is the distance that 99.5 % of exact draws do not exceed. Parts that raise the
    error lie right of 0, and those that lower it left of 0.
    """
    if not isinstance(scene, SamplingScene) or not scene.budget:
        return None
    metrics, nats = scene.budget["metrics"], scene.budget["nats"]
    shown = {name: each for name, each in metrics.items() if each["visible_above"] > 0}
    has_nats = nats["value"] is not None
    if not shown and not has_nats:
        return None
    rows = [len(shown)] * bool(shown) + [1] * has_nats  # of each panel
    figure, panels = new_figure(len(rows), 1, width=9, height=1.3 + 0.55 * sum(rows) / len(rows))
    place: Any = panels[0].get_subplotspec()
    place.get_gridspec().set_height_ratios([1 + n for n in rows])
    if shown:
        axes = panels[0]
        for row, found in enumerate(shown.values()):
            unit = 1 / found["visible_above"]
            _stack(axes, row, found["parts"], unit, found["exact_draws"])
        axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
        for place in (1, 2):
            axes.axvline(place, color="black", linestyle=":", linewidth=1.2)
        axes.set_xlabel("distance from $p$; exact draws stay below 1, above 2 is wrong")
    if has_nats:
        axes = panels[-1]
        _stack(axes, 0, scene.budget["nats"]["parts"])
        axes.set_yticks([0], ["nats"])
        axes.set_xlabel(f"KL({scene.budget['nats']['target']} ‖ law of the samples), nats")
    for axes in panels:
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(8))
    _explain(panels[0], scene.budget)
    return figure


def _stack(
    axes: Axes,
    row: int,
    parts: Mapping[str, Mapping[str, Any]],
    unit: float = 1.0,
    exact_draws: float = 0.0,
) -> None:
    """Draw one bar, beginning with the error of exact draws, and a dot at its sum."""
    ends = {True: 0.0, False: 0.0}  # of what is right and left of 0
    total = 0.0
    pieces = [(exact_draws, NEUTRAL), *((each["value"], _COLOURS[p]) for p, each in parts.items())]
    for value, colour in pieces:
        length = value * unit
        axes.barh(row, length, left=ends[length > 0], color=colour, height=0.62)
        ends[length > 0] += length
        total += length
    axes.plot(total, row, "o", color="black", markersize=7, markeredgecolor="white")


def _explain(axes: Axes, budget: Mapping[str, Any]) -> None:
    pieces = {"exact draws": NEUTRAL} | {budget["parts"][p]: _COLOURS[p] for p in budget["parts"]}
    handles = [axes.barh(0, 0, color=colour, label=name) for name, colour in pieces.items()]
    (dot,) = axes.plot([], [], "o", color="black", label="the samples")
    axes.legend(
        handles=[*handles, dot], ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0),
        columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip
