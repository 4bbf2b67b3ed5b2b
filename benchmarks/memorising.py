"""The tables and the picture of docs/learn/memorising.md.

    python -m benchmarks.memorising floors
    python -m benchmarks.memorising times SWEEP [--picture FILE]

``floors`` prints the share of ``metric=memorisation`` for 400 sets of exact draws, each beside a
training set of its own, and for samples that follow the empirical score. ``times`` reads the sweep
that ``ncsn-train hparams_search=memorisation`` wrote, and prints tau_gen and tau_mem by the size
of the training set, and how far apart the scores of two training sets are.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

import ncsn_cli as ncsn
from ncsn_cli.commands.found_runs import find_runs, read_run
from ncsn_cli.commands.training_sets import distances_of_pair
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.metrics import Memorisation
from ncsn_cli.plots.canvas import MODEL, SERIES, TRUTH, new_figure, own_settings, to_png

SETS, DRAWS = 400, 10_000
FIXED = 0.06  # a distance that does not depend on n, beside twice the minimum
LAWS = {
    "two_modes_1d": ([0.1, 0.9], [[-3.0], [3.0]]),
    "three_modes_2d": ([0.4, 0.4, 0.2], [[-3.0, -3.0], [3.0, 3.0], [-1.0, 1.0]]),
    "a Gaussian in 5D": ([1.0], [[0.0] * 5]),
}


def floors() -> None:
    """The share for exact draws, and for the empirical score."""
    print(
        "| law | training points | 3^-D | exact draws | 99 % of exact sets | 99 % binomial |",
        end="",
    )
    print(" empirical score, sigma = 1e-5 |\n|---|---|---|---|---|---|---|")
    for name, (weights, means) in LAWS.items():
        for num in (100, 1000):
            law = GaussianMixture(weights, means, 1.0, num_samples=num)
            share = Memorisation().floor_distance(law, 0.0, DRAWS)
            stream, found = random_stream(0, "memorising"), []
            for _ in range(SETS):
                found.append(share(law.sample(DRAWS, generator=stream), stream))
            low, high = np.quantile(found, [0.005, 0.995])
            narrow = [limit / DRAWS for limit in binom.interval(0.99, DRAWS, np.mean(found))]
            data = law.training_set()
            assert data is not None
            rows = torch.randint(num, (DRAWS,), generator=stream)
            copies = data[rows] + 1e-5 * torch.randn(DRAWS, law.dim, generator=stream)
            copied = Memorisation().distance(law, 1e-5, DRAWS)(copies, stream)
            print(
                f"| {name} | {num} | {3.0**-law.dim:.3f} | {np.mean(found):.4f} | {low:.4f} to"
                f" {high:.4f} | {narrow[0]:.4f} to {narrow[1]:.4f} | {copied:.3f} |",
                flush=True,
            )


def times(sweep: Path, picture: Path | None) -> None:
    """The times by the size of the training set, and the picture."""
    runs = [read_run(folder) for folder in find_runs([str(sweep)])]
    by_size: dict[int, list] = defaultdict(list)  # type: ignore[type-arg]
    for run in runs:
        if run.state == "done":
            by_size[int(str(run.config["dataset.num_samples"]))].append(run)
    print(f"| n | tau_gen | first below {FIXED:g} | tau_mem |", end="")
    print(" two training sets: scores apart | from the true one |\n|---|---|---|---|---|---|")
    for num, some in sorted(by_size.items()):
        cells = [
            ", ".join(f"{r.metrics[name]:g}" if name in r.metrics else "-" for r in some)
            for name in ("tau_gen", "tau_mem")
        ]
        cells.insert(1, ", ".join(str(first_below(run.folder) or "-") for run in some))
        found = distances_of_pair(*some[:2])
        assert found is not None
        apart, errors = found
        print(
            f"| {num} | {' | '.join(cells)} | {apart:.2g} | {errors[0]:.2g}, {errors[1]:.2g} |",
            flush=True,
        )
    if picture is not None:
        picture.write_bytes(draw(dict(sorted(by_size.items()))))


def first_below(folder: Path) -> int | None:
    """The first step whose distance from the true score is below a fixed number."""
    history = ncsn.load_run(folder).history
    below = history["step"][history["true_distance"] < FIXED]
    return int(below[0]) if len(below) else None


def draw(by_size: dict[int, list]) -> bytes:  # type: ignore[type-arg]
    """Distances along training, and both times against n, as a PNG file."""
    with own_settings():
        figure, (left, right) = new_figure(1, 2, width=6.5)
        for (num, runs), colour in zip(by_size.items(), SERIES, strict=False):
            history = ncsn.load_run(runs[0].folder).history
            known = np.isfinite(history["true_distance"])
            for name, style in (("true_distance", "-"), ("empirical_distance_seen", ":")):
                left.plot(
                    history["step"][known], history[name][known], style, color=colour,
                    label=f"n = {num}" if style == "-" else None,
                )  # fmt: skip
            for name, marker, shade in (("tau_gen", "o", TRUTH), ("tau_mem", "D", MODEL)):
                values = [run.metrics[name] for run in runs if name in run.metrics]
                label = name if num == min(by_size) else None
                right.plot([num] * len(values), values, marker, color=shade, label=label)
        left.set(
            xscale="log", yscale="log", xlabel="step",
            ylabel=r"$\sigma^2\,E\|s-\ldots\|^2$, mean over levels",
            title="distance from the true (—) and the empirical (···) score",
        )  # fmt: skip
        right.set(
            xscale="log", yscale="log", xlabel="training points n", ylabel="step",
            title="when networks generalise and memorise",
        )  # fmt: skip
        sizes = np.array([*by_size])
        memorised = [
            (num, run.metrics["tau_mem"])
            for num, runs in by_size.items()
            for run in runs
            if "tau_mem" in run.metrics
        ]
        x, y = np.log(np.array(memorised)).T
        slope, start = np.polyfit(x, y, 1)
        line = np.exp(start) * sizes**slope
        right.plot(sizes, line, color=MODEL, label=rf"$\propto n^{{{slope:.2f}}}$")
        right.plot(
            sizes, np.exp(start + (slope - 1) * x.mean()) * sizes, "--", color="0.5",
            label=r"$\propto n$",
        )  # fmt: skip
        right.set_xticks(sizes, [str(num) for num in sizes])
        right.xaxis.minorticks_off()
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.legend(fontsize=10)
        return to_png(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("floors")
    added = commands.add_parser("times")
    added.add_argument("sweep", type=Path)
    added.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "floors":
        floors()
    else:
        times(chosen.sweep, chosen.picture)
