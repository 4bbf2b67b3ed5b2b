"""Disks that are full or refuse, and numbers that are not finite."""

import csv
import ctypes
import json
import random
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ncsn_cli.runs.checkpoints import load_checkpoint
from tests.helpers.commands import newest_checkpoint, read

pytestmark = pytest.mark.slow  # minutes

JOB = [
    "trainer.steps=40", "trainer.batch_size=16", "trainer.eval_every=20", "trainer.log_every=5",
    "trainer.checkpoint_every=10", "schedule.num_levels=4", "dataset.num_samples=50", "model=mlp",
    "model.hidden=[8]", "model.activation=softplus", "plot=[loss]", "device=cpu",
]  # fmt: skip
READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: yaml.safe_load(path.read_text()) or path.stem == "overrides",
    ".csv": lambda path: [float(r["loss"]) for r in csv.DictReader(path.read_text().split())],
    ".png": lambda path: Image.open(path).load(),
    ".npz": lambda path: dict(np.load(path)),
    ".safetensors": load_checkpoint,
    ".html": lambda path: path.read_text().rstrip().endswith("</html>") or 1 / 0,
    ".log": lambda path: True,
}


def assert_all_whole(run):
    """Every file below a run's folder can be read to its end, and none is left unfinished."""
    for path in run.rglob("*") if run.is_dir() else []:
        if path.is_file():
            assert READERS[path.suffix](path) is not False, path


def assert_refused(result, codes):
    assert result.returncode in codes, result.stderr
    lines = [line for line in result.stderr.splitlines() if "with overrides" not in line]
    assert len(lines) <= 2, result.stderr
    assert "Traceback" not in result.stderr


def is_done_or_refused(result, run):
    """Whether the run is done; what it wrote is whole, and nothing else is left beside it."""
    assert_all_whole(run)
    assert not list(run.parent.rglob("*.tmp"))
    if result.returncode != 0:
        assert_refused(result, (73, 74))
    return result.returncode == 0


@contextmanager
def disk(folder, *options):
    """A file system of its own at ``folder``."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is refused here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def needed(forked, tmp_path_factory):
    """Bytes of an undisturbed run, and of its largest file."""
    folder = tmp_path_factory.mktemp("needed")
    assert forked.call("train", [*JOB, "hydra.run.dir=run"], folder).returncode == 0
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), max(sizes)


def test_a_full_disk_leaves_whole_files(forked, tmp_path, needed, trials, record_property):
    number, done = trials("C4", 64, 2), 0
    for i, size in enumerate(np.linspace(8_192, 1.3 * needed[0], number).astype(int)):
        with disk(tmp_path / f"disk{i}", f"size={size}") as small:
            result = forked.call("train", [*JOB, f"hydra.run.dir={small}/run"], tmp_path)
            done += is_done_or_refused(result, small / "run")
    record_property("saw", f"{number - done} disks too small")


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_files_leaves_whole_files(forked, tmp_path, needed, trials, record_property):
    number, done = trials("C5", 32, 2), 0
    for i, size in enumerate(np.geomspace(4_096, needed[1], number).astype(int).tolist()):
        before = [__name__, "limit_file_size", size]
        result = forked.call("train", [*JOB, f"hydra.run.dir=run{i}"], tmp_path, before=before)
        done += is_done_or_refused(result, tmp_path / f"run{i}")
    record_property("saw", f"{number - done} limits too low")


def become_ordinary(argument):
    """Give up root's capabilities, with which permissions of files mean nothing."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


def _unwritable(kind, folder):
    """A run folder of that kind, and the hook of the command."""
    if kind == "a file":
        (folder / "file").touch()
        return folder / "file", None
    if kind == "below a file":
        (folder / "file").touch()
        return folder / "file" / "run", None
    if kind == "a loop of links":
        (folder / "loop").symlink_to(folder / "loop")
        return folder / "loop" / "run", None
    if kind == "a broken link":
        (folder / "broken").symlink_to(folder / "nowhere" / "at all")
        return folder / "broken", None
    if kind == "a name too long":
        return folder / ("x" * 300), None
    if kind == "not to be written":
        folder.chmod(0o555)
        return folder / "run", [__name__, "become_ordinary", None]
    return folder / "run", None


@pytest.mark.parametrize(
    "kind",
    ["a file", "below a file", "a loop of links", "a broken link", "a name too long",
     "not to be written", "read-only", "immutable"],
)  # fmt: skip
def test_a_folder_that_refuses_is_told_before_any_work(kind, forked, tmp_path, trials):
    trials("C6", 1, 1)
    folder = tmp_path / "outer"
    if kind == "read-only":
        with disk(folder, "ro") as outer:
            result = forked.call("train", [*JOB, f"hydra.run.dir={outer}/run"], tmp_path)
    else:
        folder.mkdir()
        run, before = _unwritable(kind, folder)
        is_set = kind == "immutable" and not subprocess.call(["chattr", "+i", str(folder)])
        if kind == "immutable" and not is_set:
            pytest.skip("chattr is refused here")
        try:
            result = forked.call("train", [*JOB, f"hydra.run.dir={run}"], tmp_path, before=before)
        finally:
            if is_set:
                subprocess.run(["chattr", "-i", str(folder)], check=True)
    assert_refused(result, (73,))
    assert "step" not in result.stdout


SAMPLE = [
    "score=exact", "dataset=two_modes_2d", "schedule=geometric", "schedule.num_levels=4",
    "sampler=annealed_langevin", "sampler.steps_per_level=10", "num_samples=50", "metric=[]",
    "plot=[]", "device=cpu",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["loss", "gradient", "weight", "data", "score"])
def test_what_is_not_finite_stops_the_run_at_once(kind, forked, tmp_path, trials):
    chance = random.Random(kind)
    for trial in range(trials("C7", 20, 1)):
        step, value = chance.randint(1, 40), chance.choice(["nan", "inf", "-inf"])
        # The exact score is asked once before chains run.
        at = step + 2 if kind == "score" else step
        run = tmp_path / f"run{trial}"
        command, arguments = ("sample", SAMPLE) if kind == "score" else ("train", JOB)
        arguments = [*arguments, "plot=[]", f"hydra.run.dir={run}"]
        before = ["tests.faults.non_finite", "inject", [kind, at, value]]
        result = forked.call(command, arguments, tmp_path, before=before)
        assert result.returncode == 3, (step, value, result.stderr)
        assert f"at step {step}" in result.stderr, result.stderr
        named = {
            "loss": "the loss is", "gradient": "the gradient of layers.0.weight is not",
            "weight": "network.layers.2.bias is not", "data": "a point of the data is not",
            "score": f"level {(step - 1) // 10 + 1} (sigma =",
        }  # fmt: skip
        assert named[kind] in result.stderr, result.stderr
        assert read(run / "status.json")["state"] == "diverged"
        assert_all_whole(run)
        assert not (run / "metrics.json").exists()
        newest = newest_checkpoint(run)
        if kind != "score":
            assert (newest is None) == (step <= 10)
        if newest is not None:
            tensors, record = load_checkpoint(newest)
            assert record["step"] == (step - 1) // 10 * 10
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
