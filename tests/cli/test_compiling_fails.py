"""A compilation that failed is written down; resuming keeps the bits or says that it cannot."""

import os
import signal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ncsn_cli.runs.checkpoints import load_checkpoint
from ncsn_cli.sampling import compiled_langevin
from ncsn_cli.training import compiled_steps
from tests.helpers import commands, compiling
from tests.helpers.commands import assert_same_run, final_tensors

pytestmark = pytest.mark.slow  # minutes

QUICK = [*commands.QUICK, "schedule.num_levels=2", "model=mlp", "model.hidden=[8]"]

STAYS_PLAIN = "compiling failed before this run was stopped, so its steps stay plain"
SAMPLE = ["num_samples=1300", "metric=[]", "plot=[]", "++sampler.steps_per_level=9"]  # two tiles


def fails(_):
    """Called in the command's process: compiling fails, as where there is no compiler."""
    compiled_steps.compiled = compiled_langevin.compiled = compiling.no_compiler


def untranslated(_):
    """Called there: what is traced is run by torch itself, with other bits than plain steps."""
    compiled_steps.compiled = compiled_langevin.compiled = compiling.run_by_torch


def stop_after_a_tile(hook):
    """Called there: a signal comes when the first tile of chains is finished."""
    from ncsn_cli.sampling.run import Sampling

    add = Sampling._add

    def add_and_stop(self, number, finished):
        add(self, number, finished)
        os.kill(os.getpid(), signal.SIGTERM)

    Sampling._add = add_and_stop
    globals()[hook](None)


@pytest.fixture
def command(forked, tmp_path):
    """``command(name, *arguments, before=...)``: the folder that it writes, and what it says."""

    def call(name, *arguments, before=None, code=0):
        earlier = set(tmp_path.glob("outputs/*/runs/*"))
        hook = None if before is None else [__name__, *before]
        result = forked.call(name, arguments, tmp_path, before=hook)
        assert result.returncode == code, result.stderr
        written = set(tmp_path.glob("outputs/*/runs/*")) - earlier
        return result.stderr if code == 2 else written.pop()

    return call


def log_of(folder):
    (path,) = folder.glob("*.log")
    return path.read_text()


def has_written(folder):
    """Whether ``config.yaml`` and the checkpoints say that steps were compiled."""
    found = [OmegaConf.load(folder / "config.yaml").trainer.compile]
    for path in (folder / "checkpoints").iterdir():
        found.append(load_checkpoint(path)[1]["config"]["trainer"]["compile"])
    assert len(set(found)) == 1, found
    return found[0]


FAILS, WORKS = ("fails", ""), ("untranslated", "")


def test_a_training_that_could_not_be_compiled_is_a_plain_one_and_stays_so(command):
    true = [*QUICK, "trainer.compile=true"]
    plain = command("train", *QUICK, "trainer.compile=false")
    failed = command("train", *true, before=FAILS)
    assert_same_run(failed, plain)
    assert has_written(failed) is False
    assert "found in a text of lines; the steps stay plain" in log_of(failed)
    stopped = command("train", *true, "trainer.steps=10", before=FAILS)
    # Its own command, where steps can be compiled; the same twice; and what was written down.
    again = command("train", *true, "trainer.steps=20", f"trainer.resume={stopped}", before=WORKS)
    for begun, compiles in ((again, "true"), (stopped, "auto"), (again, "false")):
        resume = [f"trainer.compile={compiles}", f"trainer.resume={begun}"]
        resumed = command("train", *QUICK, *resume, before=WORKS)
        assert_same_run(resumed, plain)
        assert has_written(resumed) is False
        assert log_of(resumed).count(STAYS_PLAIN) == (compiles != "false")


def test_what_a_training_was_asked_for_may_not_change(command):
    for asked, other in (("false", "true"), ("true", "false")):
        begun = command(
            "train", *QUICK, "trainer.steps=20", f"trainer.compile={asked}", before=WORKS
        )
        change = [f"trainer.compile={other}", f"trainer.resume={begun}"]
        error = command("train", *QUICK, *change, before=WORKS, code=2)
        assert f"trainer.compile={asked}" in error


def test_a_compiled_training_that_goes_on_plainly_says_so(command):
    true = [*QUICK, "trainer.compile=true"]
    begun = command("train", *true, "trainer.steps=20", before=WORKS)
    assert has_written(begun) is True
    resumed = command("train", *true, f"trainer.resume={begun}", before=FAILS)
    assert has_written(resumed) is False
    assert log_of(resumed).count("will differ from those of an undisturbed one") == 1
    whole = command("train", *true, before=WORKS)
    tensors, others = final_tensors(resumed), final_tensors(whole)
    assert any(not torch.equal(tensors[name], others[name]) for name in tensors)
    later = command("train", *true, "trainer.steps=40", f"trainer.resume={resumed}", before=WORKS)
    assert has_written(later) is False
    assert STAYS_PLAIN in log_of(later)


def test_a_checkpoint_made_before_the_first_compiled_step_is_no_compiled_run(command):
    true = [*QUICK, "trainer.compile=true"]
    begun = command("train", *true, "trainer.steps=1", before=WORKS)
    assert has_written(begun) is True
    resumed = command("train", *true, f"trainer.resume={begun}", before=FAILS)
    assert "the steps stay plain" in log_of(resumed)
    plain = command("train", *QUICK, "trainer.compile=false")
    tensors, others = final_tensors(resumed), final_tensors(plain)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.fixture
def sample(command):
    """The same for ``ncsn-sample`` with a network that can be compiled."""
    trained = command("train", *QUICK)

    def call(*arguments, **kwargs):
        return command("sample", f"checkpoint={trained}", *SAMPLE, *arguments, **kwargs)

    return call


def compiles(folder):
    """Whether ``config.yaml``, and stopped chains where there are any, say so."""
    found = OmegaConf.load(folder / "config.yaml").compile
    kept = folder / "sampling.safetensors"
    if kept.exists():
        assert load_checkpoint(kept)[1]["config"]["compile"] is found
    return found


def assert_same_samples(first, second):
    with np.load(first / "samples.npz") as found, np.load(second / "samples.npz") as expected:
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name


def test_sampling_that_could_not_be_compiled_is_plain_and_stays_so(sample):
    plain = sample("compile=false")
    failed = sample("compile=true", before=FAILS)
    assert_same_samples(failed, plain)
    assert compiles(failed) is False
    assert "found in a text of lines; the steps stay plain" in log_of(failed)
    stopped = sample("compile=true", before=("stop_after_a_tile", "fails"), code=143)
    assert compiles(stopped) is False
    for setting in ("true", "auto", "false"):
        resumed = sample(f"compile={setting}", f"resume={stopped}", before=WORKS)
        assert_same_samples(resumed, plain)
        assert compiles(resumed) is False
        assert log_of(resumed).count(STAYS_PLAIN) == (setting != "false")


def test_what_sampling_was_asked_for_may_not_change(sample):
    for asked, other in (("false", "true"), ("true", "false")):
        stop = ("stop_after_a_tile", "untranslated")
        stopped = sample(f"compile={asked}", before=stop, code=143)
        error = sample(f"compile={other}", f"resume={stopped}", before=WORKS, code=2)
        assert f"compile={asked}" in error


def test_compiled_sampling_that_goes_on_plainly_says_so(sample):
    stopped = sample("compile=true", before=("stop_after_a_tile", "untranslated"), code=143)
    assert compiles(stopped) is True
    resumed = sample("compile=true", f"resume={stopped}", before=FAILS)
    assert compiles(resumed) is False
    assert log_of(resumed).count("will differ from those of an undisturbed one") == 1
