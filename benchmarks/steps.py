"""Milliseconds of a training step, plain and compiled, on one thread and on two.

From these come the rules of ``training.settle`` for ``trainer.threads`` and ``trainer.compile``:

    python benchmarks/steps.py [--beside N]

``--beside 1`` measures while as many other processes do the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from contestants import new_training

from ncsn_cli.jobs import keep_freed_memory
from ncsn_cli.training import Training

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


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, default=0)
    beside = parser.parse_args().beside
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    others = [subprocess.Popen([sys.executable, __file__], **quiet) for _ in range(beside)]
    keep_freed_memory()
    print(
        "| work | P W | plain, 1 thread | 2 threads | compiled, 1 thread | 2 threads | compiling |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, overrides in CASES.items():
        training = new_training(overrides)
        width = max(weight.shape[0] for weight in training.model.parameters())
        batch = training.trainer.batch_size or len(training.dataset.training_set())
        outputs = training.loss.points(batch, len(training.sigmas)) * width
        cells = [measure(overrides, compiled, n) for compiled in (False, True) for n in (1, 2)]
        times = " | ".join(f"{ms:.2f}" for ms, _ in cells)
        print(f"| {name} | {outputs} | {times} | {cells[2][1]:.0f} s |", flush=True)
    for other in others:
        other.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
