"""What a run has come to: its newest checkpoint, and a digest of all that its seed decides."""

import csv
import hashlib
import json

from ncsn_cli.runs.checkpoints import load_checkpoint

from ..forked import read


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
