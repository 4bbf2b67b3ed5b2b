"""``ncsn-compare``: one table, one CSV file and pictures over any number of runs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ncsn_cli.errors import ConfigError, MissingInputError, one_line
from ncsn_cli.files import check_plain, inside, read_json, read_regular, write_atomic
from ncsn_cli.report import html_report, link
from ncsn_cli.runs import flatten, without_home

Value = str | float | int | bool | None
Key = tuple[str, ...]

_MOST_YAML = 1 << 20  # bytes of a file
_DEEPEST = 64
_LONG_NUMBER = re.compile(r"[-+.0-9][-+.:_0-9a-zA-Z]{400,}")  # YAML's 1:59:59 is quadratic
_MOST_LINES = 12  # that a picture tells apart
_IGNORED = (
    "paths", "plot", "animation", "metric", "objective", "trainer.resume", "trainer.snapshots",
)  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """What one run's folder says.

    Args:
        folder: The folder.
        state: ``done``, or why there is no result.
        error: The reason, one line.
        overrides: What its command line said.
        config: The effective configuration, nested keys joined by dots.
        metrics: The numbers of ``metrics.json``, nested keys joined by dots.
    """

    folder: Path
    state: str
    error: str
    overrides: str
    config: dict[str, Value]
    metrics: dict[str, float]


def compare(arguments: list[str], command: str | None = None) -> None:
    """Read the runs that the command line names, print their table, write CSV and pictures.

    ``command`` is what the report says made them, as that of a sweep; None: this command.
    """
    options = _parser().parse_args(arguments)
    runs = [_read(folder) for folder in _find(options.folders)]
    done = [run for run in runs if run.state == "done"]
    metrics = _choose_metrics(done, options.metric)
    keys = _differing(done)
    sort = options.sort or (metrics[0] if metrics else None)
    if sort is not None and done and not any(sort in run.metrics or sort in keys for run in done):
        raise ConfigError(f"--sort: no run has {sort}; choose from {', '.join([*metrics, *keys])}")
    by = options.group_by or keys
    for key in by:
        if done and key not in keys:
            raise ConfigError(
                f"--group-by: {key} is the same in all runs; {', '.join(keys)} differ"
            )
    groups = _ordered(_group(done, by), by, sort)
    table, splits = _rows(groups, by, metrics), _error_split(done)
    print("\n\n".join(map(_aligned, [table, *splits])) if done else "no finished run")
    missing = [run for run in runs if run.state != "done"]
    if missing:
        print(f"\n{len(missing)} of {len(runs)} runs have no result:")
        for run in missing:
            print(f"  {run.folder}: {run.state}{': ' + run.error if run.error else ''}")
            if run.overrides:
                print(f"    {run.overrides}")
    folder = Path(options.output or f"outputs/compare/runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    write_atomic(folder / "compare.csv", _csv(runs, keys))
    for name, png in _pictures(done, by, metrics):
        file = re.sub(r"[^\w.+=,-]", "_", name)[:150]  # names are of the runs' files, too
        write_atomic(inside(folder, f"plots/{file}.png"), png)
    failed = [[link(str(r.folder), r.folder, folder), r.state, r.error] for r in missing]
    tables = {
        f"{len(done)} finished runs": _with_links(table, len(by), groups.values(), folder),
        **{f"Error split {i}": rows for i, rows in enumerate(splits, start=1)},
        f"{len(missing)} runs without a result": [["folder", "state", "reason"], *failed],
    }
    page = html_report(
        folder,
        title=command or f"ncsn-compare {' '.join(options.folders)}",
        facts="Mean ± standard deviation over runs that differ in the seed alone; * the best.",
        command=command or shlex.join(["ncsn-compare", *arguments]),
        tables={title: rows for title, rows in tables.items() if len(rows) > 1},
    )
    write_atomic(folder / "report.html", page)
    print(f"\neverything is in {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncsn-compare",
        description="One table over runs of ncsn-train and ncsn-sample: what differs, then the"
        " metrics; mean and standard deviation where only the seed differs, * the best.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a run, a sweep, or a folder of them"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a number of metrics.json, as perturbed.wasserstein.ratio; may be repeated",
    )
    parser.add_argument("--sort", metavar="KEY", help="a metric, or a key that differs")
    parser.add_argument(
        "--group-by",
        action="append",
        metavar="KEY",
        help="a row for each value of this key, the others averaged over; may be repeated",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write; default outputs/compare/runs/TIME"
    )
    return parser


def _find(names: Iterable[str]) -> list[Path]:
    """The folders of runs in, or below, those named."""
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):  # that of pathlib raises for a name that is too long
            raise MissingInputError(f"{path}: there is no such folder")
        below = [path] if _is_run(path) else [p.parent for p in path.rglob(".hydra")]
        if not below:
            raise MissingInputError(f"{path}: no run of ncsn-train or ncsn-sample is in it")
        found |= dict.fromkeys(sorted(below, key=_natural))
    return list(found)


def _is_run(path: Path) -> bool:
    return (path / ".hydra").is_dir() or (path / "run.json").is_file()


def _natural(path: Path) -> tuple[str, int, str]:
    """Sweep folders are numbers: 2 before 10."""
    return str(path.parent), int(path.name) if path.name.isdigit() else -1, path.name


def _read(folder: Path) -> _Run:
    status = read_json(folder / "status.json")
    state, error = str(status.get("state", "unfinished")), str(status.get("error") or "")
    metrics = read_json(folder / "metrics.json")
    if state == "done" and not metrics:
        state, error = "damaged", "metrics.json is missing or not JSON"
    try:
        values = _read_yaml(folder / "config.yaml", {})
        words = _read_yaml(folder / ".hydra" / "overrides.yaml", [])
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as reason:
        return _Run(folder, "damaged", one_line(str(reason)), "", {}, {})
    numbers = {
        key: float(value)
        for key, value in flatten(metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    settings = {  # lists as text, to be compared
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in flatten(values).items()
    }
    overrides = shlex.join(str(word) for word in words)
    return _Run(folder, one_line(state), one_line(error), one_line(overrides), settings, numbers)


def _read_yaml(path: Path, none: Any) -> Any:  # noqa: ANN401
    """The values in a file of a run, of the type of ``none``, which stands for no file.

    Aliases are refused, by which a short text is a long one, and what ``check_plain`` refuses.
    """
    try:
        text = read_regular(path, _MOST_YAML).decode()
    except FileNotFoundError:
        return none
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{path.name}: nested too deeply, or with an alias")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError(f"{path.name}: a number is too long")
    values = yaml.load(text, Loader=loader)
    check_plain(values)
    if values is not None and not isinstance(values, type(none)):
        raise ValueError(f"{path.name}: no {type(none).__name__}")
    return values or none


def _choose_metrics(runs: list[_Run], chosen: list[str]) -> list[str]:
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    for name in chosen:
        if runs and name not in known:
            raise ConfigError(f"--metric: no run has {name}; choose from {', '.join(known)}")
    if chosen:
        return chosen
    losses = [key for key in ("excess_loss", "score_error") if key in known]
    ratios = [key for key in known if key.startswith("perturbed.") and key.endswith(".ratio")]
    return [*losses, *ratios, *(["score_evaluations"] if ratios else [])]


def _differing(runs: list[_Run]) -> list[str]:
    """The keys, without the seed, in which runs differ; a group's option stands for its values."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    targets = {key: {run.config.get(key) for run in runs} for key in keys if _is_target(key)}
    differing = []
    for key in keys:
        if key == "seed" or key.startswith(_IGNORED):
            continue
        target = f"{key.partition('.')[0]}._target_"
        if _is_target(key) or len(targets.get(target, ())) < 2:
            classes: list[list[_Run]] = [runs]
        else:  # values count where the option is the same
            classes = [[r for r in runs if r.config.get(target) == t] for t in targets[target]]
        if any(len({run.config.get(key) for run in same}) > 1 for same in classes):
            differing.append(key)
    return differing


