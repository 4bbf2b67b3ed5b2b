"""Signals at random times: what was made is saved, the command ends soon, and can go on."""

import collections
import os
import random
import shutil
import signal
import time

import pytest

from ncsn_cli.runs.checkpoints import load_checkpoint
from ncsn_cli.runs.folder import RunFolder
from tests.helpers.commands import digest_of_run, digest_of_samples, newest_checkpoint, read

pytestmark = pytest.mark.slow  # minutes

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
TRAIN = [
    "trainer.steps=1500", "trainer.batch_size=16", "trainer.eval_every=50", "trainer.log_every=5",
    "trainer.checkpoint_every=100000", "trainer.ema_decay=0.99", "schedule.num_levels=2",
    "dataset.num_samples=50", "model=mlp", "model.hidden=[8]", "plot=[]", "device=cpu",
]  # fmt: skip
SAMPLE = [
    "score=exact", "dataset=two_modes_2d", "schedule=geometric", "schedule.num_levels=5",
    "sampler=annealed_langevin", "sampler.steps_per_level=300", "num_samples=1500",
    "trajectories=3", "metric=[]", "plot=[]", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module", params=["train", "sample"])
def command(request, forked, tmp_path_factory):
    """Its name, arguments, key to go on by, digest, undisturbed digest and seconds."""
    name = request.param
    arguments, resume, digest = {
        "train": (TRAIN, "trainer.resume", digest_of_run),
        "sample": (SAMPLE, "resume", digest_of_samples),
    }[name]
    folder = tmp_path_factory.mktemp(name)
    for _ in range(2):  # the first is slower
        shutil.rmtree(folder / "run", ignore_errors=True)
        start = time.monotonic()
        result = forked.call(name, [*arguments, "hydra.run.dir=run"], folder)
        seconds = time.monotonic() - start
        assert result.returncode == 0, result.stderr
    return name, arguments, resume, digest, digest(folder / "run"), seconds


def has_saved(run):
    """Whether there is something to go on from; it is whole then."""
    found = newest_checkpoint(run) or run / "sampling.safetensors"
    if not found.exists():
        return False
    load_checkpoint(found)
    return True


def test_a_signal_saves_and_stops(command, forked, tmp_path, trials, record_property):
    name, arguments, resume, digest, undisturbed, seconds = command
    number = trials("C1", 100, 2)
    chance, met, slowest = random.Random(name), collections.Counter(), 0.0
    for trial in range(number):
        signal_number = SIGNALS[trial % len(SIGNALS)]
        first, second = tmp_path / f"first{trial}", tmp_path / f"second{trial}"
        moment = chance.uniform(0, seconds if number > 2 else 0.6 * seconds)
        result = forked.call(
            name, [*arguments, f"hydra.run.dir={first}"], tmp_path,
            signals=[(moment, signal_number)],
        )  # fmt: skip
        slowest = max(slowest, result.seconds - moment)
        state = read(first / "status.json")["state"] if (first / "status.json").exists() else None
        met[f"{state}, saved" if has_saved(first) else str(state)] += 1
        code = 85 if signal_number == signal.SIGUSR1 else 128 + signal_number
        if state == "done":
            assert result.returncode in (0, code)
            again = []
        elif not first.exists() or state is None:  # before a run: nothing is there to be saved
            assert result.returncode in (code, -signal_number), result.stderr
            again = []
        else:
            assert result.returncode == code, (moment, result.stderr)
            assert state in ("interrupted", "running"), moment
            assert "Traceback" not in result.stderr
            again = [f"{resume}={first}"] if has_saved(first) else []
            if name == "train":  # all that was made is there
                assert has_saved(first)
                step = int(newest_checkpoint(first).stem.removeprefix("step_"))
                assert step == read(first / "status.json")["step"]
        result = forked.call(name, [*arguments, f"hydra.run.dir={second}", *again], tmp_path)
        assert result.returncode == 0, result.stderr
        assert digest(second) == undisturbed
        shutil.rmtree(first, ignore_errors=True)
        shutil.rmtree(second)
    record_property("saw", f"{name}: {dict(met)}, stopped within {slowest:.1f} s")


def test_a_second_signal_ends_at_once_and_what_was_saved_is_whole(forked, tmp_path, trials):
    chance = random.Random(2)
    arguments = [*TRAIN, "trainer.checkpoint_every=5"]
    for trial in range(trials("C1, twice", 25, 1)):
        run = tmp_path / str(trial)
        moment, gap = chance.uniform(0.7, 1.5), chance.uniform(0, 0.03)
        signals = [(moment, signal.SIGINT), (moment + gap, signal.SIGINT)]
        result = forked.call(
            "train", [*arguments, f"hydra.run.dir={run}"], tmp_path, signals=signals
        )
        assert result.returncode in (0, 130, -signal.SIGINT), result.stderr
        if newest_checkpoint(run) is not None:
            load_checkpoint(newest_checkpoint(run))


def end_by(number):
    """A signal comes while the run says how it ended."""
    original = RunFolder._end

    def end(self, error):
        RunFolder._end = original
        os.kill(os.getpid(), number)
        original(self, error)

    RunFolder._end = end


def test_a_signal_at_the_very_end_is_told(forked, tmp_path):
    before = [__name__, "end_by", int(signal.SIGTERM)]
    result = forked.call("train", [*TRAIN, "hydra.run.dir=a/../run"], tmp_path, before=before)
    assert result.returncode == 143, result.stderr
    assert read(tmp_path / "run" / "status.json")["state"] == "interrupted"
