"""Run the commands of the pages, and compare what they print with what the pages say.

    python docs/check.py [PAGE ...]

In a page a block of ``sh`` or ``python`` may be followed by an indented block: lines that the
commands print. Each page runs in a folder of its own, from top to bottom. A line agrees if the
program prints one with the same words, and with numbers within 3 % or two units of their last
digit. Blocks with a placeholder in capitals, such as RUN, are left out. A ``python`` block that
begins with ``# name.py`` is written into that file instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md", "docs/learn/first_ten_minutes.md", "docs/how_to/check_your_sampler.md",
    "docs/how_to/own_mixture.md",
]  # fmt: skip
"""Pages whose commands take less than a minute each, and need nothing that is not there."""

_BLOCK = re.compile(r"^```(sh|python)\n((?:[^`\n].*\n|\n)*)```\n((?:\n|    .*\n)*)", re.MULTILINE)
_PLACEHOLDER = re.compile(
    r"mine\.my_sampler|\b(RUN|FILE|STOPPED|SWEEP|FOLDER|DIR|NAME|PARTITION)\b|\.\.\."
)
_NUMBER = re.compile(r"\d*\.?\d+(?:e[+-]?\d+)?")


def blocks(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield language, code and printed lines of each block that can be run."""
    for language, code, after in _BLOCK.findall(text):
        if not _PLACEHOLDER.search(code) and "make " not in code and "pip " not in code:
            yield language, code, [line.strip() for line in after.splitlines() if line.strip()]


def agrees(said: str, printed: str) -> bool:
    """Return whether a ``printed`` line is the one that the page ``said``."""
    words, found = (_NUMBER.sub("#", " ".join(line.split())) for line in (said, printed))
    return words in found and all(
        _is_near(a, b)
        for a, b in zip(_NUMBER.findall(said), _NUMBER.findall(_part(printed, said)), strict=False)
    )


def _part(printed: str, said: str) -> str:
    """Return what is left of a printed line without the time before it."""
    return re.sub(r"^\[\d\d:\d\d:\d\d\] ", "", printed) if not said.startswith("[") else printed


def _is_near(a: str, b: str) -> bool:
    digits = len(a.partition("e")[0].partition(".")[2])
    scale = 10 ** float(a.partition("e")[2] or 0)
    return abs(float(a) - float(b)) <= max(0.03 * abs(float(a)), 2.01 * 10**-digits * scale)


def without_bands(printed: str) -> str:
    """Return a verdict without what exact draws give, which narrow terminals leave out."""
    return re.sub(r"\(exact draws: [^)]*\)", "", printed)


def check(page: Path) -> list[str]:
    """Run the page's blocks; return a line for each that fails or that prints something else."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for language, code, said in blocks(page.read_text()):
            if name := re.match(r"# (\w+\.py)\n", code):
                Path(folder, name[1]).write_text(code)
                continue
            words = ["bash", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
            result = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            first = code.splitlines()[0]
            if result.returncode != 0:
                wrong.append(
                    f"{page.name}: {first}: exit {result.returncode}: {result.stderr[-300:]}"
                )
                continue
            printed = (result.stdout + result.stderr).splitlines()
            # A terminal breaks long lines: put together what is indented.
            joined = re.sub(r"\n {2}(?=\S)", " ", "\n".join(printed)).splitlines()
            shown = [*joined, *(" ".join(without_bands(line).split()) for line in joined)]
            wrong += [
                f"{page.name}: {first}: is not printed: {line}"
                for line in said
                if not any(agrees(line, other) for other in shown)
            ]
    return wrong


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or [ROOT / name for name in PAGES]
    found = [line for page in chosen for line in check(page)]
    print("\n".join(found) or f"{len(chosen)} pages agree with what their commands print")
    sys.exit(bool(found))
