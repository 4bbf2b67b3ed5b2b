"""Seconds that a user waits for a command, from start to end, and those of computing.

    python benchmarks/waiting.py [--repeats 5] [--beside FOLDER] [--only WORD ...]
                                 [--picture FILE]

``FOLDER`` is another checkout of the package. Its commands take turns with those of this one, in
the same environment, so that their ratio means something. The rows "busy" run beside as many
endless loops as there are cores. "first bar" ends with the first progress bar. Numbers are medians
(least to most). ``FILE`` shows where the seconds of training and sampling go. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import matplotlib.pyplot as plt

BIN, HERE = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
QUIET = ["plot=[]", "animation=[]"]
TRAIN, SAMPLE = ["ncsn-train", "experiment=mdsm_1d"], ["ncsn-sample", "checkpoint=trained"]
SWEEP = ["ncsn-train", "-m", "seed=range(16)", *TRAIN[1:], *QUIET, "hydra.sweep.dir=made"]
BUSY, BAR = "busy: ", "first bar: "

COMMANDS = {
    "train, no pictures": [*TRAIN, *QUIET],
    f"{BUSY}train, no pictures": [*TRAIN, *QUIET],
    f"{BAR}train": [*TRAIN, *QUIET],
    f"{BAR}sample": [*SAMPLE, *QUIET],
    "sweep of 16": SWEEP,
    f"{BUSY}sweep of 16": SWEEP,
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
    place = [f"hydra.run.dir={made}"] if words[1] not in ("--help", "-m") else []
    start = time.perf_counter()
    result = subprocess.run(
        [str(BIN / words[0]), *words[1:], *place], cwd=folder, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    seconds, computing = time.perf_counter() - start, 0.0
    if words[:2] in (TRAIN, SAMPLE) or words is SWEEP:
        if result.returncode != 0:
            raise SystemExit(result.stderr)
        numbers = [json.loads(path.read_text()) for path in made.glob("**/metrics.json")]
        computing = sum(each["seconds"] for each in numbers)
    for each in (made, folder / "new"):
        shutil.rmtree(each, ignore_errors=True)
    return seconds, computing


def until_bar(words: list[str], package: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds until a command shows a progress bar in a terminal, and 0."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(BIN / words[0]), *words[1:], f"hydra.run.dir={folder / 'made'}"], cwd=folder,
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    shown = b""
    while b"|" not in shown:
        shown += os.read(ours, 4096)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    for end in (ours, theirs):
        os.close(end)
    shutil.rmtree(folder / "made", ignore_errors=True)
    return seconds, 0.0


def draw(medians: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Draw where the seconds of both commands go, from the medians of the rows."""
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    names, colours = [], plt.cm.cividis([0.1, 0.4, 0.7, 0.95])
    for command, whole in (("train", "train"), ("sample", "sample, kept floors")):
        for i, when in enumerate(["now", "before"][: len(medians[whole])]):
            total, _ = medians[whole][i]
            bare, bare_computing = medians[f"{command}, no pictures"][i]
            start = medians["out of range"][i][0]
            parts = {
                "start": start,
                "training or sampling": bare_computing,
                "evaluation, files": bare - start - bare_computing,
                "pictures, with states kept for films": total - bare,
            }
            left = 0.0
            for (part, width), colour in zip(parts.items(), colours, strict=True):
                label = None if names else part
                axes.barh(len(names), width, left=left, color=colour, label=label)
                left += width
            axes.text(left + 0.05, len(names), f"{total:.1f} s", va="center")
            names.append(f"ncsn-{command}, {when}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.margins(x=0.1)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, dpi=120)


def measure(
    name: str, packages: list[Path], folder: Path, repeats: int
) -> list[tuple[float, float]]:
    """Print a row of the table; return each package's median seconds, and those of computing."""
    found: list[list[tuple[float, float]]] = [[] for _ in packages]
    for _ in range(repeats):
        for package, times in zip(packages, found, strict=True):
            with endless_loops() if name.startswith(BUSY) else nullcontext():
                timed = until_bar if name.startswith(BAR) else run
                times.append(timed(COMMANDS[name], package, folder))
    cells, medians = [name], []
    for times in found:
        seconds, computing = zip(*times, strict=True)
        medians.append((statistics.median(seconds), statistics.median(computing)))
        cells.append(f"{medians[-1][0]:.2f} ({min(seconds):.2f} to {max(seconds):.2f})")
        cells.append(f"{medians[-1][1]:.2f}" if any(computing) else "")
    if len(packages) > 1:
        cells.append(f"{medians[1][0] / medians[0][0]:.2f}")
    print(f"| {' | '.join(cells)} |", flush=True)
    return medians


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--picture", type=Path)
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
        medians = {
            row: measure(row, packages, folder, args.repeats)
            for row in COMMANDS
            if any(word in row for word in args.only)
        }
    if args.picture:
        draw(medians, args.picture)


if __name__ == "__main__":
    main()
