"""``ncsn-compare``: one table, one CSV file and pictures over any number of runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ncsn_cli import __version__
from ncsn_cli.commands.columns import aligned, terminal_width, wrapped
from ncsn_cli.commands.compare_pictures import draw_pictures
from ncsn_cli.commands.csv_files import runs_csv, summary_csv
from ncsn_cli.commands.differences import differ, keys_apart
from ncsn_cli.commands.found_runs import Run, find_runs, read_run, title_of, with_successor
from ncsn_cli.commands.names import for_shell
from ncsn_cli.commands.ranking import choose_metrics
from ncsn_cli.commands.report import html_report, link
from ncsn_cli.commands.run_tables import RunTable, error_split, legend, tables_of_runs
from ncsn_cli.commands.suggestions import did_you_mean
from ncsn_cli.commands.training_sets import of_training_sets
from ncsn_cli.core.errors import ConfigError, counted
from ncsn_cli.runs.files import write_atomic


def compare(arguments: list[str], command: str | None = None) -> None:
    """Read the runs that the command line names, print their tables, write CSV, plots and report.

    ``command`` is the command line that the report shows, such as that of a sweep; None: this
    command's own.
    """
    options = _parser().parse_args(arguments)
    runs = [read_run(folder) for folder in find_runs(options.folders)]
    done = [run for run in runs if run.state == "done"]
    missing = [with_successor(run, runs) for run in runs if run.state != "done"]
    # Choose the columns and the rows.
    keys = keys_apart(done)
    by = [title_of(key) for key in options.group_by] if options.group_by else keys
    _check(options, done, keys, by)
    sort = title_of(options.sort) if options.sort else None
    tables = tables_of_runs(done, by, options.metric, sort)
    apart = [key for key in keys if len(tables) > 1 and key.partition(".")[0] == "dataset"]
    by = [*(key for key in apart if key not in by), *by]
    splits, lines = error_split(done), of_training_sets(done)
    # Write the files.
    folder = Path(options.output or f"outputs/compare/runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    write_atomic(folder / "compare.csv", runs_csv(runs, keys))
    groups = [runs for table in tables for runs in table.groups.values()]
    write_atomic(folder / "summary.csv", summary_csv(groups, by))
    missing_pictures = draw_pictures(folder, done, missing, by, tables)
    page = html_report(
        folder,
        title=command or f"ncsn-compare {' '.join(options.folders)}",
        facts=" ".join([*legend(tables), *(f"{line}." for line in lines)]),
        command=command or f"ncsn-compare {for_shell(arguments)}",
        tables=_of_report(tables, splits, missing, folder),
        notes={_heading(table): table.facts for table in tables},
        missing=missing_pictures,
    )
    write_atomic(folder / "report.html", page)
    _print(tables, splits, lines)
    _print_missing(missing, len(runs))
    print(f"\neverything is in {folder}")


def _check(options: argparse.Namespace, done: list[Run], keys: list[str], by: list[str]) -> None:
    """Raise a ConfigError if a metric or a key that the command line names does not exist."""
    metrics = choose_metrics(done, options.metric, "perturbed|denoised|clean")
    sort = title_of(options.sort) if options.sort else None
    if sort is not None and done and not any(sort in run.metrics or sort in keys for run in done):
        known = dict.fromkeys([*metrics, *keys, *(key for run in done for key in run.metrics)])
        near = did_you_mean(sort, known) or f"; choose from {', '.join([*metrics, *keys])}"
        raise ConfigError(f"--sort: no run has {sort}{near}")
    for key in by:
        if done and not any(key in run.settings for run in done):
            near = did_you_mean(key, keys) or f"; {', '.join(keys)} differ"
            raise ConfigError(f"--group-by: no run has {key}{near}")
        if done and not differ(done, key):
            raise ConfigError(
                f"--group-by: {key} is the same in all runs; {', '.join(keys)} differ"
            )


def _heading(table: RunTable) -> str:
    return f"{table.title[:1].upper()}{table.title[1:]}"


def _of_report(
    tables: list[RunTable], splits: list[list[list[str]]], missing: list[Run], folder: Path
) -> Mapping[str, list[list[str]]]:
    """Return the tables of the report by their titles; those without a row are left out."""
    failed = [[link(str(r.folder), r.folder, folder), r.state, r.error] for r in missing]
    found: dict[str, list[list[str]]] = {
        **{_heading(table): table.with_links(folder) for table in tables},
        **{f"Error split {i}": rows for i, rows in enumerate(splits, start=1)},
        f"{counted(len(missing), 'run')} without a result": [
            ["folder", "state", "reason"],
            *failed,
        ],
    }
    return {title: rows for title, rows in found.items() if len(rows) > 1}


def _print(tables: list[RunTable], splits: list[list[list[str]]], more: list[str]) -> None:
    """Print the tables within the width of the terminal, what their signs mean, and ``more``."""
    width = terminal_width()
    blocks = []
    for table in tables:
        facts = [wrapped(fact, width) for fact in table.facts]
        blocks.append("\n".join([*facts, "", aligned(table.rows, len(table.by), width)]))
    blocks += [aligned(rows, 1, width) for rows in splits]
    if lines := legend(tables):
        blocks.append("\n".join(wrapped(line, width) for line in lines))
    blocks += [wrapped(line, width) for line in more]
    print("\n\n".join(blocks) if blocks else "no finished run")


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
        description="Tables of runs, one for each dataset: the settings that differ,"
        " then the metrics, as mean and standard deviation where only the seed differs. * is"
        " better than every other row beyond the noise, ~ is tied.",
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
