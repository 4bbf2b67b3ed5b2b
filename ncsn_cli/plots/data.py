"""The data and the perturbed densities, from which a score is learned."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ncsn_cli.core.scene import Scene, TrainingScene
from ncsn_cli.plots.canvas import (
    NEUTRAL,
    TRUTH,
    heat_map,
    level_bar,
    level_colour,
    new_figure,
    scatter,
)


def density(scene: Scene) -> Figure | None:
    """Draw p, p_sigma at the levels shown, and the training data."""
    if not isinstance(scene, TrainingScene):
        return None
    if scene.dim == 1:
        figure, (axes,) = new_figure(1, 1, width=8)
        (x,) = scene.axes
        bins = np.linspace(x[0], x[-1], 81).tolist()
        axes.hist(
            scene.data[:, 0],
            bins=bins,
            density=True,
            histtype="stepfilled",  # one shape is quicker than many bars
            color=NEUTRAL,
            alpha=0.45,
            label=f"{len(scene.data):,} training points",
        )
        for sigma, values in zip(scene.sigmas, scene.densities, strict=True):
            axes.plot(x, values, color=level_colour(sigma, scene), linewidth=1)
        if scene.clean_density is not None:
            axes.plot(x, scene.clean_density, color=TRUTH, label="true density $p$")
        axes.set(xlabel="$x$", ylabel="density", title="Data and perturbed densities")
        axes.legend()
        level_bar(figure, [axes], scene)
        return figure
    figure, panels = new_figure(1, len(scene.sigmas), height=3.9)
    for axes, sigma, values in zip(panels, scene.sigmas, scene.densities, strict=True):
        heat_map(axes, values, scene, "density", cmap="Blues")
        axes.set_title(rf"$p_\sigma$, $\sigma$ = {sigma:.3g}")
    scatter(panels[-1], scene.data[:2000], scene, NEUTRAL)
    figure.suptitle("Perturbed densities; dots: training data")
    return figure
