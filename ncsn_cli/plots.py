"""Pictures of the truth and of what was learned or sampled: a ``Scene`` in, a ``Figure`` out.

Truth is blue, what was learned or sampled is vermilion (Okabe & Ito's palette, safe for colour-
blind readers), levels run through viridis from sigma_max (yellow) to sigma_min (dark). A function
returns None where its picture does not apply.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ncsn_cli.scores import Scene

__all__ = [
    "chains",
    "density",
    "loss",
    "recovered_density",
    "samples",
    "score",
    "score_error",
    "score_norm",
]

Array = NDArray[np.float64]

TRUTH, MODEL, NEUTRAL = "#0072B2", "#D55E00", "#7F7F7F"
_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
    "savefig.dpi": 130,
    "figure.facecolor": "white",
}
mpl.rcParams.update(_STYLE)


def density(scene: Scene) -> Figure | None:
    """p, p_sigma at the levels shown, and the training data."""
    if scene.data is None:
        return None
    if scene.dim == 1:
        figure, (axes,) = _figure(1, 1, width=8)
        (x,) = scene.axes
        bins = np.linspace(x[0], x[-1], 81).tolist()
        axes.hist(
            scene.data[:, 0],
            bins=bins,
            density=True,
            color=NEUTRAL,
            alpha=0.45,
            label=f"{len(scene.data):,} training points",
        )
        for sigma, values in zip(scene.sigmas, scene.densities, strict=True):
            axes.plot(x, values, color=_level_colour(sigma, scene), linewidth=1)
        if scene.clean_density is not None:
            axes.plot(x, scene.clean_density, color=TRUTH, label="true density $p$")
        axes.set(xlabel="$x$", ylabel="density", title="Data and perturbed densities")
        axes.legend()
        _level_bar(figure, [axes], scene)
        return figure
    figure, panels = _figure(1, len(scene.sigmas))
    for axes, sigma, values in zip(panels, scene.sigmas, scene.densities, strict=True):
        filled = axes.pcolormesh(*scene.axes, _map(values, scene), cmap="Blues", rasterized=True)
        figure.colorbar(filled, ax=axes, shrink=0.75, label="density")
        axes.set_title(rf"$p_\sigma$, $\sigma$ = {sigma:.3g}")
        _square(axes, scene)
    _scatter(panels[-1], scene.data[:2000], scene, NEUTRAL)
    figure.suptitle("Perturbed densities; dots: training data")
    return figure


def score(scene: Scene) -> Figure | None:
    """The true score and, beside it, the learned one, at every level shown."""
    if scene.scores is None:
        return None
    if scene.dim == 1:
        figure, panels = _figure(1, 3, width=5)
        (x,) = scene.axes
        true, learned = scene.true_scores[..., 0], scene.scores[..., 0]
        titles = "true score", "learned score", "learned $-$ true"
        for axes, values, title in zip(
            panels, (true, learned, learned - true), titles, strict=True
        ):
            for sigma, line in zip(scene.sigmas, values, strict=True):
                axes.plot(x, line, color=_level_colour(sigma, scene), linewidth=1.5)
            axes.axhline(0, color=NEUTRAL, linewidth=0.8)
            axes.set(xlabel="$x$", title=title, ylim=_range(true))
        panels[0].set_ylabel(r"$\nabla \log p_\sigma(x)$")
        _level_bar(figure, panels, scene)
        return figure
    figure, panels = _figure(2, len(scene.sigmas))
    every = max(1, len(scene.axes[0]) // 20)
    x, y = (axis[every // 2 :: every] for axis in scene.axes)
    for column, sigma in enumerate(scene.sigmas):
        fields = scene.true_scores[column], scene.scores[column]
        largest = np.linalg.norm(fields[0], axis=-1).max()
        for row, field in enumerate(fields):
            axes = panels[row * len(scene.sigmas) + column]
            u, v = (_map(f, scene)[every // 2 :: every, every // 2 :: every] for f in field.T)
            colour = TRUTH if row == 0 else MODEL
            axes.contour(
                *scene.axes,
                _map(scene.densities[column], scene),
                levels=4,
                colors="0.75",
                linewidths=1,
            )
            axes.quiver(
                x,
                y,
                u,
                v,
                color=colour,
                angles="xy",
                scale_units="xy",
                scale=1.25 * largest / (x[1] - x[0]) / 1.6,
                width=0.005,
            )
            axes.set_title(rf"{('true', 'learned')[row]}, $\sigma$ = {sigma:.3g}")
            _square(axes, scene)
    return figure


def score_norm(scene: Scene) -> Figure | None:
    """The norm of the true score and, below it, of the learned one, D = 2."""
    if scene.dim != 2:
        return None
    fields = [("true", scene.true_scores)]
    if scene.scores is not None:
        fields.append(("learned", scene.scores))
    figure, panels = _figure(len(fields), len(scene.sigmas))
    for row, (name, field) in enumerate(fields):
        for column, sigma in enumerate(scene.sigmas):
            axes = panels[row * len(scene.sigmas) + column]
            limit = np.linalg.norm(scene.true_scores[column], axis=-1).max()
            norm = _map(np.linalg.norm(field[column], axis=-1), scene)
            filled = axes.pcolormesh(
                *scene.axes, norm, cmap="cividis", vmin=0, vmax=limit, rasterized=True
            )
            figure.colorbar(filled, ax=axes, shrink=0.75, label="norm (1/length)")
            axes.set_title(rf"‖{name} score‖, $\sigma$ = {sigma:.3g}")
            _square(axes, scene)
    return figure


def score_error(scene: Scene) -> Figure | None:
    """Where the learned score errs, sigma ||s - grad log p_sigma|| (no unit), D = 2."""
    if scene.dim != 2 or scene.scores is None:
        return None
    errors = np.linalg.norm(scene.scores - scene.true_scores, axis=-1) * scene.sigmas[:, None]
    norm = LogNorm(vmin=1e-3, vmax=max(1.0, float(errors.max())))
    figure, panels = _figure(1, len(scene.sigmas))
    for axes, sigma, error, values in zip(
        panels, scene.sigmas, errors, scene.densities, strict=True
    ):
        filled = axes.pcolormesh(
            *scene.axes, _map(error, scene).clip(1e-3), cmap="magma", norm=norm, rasterized=True
        )
        _contours(axes, values, scene, "white")
        axes.set_title(rf"$\sigma$ = {sigma:.3g}")
        _square(axes, scene)
    figure.colorbar(
        filled,
        ax=list(panels),
        shrink=0.8,
        label=r"$\sigma\,\|s - \nabla\log p_\sigma\|$",
    )
    figure.suptitle("Error of the learned score; contours: the density, where it matters")
    return figure


def recovered_density(scene: Scene) -> Figure | None:
    """The density whose score was learned, exp of its integral, beside p_sigma, D = 1."""
    if scene.dim != 1 or scene.scores is None:
        return None
    (x,) = scene.axes
    figure, panels = _figure(1, 2, width=6.5)
    recovered = [_integrate(x, values[:, 0]) for values in scene.scores]
    for sigma, line in zip(scene.sigmas, recovered, strict=True):
        panels[0].plot(x, line, color=_level_colour(sigma, scene), linewidth=1.5)
    for values in scene.densities:
        panels[0].plot(x, values, color="black", linestyle=":", linewidth=1)
    panels[0].set(xlabel="$x$", ylabel="density", title="recovered at every level (dotted: true)")
    if scene.clean_density is not None:
        panels[1].plot(x, scene.clean_density, color=NEUTRAL, linestyle="--", label="$p$")
    panels[1].plot(x, scene.densities[-1], color=TRUTH, label=r"$p_\sigma$")
    panels[1].plot(x, recovered[-1], color=MODEL, label="recovered from the score")
    panels[1].set(xlabel="$x$", title=rf"smallest level, $\sigma$ = {scene.sigmas[-1]:.3g}")
    panels[1].legend()
    _level_bar(figure, [panels[0]], scene)
    return figure


def _integrate(x: Array, derivative: Array) -> Array:
    """Exp of the integral of ``derivative`` by the trapezoid rule, normalised to mass 1."""
    steps = (derivative[1:] + derivative[:-1]) / 2 * np.diff(x)
    log_density = np.concatenate([[0.0], np.cumsum(steps)])
    unnormalised = np.exp(log_density - log_density.max())
    return np.asarray(unnormalised / np.trapezoid(unnormalised, x))


def loss(scene: Scene) -> Figure | None:
    """The loss of each logged batch over its floor, and the excess loss."""
    if scene.history is None or len(scene.history["step"]) < 2:
        return None
    history = scene.history
    figure, (left, right) = _figure(1, 2, width=6.5)
    left.plot(history["step"], history["loss"], color=MODEL, linewidth=1.2, label="batch loss")
    if scene.loss_floor is not None:
        left.axhline(
            scene.loss_floor,
            color=TRUTH,
            linestyle="--",
            label=f"floor {scene.loss_floor:.4g}: the true score's loss",
        )
    # The first steps may be far above the rest, which is what there is to see.
    top = 1.15 * float(np.quantile(history["loss"], 0.95))
    left.set(xlabel="step", ylabel="loss", title="loss", ylim=(None, top))
    left.legend()
    known = np.isfinite(history["excess_loss"])
    right.semilogy(
        history["step"][known],
        history["excess_loss"][known],
        color=MODEL,
        marker="o",
        markersize=4,
    )
    right.set(
        xlabel="step", title="excess loss: " + r"$\frac{\lambda}{2}\,E\|s-\nabla\log p_\sigma\|^2$"
    )
    right.grid(which="both", alpha=0.25)
    return figure


def samples(scene: Scene) -> Figure | None:
    """The samples beside the truth."""
    if scene.samples is None or scene.exact is None:
        return None
    sigma = scene.sigmas[-1]
    num = f"{len(scene.samples):,} samples"
    if scene.dim == 1:
        figure, (axes,) = _figure(1, 1, width=8)
        (x,) = scene.axes
        axes.hist(
            scene.samples[:, 0],
            bins=np.linspace(x[0], x[-1], 101).tolist(),
            density=True,
            color=MODEL,
            alpha=0.45,
            label=num,
        )
        if sigma > 0:
            axes.plot(
                x, scene.densities[-1], color=TRUTH, label=rf"$p_\sigma$, $\sigma$ = {sigma:.3g}"
            )
        if scene.clean_density is not None:
            axes.plot(x, scene.clean_density, color="black", linestyle="--", label="$p$")
        axes.set(xlabel="$x$", ylabel="density", title="Samples against the truth")
        axes.legend()
        return figure
    figure, panels = _figure(1, 2, width=5.5)
    names = rf"exact draws from $p_\sigma$, $\sigma$ = {sigma:.3g}", num
    for axes, points, name, colour in zip(
        panels, (scene.exact, scene.samples), names, (TRUTH, MODEL), strict=True
    ):
        _contours(axes, scene.densities[-1], scene, "0.6")
        _scatter(axes, points[:10_000], scene, colour)
        _write_shares(axes, points, scene)
        axes.set_title(name)
        _square(axes, scene)
    return figure


def chains(scene: Scene) -> Figure | None:
    """Chains over time, on the density of the level that they are at."""
    if scene.paths is None or scene.path_densities is None:
        return None
    assert scene.path_sigmas is not None and scene.path_steps is not None
    if scene.dim == 1:
        return _chains_1d(scene, scene.paths, scene.path_densities, scene.path_steps)
    figure, panels = _figure(1, 5, width=3.4, height=3.9)
    frames = np.linspace(0, len(scene.paths) - 1, 5).round().astype(int)
    for axes, frame in zip(panels, frames, strict=True):
        _contours(axes, scene.path_densities[frame], scene, "0.6")
        _scatter(axes, scene.paths[frame], scene, MODEL, size=14)
        title = "start" if frame == 0 else rf"step {scene.path_steps[frame]:,}, $\sigma$ = "
        axes.set_title(title if frame == 0 else title + f"{scene.path_sigmas[frame]:.3g}")
        _square(axes, scene)
    figure.suptitle(f"{scene.paths.shape[1]} chains on the density of their level")
    return figure


def _chains_1d(
    scene: Scene, paths: NDArray[np.float32], densities: Array, steps: NDArray[np.int64]
) -> Figure:
    figure, (axes,) = _figure(1, 1, width=9)
    (x,) = scene.axes
    shading = (densities / densities.max(axis=1, keepdims=True)).T  # (G, frames)
    axes.pcolormesh(steps, x, shading, cmap="Blues", vmax=1.6, rasterized=True)
    axes.plot(steps, paths[:, :40, 0], color=MODEL, linewidth=0.7, alpha=0.55)
    assert scene.path_sigmas is not None
    for frame in np.flatnonzero(np.diff(scene.path_sigmas)):
        axes.axvline(steps[frame], color="white", linewidth=0.6)
    axes.set(
        xlabel="step",
        ylabel="$x$",
        ylim=(x[0], x[-1]),
        xlim=(steps[0], steps[-1]),
        title=rf"{min(40, paths.shape[1])} chains, $\sigma$ from {scene.path_sigmas[0]:.3g} to "
        rf"{scene.path_sigmas[-1]:.3g}; shade: $p_\sigma$",
    )
    return figure


def _figure(
    rows: int, columns: int, width: float = 4.6, height: float = 4.3
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _map(values: Array, scene: Scene) -> Array:
    """Values on the grid (G,) as an image, rows along the second axis."""
    return values.reshape(len(scene.axes[0]), len(scene.axes[1])).T


def _square(axes: Axes, scene: Scene) -> None:
    (x, y) = scene.axes
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="$x_1$", ylabel="$x_2$")
    axes.set_aspect("equal")


def _contours(axes: Axes, values: Array, scene: Scene, colour: str) -> QuadContourSet:
    levels = values.max() * np.exp(-0.5 * np.array([4.0, 3.0, 2.0, 1.0]) ** 2)  # 4 ... 1 std
    return axes.contour(
        *scene.axes, _map(values, scene), levels=levels, colors=colour, linewidths=1
    )


def _scatter(
    axes: Axes, points: NDArray[np.float32], scene: Scene, colour: str, size: float = 4
) -> None:
    alpha = float(np.clip(1500 / len(points), 0.15, 0.8))
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        color=colour,
        alpha=alpha,
        linewidths=0,
        rasterized=True,
    )


def _write_shares(axes: Axes, points: NDArray[np.float32], scene: Scene) -> None:
    """The share of points nearest to each mode, beside it, where there are few."""
    if len(scene.modes) > 4:
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


def _range(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def _level_norm(scene: Scene) -> Normalize:
    low, high = scene.sigmas[-1], scene.sigmas[0]
    return LogNorm(low, high) if 0 < low < high else Normalize(low, high + 1)


def _level_colour(sigma: float, scene: Scene) -> tuple[float, float, float, float]:
    return mpl.colormaps["viridis"](0.92 * _level_norm(scene)(sigma))


def _level_bar(figure: Figure, axes: list[Axes], scene: Scene) -> None:
    if len(scene.sigmas) > 1:
        mappable = ScalarMappable(_level_norm(scene), "viridis")
        bar = figure.colorbar(mappable, ax=axes, label=r"level $\sigma$")
        ticks = np.geomspace(scene.sigmas[-1], scene.sigmas[0], 4)
        bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()
