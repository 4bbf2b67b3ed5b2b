"""Run the commands of the pages, and compare what they print and write with what the pages say.

    python docs/check.py [--all] [PAGE ...]

Every page is read from top to bottom, in a folder of its own. A block of ``sh`` is run, and a
block of ``python`` that imports ``ncsn_cli``. A block that begins with ``# name.py`` is written
into that file instead. ``RUN`` and ``SWEEP`` stand for the newest training and sweep of
trainings. Compared are

- **indented lines** just below a block: it prints such a line, with the same words, and with
  numbers within 3 % or two units of their last digit: other processors round otherwise, and a
  chain that meets a border goes another way. Counts are within 3 % or one, those below 10 equal.
  Such a block may fail.
- **a table** below a block, in its section: it prints each of its rows, in the same sense.
- **a table of metrics**, which begins with a comment: each number stands, within two units of its
  last digit, in the ``metrics.json`` of the block's runs. With the comment

      <!-- docs-check: rows score_error; clean.mode_weights.weights.0 1-3; -; loss 4 -->

  the first row has the score errors of all runs, in the order of the commands. The second has
  shares of the runs 1 to 3, and the third is not compared. ``columns`` does the same by columns.
  The first cell of a row is its name. What is left over at its end, such as the truth, is not
  compared, nor is what stands in brackets or after ±.

What is left out says so in the page: a block or a table below ``<!-- docs-check: REASON -->``. If
the reason is a number of minutes, ``--all`` runs it. Blocks with a placeholder in capitals, such
as FILE, and with ``pip`` or ``make`` are left out, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = {"docs/results/gallery.md"}
"""Pages whose commands ``docs/gallery.py`` runs."""

_PIECE = re.compile(
    r"^(?:<!-- docs-check: (?P<note>[^>]*?) -->\n)?"
    r"(?:```(?P<language>\w*)\n(?P<code>(?:(?!```).*\n)*)```\n(?P<said>(?:\n|    .*\n)*)"
    r"|(?P<table>(?:\|.*\n)+)|(?P<title>#+ .*\n))",
    re.MULTILINE,
)
_LEFT_OUT = re.compile(
    r"mine\.my_sampler|\b(FILE|STOPPED|FOLDER|DIR|NAME|PARTITION)\b|\b(pip|make) "
)
_NUMBER = re.compile(r"\d*\.?\d+(?:e[+-]?\d+)?")
_SIGNED = re.compile(r"-?" + _NUMBER.pattern)
_NEWEST = {
    "RUN": "$(ls -td outputs/*/runs/*/checkpoints | head -n 1 | xargs dirname)",
    "SWEEP": "$(ls -td outputs/train/multiruns/* | head -n 1)",
}


class Output(NamedTuple):
    """What a block printed, and the metrics of its runs in the order of the commands."""

    command: str
    code: int
    lines: list[str]
    metrics: list[dict[str, Any]]


def is_left_out(piece: re.Match[str], *, run_long: bool) -> bool:
    """Return whether the page, or a placeholder, leaves a block out."""
    note, language, code = piece["note"], piece["language"], piece["code"]
    if language not in {"sh", "python"} or _LEFT_OUT.search(code):
        return True
    if language == "python" and not re.search(r"import ncsn_cli|\A# \w+\.py\n", code):
        return True
    return note is not None and not (run_long and re.match(r"[\d.]+ minutes?", note))


def run(piece: re.Match[str], folder: Path) -> Output:
    """Run a block in ``folder``, or write it into the file that it names."""
    code = piece["code"]
    first = code.splitlines()[0]
    if name := re.match(r"# (\w+\.py)\n", code):
        (folder / name[1]).write_text(code)
        return Output(first, 0, [], [])
    if piece["language"] == "sh":
        code = re.sub(r"\b(RUN|SWEEP)\b", lambda name: _NEWEST[name[1]], code)
    words = ["bash", "-ec", code] if piece["language"] == "sh" else [sys.executable, "-c", code]
    before = {*folder.glob("outputs/**/metrics.json")}
    result = subprocess.run(
        words, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    files = sorted({*folder.glob("outputs/**/metrics.json")} - before, key=_order)
    metrics = [json.loads(file.read_text()) for file in files]
    return Output(first, result.returncode, _lines(result.stdout + result.stderr), metrics)


def _environment() -> dict[str, str]:
    """Return the environment, in which this checkout and its examples are found."""
    paths = [ROOT, ROOT / "examples/own_classes", os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(map(str, paths)),
    }


def _order(file: Path) -> tuple[str, int]:
    """Return when a run's command started, and the run's number in its sweep."""
    run = file.parent
    hydra = run / ".hydra/hydra.yaml"
    number = re.search(
        r"^    num: (\d+)", hydra.read_text() if hydra.exists() else "", re.MULTILINE
    )
    return (run.parent.name if number else run.name), int(number[1]) if number else 0


def _lines(text: str) -> list[str]:
    """Return the printed lines: as they are, put together, and without what exact draws give."""
    # A terminal breaks long lines: put together what is indented. Narrow ones leave the bands out.
    joined = re.sub(r"\n {2}(?=\S)", " ", text).splitlines()
    short = [re.sub(r"\(exact draws: [^)]*\)", "", line) for line in joined]
    return [*text.splitlines(), *joined, *(" ".join(line.split()) for line in short)]


def agrees(said: str, printed: str) -> bool:
    """Return whether a ``printed`` line is the one that the page ``said``."""
    words, found = (_NUMBER.sub("#", " ".join(line.split())) for line in (said, printed))
    start = found.find(words)
    if start < 0:
        return False
    before = found[:start].count("#")  # numbers of the line, such as a time, before these words
    numbers = _NUMBER.findall(said)
    pairs = zip(numbers, _NUMBER.findall(printed)[before : before + len(numbers)], strict=True)
    return all(_is_near(a, b) for a, b in pairs)


def _is_near(a: str, b: str) -> bool:
    """Return whether the numbers agree. Counts may differ by less: one digit has to be equal."""
    units = (0.0 if len(a) == 1 else 1.01) if a.isdigit() else 2.01
    return abs(float(a) - float(b)) <= max(0.03 * abs(float(a)) * (units > 0), units * _unit(a))


def _unit(number: str) -> float:
    """Return one unit of the last digit."""
    mantissa, _, power = number.partition("e")
    return float(10 ** (int(power or 0) - len(mantissa.partition(".")[2])))


def missing_rows(table: str, output: Output) -> Iterator[str]:
    """Yield the rows of a table that the block does not print."""
    printed = [line.replace("*", "") for line in output.lines]
    for row in table.splitlines()[2:]:
        said = row.replace("*", "")
        if not any(agrees(said, line) for line in printed):
            yield f"is not printed: {row}"


def other_metrics(note: str, table: str, output: Output) -> Iterator[str]:
    """Yield the rows, or columns, of a table whose numbers are not those of the runs."""
    kind, _, keys = note.partition(" ")
    grid = [row.strip("|").split("|") for row in table.splitlines() if not row.startswith("|--")]
    lines = grid[1:] if kind == "rows" else [list(cells) for cells in zip(*grid, strict=True)][1:]
    for line, key in zip(lines, keys.split(";"), strict=True):
        if key.strip() == "-":
            continue
        cells = line[1:]
        said = [number for cell in cells for number in _SIGNED.findall(_plain(cell))]
        written = list(_written(output.metrics, *key.split()))
        near = [abs(float(a) - b) <= 2.01 * _unit(a) for a, b in zip(said, written, strict=False)]
        if not written or len(said) < len(written) or not all(near):
            shown = ", ".join(f"{number:.4g}" for number in written) or "nothing"
            yield f"{key.strip()} is {shown}, not {' '.join(said)}"


def _plain(cell: str) -> str:
    """Return a cell without what stands in brackets or after ±."""
    return re.sub(r"\([^)]*\)|± ?[\d.]+", "", cell.replace("\N{MINUS SIGN}", "-"))


def _written(metrics: list[dict[str, Any]], key: str, *ranges: str) -> Iterator[float]:
    """Yield the numbers under ``key`` of the runs in ``ranges``; * is every entry of a list."""
    chosen: list[dict[str, Any]] = []
    for start, _, end in (text.partition("-") for text in ranges or [f"1-{len(metrics)}"]):
        chosen += metrics[int(start) - 1 : int(end or start)]
    values: list[Any] = [*chosen]
    for part in key.split("."):
        if part == "*":
            values = [entry for value in values for entry in value]
        else:
            index = int(part) if part.isdigit() else part
            values = [value[index] for value in values if part.isdigit() or part in value]
    for value in values:
        yield from value if isinstance(value, list) else [value]


def compare(piece: re.Match[str], output: Output) -> Iterator[str]:
    """Yield what a block's output, or the table below it, has otherwise than the page."""
    note, table = piece["note"], piece["table"]
    if table is None:
        said = [line.strip() for line in piece["said"].splitlines() if line.strip()]
        if output.code != 0 and not said:
            yield f"exit {output.code}: {' '.join(output.lines)[-300:]}"
        for line in said:
            if not any(agrees(line, printed) for printed in output.lines):
                yield f"is not printed: {line}"
    elif note is None and re.search(r"\|.*\|.*\d", table):
        yield from missing_rows(table, output)
    elif note is not None and re.match("rows|columns", note):
        yield from other_metrics(note, table, output)


