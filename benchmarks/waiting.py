"""Seconds that a user waits for a command, from start to end, and those of computing.

    python benchmarks/waiting.py [--repeats 5] [--beside FOLDER] [--only WORD ...]

``FOLDER`` is another checkout of the package. Its commands take turns with those of this one, in
the same environment, so that their ratio means something. The rows "busy" run beside as many
endless loops as there are cores. Numbers are medians (least to most). Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN, HERE = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
QUIET = ["plot=[]", "animation=[]"]
TRAIN, SAMPLE = ["ncsn-train", "experiment=mdsm_1d"], ["ncsn-sample", "checkpoint=trained"]
BUSY = "busy: "

COMMANDS = {
    "train, no pictures": [*TRAIN, *QUIET],
    f"{BUSY}train, no pictures": [*TRAIN, *QUIET],
    "train": TRAIN,
    "sample, new floors": [*SAMPLE, "paths.outputs=new"],
    "sample, kept floors": SAMPLE,
    "sample, no pictures": [*SAMPLE, *QUIET],
    f"{BUSY}sample, no pictures": [*SAMPLE, *QUIET],
    "help": ["ncsn-train", "--help"],
    "no such option": ["ncsn-train", "dataset=ring2d"],
    "no such key": ["ncsn-train", "trainer.step=100"],
    "no such experiment": ["ncsn-train", "experiment=mdsm1d"],
    "no such file": ["ncsn-sample", "checkpoint=missing"],
    "wrong type": ["ncsn-train", "trainer.steps=ten"],
    "not quoted": ["ncsn-train", "model.hidden=[64,", "64]"],
    "out of range": ["ncsn-train", "schedule.sigma_min=-1"],
}


@contextmanager
def endless_loops() -> Iterator[None]:
    """Keep every core busy."""
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(words: list[str], package: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds of a command, and those of training or sampling alone."""
    made = folder / "made"
    place = [f"hydra.run.dir={made}"] if words[1] != "--help" else []
    start = time.perf_counter()
    result = subprocess.run(
        [str(BIN / words[0]), *words[1:], *place], cwd=folder, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    seconds, computing = time.perf_counter() - start, 0.0
    if words[:2] in (TRAIN, SAMPLE):
        if result.returncode != 0:
            raise SystemExit(result.stderr)
        computing = json.loads((made / "metrics.json").read_text())["seconds"]
    for each in (made, folder / "new"):
        shutil.rmtree(each, ignore_errors=True)
    return seconds, computing


def measure(name: str, packages: list[Path], folder: Path, repeats: int) -> str:
    """Return a row of the table."""
    found: list[list[tuple[float, float]]] = [[] for _ in packages]
    for _ in range(repeats):
        for package, times in zip(packages, found, strict=True):
            if name.startswith(BUSY):
                with endless_loops():
                    times.append(run(COMMANDS[name], package, folder))
            else:
                times.append(run(COMMANDS[name], package, folder))
    cells, medians = [name], []
    for times in found:
        seconds, computing = zip(*times, strict=True)
        medians.append(statistics.median(seconds))
        cells.append(f"{medians[-1]:.2f} ({min(seconds):.2f} to {max(seconds):.2f})")
        cells.append(f"{statistics.median(computing):.2f}" if any(computing) else "")
    if len(packages) > 1:
        cells.append(f"{medians[1] / medians[0]:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--only", nargs="*", default=[""])
    args = parser.parse_args()
    packages = [HERE, *([args.beside.resolve()] if args.beside else [])]
    header = ["command", "seconds", "computing"]
    if args.beside:
        header += ["seconds of the other", "computing", "other/this"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*TRAIN, *QUIET, "hydra.run.dir=trained"]
        made = [str(BIN / words[0]), *words[1:]]
        subprocess.run(made, cwd=folder, check=True, capture_output=True)
        for row in COMMANDS:
            if any(word in row for word in args.only):
                print(measure(row, packages, folder, args.repeats), flush=True)


if __name__ == "__main__":
    main()
