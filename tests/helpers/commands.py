"""The commands, run as a user runs them, and what their runs have come to."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.commands.config import read_config
from ncsn_cli.runs.checkpoints import load_checkpoint

CONFIGS = config_dir()


def composed(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return read_config(compose(name, list(overrides)))


BIN = Path(sys.executable).parent


QUICK = [
    "trainer.steps=30", "trainer.batch_size=64", "trainer.eval_every=10", "trainer.log_every=5",
    "trainer.lr_decay=none", "schedule.num_levels=4", "dataset.num_samples=100", "plot=[]",
]  # fmt: skip


def run(command, *arguments, folder, **kwargs):
    # The warnings ignored are torch's own, at the first torch.func.jvp and torch.compile.
    warnings = "default,ignore:`torch.jit.script:DeprecationWarning"
    environment = {**os.environ, "PYTHONWARNINGS": warnings, "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [BIN / command, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, env=environment, **kwargs,
    )  # fmt: skip


def written_by(result_of, command, *arguments, folder):
    """The folder that ``result_of(command, *arguments, folder=folder)`` has written."""
    before = set(folder.glob("outputs/*/*/*"))
    result = result_of(command, *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    (written,) = set(folder.glob("outputs/*/*/*")) - before
    return written


def final_tensors(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return load_checkpoint(newest)[0]


def assert_same_run(first, second):
    tensors, others = final_tensors(first), final_tensors(second)
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name
    tables = [
        csv.DictReader((f / "history.csv").read_text().splitlines()) for f in (first, second)
    ]
    rows, others = ([{**row, "seconds": None} for row in table] for table in tables)
    assert rows == others


QUICK_SAMPLE = ["num_samples=200", "metric=[]", "plot=[]", "trajectories=0"]


def assert_refused(result, command, code, named, folder):
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 3, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    if "-m" not in result.args:
        assert not (folder / "outputs").exists()
    for out in folder.glob("outputs/*/*/*"):
        assert {p.name for p in out.iterdir()} <= {".hydra", f"{command}.log", "status.json"}
        assert read(out / "status.json")["state"] == "failed"


class Server:
    """The other side: ``call`` runs a command in a folder, as ``subprocess.run`` would."""

    def __init__(self):
        environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forked"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
            # As in a scheduler's job, a sweep then runs its jobs in the command's own process.
            env={**environment, "OMP_NUM_THREADS": "1", "PBS_JOBID": "0"},
        )  # fmt: skip

    def call(self, command, arguments, folder, before=None, signals=()):
        """``before`` is [module, function, argument], called in the child before the command.

        ``signals``: pairs (seconds after the start, number) to send to the child.
        """
        (result,) = self.call_at_once(command, [arguments], folder, before, signals)
        return result

    def call_at_once(self, command, several, folder, before=None, signals=()):
        """Run ``command`` once with each of ``several`` arguments, all at the same time."""
        requests = [
            {
                "command": command, "arguments": list(arguments), "folder": str(folder),
                "before": before, "signals": list(signals),
            }
            for arguments in several
        ]  # fmt: skip
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        answers, results = json.loads(self._process.stdout.readline()), []
        for arguments, answer in zip(several, answers, strict=True):
            seconds = answer.pop("seconds")
            results.append(subprocess.CompletedProcess(arguments, **answer))
            results[-1].seconds = seconds
        return results

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def only_run(folder, command):
    """The folder of the only run that ``command`` has made below ``folder``."""
    (out,) = folder.glob(f"outputs/{command}/runs/*")
    return out


def read(path):
    """A file of JSON."""
    return json.loads(path.read_text())


def newest_checkpoint(run):
    """The file of a run's last checkpoint, valid or not; None if there is none."""
    return max(run.glob("checkpoints/step_*.safetensors"), default=None)


def digest_of_run(run):
    """SHA-256 over the last checkpoint, the history and the metrics, but for wall-clock times."""
    tensors, record = load_checkpoint(newest_checkpoint(run))
    record = {name: value for name, value in record.items() if name != "config"}
    with (run / "history.csv").open(newline="") as file:
        history = [{**row, "seconds": None} for row in csv.DictReader(file)]
    metrics = {**read(run / "metrics.json"), "seconds": None}
    sha256 = hashlib.sha256(json.dumps([record, history, metrics], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def digest_of_samples(run):
    """The arrays and numbers of a run of ncsn-sample, but for wall-clock times."""
    with np.load(run / "samples.npz") as arrays:
        bits = {name: arrays[name].tobytes() for name in arrays}
    return bits, {**read(run / "metrics.json"), "seconds": None}
