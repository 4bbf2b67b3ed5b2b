"""Scores on a grid, true and learned, and the density that a score implies."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from ncsn_cli.core.scene import ARROWS, SamplingScene, Scene
from ncsn_cli.plots.canvas import (
    MODEL,
    NEUTRAL,
    TRUTH,
    Array,
    contours,
    field_figure,
    heat_map,
    level_bar,
    level_colour,
    new_figure,
    square,
)

_DEPTH = 12.0  # log-densities are shown down to this many nats below the maximum


def score(scene: Scene) -> Figure | None:
    """Draw the true score, where it is known, and the learned score at every level shown."""
    if scene.scores is None:
        return None
    if scene.dim > 1:
        return _score_arrows(scene, scene.scores)
    if scene.true_scores is None:
        return _learned_lines(scene, scene.scores[..., 0])
    return _score_lines(scene, scene.true_scores[..., 0], scene.scores[..., 0])


def _learned_lines(scene: Scene, learned: Array) -> Figure:
    figure, (axes,) = new_figure(1, 1, width=8)
    (x,) = scene.axes
    for sigma, line in zip(scene.sigmas, learned, strict=True):
        axes.plot(x, line, color=level_colour(sigma, scene), linewidth=1.5)
    axes.axhline(0, color=NEUTRAL, linewidth=0.8)
    axes.set(xlabel="$x$", ylabel=r"$\nabla \log p_\sigma(x)$", ylim=with_margin(learned))
    axes.set_title(f"{scene.score_name} score (the true one is not known)")
    level_bar(figure, [axes], scene)
    return figure


def _score_lines(scene: Scene, true: Array, learned: Array) -> Figure:
    figure, panels = new_figure(2, 2, width=6)
    (x,) = scene.axes
    name = scene.score_name
    fields = {"true score": true, f"{name} score": learned, f"{name} $-$ true": learned - true}
    for axes, (title, values) in zip(panels, fields.items(), strict=False):
        for sigma, line in zip(scene.sigmas, values, strict=True):
            axes.plot(x, line, color=level_colour(sigma, scene), linewidth=1.5)
        axes.set_title(title)
    panels[3].plot(x, true[-1], color=TRUTH, label="true")
    panels[3].plot(x, learned[-1], color=MODEL, linestyle="--", label=name)
    panels[3].set_title(rf"smallest level, $\sigma$ = {scene.sigmas[-1]:.3g}")
    panels[3].legend()
    for axes in panels:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        axes.set(xlabel="$x$", ylabel=r"$\nabla \log p_\sigma(x)$", ylim=with_margin(true))
    level_bar(figure, panels, scene)
    return figure


def _score_arrows(scene: Scene, learned: Array) -> Figure:
    rows = [(scene.score_name, learned, MODEL)]
    if scene.true_scores is not None:
        rows = [("true", scene.true_scores, TRUTH), *rows]
    figure, panels = field_figure(len(rows), scene)
    cells = [(row, level) for row in rows for level in range(len(scene.sigmas))]
    for axes, ((name, field, colour), level) in zip(panels, cells, strict=True):
        arrows(axes, at_arrows(field[level], scene), level, scene, colour)
        axes.set_title(rf"{name}, $\sigma$ = {scene.sigmas[level]:.3g}")
    if scene.dim > 2:
        figure.suptitle("Scores at exact draws, in projection")
    return figure


def at_arrows(field: Array, scene: Scene) -> Array:
    """Select from a field (G, 2) on the grid the vectors (A, 2) drawn as arrows; D > 2: all."""
    if scene.places is not None:
        return field
    x, y = scene.axes
    return field.reshape(len(x), len(y), 2)[ARROWS, ARROWS].reshape(-1, 2)


def arrows(axes: Axes, field: Array, level: int, scene: Scene, colour: str) -> Quiver:
    """Draw a field (A, 2) as arrows, on contours of the density at the same level."""
    return _quiver(
        axes, shortened(field, level, scene), _longest(level, scene), level, scene, colour
    )


def _quiver(
    axes: Axes, field: Array, longest: float, level: int, scene: Scene, colour: str
) -> Quiver:
    """Draw components (2, A) as arrows: one as long as ``longest`` nearly reaches the next."""
    contours(axes, scene.densities[level], scene, "0.75")
    x, y = (axis[ARROWS] for axis in scene.axes)
    if scene.places is None:
        places = [grid.ravel() for grid in np.meshgrid(x, y, indexing="ij")]
    else:
        places = list(scene.places[level].T)
    quiver = axes.quiver(
        *places,
        *field,
        color=colour, width=0.005,
        angles="xy", scale_units="xy", scale=0.8 * longest / (x[1] - x[0]),
    )  # fmt: skip
    square(axes, scene)
    return quiver


def shortened(field: Array, level: int, scene: Scene) -> Array:
    """Return the field (A, 2) as components (2, A), no arrow longer than ``_longest``."""
    longest = _longest(level, scene)
    lengths = np.linalg.norm(field, axis=-1, keepdims=True)  # (A, 1)
    shown: Array = (field * (longest / np.maximum(lengths, longest))).T
    return shown


def _longest(level: int, scene: Scene) -> float:
    """Return the largest norm of the true score, or of the learned one if that is not known."""
    shown = scene.scores if scene.true_scores is None else scene.true_scores
    assert shown is not None  # a picture of scores has one of them
    return float(np.linalg.norm(shown[level], axis=-1).max())


def score_norm(scene: Scene) -> Figure | None:
    """Draw the norms of the true score, where it is known, and of the learned score, D = 2."""
    named = [("true", scene.true_scores), (scene.score_name, scene.scores)]
    fields = [(name, field) for name, field in named if field is not None]
    if scene.dim != 2 or not fields:
        return None
    figure, panels = field_figure(len(fields), scene, height=3.7)
    cells = [(field, level) for field in fields for level in range(len(scene.sigmas))]
    for axes, ((name, field), level) in zip(panels, cells, strict=True):
        largest = _longest(level, scene)
        norm = np.linalg.norm(field[level], axis=-1)
        heat_map(axes, norm, scene, "norm (1/length)", cmap="cividis", vmin=0, vmax=largest)
        axes.set_title(rf"‖{name} score‖, $\sigma$ = {scene.sigmas[level]:.3g}")
    return figure


def score_error(scene: Scene) -> Figure | None:
    """Draw the error of the learned score, sigma ||s - grad log p_sigma||, D = 2.

    If the smallest level is 0, the error is shown without the factor sigma.
    """
    if scene.dim != 2 or scene.scores is None or scene.true_scores is None:
        return None
    errors = np.linalg.norm(scene.scores - scene.true_scores, axis=-1)
    label = r"$\|s - \nabla\log p\|$ (1/length)"
    if scene.sigmas[-1] > 0:
        errors = errors * scene.sigmas[:, None]
        label = r"$\sigma\,\|s - \nabla\log p_\sigma\|$"
    norm = LogNorm(vmin=1e-3, vmax=max(1.0, float(errors.max())))
    figure, panels = new_figure(1, len(scene.sigmas))
    for axes, sigma, error, density in zip(
        panels, scene.sigmas, errors, scene.densities, strict=True
    ):
        mesh = heat_map(axes, error.clip(1e-3), scene, cmap="magma", norm=norm)
        contours(axes, density, scene, "white")
        axes.set_title(rf"$\sigma$ = {sigma:.3g}")
    figure.colorbar(mesh, ax=list(panels), shrink=0.8, label=label)
    figure.suptitle("Error of the learned score\ncontours: the density")
    return figure


def visible_error(scene: Scene) -> Figure | None:
    """Draw the error of the learned score in two parts, of which one reaches samples, D = 2.

    An arrow is the error times the square root of the density. So the shares in the titles are
    those of the squares of all arrows, also outside the picture. Both parts have the same scale at
    a level.
    """
    fields, shares = scene.visible_errors, scene.visible_shares
    if fields is None or shares is None or scene.scores is None or scene.true_scores is None:
        return None
    known = [level for level in range(len(shares)) if np.isfinite(shares[level])]
    if not known:
        return None
    figure, panels = new_figure(2, len(known), height=4.1)
    for column, level in enumerate(known):
        errors = scene.scores[level] - scene.true_scores[level]
        parts = [
            at_arrows(part * np.sqrt(scene.densities[level])[:, None], scene)
            for part in (fields[level], errors - fields[level])
        ]
        longest = float(np.nanmax(np.linalg.norm(parts, axis=-1))) / 2  # few are so long
        percent = 100 * shares[level]
        rows = [("visible", percent, MODEL), ("invisible", 100 - percent, "black")]
        for row, (name, share, colour) in enumerate(rows):
            axes = panels[row * len(known) + column]
            _quiver(axes, parts[row].T, longest, level, scene, colour)
            axes.set_title(rf"{name}: {share:.1f} %, $\sigma$ = {scene.sigmas[level]:.3g}")
    figure.suptitle(
        "Error of the learned score: the visible part alone reaches samples\n"
        r"arrows: error times $\sqrt{p_\sigma}$; percent: of $E\|s-\nabla\log p_\sigma\|^2$"
    )
    return figure


def recovered_density(scene: Scene) -> Figure | None:
    """Draw the density recovered by integrating the learned score, and p_sigma, D = 1."""
    if scene.recovered is None or scene.recovered_kl is None:
        return None
    (x,), kl = scene.axes, scene.recovered_kl[-1]
    figure, panels = new_figure(1, 2, width=6.5)
    for sigma, line in zip(scene.sigmas, scene.recovered, strict=True):
        panels[0].plot(x, line, color=level_colour(sigma, scene), linewidth=1.5)
    for values in scene.densities:
        panels[0].plot(x, values, color="black", linestyle=":", linewidth=1)
    panels[0].set(xlabel="$x$", ylabel="density", title="recovered at every level (dotted: true)")
    if scene.clean_density is not None:
        panels[1].plot(x, scene.clean_density, color=NEUTRAL, linestyle="--", label="$p$")
    panels[1].plot(x, scene.densities[-1], color=TRUTH, label=r"$p_\sigma$")
    panels[1].plot(x, scene.recovered[-1], color=MODEL, label="recovered from the score")
    panels[1].set(
        xlabel="$x$",
        title=rf"smallest level, $\sigma$ = {scene.sigmas[-1]:.3g}"
        + ("" if np.isnan(kl) else f": KL = {kl:.2g} nats"),
    )
    panels[1].legend()
    level_bar(figure, [panels[0]], scene)
    return figure


def with_margin(values: Array) -> tuple[float, float]:
    """Return the limits of an axis that shows all ``values`` with a margin."""
    low, high = float(values.min()), float(values.max())
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def log_density(scene: Scene) -> Figure | None:
    """Draw the true and the learned log-density at the smallest level, and their difference."""
    if not isinstance(scene, SamplingScene) or scene.log_density is None:
        return None
    density, sigma = scene.densities[-1], scene.sigmas[-1]
    shown = density > density.max() * np.exp(-_DEPTH)  # no sample would ever lie elsewhere
    true = np.log(density, where=shown, out=np.full_like(density, np.nan))
    learned = np.where(shown & np.isfinite(scene.log_density), scene.log_density, np.nan)
    name, level = f"from the {scene.score_name} score", rf"$\sigma$ = {sigma:.3g}"
    if scene.dim == 1:
        return _log_density_lines(scene, true, learned, name, level)
    figure, panels = new_figure(1, 3, width=5)
    top = float(np.nanmax(true))
    for axes, values, title in zip(
        panels, (true, learned), (f"true, {level}", name), strict=False
    ):
        heat_map(axes, values, scene, "nats", cmap="cividis", vmin=top - _DEPTH, vmax=top)
        axes.set_title(rf"$\log p_\sigma$, {title}")
    difference = learned - true
    largest = max(0.01, float(np.nanquantile(np.abs(difference), 0.99)))
    heat_map(panels[2], difference, scene, "nats", cmap="RdBu_r", vmin=-largest, vmax=largest)
    contours(panels[2], density, scene, "0.4")
    panels[2].set_title("difference")
    return figure


def _log_density_lines(scene: Scene, true: Array, learned: Array, name: str, level: str) -> Figure:
    figure, panels = new_figure(1, 2, width=6.5)
    (x,) = scene.axes
    panels[0].plot(x, true, color=TRUTH, label="true")
    panels[0].plot(x, learned, color=MODEL, linestyle="--", label=name)
    panels[0].set(xlabel="$x$", ylabel="nats", title=rf"$\log p_\sigma$, {level}")
    panels[0].legend()
    panels[1].plot(x, learned - true, color=MODEL)
    panels[1].axhline(0, color=NEUTRAL, linewidth=0.8)
    panels[1].set(xlabel="$x$", ylabel="nats", title="difference")
    return figure
