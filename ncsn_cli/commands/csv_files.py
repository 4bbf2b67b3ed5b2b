"""The files that ``ncsn-compare`` writes for other programs, such as pandas.

Numbers, True and False are as Python writes them, lists are JSON, and what is missing is empty.
Columns have the names of keys and metrics, nested keys joined by dots.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable

from ncsn_cli.commands.found_runs import TRAINING_SEED, Run, Value
from ncsn_cli.runs.records import without_home


def runs_csv(runs: list[Run], keys: list[str]) -> bytes:
    """Return one row per run, failed or not: folder, state, error, seeds, keys, all metrics."""
    keys = [
        "seed",
        *(key for key in [TRAINING_SEED] if any(key in r.settings for r in runs)),
        *keys,
    ]
    metrics = [name for name in _metrics(runs) if name not in keys]  # num_samples is both
    rows: list[list[Value]] = [
        [
            str(run.folder), run.state, run.error,
            *(run.settings.get(key) for key in keys),
            *(run.metrics.get(name) for name in metrics),
        ]
        for run in runs
    ]  # fmt: skip
    return _as_csv(["folder", "state", "error", *keys, *metrics], rows)


def summary_csv(groups: Iterable[list[Run]], keys: list[str]) -> bytes:
    """Return one row per group of runs: keys, the number of runs, four numbers for every metric.

    These are its mean, its standard deviation (over n - 1), the standard error of the mean, and
    the number n of runs that have the metric. The deviation of one run is missing.
    """
    groups = list(groups)
    metrics = _metrics([run for runs in groups for run in runs])
    numbers = ("mean", "std", "standard_error", "count")
    titles = [*keys, "runs", *(f"{name}_{number}" for name in metrics for number in numbers)]
    rows: list[list[Value]] = []
    for runs in groups:
        rows.append([*(runs[0].settings.get(key) for key in keys), len(runs)])
        for name in metrics:
            values = [run.metrics[name] for run in runs if name in run.metrics]
            mean = statistics.fmean(values) if values else None
            std = statistics.stdev(values) if len(values) > 1 else None
            error = None if std is None else std / math.sqrt(len(values))
            rows[-1] += [mean, std, error, len(values)]
    return _as_csv(titles, rows)


def _metrics(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.metrics))


def _as_csv(titles: list[str], rows: list[list[Value]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([titles, *rows])
    return without_home(text.getvalue()).encode()
