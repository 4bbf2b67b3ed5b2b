"""A signal that was ignored when a command started stays ignored, as POSIX has it."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ncsn_cli.runs import workers
from ncsn_cli.runs.signals import STOPPING, collect_stop_signals, stop_signals
from tests.helpers.commands import BIN, only_run, read
from tests.helpers.slow import slow_but

TRAIN = [
    "trainer.steps=300", "trainer.batch_size=16", "trainer.eval_every=100",
    "trainer.compile=false", "dataset.num_samples=100", "schedule.num_levels=2",
    "model.hidden=[8]", "plot=[]",
]  # fmt: skip
SAMPLE = [
    "score=exact", "dataset=two_modes_1d", "schedule=geometric", "sampler=annealed_langevin",
    "num_samples=500", "metric=[moments]", "plot=[]",
]  # fmt: skip


def ignore(numbers):
    """Ignore signals, and get them all the time; for the ``before`` of ``helpers.forked``."""

    def send():
        while True:
            for number in numbers:
                os.kill(os.getpid(), number)
            time.sleep(0.01)

    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=send, daemon=True).start()


def ignore_others(number):
    """Get all signals once there is a checkpoint, and heed this one alone."""
    ignore([int(other) for other in STOPPING if other != number])

    def send():
        while not list(Path().glob("outputs/*/*/*/checkpoints/*.safetensors")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.fixture
def ignored(request):
    """A signal that this process ignores meanwhile."""
    before = signal.signal(request.param, signal.SIG_IGN)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("ignored", STOPPING, indirect=True)
def test_an_ignored_signal_is_no_request(ignored):
    other = signal.SIGUSR1 if ignored == signal.SIGUSR2 else signal.SIGUSR2
    assert ignored not in stop_signals()
    with collect_stop_signals() as requests:
        os.kill(os.getpid(), ignored)
        assert requests == []
        os.kill(os.getpid(), other)
        assert requests == [other]
    assert signal.getsignal(ignored) is signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["run", "sweep"])
@pytest.mark.parametrize(("command", "arguments"), [("train", TRAIN), ("sample", SAMPLE)])
def test_a_run_does_not_hear_what_is_ignored(command, arguments, launcher, forked, tmp_path):
    before = [__name__, "ignore", list(map(int, STOPPING))]
    if launcher == "sweep":
        arguments = ["-m", "seed=0,1", *arguments]
    result = forked.call(command, arguments, tmp_path, before)
    assert result.returncode == 0, result.stderr
    states = [read(path)["state"] for path in tmp_path.glob("outputs/**/status.json")]
    assert states == ["done"] * (2 if launcher == "sweep" else 1)


@pytest.mark.parametrize("number", slow_but(STOPPING, 0))
def test_what_is_not_ignored_is_heard_beside_it(number, forked, tmp_path):
    before = [__name__, "ignore_others", int(number)]
    long = [*TRAIN, "trainer.steps=1000000", "trainer.checkpoint_every=20"]
    result = forked.call("train", long, tmp_path, before)
    is_users = number in (signal.SIGUSR1, signal.SIGUSR2)
    assert result.returncode == (85 if is_users else 128 + number), result.stderr
    assert read(only_run(tmp_path, "train") / "status.json")["state"] == "interrupted"


def test_a_comparison_does_not_hear_what_is_ignored(forked, tmp_path):
    assert forked.call("train", [*TRAIN, "trainer.steps=2"], tmp_path).returncode == 0
    before = [__name__, "ignore", list(map(int, STOPPING))]
    result = forked.call("compare", ["outputs", "--output", "o"], tmp_path, before)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "o" / "compare.csv").is_file()


@pytest.mark.slow
def test_the_jobs_of_joblib_under_nohup_outlive_the_terminal(tmp_path):
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            ["nohup", BIN / "ncsn-train", "-m", "seed=0,1", *TRAIN, "hydra/launcher=joblib"],
            cwd=tmp_path, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    while len(list(tmp_path.glob("outputs/train/multiruns/*/*/run.json"))) < 2:
        assert process.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal that is closed does
    assert process.wait(timeout=300) == 0, (tmp_path / "out").read_text()
    states = [read(path)["state"] for path in tmp_path.glob("outputs/**/status.json")]
    assert states == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [signal.SIGUSR2], indirect=True)
def test_jobs_beside_each_other_save_by_a_signal_that_they_heed(ignored, tmp_path):
    process = subprocess.Popen(
        [BIN / "ncsn-train", "-m", "seed=0,1", *TRAIN, "trainer.steps=1000000",
         "trainer.checkpoint_every=100000", "hydra/launcher=joblib"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while len(list(tmp_path.glob("outputs/train/multiruns/*/*/run.json"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    states = [read(path) for path in tmp_path.glob("outputs/**/status.json")]
    assert [state["state"] for state in states] == ["interrupted"] * 2
    assert len(list(tmp_path.glob("outputs/**/*.safetensors"))) == 2


@pytest.mark.parametrize("ignored", [signal.SIGHUP], indirect=True)
def test_workers_go_on_where_a_signal_is_ignored(ignored):
    def task():
        os.kill(os.getpid(), ignored)
        yield os.getpid()

    told = [news for some in workers.run_in_processes([task(), task()], 2) for news in some]
    assert len(told) == 2
