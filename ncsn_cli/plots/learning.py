"""The loss during training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ncsn_cli.core.scene import Scene, TrainingScene
from ncsn_cli.plots.canvas import MODEL, TRUTH, log_scale, new_figure


def loss(scene: Scene) -> Figure | None:
    """Draw the loss of each logged batch with its floor, the excess loss, and what is learned.

    A loss without a known floor has no line for it, and one without an excess no panel for it. The
    last panel shows the distances from the true score and from that of the training set, if these
    were measured.
    """
    if not isinstance(scene, TrainingScene) or len(scene.history["step"]) < 2:
        return None
    history = scene.history
    known = np.isfinite(history["excess_loss"])
    measured = np.isfinite(history.get("true_distance", np.full(1, np.nan)))
    num = 1 + bool(known.any()) + bool(measured.sum() > 1)
    figure, (left, *right) = new_figure(1, num, width=6.5 if num < 3 else 5.2)
    left.plot(history["step"], history["loss"], color=MODEL, linewidth=1.2, label="batch loss")
    if (floor := scene.loss_floor) is not None:
        label = f"floor {floor:.4g}: the true score's loss"
        left.axhline(floor, color=TRUTH, linestyle="--", label=label)
    # The first losses may be far above the later ones, which are of interest: cut the axis.
    top = 1.15 * float(np.quantile(history["loss"], 0.95))
    left.set(xlabel="step", ylabel="loss", title="loss", ylim=(None, top))
    left.legend()
    if measured.sum() > 1:
        _what_is_learned(right.pop(), {name: x[measured] for name, x in history.items()})
    for axes in right:
        steps, excess = history["step"][known], history["excess_loss"][known]
        axes.plot(steps, excess, color=MODEL, marker="o", markersize=4)
        if excess.min(initial=np.inf) > 0:
            log_scale(axes, "y", excess)
        axes.set(
            xlabel="step",
            title="excess loss: " + r"$\frac{\lambda}{2}\,E\|s-\nabla\log p_\sigma\|^2$",
        )
        axes.grid(which="both", alpha=0.25)
    return figure


def _what_is_learned(axes: Axes, history: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw the distances from the true and from the empirical score."""
    labels = {
        "true_distance": ("true score, fresh draws", TRUTH, "-"),
        "true_distance_seen": ("true score, noisy training points", TRUTH, "--"),
        "empirical_distance_seen": ("training set's score, noisy training points", MODEL, "--"),
    }
    values = [history[name] for name in labels]
    for name, (label, colour, style) in labels.items():
        axes.plot(history["step"], history[name], style, color=colour, label=label)
    if min(each.min() for each in values) > 0:
        log_scale(axes, "y", np.concatenate(values))
    axes.set(xlabel="step", title=r"distance $\sigma^2\,E\|s-\ldots\|^2$ from")
    axes.legend(fontsize=9)
    axes.grid(which="both", alpha=0.25)
