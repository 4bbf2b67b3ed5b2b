"""Tables of runs: a row per setting, its metrics and marks, and what is the same in all rows."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ncsn_cli.commands.differences import (
    IGNORED,
    Key,
    by_law,
    constants,
    differ,
    group,
    moving,
    show,
)
from ncsn_cli.commands.found_runs import Run, title_of
from ncsn_cli.commands.ranking import (
    BEST,
    TIED,
    WORK,
    choose_metrics,
    incomparable,
    is_quality,
    marks,
    mean,
    values_of,
)
from ncsn_cli.commands.report import link
from ncsn_cli.core.errors import one_line

_LONGEST = 2000  # characters of the line about a table; lists of settings may be long


@dataclass(frozen=True)
class RunTable:
    """Runs that can be compared with each other.

    Args:
        title: What they are: trainings, or samples of which dataset.
        facts: Lines above the table: what is the same in all runs, and how they are ranked.
        by: The keys of the columns in which they differ.
        metrics: The other columns.
        groups: The runs of each row, by the values of ``by``.
        rows: A row of titles, and one row of text per group.
    """

    title: str
    facts: list[str]
    by: list[str]
    metrics: list[str]
    groups: dict[Key, list[Run]]
    rows: list[list[str]]

    def with_links(self, folder: Path) -> list[list[str]]:
        """Return ``rows`` with links to each run's report for the number of runs."""
        column = len(self.by)
        table = [self.rows[0]]
        for row, runs in zip(self.rows[1:], self.groups.values(), strict=True):
            numbered = enumerate(runs, start=1)
            links = (link(str(i), run.folder / "report.html", folder) for i, run in numbered)
            table.append([*row[:column], Markup(" ").join(links), *row[column + 1 :]])
        return table


def tables_of_runs(
    runs: list[Run], by: list[str], chosen: list[str], sort: str | None
) -> list[RunTable]:
    """Return a table for the trainings and for the samples of each dataset.

    Args:
        runs: The runs, all with a result.
        by: The keys that may make rows.
        chosen: The metrics to show; [] for the default ones.
        sort: The metric or key that orders the rows; None for the first metric.
    """
    moves = moving(runs)
    tables = []
    for title, some in by_law(runs).items():
        metrics = chosen or _default_metrics(some, moves)
        metrics = [metric for metric in metrics if any(metric in run.metrics for run in some)]
        keys = _columns(some, by)
        groups = _ordered(group(some, keys), keys, sort or next(iter(metrics), None))
        same = constants(some)
        if not chosen and WORK in metrics and len({run.metrics.get(WORK) for run in some}) == 1:
            metrics.remove(WORK)
            same.append(f"{WORK}={some[0].metrics[WORK]:g}")
        number = "1 run" if len(some) == 1 else f"{len(some)} runs"
        what = " ".join([f"{title}, {number}{':' if same else ''}", *same])
        facts = [one_line(what, _LONGEST)]
        if moves and any(metric.startswith("clean.") for metric in metrics) and not chosen:
            facts.append(
                f"ranked against p itself (clean), because perturbed targets move with"
                f" {' and '.join(moves)}"
            )
        unmarked = {m: incomparable(m, some) for m in metrics if is_quality(m)}
        facts += _unmarked(unmarked) if len(groups) > 1 else []
        rows = _rows(groups, keys, metrics, [m for m in unmarked if unmarked[m]])
        tables.append(RunTable(title, facts, keys, metrics, groups, rows))
    return tables


def _columns(runs: list[Run], by: list[str]) -> list[str]:
    """Return the keys that make rows of ``runs``.

    A key that not all runs have, such as an option of one sampler, is left out if it has one
    value and the others tell the same rows apart.
    """
    keys = [key for key in by if differ(runs, key)]
    num = len(group(runs, keys))
    for key in reversed(keys):
        others = [other for other in keys if other != key]
        having = [run for run in runs if key in run.settings]
        if len(having) < len(runs) and not differ(having, key) and len(group(runs, others)) == num:
            keys = others
    return keys


def _default_metrics(runs: list[Run], moves: list[str]) -> list[str]:
    """Return the metrics that compare ``runs``: those against p itself where targets move."""
    usual = "perturbed|denoised"
    against = choose_metrics(runs, [], "clean" if moves else usual)
    has_ratio = any(metric.endswith(".ratio") for metric in against)
    return against if has_ratio else choose_metrics(runs, [], usual)


