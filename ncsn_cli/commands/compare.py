"""``ncsn-compare``: one table, one CSV file and pictures over any number of runs."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ncsn_cli import __version__
from ncsn_cli.commands.csv_files import runs_csv, summary_csv
from ncsn_cli.commands.found_runs import (
    OF_TRAINING,
    TRAINING_SEED,
    Run,
    Value,
    find_runs,
    is_target,
    read_run,
    title_of,
)
from ncsn_cli.commands.names import for_shell
from ncsn_cli.commands.report import drawing, html_report, link
from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.runs.files import path_inside, write_atomic

Key = tuple[Value, ...]

_MOST_LINES = 12  # more cannot be told apart in a picture
_IGNORED = (  # keys that do not tell runs apart
    "paths", "plot", "animation", "metric", "objective", "trainer.resume", "trainer.snapshots",
)  # fmt: skip


def compare(arguments: list[str], command: str | None = None) -> None:
    """Read the runs that the command line names, print their table, write CSV, plots and report.

    ``command`` is the command line that the report shows, such as that of a sweep; None: this
    command's own.
    """
    options = _parser().parse_args(arguments)
    runs = [read_run(folder) for folder in find_runs(options.folders)]
    done = [run for run in runs if run.state == "done"]
    # Choose the columns and the rows.
    metrics = _choose_metrics(done, options.metric)
    keys = _columns(done)
    sort = title_of(options.sort) if options.sort else next(iter(metrics), None)
    if sort is not None and done and not any(sort in run.metrics or sort in keys for run in done):
        raise ConfigError(f"--sort: no run has {sort}; choose from {', '.join([*metrics, *keys])}")
    by = [title_of(key) for key in options.group_by] if options.group_by else keys
    for key in by:
        if done and not _differ(done, key):
            raise ConfigError(
                f"--group-by: {key} is the same in all runs; {', '.join(keys)} differ"
            )
    groups = _ordered(_group(done, by), by, sort)
    table, splits = _rows(groups, by, metrics), _error_split(done)
    missing = [run for run in runs if run.state != "done"]
    # Write the files.
    folder = Path(options.output or f"outputs/compare/runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    write_atomic(folder / "compare.csv", runs_csv(runs, keys))
    write_atomic(folder / "summary.csv", summary_csv(groups.values(), by))
    missing_pictures = _draw(folder, _pictures(done, by, metrics))
    failed = [[link(str(r.folder), r.folder, folder), r.state, r.error] for r in missing]
    tables = {
        f"{len(done)} finished runs": _with_links(table, len(by), groups.values(), folder),
        **{f"Error split {i}": rows for i, rows in enumerate(splits, start=1)},
        f"{len(missing)} runs without a result": [["folder", "state", "reason"], *failed],
    }
    page = html_report(
        folder,
        title=command or f"ncsn-compare {' '.join(options.folders)}",
        facts="Mean ± standard deviation over runs that differ in the seed only; * is the best.",
        command=command or f"ncsn-compare {for_shell(arguments)}",
        tables={title: rows for title, rows in tables.items() if len(rows) > 1},
        missing=missing_pictures,
    )
    write_atomic(folder / "report.html", page)
    print("\n\n".join(map(_aligned, [table, *splits])) if done else "no finished run")
    _print_missing(missing, len(runs))
    print(f"\neverything is in {folder}")


def _print_missing(missing: list[Run], num: int) -> None:
    """Print the runs without a result, and their overrides, among ``num`` runs."""
    if missing:
        print(f"\n{len(missing)} of {num} runs have no result:")
    for run in missing:
        print(f"  {run.folder}: {run.state}{': ' + run.error if run.error else ''}")
        if run.overrides:
            print(f"    {run.overrides}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncsn-compare",
        description="One table of runs of ncsn-train and ncsn-sample: the settings that differ,"
        " then the metrics; mean and standard deviation where only the seed differs, * marks the"
        " best.",
    )
    parser.add_argument("--version", action="version", version=f"ncsn_cli {__version__}")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a run, a sweep, or a folder of them"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a number of metrics.json, such as perturbed.wasserstein.ratio; may be repeated",
    )
    parser.add_argument("--sort", metavar="KEY", help="a metric, or a key that differs")
    parser.add_argument(
        "--group-by",
        action="append",
        metavar="KEY",
        help="one row per value of this key, averaged over the other keys; may be repeated",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write; default outputs/compare/runs/TIME"
    )
    return parser


def _choose_metrics(runs: list[Run], chosen: list[str]) -> list[str]:
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    for name in chosen:
        if runs and name not in known:
            raise ConfigError(f"--metric: no run has {name}; choose from {', '.join(known)}")
    if chosen:
        return chosen
    losses: list[str] = [key for key in ("excess_loss", "score_error") if key in known]
    if not losses and "loss" in known:
        losses = ["loss"]
    ratios = [k for k in known if re.fullmatch(r"(perturbed|denoised)\..*\.ratio", k)]
    return [*losses, *ratios, *(["score_evaluations"] if "score_evaluations" in known else [])]


def _columns(runs: list[Run]) -> list[str]:
    """Return the keys, without the seed, that tell runs apart.

    These are the keys that a command line named and in which runs differ. Options, and then
    values, are added if runs that agree so far differ in them, which presets and checkpoints may
    cause. The checkpoint's path says least, so it is tried last; it may differ with the seed of
    its training.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.settings))
    options = {
        "experiment",
        *(title_of(key) for run in runs for key in run.config if is_target(key)),
    }
    groups = list(dict.fromkeys(["experiment", *(key.partition(".")[0] for key in known)]))
    known.sort(key=lambda key: (groups.index(key.partition(".")[0]), key not in options))
    differing = [
        key
        for key in known
        if key not in ("seed", TRAINING_SEED)
        if not key.startswith(_IGNORED) and _differ(runs, key)
    ]
    named = {key for run in runs for key in run.named} - {"checkpoint"}
    columns = [key for key in differing if key in named]
    others = [key for key in differing if key not in named]
    for key in sorted(others, key=lambda key: (key == "checkpoint", key not in options)):
        agree = [*columns, TRAINING_SEED] if key == "checkpoint" else columns
        if any(_differ(group, key) for group in _group(runs, agree).values()):
            columns.append(key)
    return [key for key in differing if key in columns]


