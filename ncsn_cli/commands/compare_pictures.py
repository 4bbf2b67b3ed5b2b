"""The pictures of ``ncsn-compare``: metrics along what was swept, and samples side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ncsn_cli.commands.differences import Key, differ, group, law_of, show
from ncsn_cli.commands.found_runs import Run, Value, title_of
from ncsn_cli.commands.ranking import WORK, mean
from ncsn_cli.commands.report import drawing
from ncsn_cli.commands.run_tables import RunTable
from ncsn_cli.runs.files import path_inside, write_atomic
from ncsn_cli.runs.folder import SAMPLES

_MOST_LINES = 12  # more cannot be told apart in a picture
_MOST_SAMPLES = 12  # pictures of samples side by side that are still large enough
_MOST_VALUES = 8  # rows or columns of a grid of samples; its cells are smaller

Pictures = Iterator[tuple[str, Callable[[], Any]]]


def draw_pictures(
    folder: Path, done: list[Run], missing: list[Run], by: list[str], tables: list[RunTable]
) -> dict[str, str]:
    """Write the pictures into ``plots/``; return, by name, why some are missing.

    Args:
        folder: The folder of the comparison.
        done: The runs with a result.
        missing: The others; a grid of samples names their states.
        by: The keys that tell the runs apart.
        tables: The tables.
    """
    reasons: dict[str, str] = {}
    for name, draw in [*_of_metrics(done, by, tables), *_of_samples(tables, missing)]:
        png = None
        with drawing(name, reasons):
            from ncsn_cli.plots.canvas import own_settings, to_png

            with own_settings():
                if (figure := draw()) is not None:
                    png = to_png(figure)
        if png is not None:
            file = re.sub(r"[^\w.+=,-]", "_", name)[:150]  # a name may be from a run's files
            write_atomic(path_inside(folder, f"plots/{file}.png"), png)
    return reasons


def _of_metrics(runs: list[Run], by: list[str], tables: list[RunTable]) -> Pictures:
    """Yield the name of each picture of metrics, and a function that draws the picture.

    Each metric is drawn against each number that was swept, as a map if two were swept, and
    against the number of score evaluations. Command lines, where known, say what was swept.
    """
    named = {key for run in runs for key in run.named}
    by_sweep = [key for key in by if key in named or not named]
    metrics = dict.fromkeys(metric for table in tables for metric in table.metrics)
    for metric in (name for name in metrics if name != WORK):
        having = [run for run in runs if metric in run.metrics]
        swept = [key for key in by_sweep if len(_places(having, key)) > 1]
        for key in swept:
            yield f"{metric}_{key}", partial(_along, having, key, by, metric)
        for table in tables:
            some = [run for runs in table.groups.values() for run in runs]
            two = [key for key in swept if len(_places(some, key)) > 1]
            if len(two) == 2 and metric in table.metrics:
                name = f"{metric}_map{_suffix(table, tables)}"
                yield name, partial(_map, some, two, table.by, metric)
        if len({run.metrics.get(WORK) for run in having}) > 1:
            others = [key for key in by if key not in swept]
            yield f"{metric}_evaluations", partial(_along, having, WORK, others, metric)


def _suffix(table: RunTable, tables: list[RunTable]) -> str:
    """Return what a picture's name adds to tell tables apart."""
    return f"_{table.title.partition(' of ')[2] or table.title}" if len(tables) > 1 else ""


def _along(runs: list[Run], place: str, by: list[str], metric: str) -> Any:  # noqa: ANN401
    """Return the picture of a metric along ``place``, a line for each setting of the other keys.

    If there would be too many lines, the last of the other keys are averaged over.
    """
    from ncsn_cli.plots.comparison import metric_against

    others = [key for key in by if key != place and differ(runs, key)]
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

    xs, ys = (_places(runs, key) for key in swept)
    cells = _cells(runs, swept)
    table = [[mean(cells.get((x, y), []), metric) for x in xs] for y in ys]
    if not any(math.isfinite(value) for row in table for value in row):
        return None
    averaged = [title_of(key) for key in by if key not in swept]
    return heat_map_of(swept, metric, xs, ys, table, averaged)


def _cells(runs: list[Run], keys: list[str]) -> dict[Key, list[Run]]:
    """Return the runs by their places along the keys."""
    found: dict[Key, list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(_place(run, key) for key in keys), []).append(run)
    return found