def _unmarked(unmarked: dict[str, list[str]]) -> list[str]:
    """Return lines that say which metrics compare nothing, by the words for the reason."""
    reasons: dict[str, list[str]] = {}
    for metric, words in unmarked.items():
        if words:
            reasons.setdefault(", ".join(words), []).append(metric)
    return [
        f"not ranked by {', '.join(metrics)}: what they measure changes with {words}"
        for words, metrics in reasons.items()
    ]


def _ordered(groups: dict[Key, list[Run]], by: list[str], sort: str | None) -> dict[Key, Any]:
    def order(key: Key) -> Any:  # noqa: ANN401
        if sort in by:
            value = groups[key][0].settings.get(str(sort))
            return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
        return mean(groups[key], str(sort))

    return {key: groups[key] for key in (sorted(groups, key=order) if sort else groups)}


def _rows(
    groups: dict[Key, list[Run]], by: list[str], metrics: list[str], unmarked: list[str]
) -> list[list[str]]:
    """Return a row of titles and one row per group; all metrics but ``unmarked`` have marks."""
    rows = [[*(title_of(key) for key in by), "runs", *metrics]]
    rows += [[*map(show, key), str(len(runs))] for key, runs in groups.items()]
    for metric in metrics:
        found = [*groups.values()]
        signs = [""] * len(found) if metric in unmarked else marks(metric, found)
        for row, runs, sign in zip(rows[1:], found, signs, strict=True):
            row.append(_cell(values_of(runs, metric), sign))
    return rows


def _cell(values: list[float], sign: str) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.4g}"
    if max(values) > min(values):
        text += f" ± {statistics.stdev(values):.2g}"
    return f"{text} {sign}".rstrip()


def legend(tables: list[RunTable]) -> list[str]:
    """Return lines that explain the signs in ``tables``."""
    cells = [cell for table in tables for row in table.rows[1:] for cell in row[len(table.by) :]]
    is_best, is_tied = (any(cell.endswith(sign) for cell in cells) for sign in (BEST, TIED))
    lines = []
    if any(" ± " in cell for cell in cells):
        lines.append("± is the standard deviation over the runs of a row.")
    if is_best:
        lines.append(f"{BEST} is better than every other row, by more than chance (99 %).")
    if is_tied:
        lines.append(f"{TIED} is tied with the best row: chance may explain the difference.")
    if is_best or is_tied:
        lines.append("Chance is the spread over seeds; for a row of one run, that of exact draws.")
    if any(metric.endswith(".ratio") for table in tables for metric in table.metrics):
        lines.append("A ratio is the error over that of exact draws: about 1 is perfect.")
    trainings = [table for table in tables if not _has_samples(table)]
    if any(len(t.groups) > 1 and all(len(g) == 1 for g in t.groups.values()) for t in trainings):
        lines.append("One training a row: more seeds, such as seed=0,1,2, show the noise.")
    return lines


def _has_samples(table: RunTable) -> bool:
    return next(iter(table.groups.values()))[0].has_samples


def error_split(runs: list[Run]) -> list[list[list[str]]]:
    """Return tables of error sources, one per set of runs that differ in ``score`` alone.

    metric(checkpoint) = [checkpoint - empirical] + [empirical - exact] + [exact - floor] + floor:
    the terms come from the network, the finite training set, the sampler with its schedule, and
    chance.
    """
    apart = ("score", "checkpoint", "model", *IGNORED)
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        if "score" in run.config:
            rest = {k: v for k, v in run.config.items() if not k.startswith(apart)}
            groups.setdefault(json.dumps(rest, sort_keys=True), {})[str(run.config["score"])] = run
    tables = []
    for found in groups.values():
        if not {"checkpoint", "empirical", "exact"} <= found.keys():
            continue
        learned, empirical, exact = (
            found[k].metrics for k in ("checkpoint", "empirical", "exact")
        )
        names = [
            key.removesuffix(".value")
            for key in exact
            if key.startswith("perturbed.") and key.endswith(".value")
            if key in learned and key in empirical
            if f"{key.removesuffix('.value')}.floor" in exact
        ]
        rows = [
            ["where the error comes from", "network", "finite data", "sampler", "floor", "total"]
        ]
        for name in names:
            total, middle, ideal = (m[f"{name}.value"] for m in (learned, empirical, exact))
            floor = exact[f"{name}.floor"]
            numbers = (total - middle, middle - ideal, ideal - floor, floor, total)
            rows.append([name.removeprefix("perturbed."), *(f"{n:.3g}" for n in numbers)])
        if names:
            tables.append(rows)
    return tables
