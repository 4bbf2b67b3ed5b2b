"""Reports: self-contained HTML files, suitable for a phone, dark mode and paper."""

from __future__ import annotations

import base64
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from ncsn_cli.core.errors import NcsnError, one_line
from ncsn_cli.evaluation.verdict import Verdict
from ncsn_cli.runs.records import flatten, without_home

log = logging.getLogger(__name__)

LIVE = "live.html"
"""The live page, in the folder of a run."""

_SCHEDULE = "Schedule and sampler"
_FIRST = ("samples", "density")  # pictures of what the run is about
_SOURCES = "Papers that this run relies on"

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --faint: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
pre { background: var(--faint); padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); }
tr > * + * { text-align: right; }
td:has(a) { max-width: 16rem; overflow-wrap: anywhere; }
table.verdict td { text-align: left; }
table.settings td { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption { color: #888; overflow-wrap: anywhere; }
@media print { body { max-width: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ facts }}</p>
{% if verdict %}
<div class="wide"><table class="verdict">
{% for row in verdict.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% for sentence in verdict.sentences %}<p>{{ sentence }}</p>
{% endfor %}
{% endif %}
{% if live %}
<p><a href="{{ live }}">Move the particles yourself</a>: the same law, levels and score, live.</p>
{% endif %}
<h2>Run it again</h2>
<pre>{{ command }}</pre>
{% if missing %}
<h2>Missing pictures</h2>
<ul>
{% for name, why in missing.items() %}<li>{{ name }} {{ why }}</li>
{% endfor %}
</ul>
{% endif %}
{% for name, picture in pictures.items() %}
<figure><img alt="{{ name }}" src="{{ picture }}">
<figcaption>{{ name }}</figcaption></figure>
{% endfor %}
{% for name, rows in tables.items() %}
<h2>{{ name }}</h2>
{% for note in notes[name] %}<p>{{ note }}</p>
{% endfor %}
<div class="wide"><table{% if name in of_words %} class="settings"{% endif %}>
{% for row in rows %}
<tr>{% for cell in row %}<{{ "th" if loop.first or rows[0] is sameas row else "td" }}>
{{- cell -}}
</{{ "th" if loop.first or rows[0] is sameas row else "td" }}>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if changed %}
<h2>What differs from the defaults</h2>
<div class="wide"><table class="settings">
{% for key, value in changed.items() %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
</body>
</html>
"""


def html_report(  # noqa: PLR0913  # the parts of a page
    folder: Path,
    *,
    title: str,
    facts: str,
    command: str,
    tables: Mapping[str, Sequence[Sequence[str]]],
    verdict: Verdict | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    changed: Mapping[str, Any] | None = None,
    missing: Mapping[str, str] | None = None,
) -> bytes:
    """Return the report of ``folder``, with the pictures in ``animations/`` and ``plots/``.

    Args:
        folder: The folder of a run, or of a comparison of runs.
        title: What was run.
        facts: Device, seconds and so on, in one line.
        command: The command that repeats the run or the comparison.
        tables: Rows of cells, by title; the first row names the columns.
        verdict: What the numbers mean.
        notes: Lines above a table, by its title.
        changed: The settings that differ from the defaults, nested keys joined by dots.
        missing: The reasons why pictures are missing, by name.
    """
    plots = sorted(folder.glob("plots/*.png"), key=lambda path: (path.stem not in _FIRST, path))
    files = [*sorted(folder.glob("animations/*.gif")), *plots]
    files = [p for p in files if p.is_file() and not p.is_symlink() and p.stat().st_size < 1 << 25]
    pictures = {str(path.relative_to(folder)): _inline(path) for path in files}
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    text = page.render(
        title=title,
        of_words=(_SCHEDULE, _SOURCES),
        facts=facts,
        command=command,
        verdict=verdict,
        changed=changed,
        tables=tables,
        notes=notes or {},
        missing=missing or {},
        pictures=pictures,
        live=LIVE if (folder / LIVE).is_file() else None,
    )
    return without_home(text).encode()


@contextmanager
def drawing(name: str, missing: dict[str, str]) -> Iterator[None]:
    """Log and put into ``missing`` why the picture ``name`` could not be drawn.

    Raises:
        OSError: If the disk is full.
    """
    try:
        yield
    except Exception as error:  # a picture that fails must not end the run
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        kind = "" if isinstance(error, NcsnError) else f"{type(error).__name__}: "
        missing[name] = f"could not be drawn ({kind}{one_line(str(error))})"
        log.warning("%s %s", name, missing[name])
        log.debug("%s", name, exc_info=True)


def _inline(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"data:image/{picture.suffix[1:]};base64,{data}"


def link(text: str, to: Path, folder: Path) -> Markup:
    """Return a cell that links to the file ``to`` from the report in ``folder``."""
    return Markup('<a href="{}">{}</a>').format(quote(os.path.relpath(to, folder)), text)


def tables_of(metrics: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return tables of ``metrics``: single numbers, numbers with a noise floor, and by level."""
    flow = metrics.get("probability_flow") or {}
    elsewhere = (
        "clean", "perturbed", "denoised", "trajectory", "mode_commitment", "probability_flow",
        "budget",
    )  # fmt: skip
    single = flatten({name: v for name, v in metrics.items() if name not in elsewhere})
    numbers = [
        [name, _with_error(name, single)]
        for name, v in single.items()
        if isinstance(v, int | float) and not name.endswith("standard_error")
    ]
    numbers_title = "Numbers (± the standard error if estimated from draws; others are exact)"
    tables = {numbers_title: [["number", "value"], *numbers]}
    samples = "Samples against"
    for title, entries in (
        (f"{samples} p", metrics.get("clean")),
        (f"{samples} p at the smallest level", metrics.get("perturbed")),
        (f"{samples} denoised draws of p at the smallest level", metrics.get("denoised")),
        ("Samples of the probability flow instead", flow.get("metrics")),
    ):
        rows = [
            [name, _show(entry["value"]), _with_error("floor", entry), _show(entry["ratio"])]
            for name, entry in (entries or {}).items()
            if entry is not None
        ]
        if rows:
            header = ["metric", "value", "noise floor", "ratio (1 is perfect)"]
            tables[title] = [header, *rows]
    tables |= _budget_table(metrics.get("budget") or {"metrics": {}})
    columns = {
        name.removesuffix("_per_level").replace("_", " "): values
        for name, values in metrics.items()
        if name == "sigmas" or (name.endswith("_per_level") and values is not None)
    }
    if "sigmas" in columns:
        rows = [[_show(v) for v in row] for row in zip(*columns.values(), strict=True)]
        tables["By level"] = [list(columns), *rows]
    return tables


def _budget_table(budget: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return a table of the parts of the error in each metric; {} without a budget."""
    rows = [
        [
            name,
            _show(found["exact_draws"]),
            *(_with_error("value", part) for part in found["parts"].values()),
            _show(found["exact_draws"] + sum(p["value"] for p in found["parts"].values())),
        ]
        for name, found in budget["metrics"].items()
    ]
    if (nats := budget.get("nats")) and (known := nats["parts"]):
        cells = (_with_error("value", known[p]) if p in known else "-" for p in budget["parts"])
        rows.append(["nats", "0", *cells, _show(nats["value"])])
    if not rows:
        return {}
    header = ["metric", "exact draws", *budget["parts"].values(), "the samples"]
    return {"Error budget: what each part adds to the distance from p": [header, *rows]}


def schedule_table(advice: Mapping[str, Any] | None) -> dict[str, list[list[str]]]:
    """Return a table of what the techniques say about schedule and sampler; {} without advice."""
    if advice is None:
        return {}
    said = [*advice["notes"], *(f"Wrong: {each}" for each in advice["warnings"])]
    rows = [[name, text] for name, _, text in (line.partition(": ") for line in said)]
    return {_SCHEDULE: [["", "Song & Ermon (2020)"], *rows]}


def sources_table(sources: Mapping[str, Markup]) -> dict[str, list[list[str]]]:
    """Return a table of the papers behind each part of a run; {} without any."""
    rows = [[part, source] for part, source in sources.items()]
    return {_SOURCES: [["part", "source"], *rows]} if rows else {}


def _with_error(name: str, numbers: Mapping[str, Any]) -> str:
    """Return the number ``name``, with its standard error if ``numbers`` holds one."""
    names = (name, name.rpartition(".")[0])  # the error of kl_bound is that of both bounds
    beside = next((e for n in names if (e := numbers.get(f"{n}_standard_error"))), None)
    error = numbers.get(f"{name.removesuffix('value')}standard_error", beside)
    return _show(numbers[name]) + (f" ± {error:.2g}" if isinstance(error, float) else "")


def _show(value: float | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else f"{value:.4g}"
