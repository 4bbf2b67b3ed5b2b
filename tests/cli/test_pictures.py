"""No picture costs a finished run, and none goes missing without a word."""

import os
import re

import pytest

from ncsn_cli.commands import train
from tests.helpers.commands import QUICK, QUICK_SAMPLE, only_run, read

MINE = """
import matplotlib.pyplot as plt


class Bad:
    def __call__(self, scene):
        raise ValueError("a label\\nis <wrong>")


def by_pyplot(scene):
    figure, axes = plt.subplots()
    axes.plot(scene.axes[0])
    return figure


def no_figure(scene):
    return 7


class Unhashable:
    __hash__ = None

    def __call__(self, scene):
        return None


def nothing(scene):
    return None


def on_a_full_disk(scene):
    raise OSError(28, "No space left on device")
"""
SETTINGS = """
text.usetex: True
backend: TkAgg
interactive: True
font.family: Nonexistent
figure.dpi: 7
savefig.format: pdf
axes.prop_cycle: cycler('color', ['r'])
axes.facecolor: black
path.sketch: 5, 100, 2
no.such.key: 3
"""


def mine(name, group="plot"):
    target = f"+{group}.{name.lower()}._target_=mine.{name}"
    return [target] if name == "Bad" else [target, f"+{group}.{name}._partial_=true"]


def set_environment(values):
    os.environ.update(values)


def break_scenes(_):
    def broken(*_, **__):
        raise RuntimeError("no grid")

    train.compose_scene = broken


def drawn(folder):
    return {str(p.relative_to(folder)) for p in folder.glob("*/*") if p.suffix in (".png", ".gif")}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.mark.slow
def test_pictures_are_drawn_as_the_program_says(folder, forked):
    places = {name: folder / name for name in ("plain", "here", "elsewhere")}
    for place in places.values():
        place.mkdir()
        (place / "mine.py").write_text(MINE)
    (places["here"] / "matplotlibrc").write_text(SETTINGS)
    (folder / "settings").write_text(SETTINGS)
    elsewhere = {"MATPLOTLIBRC": str(folder / "settings"), "MPLBACKEND": "no_such_backend"}
    pictures = {}
    for name, place in places.items():
        before = [__name__, "set_environment", elsewhere if name == "elsewhere" else {}]
        chosen = [
            "plot=[loss,score]",
            "animation=[score]",
            "trainer.snapshots=3",
            *mine("by_pyplot"),
        ]
        result = forked.call("train", [*QUICK, *chosen], place, before)
        assert result.returncode == 0, result.stderr
        run = only_run(place, "train")
        pictures[name] = {file: (run / file).read_bytes() for file in drawn(run)}
    assert pictures["plain"].keys() == {
        "plots/loss.png", "plots/score.png", "plots/by_pyplot.png", "animations/score.gif"
    }  # fmt: skip
    assert pictures["here"] == pictures["plain"]
    assert pictures["elsewhere"] == pictures["plain"]


@pytest.mark.slow
def test_a_picture_that_fails_is_named_and_all_else_is_written(folder, forked):
    own = [*mine("Bad"), *mine("no_figure"), *mine("no_figure", "animation")]
    result = forked.call(
        "train", [*QUICK, "plot=[loss]", "animation=[score]", "trainer.snapshots=3", *own], folder
    )
    assert result.returncode == 0, result.stderr
    run = only_run(folder, "train")
    assert read(run / "status.json")["state"] == "done"
    assert drawn(run) == {"plots/loss.png", "animations/score.gif"}
    page, log = (run / "report.html").read_text(), (run / "train.log").read_text()
    assert "plot.bad could not be drawn (ValueError: a label is <wrong>)" in log
    assert "plot.bad could not be drawn (ValueError: a label is &lt;wrong&gt;)" in page
    for key in ("plot.no_figure", "animation.no_figure"):
        for text in (log, page):
            assert re.search(rf"{key} could not be drawn \(AttributeError: ", text)
    assert page.count("data:image") == 2
    assert "Traceback" not in result.stderr + log


