"""Samples and chains, compared with the truth."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ncsn_cli.core.scene import Paths, SamplingScene, Scene
from ncsn_cli.plots.canvas import (
    MODEL,
    SERIES,
    TRUTH,
    contours,
    log_scale,
    new_figure,
    scatter,
    square,
)


def samples(scene: Scene) -> Figure | None:
    """Draw the samples and the truth."""
    if not isinstance(scene, SamplingScene):
        return None
    sigma = scene.sigmas[-1]
    of_all = "" if scene.drawn_from is None else f" of {scene.drawn_from:,}"
    num = f"{len(scene.samples):,}{of_all} samples"
    if scene.dim == 1:
        return _histogram(scene, num)
    figure, panels = new_figure(1, 2, width=5.5)
    names = rf"exact draws from $p_\sigma$, $\sigma$ = {sigma:.3g}", num
    if scene.is_denoised:
        names = f"{names[0]}, denoised", num
    for axes, points, name, colour in zip(
        panels, (scene.exact, scene.samples), names, (TRUTH, MODEL), strict=True
    ):
        contours(axes, scene.densities[-1], scene, "0.6")
        scatter(axes, points[:10_000], scene, colour)
        _write_shares(axes, points, scene)
        axes.set_title(name)
        square(axes, scene)
    return figure


def _histogram(scene: SamplingScene, label: str) -> Figure:
    """Draw the samples as a histogram, and the truth, for D = 1."""
    samples, sigma = scene.samples, scene.sigmas[-1]
    figure, (axes,) = new_figure(1, 1, width=8)
    (x,) = scene.axes
    bins = np.linspace(x[0], x[-1], 101)
    share = 1 / (len(samples) * (bins[1] - bins[0]))  # of all samples, also outside
    axes.hist(
        samples[:, 0],
        bins=bins.tolist(),
        weights=np.full(len(samples), share),
        histtype="stepfilled",  # one shape is quicker than many bars
        color=MODEL,
        alpha=0.45,
        label=label,
    )
    level = rf"$p_\sigma$, $\sigma$ = {sigma:.3g}"
    if scene.denoised_density is not None:
        axes.plot(x, scene.denoised_density, color=TRUTH, label=f"{level}, denoised")
    elif sigma > 0 or scene.clean_density is None:
        axes.plot(x, scene.densities[-1], color=TRUTH, label=level)
    if scene.clean_density is not None:
        axes.plot(x, scene.clean_density, color="black", linestyle="--", label="$p$")
    axes.set(xlabel="$x$", ylabel="density", title="Samples against the truth")
    axes.legend()
    return figure


def _write_shares(axes: Axes, points: NDArray[np.float32], scene: Scene) -> None:
    """Write the share of points nearest to each mode beside the mode, for 2 to 4 modes."""
    if not 2 <= len(scene.modes) <= 4 or scene.dim > 2:  # projection changes the nearest mode
        return
    distances = np.linalg.norm(points[:, None] - scene.modes, axis=-1)  # (N, K)
    shares = np.bincount(distances.argmin(axis=1), minlength=len(scene.modes)) / len(points)
    for mode, share in zip(scene.modes, shares, strict=True):
        axes.annotate(
            f"{share:.1%}",
            mode,
            (0, 46),
            textcoords="offset points",
            ha="center",
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )


def chains(scene: Scene) -> Figure | None:
    """Draw chains over time, on the density at their current level."""
    if not isinstance(scene, SamplingScene) or scene.paths is None:
        return None
    paths = scene.paths
    if scene.dim == 1:
        return _chains_1d(scene, paths)
    figure, panels = new_figure(1, 5, width=3.4, height=3.9)
    frames = np.linspace(0, len(paths.x) - 1, 5).round().astype(int)
    for axes, frame in zip(panels, frames, strict=True):
        contours(axes, paths.densities[frame], scene, "0.6")
        scatter(axes, paths.x[frame], scene, MODEL, size=14)
        title = "start" if frame == 0 else rf"step {paths.steps[frame]:,}, $\sigma$ = "
        axes.set_title(title if frame == 0 else title + f"{paths.sigmas[frame]:.3g}")
        square(axes, scene)
    figure.suptitle(f"{paths.x.shape[1]} chains on the density of their level")
    return figure


def _chains_1d(scene: Scene, paths: Paths) -> Figure:
    figure, (axes,) = new_figure(1, 1, width=9)
    (x,), steps, sigmas = scene.axes, paths.steps, paths.sigmas
    shading = (paths.densities / paths.densities.max(axis=1, keepdims=True)).T  # (G, frames)
    axes.pcolormesh(steps, x, shading, cmap="Blues", vmax=1.6, rasterized=True)
    axes.plot(steps, paths.x[:, :40, 0], color=MODEL, linewidth=0.7, alpha=0.55)
    axes.vlines(steps[np.flatnonzero(np.diff(sigmas))], x[0], x[-1], color="white", linewidth=0.6)
    axes.set(
        xlabel="step",
        ylabel="$x$",
        ylim=(x[0], x[-1]),
        xlim=(steps[0], steps[-1]),
        title=rf"{min(40, paths.x.shape[1])} chains, $\sigma$ from {sigmas[0]:.3g} to "
        rf"{sigmas[-1]:.3g}; shade: $p_\sigma$",
    )
    return figure


def commitment(scene: Scene) -> Figure | None:
    """Draw the share of chains settled in a mode, and the share in each mode, at each level."""
    if not isinstance(scene, SamplingScene) or len(scene.level_sigmas) < 2:
        return None
    if len(scene.modes) < 2:
        return None
    shares = scene.mode_shares
    figure, panels = new_figure(1, 2 if len(shares) else 1, width=6)
    panels[0].plot(scene.level_sigmas, scene.committed, color=MODEL, marker="o", markersize=4)
    panels[0].set(ylabel="share of chains", title="settled: never change mode again")
    _mark_levels(panels[0], scene)
    if len(shares):
        for k, share in enumerate(shares.T):
            centre = ", ".join(f"{c:g}" for c in scene.modes[k, :4].round(2) + 0.0)  # -0 is 0
            centre += ", …" if scene.dim > 4 else ""
            panels[1].plot(
                scene.level_sigmas,
                share,
                label=f"at ({centre})",
                marker=".",
                color=SERIES[k % len(SERIES)],
            )
        panels[1].set(title="nearest to each mode")
        panels[1].legend(fontsize=9, ncols=2)
    for axes in panels:
        axes.set(xlabel=r"level $\sigma$", ylim=(-0.03, 1.03))
        log_scale(axes, "x", scene.level_sigmas)
        axes.invert_xaxis()
        axes.grid(alpha=0.25)
    return figure


def _mark_levels(axes: Axes, scene: SamplingScene) -> None:
    """Mark the foretold levels by lines, and the medians of the chains beside them."""
    names = {"speciation": "mode", "collapse": "training point"}
    for (name, levels), colour in zip(scene.foretold.items(), SERIES[2:], strict=False):
        foretold, median = levels["foretold"], levels["median_of_chains"]
        if foretold is None or not scene.level_sigmas[-1] <= foretold <= scene.level_sigmas[0]:
            continue
        axes.axvline(
            foretold, color=colour, linestyle="--", label=f"{name} foretold: {foretold:.2g}"
        )
        if median is not None:
            label = f"half keep their {names[name]} from {median:.2g}"
            axes.plot(
                median, 0.5, marker="D", linestyle="none", color=colour, markersize=9, label=label
            )
    if axes.get_legend_handles_labels()[1]:
        box = {"frameon": True, "facecolor": "white", "edgecolor": "none", "framealpha": 0.9}
        axes.legend(fontsize=10, loc="lower right", **box)


def distances(scene: Scene) -> Figure | None:
    """Draw, per level, how wide the chains are and how far from p_sigma: a panel per metric."""
    if not isinstance(scene, SamplingScene) or scene.distances is None:
        return None
    sigmas = scene.distances["sigmas"]
    if len(sigmas) < 2:
        return None
    # Omit metrics that are unknown or all 0, and the width of a single chain, which is None.
    shown = {
        name: {kind: np.array(found[kind], dtype=float) for kind in found}
        for name, found in scene.distances.items()
        if name != "sigmas" and found is not None and any(found["value"])
    }
    if not shown:
        return None
    figure, panels = new_figure(1, len(shown), width=4.6)
    for axes, (name, found) in zip(panels, shown.items(), strict=True):
        if name == "std":
            axes.plot(sigmas, found["value"] / found["true"], ".-", color=MODEL, markersize=9)
            axes.axhline(1, color=TRUTH, linestyle="--")
            axes.set_title("standard deviation / true")
            continue
        axes.plot(sigmas, found["value"], ".-", color=MODEL, markersize=9, label="chains")
        axes.plot(sigmas, found["floor"], color=TRUTH, linestyle="--", label="noise floor")
        axes.set_title(name.replace("_", " "))
        axes.legend()
        both = [*found["value"], *found["floor"]]
        if min(both) > 0:
            log_scale(axes, "y", both)
    for axes in panels:
        axes.set_xlabel(r"level $\sigma$")
        log_scale(axes, "x", sigmas)
        axes.invert_xaxis()
        axes.grid(alpha=0.25)
    return figure
