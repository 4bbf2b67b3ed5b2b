import io
import os
import signal

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ncsn_cli.commands import present
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.plots import canvas
from ncsn_cli.plots.canvas import Animation


def moving_line():
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    (line,) = axes.plot([0, 1], [0, 1])

    def update(frame):
        line.set_ydata([frame, 1])

    return Animation(figure, update, range(3), [line])


class Broken(Figure):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def draw(self, renderer):
        raise self.error


def figures():
    plain = Figure(figsize=(2, 2))
    plain.subplots().plot([0, 1])
    return {
        "plot.plain": plain,
        "plot.broken": Broken(ConfigError("no such\ncolour")),
        "plot.nothing": 7,
        "animation.line": moving_line(),
        "plot.last": Figure(figsize=(1, 1)),
    }


def files(monkeypatch, workers):
    monkeypatch.setattr(present, "_WORKERS", workers)
    return dict(present.files_of(figures()))


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        return files(patch, 1)


def test_each_picture_is_a_file_or_the_reason_why_it_is_not(alone):
    assert alone.keys() == figures().keys()
    assert alone["plot.broken"] == "could not be drawn (no such colour)"
    assert alone["plot.nothing"].startswith("could not be drawn (AttributeError: ")
    sizes = {key: Image.open(io.BytesIO(alone[key])).size for key in ("plot.plain", "plot.last")}
    assert sizes == {"plot.plain": (200, 200), "plot.last": (100, 100)}
    assert Image.open(io.BytesIO(alone["animation.line"])).n_frames == 3


def test_several_processes_draw_the_same_pictures(alone, monkeypatch):
    assert files(monkeypatch, 3) == alone


def test_a_process_that_is_killed_costs_no_picture(alone, monkeypatch):
    ours, to_png, pids = os.getpid(), canvas.to_png, []

    def killed(figure):
        if os.getpid() != ours:
            os.kill(os.getpid(), signal.SIGKILL)
        pids.append(os.getpid())
        return to_png(figure)

    monkeypatch.setattr(canvas, "to_png", killed)
    assert files(monkeypatch, 2) == alone
    assert len(pids) == 4


def test_a_full_disk_is_an_error_still(monkeypatch):
    full = {"plot.a": Broken(OSError(28, "No space left on device")), "animation.b": moving_line()}
    for workers in (1, 2):
        monkeypatch.setattr(present, "_WORKERS", workers)
        with pytest.raises(OSError, match="No space left"):
            list(present.files_of(full))


def partial_of(target):
    return {"_target_": target, "_partial_": True}


@pytest.mark.parametrize(
    ("group", "target", "is_shown"),
    [
        ("plot", "ncsn_cli.plots.recovered_density", True),
        ("plot", "ncsn_cli.plots.density", False),
        ("plot", "tests.commands.test_present.Broken", True),  # it may show anything
        ("animation", "tests.commands.test_present.Broken", True),
    ],
)
def test_what_a_picture_may_show_goes_by_what_draws_it(group, target, is_shown):
    pictures = present.Pictures({group: {"mine": partial_of(target), "none": None}})
    assert pictures.may_show("recovered_density") == is_shown
