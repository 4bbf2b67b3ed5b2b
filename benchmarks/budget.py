"""Faults planted one at a time, and the part of the error budget that is named first.

    python benchmarks/budget.py [--only NAME ...] [--steps 20000]

For every dataset preset: a run without a fault, too few steps, a start around another place than
the data, a sigma_min that widens the data, a network stopped early, and a network trained for long
on 60 points. The table names the first part in the metric in which the data are
missed most. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ncsn_cli as ncsn
from benchmarks.quality import dataset, dataset_presets
from ncsn_cli.commands.notebook import Run
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.verdict import of_samples
from ncsn_cli.schedules import technique_1

FAULTS = ["none", "steps", "start", "sigma_min", "stopped early", "60 points"]
QUIET: dict[str, Any] = {"plot": [], "animation": []}


def sentence(run: Run) -> str:
    """Return the first part of the run's budget, as its verdict names it."""
    words = next(s for s in of_samples(run.metrics).sentences if s.startswith(("cause", "error")))
    first = words.removeprefix("cause: ").removeprefix("error budget: all ").partition(" (")[0]
    return first.partition("; in nats")[0].removeprefix("the ")


def rows(name: str, steps: int, folder: Path) -> dict[str, str]:
    """Return what is named for each of the ``FAULTS`` on the dataset ``name``."""
    truth = dataset(name)
    x = truth.sample(10_000, generator=random_stream(0, "benchmark"))
    sigma_max, spread = technique_1(x), float(x.std(0).max())
    width = max(truth.smallest_std, spread / 40)  # the circle's own shows in no metric

    def sample(fault: str, source: Run | None = None, **changes: Any) -> str:  # noqa: ANN401
        options = {
            "schedule": "karras", "schedule.sigma_max": sigma_max,
            "schedule.sigma_min": width / 10, "schedule.num_levels": 60, "init": "prior",
            "sampler": "probability_flow", "budget": True, **QUIET, **changes,
        }  # fmt: skip
        words = {"score": "exact", "dataset": name} if source is None else {}
        made = ncsn.sample(source, folder=folder / fault, **words, **options)
        return sentence(made)

    def train(fault: str, num_samples: int | None, steps: int) -> Run:
        return ncsn.train(
            f"dataset={name}", folder=folder / f"{fault} network", **QUIET,
            **{
                "dataset.num_samples": num_samples, "schedule.sigma_max": sigma_max,
                "schedule.sigma_min": width / 10, "trainer.steps": steps, "metric": [],
            },
        )  # fmt: skip

    few = {"sampler": "reverse_diffusion", "schedule.num_levels": 4}
    wide = {"schedule.sigma_min": max(2 * width, spread / 4)}
    away = {"schedule.sigma_max": spread, "init": "normal", "init.std": spread,
            "init.mean": float(x.mean()) + 2 * spread}  # fmt: skip
    return {
        "none": sample("none"),
        "steps": sample("steps", **few),
        "start": sample("start", **away),
        "sigma_min": sample("sigma_min", **wide),
        "stopped early": sample("early", train("early", None, 10)),
        "60 points": sample("points", train("points", 60, steps)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    print(f"| dataset | {' | '.join(FAULTS)} |\n|{'---|' * (len(FAULTS) + 1)}", flush=True)
    for name in args.only or dataset_presets():
        with tempfile.TemporaryDirectory() as folder:
            found = rows(name, args.steps, Path(folder))
        print(f"| `{name}` | {' | '.join(found[fault] for fault in FAULTS)} |", flush=True)


if __name__ == "__main__":
    main()