def check(page: Path, *, run_long: bool = False) -> list[str]:
    """Run the page's blocks; return a line for each that fails or that gives something else."""
    wrong = []
    output = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("benchmarks", "examples", "configs"):
            (folder / part).symlink_to(ROOT / part)
        (folder / "docs/pictures").mkdir(parents=True)
        for piece in _PIECE.finditer(page.read_text()):
            if piece["title"]:
                output = None
            elif piece["code"] is not None:
                output = None if is_left_out(piece, run_long=run_long) else run(piece, folder)
            if output is not None:
                wrong += [f"{output.command}: {line}" for line in compare(piece, output)]
    return wrong


def main() -> int:
    """Check the pages; print a line for each, and what is wrong in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="run what takes minutes or hours, too")
    parser.add_argument("pages", nargs="*", type=Path)
    asked = parser.parse_args()
    every = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    number_wrong = 0
    for page in asked.pages or [p for p in every if str(p.relative_to(ROOT)) not in WRITTEN]:
        start = time.monotonic()
        wrong = check(page, run_long=asked.all)
        number_wrong += len(wrong)
        state = f"{len(wrong)} wrong" if wrong else "ok"
        print(f"{page}  {time.monotonic() - start:.0f} s  {state}", flush=True)
        print("".join(f"    {line}\n" for line in wrong), end="", flush=True)
    return int(number_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