@pytest.mark.slow
def test_a_full_disk_is_an_error_still(folder, forked):
    result = forked.call("train", [*QUICK, *mine("on_a_full_disk")], folder)
    assert result.returncode == 74, result.stderr
    assert read(only_run(folder, "train") / "status.json")["state"] == "failed"


def test_a_run_is_done_without_what_its_pictures_show(folder, forked):
    before = [__name__, "break_scenes", None]
    result = forked.call("train", [*QUICK, "plot=[loss]"], folder, before)
    assert result.returncode == 0, result.stderr
    run = only_run(folder, "train")
    assert read(run / "status.json")["state"] == "done"
    assert "every picture could not be drawn (RuntimeError: no grid)" in (
        (run / "report.html").read_text()
    )


@pytest.mark.slow
def test_pictures_that_do_not_apply_are_named_if_they_were_chosen(folder, forked):
    result = forked.call(
        "train",
        [*QUICK, "plot=[samples,loss,score_norm]", "animation=[chains]", *mine("nothing")],
        folder,
    )
    assert result.returncode == 0, result.stderr
    run = only_run(folder, "train")
    line = (
        "left out: plot.samples needs ncsn-sample; plot.score_norm needs D = 2; plot.nothing does"
        " not apply; animation.chains needs ncsn-sample with trajectories above 0"
    )
    assert line in (run / "train.log").read_text()
    assert "<li>plot.samples needs ncsn-sample</li>" in (run / "report.html").read_text()


@pytest.mark.slow
def test_pictures_of_the_default_list_that_do_not_apply_are_not(folder, forked):
    arguments = [word for word in QUICK if not word.startswith("plot=")]
    own = [*mine("by_pyplot"), *mine("nothing"), "+plot.own._target_=mine.Unhashable"]
    result = forked.call("train", [*arguments, *own], folder)
    assert result.returncode == 0, result.stderr
    run = only_run(folder, "train")
    lines = [line for line in (run / "train.log").read_text().splitlines() if "left out" in line]
    assert [line[11:] for line in lines] == [
        "left out: plot.nothing does not apply; plot.own does not apply"
    ]
    assert len(drawn(run)) == 5
    assert "drawing 5 pictures\n" in (run / "train.log").read_text()


@pytest.mark.slow
def test_three_dimensions_have_pictures_or_a_word_about_them(folder, forked):
    data = ["dataset=mixture", "dataset.weights=[.4,.6]", "dataset.means=[[0,0,0],[3,1,2]]"]
    words = [word for word in QUICK if not word.startswith("plot=")]
    result = forked.call(
        "train", [*words, *data, "animation=[score]", "trainer.snapshots=3"], folder
    )
    assert result.returncode == 0, result.stderr
    run = only_run(folder, "train")
    assert drawn(run) == {"plots/loss.png", "plots/density.png", "plots/score.png"}
    log = (run / "train.log").read_text()
    (line,) = (line for line in log.splitlines() if "left out" in line)
    names = ["plot.score_norm", "plot.score_error", "plot.recovered_density", "animation.score"]
    assert re.findall(r"(\w+\.\w+) needs", line) == names
    quick = [word for word in QUICK_SAMPLE if word.startswith(("num_samples", "metric"))]
    sampled = ["trajectories=5", "trajectory_metrics=true", "metric=[mode_weights]"]
    arguments = [f"checkpoint={run}", "animation=[chains]", "++sampler.steps_per_level=5"]
    result = forked.call("sample", [*arguments, *quick, *sampled], folder)
    assert result.returncode == 0, result.stderr
    names = ["samples", "chains", "commitment", "distances", "score"]
    expected = {f"plots/{name}.png" for name in names} | {"animations/chains.gif"}
    assert drawn(only_run(folder, "sample")) == expected
