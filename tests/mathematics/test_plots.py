import dataclasses
import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from ncsn_cli import plots
from ncsn_cli.core.scene import SamplingScene, Scene, TrainingScene
from ncsn_cli.datasets import GaussianMixture, grid
from ncsn_cli.evaluation.grid import compose_scene, recovered_on_grid, visible_on_grid
from ncsn_cli.plots import animations
from ncsn_cli.plots.canvas import as_image, own_settings, to_gif, to_png
from ncsn_cli.schedules import Geometric, Single
from ncsn_cli.training.history import COLUMNS
from ncsn_cli.training.snapshots import Snapshots
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_5d
from tests.helpers.slow import slow_but

CPU = torch.device("cpu")
SIGMAS = Geometric(2.0, 0.5, 5).sigmas
POINTS = GaussianMixture(weights=[0.5, 0.5], means=[-1.0, 1.0], stds=0.0)


def training_scene(dataset, sigmas=SIGMAS):
    history = {c: np.linspace(1, 0.1, 9) for c in COLUMNS}
    history["excess_loss"][::2] = np.nan

    def score(x, sigma):
        return 0.9 * dataset.score(x, sigma)

    return compose_scene(
        TrainingScene,
        dataset,
        sigmas,
        CPU,
        score=score,
        **visible_on_grid(score, dataset, sigmas, CPU),
        **recovered_on_grid(score, dataset, sigmas),
        data=dataset.sample(300, generator=stream()).numpy(),
        history=history,
        loss_floor=0.2,
        snapshots=snapshots_of(dataset, sigmas) if dataset.dim <= 2 else None,
    )


def snapshots_of(dataset, sigmas, factors=(0.0, 0.5, 1.0)):
    """Of a network that learns factor times the score."""
    snapshots = Snapshots(len(factors), 100, dataset, sigmas, CPU)
    for i, factor in enumerate(factors):
        snapshots.take(10 * i, lambda x, s, factor=factor: factor * dataset.score(x, s))
    return snapshots.arrays()


PARTS = {
    "smallest_level": {"value": 0.0, "standard_error": 0.0},
    "steps": {"value": 0.04, "standard_error": 0.001},
    "start": {"value": -0.02, "standard_error": None},
}
BUDGET = {
    "parts": {"smallest_level": "smallest level", "steps": "steps", "start": "start"},
    "metrics": {"moments": {"exact_draws": 0.01, "visible_above": 0.02, "parts": PARTS}},
    "nats": {"target": "p", "value": 0.02, "parts": PARTS},
}


def sampling_scene(dataset, sigmas=SIGMAS, score=None, **changed):
    paths = torch.randn(9, 20, dataset.dim, generator=stream())
    arrays = {
        "samples": dataset.sample(500, generator=stream(1)).numpy(),
        "exact": dataset.sample(500, generator=stream(2)).numpy(),
        "level_sigmas": np.array([2.0, 1.0, 0.5]),
        "committed": np.array([0.3, 0.8, 1.0]),
        "distances": {
            "sigmas": [2.0, 1.0, 0.5],
            "std": {"value": [3.0, 2.0, 1.0], "true": [3.0, 2.0, 1.0]},
            "moments": {"value": [3.0, 2.0, 1.0], "floor": [0.1, 0.1, 0.1]},
            "mode_weights": {"value": [0.0, 0.1, 0.0], "floor": [0.0, 0.0, 0.0]},
        },
        "log_density": None
        if dataset.dim > 2
        else np.linspace(-3, 0, {1: 801, 2: 121**2}[dataset.dim]),
        "mode_shares": np.full((3, len(dataset.modes)), 1 / len(dataset.modes)),
        "budget": BUDGET,
        "paths": (
            paths.numpy(), np.arange(9), np.repeat(sigmas.numpy(), 9)[:: len(sigmas)]
        ),
    }  # fmt: skip
    return compose_scene(SamplingScene, dataset, sigmas, CPU, score=score, **{**arrays, **changed})