def _differ(runs: list[Run], key: str) -> bool:
    if key.partition(".")[0] in OF_TRAINING:  # with the exact score there is no training
        runs = [run for run in runs if key in run.settings]
    return len({run.settings.get(key) for run in runs}) > 1


def _group(runs: list[Run], by: list[str]) -> dict[Key, list[Run]]:
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(key) for key in by), []).append(run)
    return groups


def _show(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else one_line(str(value))
    return text.rpartition(".")[2] if text.startswith(("ncsn_cli.", "torch.")) else text


def _values(runs: list[Run], metric: str) -> list[float]:
    return [run.metrics[metric] for run in runs if metric in run.metrics]


def _mean(runs: list[Run], metric: str) -> float:
    values = _values(runs, metric)
    return statistics.fmean(values) if values else math.inf


def _ordered(groups: dict[Key, list[Run]], by: list[str], sort: str | None) -> dict[Key, Any]:
    def order(group: Key) -> Any:  # noqa: ANN401
        if sort in by:
            value = groups[group][0].settings.get(str(sort))
            return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
        return _mean(groups[group], str(sort))

    return {group: groups[group] for group in (sorted(groups, key=order) if sort else groups)}


def _rows(groups: dict[Key, list[Run]], by: list[str], metrics: list[str]) -> list[list[str]]:
    """Return a row of titles and one row per group; a star marks each metric's smallest mean."""
    best = {
        metric: min((_mean(runs, metric) for runs in groups.values()), default=math.inf)
        for metric in metrics
        if metric != "score_evaluations"  # measures work, not quality
    }
    rows = [[*(title_of(key) for key in by), "runs", *metrics]]
    for group, runs in groups.items():
        cells = [
            _cell(_values(runs, m), len(groups) > 1 and _mean(runs, m) == best.get(m))
            for m in metrics
        ]
        rows.append([*map(_show, group), str(len(runs)), *cells])
    return rows


def _with_links(
    rows: list[list[str]], column: int, groups: Iterable[list[Run]], folder: Path
) -> list[list[str]]:
    """Return ``rows`` with the number of runs replaced by a numbered link to each run's report."""
    table = [rows[0]]
    for row, runs in zip(rows[1:], groups, strict=True):
        numbered = enumerate(runs, start=1)
        links = (link(str(i), run.folder / "report.html", folder) for i, run in numbered)
        table.append([*row[:column], Markup(" ").join(links), *row[column + 1 :]])
    return table


def _aligned(rows: list[list[str]]) -> str:
    """Return rows of text in aligned columns, with the first row underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(values: list[float], is_best: bool) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.4g}"
    if max(values) > min(values):
        text += f" ± {statistics.stdev(values):.2g}"
    return f"{text} *" if is_best else text


def _error_split(runs: list[Run]) -> list[list[list[str]]]:
    """Return tables of error sources, one per set of runs that differ in ``score`` alone.

    metric(checkpoint) = [checkpoint - empirical] + [empirical - exact] + [exact - floor] + floor:
    the terms come from the network, the finite training set, the sampler with its schedule, and
    chance.
    """
    apart = ("score", "checkpoint", "model", *_IGNORED)
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        if "score" in run.config:
            rest = {k: v for k, v in run.config.items() if not k.startswith(apart)}
            groups.setdefault(json.dumps(rest, sort_keys=True), {})[str(run.config["score"])] = run
    tables = []
    for group in groups.values():
        if not {"checkpoint", "empirical", "exact"} <= group.keys():
            continue
        learned, empirical, exact = (
            group[k].metrics for k in ("checkpoint", "empirical", "exact")
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
        tables.append(rows)
    return tables


def _pictures(
    runs: list[Run], by: list[str], metrics: list[str]
) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Yield the name of each picture, and a function that draws the picture.

    Each metric is drawn against each number that was swept, as a map if two were swept, and
    against the number of score evaluations. Command lines, where known, say what was swept.
    """
    named = {key for run in runs for key in run.named}
    by_sweep = [key for key in by if key in named or not named]
    for metric in (name for name in metrics if name != "score_evaluations"):
        having = [run for run in runs if metric in run.metrics]
        swept = [key for key in by_sweep if len(_numbers(having, key)) > 1]
        for key in swept:
            yield f"{metric}_{key}", partial(_along, having, key, by, metric)
        if len(swept) == 2:
            yield f"{metric}_map", partial(_map, having, swept, by, metric)
        if len({run.metrics.get("score_evaluations") for run in having}) > 1:
            others = [key for key in by if key not in swept]
            yield (
                f"{metric}_evaluations",
                partial(_along, having, "score_evaluations", others, metric),
            )


def _along(runs: list[Run], place: str, by: list[str], metric: str) -> Any:  # noqa: ANN401
    """Return the picture of a metric along ``place``, a line for each setting of the other keys.

    If there would be too many lines, the last of the other keys are averaged over.
    """
    from ncsn_cli.plots.comparison import metric_against

    others = [key for key in by if key != place]
    shown = others
    while len(lines := _lines(runs, place, shown, metric)) > _MOST_LINES:
        shown = shown[:-1]
    return metric_against(
        place,
        metric,
        lines,
        legend=", ".join(map(title_of, shown)),
        averaged=[title_of(key) for key in others if key not in shown],
    )


def _map(runs: list[Run], swept: list[str], by: list[str], metric: str) -> Any:  # noqa: ANN401
    from ncsn_cli.plots.comparison import heat_map_of

    xs, ys = (_numbers(runs, key) for key in swept)
    cells = _group(runs, swept)
    table = [[_mean(cells.get((x, y), []), metric) for x in xs] for y in ys]
    averaged = [title_of(key) for key in by if key not in swept]
    return heat_map_of(swept, metric, xs, ys, table, averaged)


def _draw(folder: Path, pictures: Iterable[tuple[str, Callable[[], Any]]]) -> dict[str, str]:
    """Write ``pictures``; return, by name, why some are missing."""
    missing: dict[str, str] = {}
    for name, draw in pictures:
        png = None
        with drawing(name, missing):
            from ncsn_cli.plots.canvas import own_settings, to_png

            with own_settings():
                png = to_png(draw())
        if png is not None:
            file = re.sub(r"[^\w.+=,-]", "_", name)[:150]  # a name may be from a run's files
            write_atomic(path_inside(folder, f"plots/{file}.png"), png)
    return missing


def _numbers(runs: list[Run], key: str) -> list[float]:
    values = {run.settings.get(key) for run in runs}
    return sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))


def _lines(
    runs: list[Run], place: str, others: list[str], metric: str
) -> dict[str, list[tuple[float, list[float]]]]:
    """Return, for each setting of ``others``, the metric's values along ``place``, ascending."""
    lines: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        x = run.settings.get(place, run.metrics.get(place))
        if isinstance(x, int | float) and metric in run.metrics:
            label = ", ".join(_show(run.settings.get(key)) for key in others)
            lines.setdefault(label, {}).setdefault(float(x), []).append(run.metrics[metric])
    return {label: sorted(points.items()) for label, points in lines.items()}
