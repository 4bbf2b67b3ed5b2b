"""Text in columns that keeps the width of a terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

_GAP = "  "  # between columns


def terminal_width() -> int | None:
    """Return the width of the terminal, in characters; None if standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None, indent: str = "  ") -> str:
    """Return ``text`` in lines of at most ``width`` characters, from the second on indented."""
    if width is None:
        return text
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def aligned(rows: list[list[str]], num_keys: int, width: int | None) -> str:
    """Return rows of text in columns, the first row underlined, none wider than ``width``.

    What is too wide gets short titles, with the full ones above. If that does not suffice, the
    columns are laid out in several blocks; each begins with the first ``num_keys`` columns or,
    where these take more than half of the width, with the number of the row. A cell that takes
    more than half of the width is continued on further lines. No text is left out.
    """
    if width is None or _width(rows) <= width:
        return _block(rows)
    titles, names = _short_titles(rows[0], num_keys)
    rows = [titles, *rows[1:]]
    above = "".join(f"{wrapped(line, width)}\n" for line in names)
    if _width(rows) <= width:
        return above + _block(rows)
    limit = width // 2 - len(_GAP)
    keys = [row[:num_keys] for row in rows]
    if num_keys == 0 or _width(keys) > limit:
        rows = [["row" if i == 0 else str(i), *row] for i, row in enumerate(rows)]
        num_keys = 1
    blocks, taken = [], num_keys
    widths = [min(limit, max(map(len, column))) for column in zip(*rows, strict=True)]
    while taken < len(rows[0]):
        first, room = taken, width - sum(w + len(_GAP) for w in widths[:num_keys])
        while taken < len(widths) and (room >= widths[taken] or taken == first):
            room -= widths[taken] + len(_GAP)
            taken += 1
        blocks.append(_block([[*row[:num_keys], *row[first:taken]] for row in rows], limit))
    return above + "\n\n".join(blocks)


def _width(rows: list[list[str]]) -> int:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _short_titles(titles: list[str], num_keys: int) -> tuple[list[str], list[str]]:
    """Return shorter titles, and lines that name the full ones.

    A setting has the last part of its key, if no other title is the same. Metrics such as
    ``clean.moments.ratio`` that agree in the first and the last part have the part between.
    """
    short, names = [*titles], []
    last = [title.rpartition(".")[2] for title in titles]
    for i, title in enumerate(titles[:num_keys]):
        if last[i] != title and last.count(last[i]) == 1:
            short[i] = last[i]
            names.append(f"{last[i]}: {title}")
    inside = [i for i in range(num_keys, len(titles)) if titles[i].count(".") > 1]
    patterns = {re.sub(r"\..*\.", ".*.", titles[i]) for i in inside}
    if len(patterns) == 1:
        for i in inside:
            short[i] = titles[i].partition(".")[2].rpartition(".")[0]
        names.append(f"{', '.join(short[i] for i in inside)}: {patterns.pop()}")
    return short, names


def _block(rows: list[list[str]], limit: int | None = None) -> str:
    """Return rows in aligned columns; a cell longer than ``limit`` takes several lines."""
    cells = [[_lines(cell, limit) for cell in row] for row in rows]
    widths = [
        max(len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)
    ]
    text = ["\n".join(_row(row, widths)) for row in cells]
    rule = "-" * max(len(line) for line in text[0].splitlines())
    return "\n".join([text[0], rule, *text[1:]])


def _lines(cell: str, limit: int | None) -> list[str]:
    return (textwrap.wrap(cell, limit, break_on_hyphens=False) if limit else [cell]) or [""]


def _row(cells: list[list[str]], widths: list[int]) -> list[str]:
    """Return the lines of one row."""
    height = max(map(len, cells))
    return [
        _GAP.join(
            (cell[i] if i < len(cell) else "").ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        ).rstrip()
        for i in range(height)
    ]
