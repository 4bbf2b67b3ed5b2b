"""Two processes that want the same folder."""

import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ncsn_cli.core.errors import BusyFolderError
from ncsn_cli.runs.folder import hold, release
from tests.helpers.commands import BIN, Server, digest_of_run, read

pytestmark = pytest.mark.slow  # minutes

JOB = [
    "trainer.steps=500", "trainer.batch_size=16", "trainer.eval_every=250",
    "trainer.log_every=50", "trainer.checkpoint_every=50", "schedule.num_levels=2",
    "dataset.num_samples=50", "model=mlp", "model.hidden=[8]", "plot=[]", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def other():
    server = Server()
    server.call("train", ["--help"], Path.cwd())  # it has imported torch then
    yield server
    server.close()


def test_one_of_two_gets_the_folder(forked, other, tmp_path, trials, record_property):
    number, slowest = trials("C8", 200, 1), 0.0
    assert forked.call("train", [*JOB, "hydra.run.dir=alone"], tmp_path).returncode == 0
    alone = digest_of_run(tmp_path / "alone")
    chance = random.Random(8)
    with ThreadPoolExecutor(2) as pool:
        for trial in range(number):
            arguments = [*JOB, f"hydra.run.dir=run{trial}"]

            def call(server, delay, arguments=arguments):
                time.sleep(delay)
                return server.call("train", arguments, tmp_path)

            delays = [0.0, chance.choice([0.0, chance.uniform(0, 0.05)])]
            ends = list(pool.map(call, [forked, other], delays))
            winner, loser = sorted(ends, key=lambda end: end.returncode)
            assert (winner.returncode, loser.returncode) == (0, 75), loser.stderr
            assert re.search(r"process \d+ works in this folder", loser.stderr), loser.stderr
            assert len(loser.stderr.splitlines()) == 1
            slowest = max(slowest, loser.seconds)
            assert digest_of_run(tmp_path / f"run{trial}") == alone
            assert not (tmp_path / f"run{trial}" / ".lock").exists()
    record_property("saw", f"the second is told after {slowest:.1f} s at most")


def test_two_console_commands_at_once(tmp_path, trials):
    number = trials("C8", 10, 0)
    if number == 0:
        pytest.skip("with --all-trials")
    for trial in range(number):
        arguments = [BIN / "ncsn-train", *JOB, "trainer.steps=1500", f"hydra.run.dir=run{trial}"]
        commands = [
            subprocess.Popen(
                arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for _ in range(2)
        ]  # fmt: skip
        errors = [command.communicate(timeout=300)[1] for command in commands]
        assert sorted(command.returncode for command in commands) == [0, 75], errors
        assert read(tmp_path / f"run{trial}" / "status.json")["state"] == "done"


def test_a_killed_process_holds_nothing(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        hold(tmp_path)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    with pytest.raises(BusyFolderError, match=f"process {child} works"):
        hold(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    hold(tmp_path)
    release(tmp_path)
    assert list(tmp_path.iterdir()) == []
