"""The rows of ``history.csv``, one per logged step."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ncsn_cli.runs.files import read_rows

Row = dict[str, float | None]
"""One row of ``history.csv``."""

COLUMNS = ["step", "loss", "excess_loss", "grad_norm", "lr", "seconds", "clipped_grad_norm"]

MEMORISING = ["true_distance", "true_distance_seen", "empirical_distance_seen"]
"""Further columns where the training set is finite; see ``memorising.Memorising``."""

_OLD_COLUMNS = [name for name in COLUMNS if name != "clipped_grad_norm"]
"""Columns of older runs, which recorded one norm only: ``grad_norm`` is that after clipping."""


def history_csv(history: list[Row]) -> bytes:
    """Return the contents of ``history.csv`` with these rows.

    A run that was started with ``_OLD_COLUMNS`` keeps them, so that no column changes its meaning
    within a file: all values of its ``grad_norm`` are norms after clipping.
    """
    columns, rows = COLUMNS, history
    if history and MEMORISING[0] in history[0]:  # else an earlier version started the run
        columns = [*COLUMNS, *MEMORISING]
    if history and history[0]["grad_norm"] is None:
        columns = _OLD_COLUMNS
        rows = [{**row, "grad_norm": row["clipped_grad_norm"]} for row in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_history(path: Path) -> list[Row]:
    """Return the rows of a ``history.csv``; with ``_OLD_COLUMNS``, ``grad_norm`` is None."""
    history = []
    for row in read_rows(path, COLUMNS, _OLD_COLUMNS, [*COLUMNS, *MEMORISING]):
        if "clipped_grad_norm" not in row:
            row |= {"grad_norm": None, "clipped_grad_norm": row["grad_norm"]}
        history.append({**row, "step": int(row["step"] or 0)})
    return history
