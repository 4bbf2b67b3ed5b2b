"""Files first, then words: a run does not fail because nobody can read what it says."""

import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.commands import BIN, only_run, read
from tests.helpers.slow import slow_but
from tests.helpers.sweeps import QUICK

SHORT = [*QUICK, "trainer.steps=4"]
SAMPLE = [
    "score=exact", "dataset=two_modes_1d", "sampler=langevin", "sampler.steps=2", "num_samples=20",
    "metric=[moments]", "plot=[]",
]  # fmt: skip
STREAMS = ["closed", "error closed", "gone", "full", "ascii"]


def take(streams):
    """Leave this process the standard streams that a shell may, for ``before`` of the server."""
    if streams == "ascii":
        sys.stdout.reconfigure(encoding="ascii", errors="strict")
        return
    numbers = [2] if streams == "error closed" else [1, 2]
    if streams.endswith("closed"):
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdout", "stderr")[number - 1], None)  # as Python finds it
        return
    reader, writer = os.pipe()
    os.close(reader)
    target = writer if streams == "gone" else os.open("/dev/full", os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(target, number)
        setattr(sys, name, os.fdopen(os.dup(number), "w"))


def take_and_interrupt(streams):
    """As ``take``, and Ctrl-C once something is saved."""
    take(streams)

    def send():
        while not list(Path().glob("**/*.safetensors")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("streams", slow_but(STREAMS, 0))
@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    slow_but(
        [
            ("train", SHORT, 0),
            ("train", [*SHORT, "optimizer=sgd", "optimizer.lr=1e30"], 3),
            ("train", ["-m", "seed=0,1", *SHORT], 0),
            ("train", ["nosuch=1"], 2),
            ("sample", SAMPLE, 0),
            ("compare", ["nowhere"], 66),
        ],
        0,
        3,
        5,
    ),
)
def test_a_command_ends_as_it_would_have(streams, command, arguments, code, forked, tmp_path):
    result = forked.call(command, arguments, tmp_path, [__name__, "take", streams])
    assert result.returncode == code, result.stdout + result.stderr
    states = {read(path)["state"] for path in tmp_path.glob("outputs/**/status.json")}
    assert states <= {"diverged" if code == 3 else "done"}
    if command != "compare" and code in (0, 3):
        assert states
        for log in tmp_path.glob("outputs/*/*/*/*.log"):
            assert "schedule: " in log.read_text() or command == "sample"


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_ctrl_c_saves_whoever_reads(streams, sweep, forked, tmp_path):
    long = [*sweep, *QUICK, "trainer.steps=1000000", "trainer.compile=false"]
    before = [__name__, "take_and_interrupt", streams]
    result = forked.call("train", long, tmp_path, before)
    assert result.returncode == 130, result.stdout + result.stderr
    (status,) = tmp_path.glob("outputs/**/status.json")
    assert read(status)["state"] == "interrupted"


@pytest.mark.slow
def test_a_comparison_is_written_whoever_reads(forked, tmp_path):
    assert forked.call("train", ["-m", "seed=0,1", *SHORT], tmp_path).returncode == 0
    for streams in STREAMS:
        take_it = [__name__, "take", streams]
        arguments = ["outputs", "--output", streams]
        result = forked.call("compare", arguments, tmp_path, take_it)
        assert result.returncode == 0, result.stderr
        files = {path.name for path in (tmp_path / streams).iterdir()}
        assert {"compare.csv", "report.html"} <= files
        if streams == "ascii":
            assert r" \xb1 " in result.stdout


def test_a_closed_stream_s_number_goes_to_no_file(tmp_path):
    """What a library writes to standard error must not end in a checkpoint."""
    script = (
        "import os\nfrom ncsn_cli.commands.streams import ignore_failed_writes\n"
        "ignore_failed_writes()\n"
        "with open('file', 'wb') as file:\n"
        "    for number in (0, 1, 2):\n        os.write(number, b'words')\n"
        "assert not open('file', 'rb').read()\n"
    )
    closed = f'exec "{sys.executable}" -c "$0" 0<&- >&- 2>&-'
    result = subprocess.run(["sh", "-c", closed, script], cwd=tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_much_text_at_once_is_dropped_as_little_is(tmp_path):
    script = (
        "import sys\nfrom ncsn_cli.commands.streams import ignore_failed_writes\n"
        "ignore_failed_writes()\n"
        "for stream in (sys.stdout, sys.stderr):\n"
        "    print('x' * 10**6, file=stream)\n    print('y', file=stream, flush=True)\n"
    )
    for end in ("2>&1 | true", "> /dev/full 2>&1"):
        command = f'set -o pipefail; "{sys.executable}" -c "$0" {end}'
        assert subprocess.run(["bash", "-c", command, script]).returncode == 0


def test_the_console_script_outlives_its_reader(tmp_path):
    command = f'"{BIN}/ncsn-train" {" ".join(f"{word!r}" for word in SHORT)}'
    piped = f"({command} optimizer=sgd optimizer.lr=1e30; echo $? > code) 2>&1 | head -1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", piped], cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "code").read_text() == "3\n"


def without_home(_):
    """Neither HOME nor an entry for this user, as in a container with a random uid."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    pwd.getpwuid = unknown


@pytest.mark.slow
def test_no_command_needs_a_home_folder(forked, tmp_path):
    before = [__name__, "without_home", None]
    arguments = [*SHORT, "plot=[loss]"]
    result = forked.call("train", arguments, tmp_path, before)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path, "train")
    for command, words, code in (
        ("train", ["-m", "seed=0,1", *SHORT], 0),
        ("train", [*SHORT, 'trainer.resume="~/x"'], 66),
        ("sample", [f"checkpoint={run}", "num_samples=20", "metric=[]"], 0),
        ("sample", ['checkpoint="~/x"'], 66),
        ("compare", ["outputs"], 0),
    ):
        result = forked.call(command, words, tmp_path, before)
        assert result.returncode == code, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