def _place(run: Run, key: str) -> float | str | None:
    """Return where a run is along ``key``: at a number, or at a word such as auto."""
    value: Value = run.settings.get(key, run.metrics.get(key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if key not in run.settings:
        return None
    return "null" if value is None else show(value)


def _places(runs: list[Run], key: str) -> list[float | str]:
    """Return the numbers of a key, ascending, then its words; [] if it has no number."""
    found = dict.fromkeys(_place(run, key) for run in runs)
    numbers = sorted(place for place in found if isinstance(place, float))
    return [*numbers, *(place for place in found if isinstance(place, str))] if numbers else []


def _lines(
    runs: list[Run], place: str, others: list[str], metric: str
) -> dict[str, list[tuple[float | str, list[float]]]]:
    """Return, for each setting of ``others``, the metric's values at each place, in order."""
    places = _places(runs, place)
    lines: dict[str, dict[float | str, list[float]]] = {}
    for setting, some in sorted(group(runs, others).items(), key=lambda item: _order(item[0])):
        for run in some:
            x = _place(run, place)
            if x is not None and metric in run.metrics:
                points = lines.setdefault(", ".join(map(show, setting)), {})
                points.setdefault(x, []).append(run.metrics[metric])
    return {
        label: [(x, points[x]) for x in places if x in points] for label, points in lines.items()
    }


def _of_samples(tables: list[RunTable], missing: list[Run]) -> Pictures:
    """Yield the name of each picture of samples, and a function that draws the picture.

    It is a grid if two keys were swept, and otherwise up to 12 pictures side by side.
    """
    for table in tables:
        rows = {
            key: having
            for key, runs in table.groups.items()
            if (having := [run for run in runs if (run.folder / SAMPLES).is_file()])
        }
        if sum(map(len, rows.values())) < 2:
            continue
        sizes = [len({*column}) for column in zip(*rows, strict=True)]
        is_grid = len(sizes) == 2 and all(1 < size <= _MOST_VALUES for size in sizes)
        name = f"samples{_suffix(table, tables)}"
        if is_grid:
            yield name, partial(_grid, table, rows, missing)
        else:
            yield name, partial(_side_by_side, table, rows)


def _side_by_side(table: RunTable, rows: dict[Key, list[Run]]) -> Any:  # noqa: ANN401
    """Return the picture of the samples of each run or, of too many, of one run of each row."""
    from ncsn_cli.commands.shown_samples import shown_samples
    from ncsn_cli.plots.gallery import side_by_side

    shown = [(key, run) for key, runs in rows.items() for run in runs]
    note = ""
    if len(shown) > _MOST_SAMPLES:
        shown = [(key, runs[0]) for key, runs in rows.items()]
        note = "one run of each setting"
    if len(shown) > _MOST_SAMPLES:
        note = f"one run of each of the first {_MOST_SAMPLES} of {len(shown)} settings"
    shown = shown[:_MOST_SAMPLES]
    names = [title_of(key).rpartition(".")[2] for key in table.by]
    titles = []
    for key, run in shown:
        words = [f"{name}={show(value)}" for name, value in zip(names, key, strict=True)]
        is_one = len(rows[key]) == 1
        titles.append(", ".join(words if is_one else [*words, f"seed={run.settings.get('seed')}"]))
    scene, samples = shown_samples([run for _, run in shown])
    return side_by_side(scene, [*zip(titles, samples, strict=True)], note)


def _grid(table: RunTable, rows: dict[Key, list[Run]], missing: list[Run]) -> Any:  # noqa: ANN401
    """Return the picture of the samples over two swept keys."""
    from ncsn_cli.commands.shown_samples import shown_samples
    from ncsn_cli.plots.gallery import Panel, grid

    kind = next(iter(rows.values()))[0]
    failed = {
        tuple(run.settings.get(key) for key in table.by): run.state
        for run in missing
        if law_of(run) == law_of(kind) and ("score" in run.settings) == ("score" in kind.settings)
    }
    values = [_in_order({key[i] for key in [*rows, *failed]}) for i in (0, 1)]
    if max(map(len, values)) > _MOST_VALUES:
        values = [_in_order({key[i] for key in rows}) for i in (0, 1)]
    # The key with more values runs along the columns.
    down, along = sorted((0, 1), key=lambda i: len(values[i]))
    scene, samples = shown_samples([runs[0] for runs in rows.values()])
    found: dict[Key, Panel] = {**failed, **dict(zip(rows, samples, strict=True))}
    pairs = [[(x, y) if down == 0 else (y, x) for y in values[along]] for x in values[down]]
    return grid(
        scene,
        (title_of(table.by[down]), title_of(table.by[along])),
        ([*map(show, values[down])], [*map(show, values[along])]),
        [[found.get(pair, "no run") for pair in row] for row in pairs],
        "one run of each setting" if any(len(runs) > 1 for runs in rows.values()) else "",
    )


def _in_order(values: Iterable[Value]) -> list[Value]:
    """Return numbers, ascending, then words."""
    return sorted(values, key=lambda value: _order((value,)))


def _order(values: Key) -> list[tuple[bool, float, str]]:
    """Return a key that sorts numbers before words."""
    return [
        (False, float(value), "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (True, 0.0, show(value))
        for value in values
    ]
