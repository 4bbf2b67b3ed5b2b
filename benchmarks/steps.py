"""Times of a step, plain and compiled: of training, on one thread and on two, and of Langevin.

From these come the rules of ``training.trainer.resolve_auto`` for ``trainer.compile``, and of
``sampling.compiled_langevin.gain_of_compiling`` for ``compile``:

    python benchmarks/steps.py [training] [langevin] [--beside N]

``--beside 1`` measures while as many other processes do the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch
from contestants import new_training

from ncsn_cli.commands.startup import keep_freed_memory
from ncsn_cli.core.score import Score
from ncsn_cli.models import MLP
from ncsn_cli.samplers import AnnealedLangevin
from ncsn_cli.sampling.compiled_langevin import CompiledLangevin
from ncsn_cli.sampling.tile import TILE
from ncsn_cli.training.state import Training

CASES = {
    "toy NCSN (P2)": ["experiment=ncsn_2d"],
    "implicit loss": ["experiment=ism_1d"],
    "default, batch 32": ["trainer.batch_size=32"],
    "default": [],
    "P1, batch 256": ["experiment=mdsm_1d", "trainer.batch_size=256"],
    "P2, 512 units, batch 512": [
        "experiment=ncsn_2d", "trainer.batch_size=512", "model.hidden=[512]"
    ],
    "default, batch 512": ["trainer.batch_size=512"],
    "P1": ["experiment=mdsm_1d"],
}  # fmt: skip


def pace(training: Training, seconds: float) -> float:
    """Milliseconds a step."""
    first, start = training.step, time.perf_counter()
    while time.perf_counter() - start < seconds or training.step - first < 3:
        training.advance(128)
    return (time.perf_counter() - start) / (training.step - first) * 1e3


def measure(overrides: list[str], compiled: bool, threads: int) -> tuple[float, float]:
    """Milliseconds a step, and seconds until the first ones were made."""
    options = [
        f"trainer.compile={compiled}",
        f"trainer.threads={threads}",
        "trainer.steps=1000000",
    ]
    training = new_training([*overrides, *options, "trainer.lr_decay=none"])
    training.advance()
    start = time.perf_counter()
    if training.is_to_compile:
        training.compile()
    first = time.perf_counter() - start
    pace(training, 0.3)
    return pace(training, 1.5), first


@torch.no_grad()
def langevin() -> None:
    """Print a table for tiles of chains, noise and loop included."""
    torch.set_num_threads(1)
    print("| D | W | plain | compiled | compiling |")
    print("|---|---|---|---|---|")
    for dim, width in [(1, 64), (1, 128), (2, 64), (2, 128), (2, 256), (2, 512)]:
        network = MLP(dim=dim, hidden=[width], activation="relu", conditional=True)
        x = torch.randn(dim, TILE["cpu"]).mT
        start = time.perf_counter()
        compiled = CompiledLangevin(network, x)
        compiling = time.perf_counter() - start
        times = [microseconds(score, x) for score in (network, compiled)]
        cells = " | ".join(f"{us:.0f}" for us in times)
        print(f"| {dim} | {width} | {cells} | {compiling:.0f} s |", flush=True)


def microseconds(score: Score, x: torch.Tensor) -> float:
    """Of a Langevin step: the median of some runs."""
    sampler = AnnealedLangevin(denoise=False, step_size=1e-3, steps_per_level=1600)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        sampler(score, x, torch.tensor([1.0]), generator=torch.Generator().manual_seed(0))
        times.append((time.perf_counter() - start) / 1600 * 1e6)
    return sorted(times)[len(times) // 2]


def training() -> None:
    """Print a table for steps of training."""
    print(
        "| work | P N | plain, 1 thread | 2 threads | compiled, 1 thread | 2 threads | compiling |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, overrides in CASES.items():
        made = new_training(overrides)
        weights = sum(weight.numel() for weight in made.model.parameters())
        batch = made.trainer.batch_size or len(made.dataset.training_set())
        products = made.loss.points(batch, len(made.sigmas)) * weights
        cells = [measure(overrides, compiled, n) for compiled in (False, True) for n in (1, 2)]
        times = " | ".join(f"{ms:.2f}" for ms, _ in cells)
        print(f"| {name} | {products:.1e} | {times} | {cells[2][1]:.0f} s |", flush=True)


def main() -> None:
    """Print the tables."""
    tables = {"training": training, "langevin": langevin}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *tables], default=[])
    parser.add_argument("--beside", type=int, default=0)
    arguments = parser.parse_args()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    again = [sys.executable, __file__, *arguments.tables]
    others = [subprocess.Popen(again, **quiet) for _ in range(arguments.beside)]
    keep_freed_memory()
    for name in arguments.tables or tables:
        tables[name]()
        print()
    for other in others:
        other.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