# What each picture needs: its dimension, and a training or a sampling scene.
PICTURES = {
    "density": ({1, 2, 5}, {"train"}),
    "score": ({1, 2, 5}, {"train"}),
    "score_norm": ({2}, {"train", "sample"}),
    "score_error": ({2}, {"train"}),
    "visible_error": ({2}, {"train"}),
    "recovered_density": ({1}, {"train"}),
    "loss": ({1, 2, 5}, {"train"}),
    "samples": ({1, 2, 5}, {"sample"}),
    "chains": ({1, 2, 5}, {"sample"}),
    "commitment": ({1, 2, 5}, {"sample"}),
    "budget": ({1, 2, 5}, {"sample"}),
    "distances": ({1, 2, 5}, {"sample"}),
    "log_density": ({1, 2}, {"sample"}),
}


@pytest.mark.parametrize(
    "dataset", slow_but([two_modes_1d(), POINTS, correlated_2d(), grid(), two_modes_5d()], 0, 2)
)
@pytest.mark.parametrize("name", plots.__all__)
def test_pictures_are_drawn_where_they_apply(name, dataset):
    dims, kinds = PICTURES[name]
    for kind, scene in (("train", training_scene(dataset)), ("sample", sampling_scene(dataset))):
        figure = getattr(plots, name)(scene)
        if dataset.dim not in dims or kind not in kinds:
            assert figure is None
            continue
        png = Image.open(io.BytesIO(to_png(figure)))  # warnings are errors
        assert png.mode == "RGB" and png.size == figure.canvas.get_width_height()
        assert png.getpixel((0, 0)) == (255, 255, 255) and png.convert("L").getextrema()[0] < 50
        labels = [label for a in figure.axes for label in (a.get_xlabel(), a.get_ylabel())]
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel()
        is_projection = dataset.dim > 2 and name in ("density", "score", "samples", "chains")
        assert {"principal axis 1", "principal axis 2"} <= set(labels) or not is_projection


def test_the_bars_of_a_budget_end_at_the_error():
    figure = plots.budget(sampling_scene(two_modes_1d()))
    assert len(figure.axes) == 2
    (axes, nats) = figure.axes
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    # In units of the distance that exact draws do not exceed: (.01 + .04 - .02)/.02.
    assert list(dots[0]) == pytest.approx([1.5])
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert (min(map(min, ends)), max(map(max, ends))) == pytest.approx((-1.0, 2.5))
    assert [bar.get_width() for bar in nats.patches] == pytest.approx([0.0, 0.0, 0.04, -0.02])
    unknown = BUDGET | {"nats": {"value": None, "parts": {}}}
    assert len(plots.budget(sampling_scene(two_modes_1d(), budget=unknown)).axes) == 1


def test_the_loss_of_which_no_floor_is_known_has_one_panel_without_a_line():
    scene = training_scene(two_modes_1d())
    unknown = {**scene.history, "excess_loss": np.full(9, np.nan)}
    for changed, panels, lines in (
        ({}, 2, 2),
        ({"loss_floor": None}, 2, 1),
        ({"loss_floor": None, "history": unknown}, 1, 1),
    ):
        figure = plots.loss(dataclasses.replace(scene, **changed))
        assert (len(figure.axes), len(figure.axes[0].lines)) == (panels, lines)


def test_the_picture_of_the_visible_error_leaves_out_what_is_not_known():
    scene = training_scene(correlated_2d())  # with the score .9 s*, all of it is visible
    titles = [axes.get_title() for axes in plots.visible_error(scene).axes]
    assert titles[0::3] == [r"visible: 100.0 %, $\sigma$ = 2", r"invisible: 0.0 %, $\sigma$ = 2"]
    unknown = np.array([np.nan, *scene.visible_shares[1:]])
    figure = plots.visible_error(dataclasses.replace(scene, visible_shares=unknown))
    assert len(figure.axes) == 4
    nothing = dataclasses.replace(scene, visible_shares=np.full(3, np.nan))
    assert plots.visible_error(nothing) is None


def test_pictures_need_no_screen():
    with mpl.rc_context():
        mpl.rcParams["backend"] = "svg"
        with own_settings():
            assert mpl.rcParams["backend"] == "agg"


def test_every_picture_says_what_it_needs():
    ours = [getattr(plots, name) for name in plots.__all__]
    films = [animations.score, animations.recovered_density, animations.chains]
    assert plots.NEEDS.keys() == {*ours, *films}


