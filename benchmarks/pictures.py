"""Seconds of the pictures of two runs: drawn as matplotlib would, and as the commands do.

    python benchmarks/pictures.py [--repeats 5]

runs ``ncsn-train experiment=mdsm_1d`` for 100 steps, which gives as many frames as 1000 do, and
``ncsn-sample`` with its defaults. The film of the chains is drawn, too. Columns: to make the
figure; to draw and save it by ``Figure.savefig``, or with each frame of a film drawn whole; the
same by ``plots.canvas``; the ratio of the two. These are medians of CPU seconds of one process.

The last rows are seconds on the clock, from start to end of presenting: the first time, with the
imports, and the median of the others. That is evaluating truth and score on a grid, drawing in
several processes, and writing files and report.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import ncsn_cli
from ncsn_cli.commands import present, sample, train
from ncsn_cli.commands.present import Pictures
from ncsn_cli.core.scene import Scene

Rows = dict[str, tuple[list[float], list[float], list[float]]]


def seconds(
    work: Callable[[], Any], clock: Callable[[], float] = time.process_time
) -> tuple[float, Any]:
    """Seconds, and what ``work`` returns."""
    start = clock()
    result = work()
    return clock() - start, result


def measure(pictures: Pictures, scene: Scene, repeats: int) -> Rows:
    """Seconds of each picture that applies: made, drawn by matplotlib, drawn by us."""
    from ncsn_cli.plots.canvas import own_settings, to_gif, to_png

    rows: Rows = {}
    for key, draw in repeats * [*pictures.by_key.items()]:
        with own_settings():
            made, figure = seconds(partial(draw, scene))
            if figure is None:
                continue
            if key.startswith("plot."):
                ours, _ = seconds(partial(to_png, figure))
                plain, _ = seconds(partial(draw(scene).savefig, io.BytesIO(), format="png"))
            else:
                ours, _ = seconds(partial(to_gif, figure))
                whole = dataclasses.replace(draw(scene), moving=())
                plain, _ = seconds(partial(to_gif, whole))
        cells = rows.setdefault(key, ([], [], []))
        for cell, number in zip(cells, (made, plain, ours), strict=True):
            cell.append(number)
    return rows


def presenting(run: Callable[[], Any], module: Any, repeats: int) -> tuple[list[float], Rows]:  # noqa: ANN401
    """Seconds of presenting in ``run``, a command of ``module``, and those of its pictures."""
    found: dict[str, Any] = {}

    def timed(folder: Any, pictures: Pictures, compose: Any, *rest: Any) -> None:  # noqa: ANN401
        again = partial(present.present, folder, pictures, compose, *rest)
        found["all"] = [seconds(again, time.perf_counter)[0] for _ in range(repeats + 1)]
        found["rows"] = measure(pictures, compose(), repeats)

    with patch.object(module, "present", timed):
        run()
    return found["all"], found["rows"]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "ncsn-train experiment=mdsm_1d": (train, lambda: ncsn_cli.train(
                "experiment=mdsm_1d", "trainer.steps=100", folder=f"{folder}/train"
            )),
            "ncsn-sample checkpoint=RUN animation=[chains]": (sample, lambda: ncsn_cli.sample(
                f"{folder}/train", "animation=[chains]", folder=f"{folder}/sample"
            )),
        }  # fmt: skip
        for name, (module, run) in runs.items():
            (first, *again), rows = presenting(run, module, repeats)
            print(f"\n| {name} | made | matplotlib | ours | ratio |\n|---|---|---|---|---|")
            for key, cells in rows.items():
                made, plain, ours = map(statistics.median, cells)
                print(f"| {key} | {made:.2f} | {plain:.2f} | {ours:.2f} | {plain / ours:.1f} |")
            print(f"| presenting, the first time | | | {first:.2f} | |")
            print(f"| presenting, again | | | {statistics.median(again):.2f} | |", flush=True)


if __name__ == "__main__":
    main()
