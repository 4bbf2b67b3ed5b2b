"""Runs that are stopped, saved and resumed."""

import functools
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.helpers.commands import BIN, QUICK, assert_same_run, only_run, read, written_by
from tests.helpers.forked import show_warnings


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(trained, tmp_path, succeed, forked):
    arguments = [*QUICK, "plot=[score,loss]", "animation=[score]", "trainer.snapshots=3"]
    part = succeed("ncsn-train", *arguments, "trainer.steps=20", folder=tmp_path)
    whole = succeed("ncsn-train", *arguments, f"trainer.resume={part}", folder=tmp_path)
    assert_same_run(whole, trained)
    with np.load(part / "snapshots.npz") as before, np.load(whole / "snapshots.npz") as now:
        assert before["steps"].tolist() == [0, 2, 9, 20]
        assert now["steps"].tolist() == [0, 2, 9, 20, 30]
        for name, values in before.items():
            np.testing.assert_array_equal(now[name][:4], values)
    for folder in (part, whole):
        assert [path.name for path in (folder / "animations").iterdir()] == ["score.gif"]
    page = (whole / "report.html").read_text()
    assert page.index("data:image/gif") < page.index("data:image/png")
    other = [*arguments, "optimizer.lr=0.5", f"trainer.resume={part}"]
    changed = forked.call("train", other, tmp_path)
    assert changed.returncode == 2
    assert "was made with another optimizer.lr; type ncsn-train " in changed.stderr


def test_what_would_be_lost_or_wrong_on_resume_is_refused(trained, tmp_path, forked):
    arguments = [*QUICK, f"trainer.resume={trained}"]
    cases = {
        "trainer.steps": ["trainer.steps=5"],
        "trainer.lr_decay=none": ["trainer.lr_decay=cosine"],
        "holds a run": [f"hydra.run.dir={trained}", "trainer.resume=null"],
    }
    for named, change in cases.items():
        result = forked.call("train", [*arguments, *change], tmp_path)
        assert result.returncode == (73 if named == "holds a run" else 2), result.stderr
        assert named in result.stderr
    assert read(trained / "status.json")["state"] == "done"
    assert len(list((trained / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_a_signal_ends_sampling_and_it_goes_on_to_the_same_bits(
    trained, tmp_path, succeed, forked
):
    quick = [f"checkpoint={trained}", "num_samples=3000", "metric=[]", "plot=[]"]
    arguments = ["ncsn-sample", *quick, "++sampler.steps_per_level=300"]
    process = subprocess.Popen(
        [BIN / arguments[0], *arguments[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"}, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/sample/runs/*/run.json")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130, error
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    (stopped,) = tmp_path.glob("outputs/sample/runs/*")
    assert read(stopped / "status.json")["state"] == "interrupted"
    other = [*arguments[1:], f"resume={stopped}", "num_samples=60"]
    changed = forked.call("sample", other, tmp_path)
    assert changed.returncode == 2
    assert "num_samples=3000" in changed.stderr
    resumed = succeed(*arguments, f"resume={stopped}", folder=tmp_path)
    whole = succeed(*arguments, folder=tmp_path)
    with np.load(resumed / "samples.npz") as found, np.load(whole / "samples.npz") as expected:
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name
    assert not (resumed / "sampling.safetensors").exists()
    complete = forked.call("sample", [*arguments[1:], f"resume={whole}"], tmp_path)
    assert complete.returncode == 2
    assert "has all its samples" in complete.stderr


def keep_in(folder):
    """For the ``before`` of ``helpers.forked``: keep compiled steps there, and show warnings."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    show_warnings(None)


@pytest.mark.slow
def test_compiled_sampling_is_stopped_and_goes_on_to_the_same_bits(tmp_path, forked):
    cache = str(tmp_path / "cache")  # an empty one, so that compiling takes seconds

    def call(command, *arguments, folder):
        before = [__name__, "keep_in", cache]
        return forked.call(command.removeprefix("ncsn-"), arguments, folder, before)

    succeed = functools.partial(written_by, call)
    trained = succeed("ncsn-train", *QUICK, "model=mlp", folder=tmp_path)
    quick = [f"checkpoint={trained}", "num_samples=3000", "metric=[]", "plot=[]"]
    arguments = ["ncsn-sample", *quick]
    process = subprocess.Popen(
        [BIN / arguments[0], *arguments[1:], "compile=true"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/sample/runs/*/sampling.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)  # it compiles for seconds
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 143, error
    assert "Traceback" not in error
    (stopped,) = tmp_path.glob("outputs/sample/runs/*")
    assert read(stopped / "status.json")["state"] == "interrupted"
    # By its rule it would not compile so few steps; but it goes on as it began.
    resumed = succeed(*arguments, f"resume={stopped}", folder=tmp_path)
    whole = succeed(*arguments, "compile=true", folder=tmp_path)
    plain = succeed(*arguments, folder=tmp_path)
    compiles = [OmegaConf.load(folder / "config.yaml").compile for folder in (resumed, plain)]
    assert compiles == [True, False]
    assert "compiled in" in (resumed / "sample.log").read_text()
    with np.load(resumed / "samples.npz") as found, np.load(whole / "samples.npz") as expected:
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name
        with np.load(plain / "samples.npz") as others:
            assert np.array_equal(others["init"], found["init"])
            assert not np.array_equal(others["samples"], found["samples"])
    changed = call(*arguments, f"resume={stopped}", "compile=false", folder=tmp_path)
    assert changed.returncode == 2
    assert "compile=true" in changed.stderr


@pytest.mark.parametrize(
    ("number", "compiled"),
    [
        pytest.param(signal.SIGINT, "false", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "false", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "true", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_run_and_it_resumes_to_the_same_bits(
    tmp_path, number, compiled, succeed
):
    arguments = ["ncsn-train", *QUICK, "trainer.steps=1500", "trainer.checkpoint_every=100000"]
    arguments += ["model=mlp", "model.hidden=[8]"] if compiled == "true" else []  # soon compiled
    arguments.append("trainer.eval_every=500")
    begun = [*arguments, f"trainer.compile={compiled}"]
    process = subprocess.Popen(
        [BIN / begun[0], *begun[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("outputs/train/runs/*/run.json")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    (stopped,) = tmp_path.glob("outputs/train/runs/*")
    state = read(stopped / "status.json")
    assert state["state"] == "interrupted"
    assert 0 < state["step"] < 1500
    # By its rule it would not compile so few steps; but it goes on as it began.
    resumed = succeed(*arguments, f"trainer.resume={stopped}", folder=tmp_path)
    assert_same_run(resumed, succeed(*begun, folder=tmp_path))


def stop_drawing(_):
    """For the ``before`` of ``helpers.forked``."""
    import matplotlib.figure

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    matplotlib.figure.Figure.__init__ = stop


def test_the_numbers_are_on_disk_before_a_picture_is_drawn(trained, forked, tmp_path):
    source = [f"checkpoint={trained}", "num_samples=10", "metric=[moments]", "plot=[samples]"]
    for command, arguments in (("train", [*QUICK, "trainer.steps=1", "plot=[score]"]),
                               ("sample", source)):  # fmt: skip
        before = [__name__, "stop_drawing", None]
        result = forked.call(command, arguments, tmp_path, before)
        assert result.returncode == 130, result.stderr
        assert read(only_run(tmp_path, command) / "metrics.json")["seconds"] > 0
        resume = [line for line in result.stderr.splitlines() if line.startswith("Resume: ")]
        assert len(resume) == (command == "train")  # no chains are left to resume
