"""The loss during training."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ncsn_cli.core.scene import Scene, TrainingScene
from ncsn_cli.plots.canvas import MODEL, TRUTH, log_scale, new_figure


def loss(scene: Scene) -> Figure | None:
    """Draw the loss of each logged batch and, where they are known, loss floor and excess loss."""
    if not isinstance(scene, TrainingScene) or len(scene.history["step"]) < 2:
        return None
    history = scene.history
    known = np.isfinite(history["excess_loss"])
    figure, (left, *others) = new_figure(1, 2 if known.any() else 1, width=6.5)
    left.plot(history["step"], history["loss"], color=MODEL, linewidth=1.2, label="batch loss")
    if scene.loss_floor is not None:
        label = f"floor {scene.loss_floor:.4g}: the true score's loss"
        left.axhline(scene.loss_floor, color=TRUTH, linestyle="--", label=label)
    # The first losses may be far above the later ones, which are of interest: cut the axis.
    top = 1.15 * float(np.quantile(history["loss"], 0.95))
    left.set(xlabel="step", ylabel="loss", title="loss", ylim=(None, top))
    left.legend()
    for right in others:
        steps, excess = history["step"][known], history["excess_loss"][known]
        right.plot(steps, excess, color=MODEL, marker="o", markersize=4)
        if excess.min(initial=np.inf) > 0:
            log_scale(right, "y", excess)
        right.set(
            xlabel="step",
            title="excess loss: " + r"$\frac{\lambda}{2}\,E\|s-\nabla\log p_\sigma\|^2$",
        )
        right.grid(which="both", alpha=0.25)
    return figure
