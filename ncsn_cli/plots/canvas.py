"""The look of every picture: colours, axes, levels.

The truth is blue; learned scores and samples are vermilion. Both are from Okabe & Ito's palette,
which is safe for colour-blind readers. Levels run through viridis from sigma_max (yellow) to
sigma_min (dark).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from PIL import Image

from ncsn_cli.core.scene import Scene

Array = NDArray[np.float64]

TRUTH, MODEL, NEUTRAL = "#0072B2", "#D55E00", "#7F7F7F"
SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_VIRIDIS = mpl.colormaps["viridis"]  # kept, as each look-up copies the colour map
_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "backend": "agg",  # for plots that a user makes with pyplot
}

_DPI_OF_FILMS, _COLOURS_OF_FILMS = 80, 128
_FRAME_MS, _LAST_FRAME_MS = 80, 1500


@contextmanager
def own_settings() -> Iterator[None]:
    """Draw with the program's settings, ignoring the user's matplotlibrc and styles."""
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        yield


def new_figure(
    rows: int, columns: int, width: float = 4.6, height: float = 4.3
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, each ``width`` x ``height`` inches, and the panels row by row."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def to_png(figure: Figure) -> bytes:
    """Return the picture as a PNG file. It is drawn once; ``Figure.savefig`` draws twice."""
    canvas, png = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()  # type: ignore[no-untyped-call]
    # Without an alpha channel, and compressed quickly: a third of the time, and no larger.
    _pixels(canvas).save(png, "PNG", compress_level=1, dpi=(figure.dpi, figure.dpi))
    return png.getvalue()


def _pixels(canvas: FigureCanvasAgg) -> Image.Image:
    """Return what is drawn on the canvas."""
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    return drawn.convert("RGB")


def with_one_palette(pictures: Sequence[Image.Image], colours: int) -> list[Image.Image]:
    """Return the pictures, all of one size, with one palette of ``colours`` and pure white."""
    some = [np.asarray(picture) for picture in pictures[:: max(1, len(pictures) // 4)]]
    palette = Image.fromarray(np.concatenate(some)).quantize(colours)
    values = np.array(palette.getpalette()).reshape(-1, 3)
    values[values.sum(axis=1).argmax()] = 255
    values[values.min(axis=1) > 247] = 255  # Pillow would show white as one of these
    palette.putpalette(values.ravel().tolist())
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]


@dataclass(frozen=True)
class Animation:
    """A figure that changes: ``update(frame)`` makes it show one of ``frames``.

    ``moving`` are all artists that ``update`` changes, from back to front. They are drawn anew for
    each frame, on top of everything else, which is drawn once. If there are none, each frame is
    drawn whole, which takes several times as long.
    """

    figure: Figure
    update: Callable[[int], None]
    frames: Sequence[int]
    moving: Sequence[Artist] = ()


def to_gif(animation: Animation) -> bytes:
    """Return the animation as a GIF file. The last frame is shown longer than the others."""
    figure, frames = animation.figure, animation.frames
    figure.set_dpi(_DPI_OF_FILMS)
    canvas = FigureCanvasAgg(figure)
    for artist in animation.moving:
        artist.set_animated(True)  # leaves it out when the canvas is drawn
    # Lay out once, with the first title: it is slow, and panels must not move.
    animation.update(int(frames[0]))
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    background = canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]
    pictures = []
    for frame in frames:
        animation.update(int(frame))
        if animation.moving:
            canvas.restore_region(background)  # type: ignore[no-untyped-call]
            for artist in animation.moving:
                figure.draw_artist(artist)
        else:
            canvas.draw()  # type: ignore[no-untyped-call]
        pictures.append(_pixels(canvas))
    first, *others = with_one_palette(pictures, _COLOURS_OF_FILMS)
    gif = io.BytesIO()
    times = [*[_FRAME_MS] * len(others), _LAST_FRAME_MS]
    first.save(gif, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    return gif.getvalue()


def field_figure(num_fields: int, scene: Scene, height: float = 4.3) -> tuple[Figure, list[Axes]]:
    """Return a figure for fields of D = 2: one row of panels per field, one column per level.

    With a single level, all panels are in one row. ``height`` is the height of a panel, in inches,
    for a grid that is as wide as it is high.
    """
    num_levels = len(scene.sigmas)
    shape = (1, num_fields) if num_levels == 1 else (num_fields, num_levels)
    width, length = (float(np.ptp(axis)) for axis in scene.axes)
    return new_figure(*shape, height=1 + (height - 1) * length / width)


def as_image(values: Array, scene: Scene) -> Array:
    """Return values on the grid (G,) as an image, with rows along the second axis."""
    return values.reshape(len(scene.axes[0]), len(scene.axes[1])).T


def square(axes: Axes, scene: Scene) -> None:
    """Set up ``axes`` to show the grid of D >= 2, with the same scale on both axes."""
    (x, y) = scene.axes
    first, second = (
        ("$x_1$", "$x_2$") if scene.dim == 2 else ("principal axis 1", "principal axis 2")
    )
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=first, ylabel=second)
    axes.set_aspect("equal")


def heat_map(
    axes: Axes,
    values: Array,
    scene: Scene,
    label: str | None = None,
    **style: Any,  # noqa: ANN401
) -> QuadMesh:
    """Draw values on the grid (G,) of D = 2 as colours, with a colour bar if there is a label."""
    mesh = axes.pcolormesh(*scene.axes, as_image(values, scene), rasterized=True, **style)
    if label is not None:
        axes.figure.colorbar(mesh, ax=axes, shrink=0.75, label=label)
    square(axes, scene)
    return mesh


def contours(axes: Axes, values: Array, scene: Scene, colour: str) -> None:
    """Draw lines where a density (G,) has fallen as far as a Gaussian has at 1, 2, 3 and 4 std.

    There is no line at 4 std where the density is estimated from draws, because few of them lie
    there: for D > 2, and where only draws are known.
    """
    is_exact = scene.dim == 2 and scene.true_scores is not None
    stds = np.array([4.0, 3.0, 2.0, 1.0] if is_exact else [3.0, 2.0, 1.0])
    levels = values.max() * np.exp(-0.5 * stds**2)
    axes.contour(*scene.axes, as_image(values, scene), levels=levels, colors=colour, linewidths=1)


def scatter(
    axes: Axes, points: NDArray[np.float32], scene: Scene, colour: str, size: float = 4
) -> None:
    """Draw points (N, 2); the more points, the fainter they are."""
    alpha = float(np.clip(1500 / len(points), 0.15, 0.8))
    x, y = points.T
    axes.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, rasterized=True)


def log_scale(axes: Axes, which: Literal["x", "y"], values: Iterable[float]) -> None:
    """Make the axis that shows ``values`` > 0 logarithmic, with ticks written as plain numbers."""
    axes.set(**{f"{which}scale": "log"})
    axis, values = (axes.xaxis if which == "x" else axes.yaxis), list(values)
    span = max(values) / min(values)
    named = "123456789" if span < 3 else "235" if span < 30 else ""  # first digits of minor ticks
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else "")
    )


def _level_norm(scene: Scene) -> Normalize:
    low, high = scene.sigmas[-1], scene.sigmas[0]
    return LogNorm(low, high) if 0 < low < high else Normalize(low, high + 1)


def level_colour(sigma: float, scene: Scene) -> tuple[float, float, float, float]:
    """Return the colour of a level. The palest yellow is not used."""
    return _VIRIDIS(0.92 * _level_norm(scene)(sigma))


def level_bar(figure: Figure, axes: list[Axes], scene: Scene) -> None:
    """Add a colour bar that shows which colour is which level, if there are several levels."""
    if len(scene.sigmas) > 1:
        mappable = ScalarMappable(_level_norm(scene), _VIRIDIS)
        bar = figure.colorbar(mappable, ax=axes, label=r"level $\sigma$")
        ticks = np.geomspace(scene.sigmas[-1], scene.sigmas[0], 4)
        bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()
