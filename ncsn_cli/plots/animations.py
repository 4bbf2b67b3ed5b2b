"""Animations: a ``Scene`` in, an ``Animation`` out, or None if the animation does not apply."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ncsn_cli.core.scene import Paths, SamplingScene, Scene, TrainingScene
from ncsn_cli.plots.canvas import (
    MODEL,
    TRUTH,
    Animation,
    Array,
    as_image,
    field_figure,
    heat_map,
    level_bar,
    level_colour,
    new_figure,
)
from ncsn_cli.plots.fields import arrows, at_arrows, shortened, with_margin

_MOST_FRAMES = 80  # limit for the animation of chains


def score(scene: Scene) -> Animation | None:
    """Draw the learned score during training, and the true one if known, at every level shown."""
    if not isinstance(scene, TrainingScene) or scene.snapshots is None:
        return None
    if scene.dim == 1:
        return _score_lines(scene, scene.snapshots["scores"][..., 0], scene.snapshots["steps"])
    return _score_arrows(scene, scene.snapshots["scores"], scene.snapshots["steps"])


def _score_lines(scene: Scene, scores: Array, steps: NDArray[np.int64]) -> Animation:
    figure, (axes,) = new_figure(1, 1, width=8)
    (x,), true, lines = scene.axes, scene.true_scores, []
    for level, (sigma, start) in enumerate(zip(scene.sigmas, scores[0], strict=True)):
        if true is not None:
            axes.plot(x, true[level, :, 0], color="black", linestyle=":", linewidth=1)
        lines += axes.plot(x, start, color=level_colour(sigma, scene), linewidth=1.5)
    limits = with_margin(scores[-1] if true is None else true[..., 0])
    axes.set(xlabel="$x$", ylabel=r"$\nabla \log p_\sigma(x)$", ylim=limits)
    level_bar(figure, [axes], scene)
    name = "learned score" if true is None else "learned score (dotted: true)"
    axes.set_title(name, loc="left")
    moment = axes.set_title("", loc="right")

    def update(frame: int) -> None:
        for line, values in zip(lines, scores[frame], strict=True):
            line.set_ydata(values)
        moment.set_text(_step(steps, frame))

    return Animation(figure, update, range(len(steps)), [*lines, moment])


def _score_arrows(scene: Scene, scores: Array, steps: NDArray[np.int64]) -> Animation:
    levels, true = range(len(scene.sigmas)), scene.true_scores
    figure, panels = field_figure(1 if true is None else 2, scene)
    if true is not None:
        for axes, level in zip(panels, levels, strict=False):
            arrows(axes, at_arrows(true[level], scene), level, scene, TRUTH)
            axes.set_title(rf"true, $\sigma$ = {scene.sigmas[level]:.3g}")
    learned = [
        arrows(axes, scores[0, level], level, scene, MODEL)
        for axes, level in zip(panels[-len(levels) :], levels, strict=True)
    ]
    title = figure.suptitle(" ")
    name = "learned score" if true is None else "true (blue) and learned score"

    def update(frame: int) -> None:
        for level in levels:
            learned[level].set_UVC(*shortened(scores[frame, level], level, scene))
        title.set_text(f"{name}, {_step(steps, frame)}")

    return Animation(figure, update, range(len(steps)), [*learned, title])


def recovered_density(scene: Scene) -> Animation | None:
    """Draw the density recovered from the learned score during training, smallest level, D = 1."""
    snapshots = scene.snapshots if isinstance(scene, TrainingScene) else None
    if snapshots is None or "recovered" not in snapshots:
        return None
    (x,), true, sigma = scene.axes, scene.densities[-1], scene.sigmas[-1]
    steps, recovered, kl = (snapshots[name] for name in ("steps", "recovered", "kl"))
    figure, (axes,) = new_figure(1, 1, width=8)
    axes.fill_between(
        x, true, color=TRUTH, alpha=0.3, label=rf"$p_\sigma$, $\sigma$ = {sigma:.3g}"
    )
    (line,) = axes.plot(x, recovered[0], color=MODEL, label="recovered from the score")
    axes.set(xlabel="$x$", ylabel="density", ylim=(0, 1.25 * true.max()))
    axes.legend(loc="upper left")

    def update(frame: int) -> None:
        line.set_ydata(recovered[frame])
        known = "" if np.isnan(kl[frame]) else f": KL = {kl[frame]:.2g} nats"
        axes.title.set_text(f"{_step(steps, frame)}{known}")

    return Animation(figure, update, range(len(steps)), [line, axes.title])


def chains(scene: Scene) -> Animation | None:
    """Draw chains over time, on the density at their current level."""
    if not isinstance(scene, SamplingScene) or scene.paths is None:
        return None
    num = len(scene.paths.x)
    frames = np.unique(np.linspace(0, num - 1, min(num, _MOST_FRAMES)).round().astype(int))
    draw = _chains_on_line if scene.dim == 1 else _chains_in_plane
    return draw(scene, scene.paths, frames)


def _chains_on_line(scene: Scene, paths: Paths, frames: NDArray[np.int64]) -> Animation:
    figure, (axes,) = new_figure(1, 1, width=8)
    (x,) = scene.axes
    heights = paths.densities / paths.densities.max(axis=1, keepdims=True)
    # Dots at (x, u p(x)) with u ~ U(0, 1) fill the area under p evenly if x ~ p.
    shares = np.random.default_rng(0).uniform(size=paths.x.shape[1])
    (curve,) = axes.plot(x, heights[0], color=TRUTH)
    (dots,) = axes.plot([], [], "o", color=MODEL, markersize=5, alpha=0.7, markeredgewidth=0)
    axes.set(xlabel="$x$", ylabel=r"$p_\sigma$ / its maximum")
    axes.set(xlim=(x[0], x[-1]), ylim=(-0.03, 1.05))
    axes.set_title(r"chains, at random heights under $p_\sigma$", loc="left")
    moment = axes.set_title("", loc="right")

    def update(frame: int) -> None:
        place = paths.x[frame, :, 0]
        curve.set_ydata(heights[frame])
        dots.set_data(place, shares * np.interp(place, x, heights[frame]))
        moment.set_text(_moment(paths, frame))

    return Animation(figure, update, frames.tolist(), [curve, dots, moment])


def _chains_in_plane(scene: Scene, paths: Paths, frames: NDArray[np.int64]) -> Animation:
    figure, (axes,) = new_figure(1, 1, width=6, height=6)
    densities = paths.densities
    mesh = heat_map(axes, densities[0], scene, cmap="Blues")
    (dots,) = axes.plot([], [], "o", color=MODEL, markersize=5, alpha=0.7, markeredgewidth=0)

    def update(frame: int) -> None:
        mesh.set_array(as_image(densities[frame], scene))
        mesh.set_clim(0, 1.6 * densities[frame].max())
        dots.set_data(*paths.x[frame].T)
        axes.title.set_text(_moment(paths, frame))

    return Animation(
        figure, update, frames.tolist(), [mesh, *axes.spines.values(), dots, axes.title]
    )


def _moment(paths: Paths, frame: int) -> str:
    return rf"{_step(paths.steps, frame)}, $\sigma$ = {paths.sigmas[frame]:.3g}"


def _step(steps: NDArray[np.int64], frame: int) -> str:
    return f"step {steps[frame]:,} of {steps[-1]:,}"
