"""Best achievable quality: what the default network reaches in a given time, beside the truth.

    python benchmarks/quality.py presets [--seconds 60] [--only NAME ...]
    python benchmarks/quality.py small_mode [--seeds 5]

``presets`` trains the default network and loss on endless data of every dataset preset, with
sigma_min half the smallest standard deviation and sigma_max by Technique 1. ``small_mode`` trains
them on 1000 points of ``two_modes_2d`` for 30 000 steps, and samples 20 000 points. Both run the
real commands in a temporary folder and print a table; nothing is asserted.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.settings import random_stream
from ncsn_cli.schedules import technique_1

BIN = Path(sys.executable).parent
QUIET = ["plot=[]", "metric=[]", "trainer.eval_every=1000000", "trainer.checkpoint_every=1000000"]


def run(command: str, folder: Path, *overrides: str) -> Path:
    """Run a command into ``folder``."""
    words = [str(BIN / command), *overrides, f"hydra.run.dir={folder}"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)}\n{result.stderr}")
    return folder


def read(path: Path) -> dict[str, float]:
    """A file of JSON."""
    values: dict[str, float] = json.loads(path.read_text())
    return values


def dataset(name: str) -> Dataset:
    """The preset ``name`` with endless data."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [f"dataset={name}", "dataset.num_samples=null"])
    made: Dataset = instantiate(OmegaConf.to_container(config.dataset), _convert_="all")
    return made


def dataset_presets() -> list[str]:
    """The dataset options, without those that set values of another one for an experiment."""
    paths = sorted(config_dir().glob("dataset/*.yaml"))
    return [path.stem for path in paths if not path.read_text().startswith("defaults:")]


def presets(seconds: float, only: list[str], extra: list[str]) -> None:
    """The table of all dataset presets."""
    print("| dataset | sigmas | steps | s | score error | excess loss | floor |")
    print("|---|---|---|---|---|---|---|")
    for name in only or dataset_presets():
        truth = dataset(name)
        sigma_min = truth.smallest_std / 2
        sigma_max = technique_1(truth.sample(10_000, generator=random_stream(0, "benchmark")))
        overrides = [
            f"dataset={name}", "dataset.num_samples=null", f"schedule.sigma_min={sigma_min:.4g}",
            f"schedule.sigma_max={sigma_max:.4g}", "trainer.threads=2", *QUIET, *extra,
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            # The learning rate falls over the steps, so their number must be known beforehand.
            probe = run("ncsn-train", Path(folder, "probe"), *overrides, "trainer.steps=250")
            with (probe / "history.csv").open() as file:
                rows = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file)}
            steps = int(seconds / ((rows[250] - rows[50]) / 200))
            trained = run("ncsn-train", Path(folder, "run"), *overrides, f"trainer.steps={steps}")
            metrics = read(trained / "metrics.json")
        print(
            f"| `{name}` | {sigma_max:.3g} to {sigma_min:.3g} | {steps} | {metrics['seconds']:.0f}"
            f" | {metrics['score_error']:.4f} | {metrics['excess_loss']:.5f}"
            f" | {metrics['loss_floor']:.4f} |",
            flush=True,
        )


def small_mode(seeds: int, extra: list[str]) -> None:
    """The table of ``two_modes_2d``'s small mode: share in the training set and in the samples."""
    print("| seed | score error | training set | samples | difference | s |")
    print("|---|---|---|---|---|---|")
    for seed in range(seeds):
        data = [f"dataset.seed={seed}", f"seed={seed}", "dataset=two_modes_2d"]
        with tempfile.TemporaryDirectory() as folder:
            trained = run(
                "ncsn-train", Path(folder, "run"), *data, "schedule.sigma_max=20",
                "trainer.steps=30000", *QUIET, *extra,
            )  # fmt: skip
            samples = run(
                "ncsn-sample", Path(folder, "samples"), f"checkpoint={trained}", "plot=[]",
                "metric=[]", "num_samples=20000", "sampler=probability_flow",
                "sampler.solver=heun", "++schedule.num_levels=60",
            )  # fmt: skip
            points = np.load(samples / "samples.npz")["samples"]
            metrics = read(trained / "metrics.json")
        truth = dataset("two_modes_2d")
        truth.num_samples, truth.seed = 1000, seed
        training_set = truth.training_set()
        assert training_set is not None
        own = float((training_set.sum(-1) > 0).double().mean())
        share = float((points.sum(-1) > 0).mean())
        print(
            f"| {seed} | {metrics['score_error']:.4f} | {own:.4f} | {share:.4f} |"
            f" {share - own:+.4f} | {metrics['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("presets")
    table.add_argument("--seconds", type=float, default=60.0)
    table.add_argument("--only", nargs="*", default=[])
    shares = commands.add_parser("small_mode")
    shares.add_argument("--seeds", type=int, default=5)
    for command in (table, shares):
        command.add_argument("overrides", nargs="*", help="more overrides of ncsn-train")
    chosen = parser.parse_args()
    if chosen.command == "presets":
        presets(chosen.seconds, chosen.only, chosen.overrides)
    else:
        small_mode(chosen.seeds, chosen.overrides)
