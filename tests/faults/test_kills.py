"""SIGKILL at random times in training: what is there loads, and resumes to the same end."""

import collections
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ncsn_cli.runs.checkpoints import load_checkpoint
from tests.helpers.commands import digest_of_run, newest_checkpoint, read

pytestmark = pytest.mark.slow  # minutes

COMMAND = Path(sys.executable).parent / "ncsn-train"
JOB = [
    "trainer.steps=200", "trainer.batch_size=16", "trainer.eval_every=50", "trainer.log_every=5",
    "trainer.checkpoint_every=5", "trainer.ema_decay=0.99", "schedule.num_levels=2",
    "model=mlp", "model.hidden=[8]", "plot=[]", "device=cpu",
]  # fmt: skip
DATA = ["dataset.num_samples=50", "dataset.num_samples=null"]
KILLS_IN_A_ROW = 4


def phase(run):
    """What a run was doing when it was killed, as far as its folder tells."""
    if list(run.rglob("*.tmp")):
        return "within a write"
    if not (run / "status.json").is_file():
        return "before the run"
    if read(run / "status.json")["state"] == "done":
        return "after the run"
    newest = newest_checkpoint(run)
    if newest is None:
        return "before its first checkpoint"
    if newest.stem != "step_000000200":
        return "steps"
    return "report" if (run / "metrics.json").is_file() else "evaluation"


def console(arguments, folder, seconds=None):
    """The installed command, as leader of a process group that is killed after ``seconds``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    process = subprocess.Popen(
        [COMMAND, *arguments], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)
    return time.monotonic() - start, process.returncode != 0


class Chain:
    """Runs that each go on from what the killed one before has left."""

    def __init__(self, folder, job):
        self.folder, self.job, self.runs, self.source = folder, job, 0, None

    def begin(self):
        """The next run's folder, and its arguments."""
        self.runs += 1
        run = self.folder / f"run{self.runs}"
        resume = [] if self.source is None else [f"trainer.resume={self.source}"]
        return run, [*self.job, f"hydra.run.dir={run}", *resume]

    def check(self, run):
        newest = newest_checkpoint(run)
        if newest is not None:
            load_checkpoint(newest)
            self.source = run


def undisturbed(forked, folder, job):
    """The digest of a run that nothing disturbs, and its seconds."""
    forked.call("train", ["--cfg", "job"], folder)  # the server may still be starting
    start = time.monotonic()
    result = forked.call("train", [*job, f"hydra.run.dir={folder / 'whole'}"], folder)
    assert result.returncode == 0, result.stderr
    return digest_of_run(folder / "whole"), time.monotonic() - start


@pytest.mark.parametrize("data", DATA)
def test_killed_training_resumes_to_the_same_bits(data, tmp_path, forked, trials, record_property):
    number = trials("A1", 136, 4 if data == DATA[0] else 0)
    if not number:
        pytest.skip("endless data: with --all-trials")
    job, chance, hit = [*JOB, data], random.Random(data), collections.Counter()
    expected, seconds = undisturbed(forked, tmp_path, job)
    kills, chains = 0, itertools.count()  # a chain of commands that all end has no kill
    while kills < number:
        chain = Chain(tmp_path / f"chain{next(chains)}", job)
        for _ in range(KILLS_IN_A_ROW):
            run, arguments = chain.begin()
            when = chance.uniform(0, seconds)
            result = forked.call("train", arguments, tmp_path, signals=[(when, signal.SIGKILL)])
            if result.returncode == 0:  # it was faster: no kill
                assert digest_of_run(run) == expected
                break
            assert result.returncode == -signal.SIGKILL
            kills += 1
            hit[phase(run)] += 1
            chain.check(run)
        run, arguments = chain.begin()
        result = forked.call("train", arguments, tmp_path)
        assert result.returncode == 0, (chain.source, result.stderr)
        assert digest_of_run(run) == expected, chain.source
    record_property("saw", ", ".join(f"{count} {name}" for name, count in hit.most_common()))


def test_the_killed_command_resumes_to_the_same_bits(tmp_path, forked, trials, record_property):
    number = trials("A1", 30, 0)
    if not number:
        pytest.skip("starts the installed command each time: with --all-trials")
    job, chance, hit = [*JOB, DATA[0]], random.Random(0), collections.Counter()
    expected, _ = undisturbed(forked, tmp_path, job)
    seconds, _ = console([*job, f"hydra.run.dir={tmp_path / 'timed'}"], tmp_path)
    kills, chains = 0, itertools.count()  # a chain of commands that all end has no kill
    while kills < number:
        chain = Chain(tmp_path / f"chain{next(chains)}", job)
        run, arguments = chain.begin()
        _, was_killed = console(arguments, tmp_path, chance.uniform(0, seconds))
        if not was_killed:
            continue
        kills += 1
        hit[phase(run)] += 1
        chain.check(run)
        run, arguments = chain.begin()
        assert forked.call("train", arguments, tmp_path).returncode == 0
        assert digest_of_run(run) == expected
    record_property("saw", ", ".join(f"{count} {name}" for name, count in hit.most_common()))