def _is_target(key: str) -> bool:
    return key.endswith("._target_")


def _group(runs: list[_Run], by: list[str]) -> dict[Key, list[_Run]]:
    groups: dict[Key, list[_Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_show(run.config.get(key)) for key in by), []).append(run)
    return groups


def _show(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else one_line(str(value))
    return text.rpartition(".")[2] if text.startswith(("ncsn_cli.", "torch.")) else text


def _values(runs: list[_Run], metric: str) -> list[float]:
    return [run.metrics[metric] for run in runs if metric in run.metrics]


def _mean(runs: list[_Run], metric: str) -> float:
    values = _values(runs, metric)
    return statistics.fmean(values) if values else math.inf


def _ordered(groups: dict[Key, list[_Run]], by: list[str], sort: str | None) -> dict[Key, Any]:
    def order(group: Key) -> Any:  # noqa: ANN401
        if sort in by:
            value = groups[group][0].config.get(str(sort))
            return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
        return _mean(groups[group], str(sort))

    return {group: groups[group] for group in (sorted(groups, key=order) if sort else groups)}


def _rows(groups: dict[Key, list[_Run]], by: list[str], metrics: list[str]) -> list[list[str]]:
    """A row a group below their titles; the smallest mean of each metric has a star."""
    best = {
        metric: min((_mean(runs, metric) for runs in groups.values()), default=math.inf)
        for metric in metrics
        if metric != "score_evaluations"  # work, no merit
    }
    rows = [[*(_title(key) for key in by), "runs", *metrics]]
    for group, runs in groups.items():
        cells = [
            _cell(_values(runs, m), len(groups) > 1 and _mean(runs, m) == best.get(m))
            for m in metrics
        ]
        rows.append([*group, str(len(runs)), *cells])
    return rows


def _with_links(
    rows: list[list[str]], column: int, groups: Iterable[list[_Run]], folder: Path
) -> list[list[str]]:
    """The table with, for the number of runs, a number each that leads to the run's own report."""
    table = [rows[0]]
    for row, runs in zip(rows[1:], groups, strict=True):
        numbered = enumerate(runs, start=1)
        links = (link(str(i), run.folder / "report.html", folder) for i, run in numbered)
        table.append([*row[:column], Markup(" ").join(links), *row[column + 1 :]])
    return table


def _aligned(rows: list[list[str]]) -> str:
    """Rows of text in columns, the first underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _title(key: str) -> str:
    return key.removesuffix("._target_")


def _cell(values: list[float], is_best: bool) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.4g}"
    if max(values) > min(values):
        text += f" ± {statistics.stdev(values):.2g}"
    return f"{text} *" if is_best else text


def _error_split(runs: list[_Run]) -> list[list[list[str]]]:
    """Where the error comes from, for runs that differ in ``score`` alone, a table each.

    metric(checkpoint) = [checkpoint - empirical] + [empirical - exact] + [exact - floor] + floor:
    the network, the finite training set, the sampler with its schedule, and chance.
    """
    apart = ("score", "checkpoint", "model", *_IGNORED)
    groups: dict[str, dict[str, _Run]] = {}
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


def _csv(runs: list[_Run], keys: list[str]) -> bytes:
    """A row a run, failed ones included: folder, state, error, seed, what differs, all metrics."""
    metrics = list(dict.fromkeys(key for run in runs for key in run.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "state", "error", "seed", *keys, *metrics])
    for run in runs:
        settings = [run.config.get(key) for key in ("seed", *keys)]
        numbers = [run.metrics.get(key) for key in metrics]
        writer.writerow([run.folder, run.state, run.error, *settings, *numbers])
    return without_home(text.getvalue()).encode()


def _pictures(runs: list[_Run], by: list[str], metrics: list[str]) -> Iterable[tuple[str, bytes]]:
    """Each metric against each number that was swept, a map over two, quality against work."""
    for metric in (name for name in metrics if name != "score_evaluations"):
        having = [run for run in runs if metric in run.metrics]
        swept = [key for key in by if len(_numbers(having, key)) > 1]
        works = {run.metrics.get("score_evaluations") for run in having}
        if not swept and len(works) < 2:
            continue
        from ncsn_cli.plots.canvas import to_png
        from ncsn_cli.plots.comparison import heat_map_of, metric_against

        for key in swept:
            lines = _lines(having, key, [k for k in by if k != key], metric)
            if len(lines) > _MOST_LINES:
                lines = _lines(having, key, [], metric)
            yield f"{metric}_{key}", to_png(metric_against(key, metric, lines))
        if len(swept) == 2:
            xs, ys = (_numbers(having, key) for key in swept)
            cells = _group(having, swept)
            table = [[_mean(cells.get((_show(x), _show(y)), []), metric) for x in xs] for y in ys]
            yield f"{metric}_map", to_png(heat_map_of(swept, metric, xs, ys, table))
        if len(works) > 1:
            lines = _lines(having, "score_evaluations", ["sampler._target_"], metric)
            figure = metric_against("score_evaluations", metric, lines)
            yield f"{metric}_evaluations", to_png(figure)


def _numbers(runs: list[_Run], key: str) -> list[float]:
    values = {run.config.get(key) for run in runs}
    return sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))


def _lines(
    runs: list[_Run], place: str, others: list[str], metric: str
) -> dict[str, list[tuple[float, list[float]]]]:
    """For each setting of ``others`` the metric's values along ``place``, from left to right."""
    lines: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        x = run.config.get(place, run.metrics.get(place))
        if isinstance(x, int | float) and metric in run.metrics:
            label = ", ".join(f"{_title(k)}={_show(run.config.get(k))}" for k in others)
            lines.setdefault(label, {}).setdefault(float(x), []).append(run.metrics[metric])
    return {label: sorted(points.items()) for label, points in lines.items()}