def test_the_picture_of_the_recovered_density_agrees_with_the_truth():
    # From sigma_max = 10 most of p_sigma lies outside the picture.
    dataset, sigmas = two_modes_1d(), Geometric(10.0, 0.5, 5).sigmas
    found = recovered_on_grid(dataset.score, dataset, sigmas)
    scene = compose_scene(Scene, dataset, sigmas, CPU, score=dataset.score, **found)
    lines = plots.recovered_density(scene).axes[0].lines
    learned, true = lines[:5], lines[5:]
    for line, truth in zip(learned, true, strict=True):
        np.testing.assert_allclose(line.get_ydata(), truth.get_ydata(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_pictures_of_a_single_level(dataset):
    for scene in (
        training_scene(dataset, Single(sigma=0.3).sigmas),
        sampling_scene(dataset, Single(sigma=0.0).sigmas),
    ):
        for name in plots.__all__:
            if figure := getattr(plots, name)(scene):
                figure.savefig(io.BytesIO(), format="png")


def test_the_picture_of_distances_leaves_out_what_there_is_not():
    scene = sampling_scene(two_modes_1d())
    titles = ["standard deviation / true", "moments", "mode weights"]
    assert [axes.get_title() for axes in plots.distances(scene).axes] == titles
    scene.distances["std"]["value"] = [None, None, None]  # of one chain
    scene.distances["moments"]["floor"] = [0.1, None, 0.1]
    figure = plots.distances(scene)
    figure.savefig(io.BytesIO(), format="png")
    assert [axes.get_title() for axes in figure.axes] == titles[1:]
    del scene.distances["moments"], scene.distances["mode_weights"]
    assert plots.distances(scene) is None


def test_the_grid_runs_the_way_the_pictures_say():
    # A mode at (-2, 0) and one at (1, 1): the image's rows are x_2, its columns x_1.
    scene = sampling_scene(correlated_2d())
    image = as_image(scene.densities[-1], scene)
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert scene.axes[0][column] == pytest.approx(1, abs=0.2)
    assert scene.axes[1][row] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "dataset", slow_but([two_modes_1d(), POINTS, correlated_2d(), two_modes_5d()], 0, 2)
)
@pytest.mark.parametrize(
    "name, dims, kind",
    [
        ("score", {1, 2}, "train"),
        ("recovered_density", {1}, "train"),
        ("chains", {1, 2, 5}, "sample"),
    ],
)
def test_films_are_made_where_they_apply(name, dims, kind, dataset):
    for other, scene in (("train", training_scene(dataset)), ("sample", sampling_scene(dataset))):
        film = getattr(animations, name)(scene)
        if dataset.dim not in dims or other != kind:
            assert film is None
            continue
        gif = Image.open(io.BytesIO(to_gif(film)))
        assert gif.n_frames == len(film.frames) == (3 if kind == "train" else 9)
        shown = frames_of(gif)
        assert gif.info["duration"] > 1000
        assert gif.info["loop"] == 0
        assert (shown[:, 0, 0] == 255).all()
        assert_first_and_last_are_those_of_the_whole_figure(
            shown, getattr(animations, name)(scene)
        )
        # Nothing that moves is in the background, and nothing of the background moves.
        for frame in film.frames:
            film.update(frame)
            assert not film.figure.stale
        lowest = min(axes.get_window_extent().y0 for axes in film.figure.axes)
        labels = shown[:, 5 - int(lowest) :]  # the ticks' labels
        assert labels.min() < 100 and (labels == labels[0]).all()


def frames_of(gif):
    """All frames (F, height, width, 3) of a film."""
    shown = []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        shown.append(np.asarray(gif.convert("RGB"), dtype=int))
    return np.stack(shown)


def assert_first_and_last_are_those_of_the_whole_figure(shown, film):
    ends = dataclasses.replace(film, frames=[film.frames[0], film.frames[-1]], moving=())
    whole = frames_of(Image.open(io.BytesIO(to_gif(ends))))
    wrong, moved = (  # shares of pixels; far apart, as the films have palettes of their own
        (np.abs(shown[[0, -1]] - other).max(axis=-1) > 64).mean(axis=(1, 2))
        for other in (whole, whole[::-1])
    )
    assert (wrong < 0.05 * moved).all()


@pytest.mark.parametrize("sigmas", [SIGMAS, Single(sigma=0.3).sigmas])
def test_the_film_of_a_score_moves_from_what_was_first_to_the_truth(sigmas):
    scene = training_scene(two_modes_1d(), sigmas)
    film = animations.score(scene)
    true, learned = film.figure.axes[0].lines[::2], film.figure.axes[0].lines[1::2]
    for frame, factor in enumerate((0.0, 0.5, 1.0)):
        film.update(frame)
        for line, truth in zip(learned, true, strict=True):
            np.testing.assert_allclose(line.get_ydata(), factor * truth.get_ydata(), atol=1e-4)


def test_the_film_of_a_field_moves_its_arrows():
    scene = training_scene(correlated_2d())
    film = animations.score(scene)
    quivers = [c for a in film.figure.axes for c in a.collections if hasattr(c, "set_UVC")]
    true, learned = quivers[:3], quivers[3:]
    for frame, factor in enumerate((0.0, 0.5, 1.0)):
        film.update(frame)
        for arrows, truth in zip(learned, true, strict=True):
            np.testing.assert_allclose(arrows.U, factor * truth.U, atol=1e-4)
            np.testing.assert_allclose(arrows.V, factor * truth.V, atol=1e-4)


def test_dots_of_exact_draws_fill_the_area_under_the_density():
    # In the film of chains a dot lies at u p(x) with u uniform; under a curve so filled the
    # share of dots below c max(p) is the share of the area below it.
    dataset, num = two_modes_1d(), 4000
    x = dataset.sample(num, sigma=0.5, generator=stream())
    scene = sampling_scene(dataset, paths=(x[None].numpy(), np.arange(1), np.array([0.5])))
    film = animations.chains(scene)
    film.update(0)
    (axes,) = film.figure.axes
    curve, dots = axes.lines
    np.testing.assert_allclose(curve.get_ydata() * scene.densities[-1].max(), scene.densities[-1])
    np.testing.assert_array_equal(dots.get_xdata(), x[:, 0])
    assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 1
    for height in (0.1, 0.4, 0.8):
        area = np.minimum(curve.get_ydata(), height).sum() / curve.get_ydata().sum()
        share = np.mean(np.array(dots.get_ydata()) < height)
        assert abs(share - area) < 4 * np.sqrt(area * (1 - area) / num)  # wrong once in 16 000


def test_the_film_of_a_recovered_density_shows_density_and_divergence_of_its_step():
    scene = training_scene(two_modes_1d())
    film = animations.recovered_density(scene)
    (axes,) = film.figure.axes
    for frame in range(3):
        film.update(frame)
        np.testing.assert_array_equal(
            axes.lines[0].get_ydata(), scene.snapshots["recovered"][frame]
        )
        kl = scene.snapshots["kl"][frame]  # nan where the score does not lead back to the data
        known = "" if np.isnan(kl) else f": KL = {kl:.2g} nats"
        assert axes.get_title() == f"step {10 * frame} of 20{known}"
    assert not np.isnan(kl)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), scene.densities[-1], atol=1e-4)


@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_the_film_of_chains_shows_places_density_and_level_of_its_frame(dataset):
    scene = sampling_scene(dataset)
    film = animations.chains(scene)
    axes = film.figure.axes[0]
    for frame in film.frames:
        film.update(frame)
        dots = axes.lines[-1]
        np.testing.assert_array_equal(dots.get_xdata(), scene.paths.x[frame, :, 0])
        density = scene.paths.densities[frame]
        if dataset.dim == 1:
            shown = axes.lines[0].get_ydata() * density.max()
        else:
            np.testing.assert_array_equal(dots.get_ydata(), scene.paths.x[frame, :, 1])
            shown = axes.collections[0].get_array().T.ravel()
        np.testing.assert_allclose(shown, density)
        title = axes.get_title("right" if dataset.dim == 1 else "center")
        assert title == f"step {frame} of 8, $\\sigma$ = {scene.paths.sigmas[frame]:.3g}"
