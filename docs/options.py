"""Write docs/reference/options.md: every group, option and key, from the signatures.

python docs/options.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ncsn_cli.commands.schema import schema_of
from ncsn_cli.commands.suggestions import SEVERAL, known_options

PAGE = Path(__file__).parent / "reference" / "options.md"
INTRODUCTION = """\
# Options and keys

Every option of every group, with its keys and their defaults. `python docs/options.py` writes this
page from the signatures and docstrings; `ncsn-train --schema` prints the same as JSON Schema.

Choose an option as `group=option`, and change a value as `group.key=value`. Of `metric`, `plot`
and `animation` you may choose several: `metric=[mmd,moments]`. Their keys are
`metric.mmd.max_points` and so on.

Options that belong to one experiment are chosen as `sampler=preset/NAME`; they have the same keys.
"""
GROUPS = [
    "dataset", "schedule", "loss", "model", "optimizer", "trainer", "sampler", "init", "metric",
    "plot", "animation",
]  # fmt: skip


def main() -> None:
    """Write the page."""
    train, sample, measure = (schema_of(name) for name in ("train", "sample", "measure"))
    lines = [INTRODUCTION]
    for title, schema, keys in (
        ("Keys of `ncsn-train`", train, ["seed", "device", "objective"]),
        (
            "Keys of `ncsn-sample`", sample,
            [
                "checkpoint", "score", "num_samples", "seed", "device", "trajectories",
                "trajectory_metrics", "budget", "log_density", "compile", "resume", "plugins",
                "objective",
            ],
        ),
        (
            "Keys of `ncsn-measure`", measure,
            ["file", "key", "sigma", "denoised", "seed", "objective"],
        ),
    ):  # fmt: skip
        lines += [f"## {title}", "", "| key | meaning |", "|---|---|"]
        lines += [f"| `{key}` | {_text(schema['properties'][key])} |" for key in keys]
        lines.append("")
    for group in GROUPS:
        lines += [f"## {group}", ""]
        if group in ("plot", "animation"):
            lines += ["", *_pictures(train, sample, group)]
            continue
        for option in _options(train, group):
            lines += _option(group, option)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n")


def _options(schema: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """Return the group's options, one for each name."""
    found = schema["properties"][group]
    options = found["properties"].values() if group in SEVERAL else found.get("anyOf", [found])
    return [option for option in options if option.get("title") in known_options(group)]


def _option(group: str, option: dict[str, Any]) -> list[str]:
    """Return the lines of an option: what it is, and a table of its keys."""
    name = option["title"]
    lines = [f"### {group}={name}", "", option.get("description", "").replace("``", "`"), ""]
    keys = {k: v for k, v in option["properties"].items() if not k.startswith("_")}
    if keys:
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{key}` | `{json.dumps(value['default'])}` | {_text(value)} |"
            for key, value in keys.items()
        ]
    return [*lines, ""]


def _pictures(train: dict[str, Any], sample: dict[str, Any], group: str) -> list[str]:
    """Return a table of the pictures, which have few keys."""
    options = {option["title"]: option for schema in (train, sample) for option in
               _options(schema, group)}  # fmt: skip
    rows = [
        f"| `{name}` | {option.get('description', '').replace('``', '`')} |"
        for name, option in sorted(options.items())
    ]
    return ["| option | picture |", "|---|---|", *rows, ""]


def _text(value: dict[str, Any]) -> str:
    return str(value.get("description", "")).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    main()
