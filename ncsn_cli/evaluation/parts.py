"""The parts of the error of samples: their names, their noise, and what they are in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARTS = ("smallest_level", "steps", "start", "network")
"""The parts in their order; see ``sampling.budget``. With the exact score the last is missing."""

_BEYOND_NOISE = 3.0  # standard errors; chance alone exceeds them once in 70 cases

_SMALL = 0.02  # of the largest part: what is not written

Part = Mapping[str, float | None]
"""The ``value`` of a part and its ``standard_error``, which is None where it is not known."""


def part_names(score_name: str | None) -> dict[str, str]:
    """Return the names of the parts in words; the last is ``score_name``, or missing if None."""
    *first, last = PARTS
    names = {part: part.replace("_", " ") for part in first}
    return names if score_name is None else names | {last: score_name}


def beyond_noise(parts: Mapping[str, Part]) -> dict[str, float]:
    """Return the values of those ``parts`` that are not noise, the largest first."""
    values = {
        name: float(part["value"] or 0.0)
        for name, part in parts.items()
        if abs(part["value"] or 0.0) > _BEYOND_NOISE * (part["standard_error"] or 0.0)
    }
    return dict(sorted(values.items(), key=lambda item: -abs(item[1])))


def in_words(budget: Mapping[str, Any], metric: str | None) -> str:
    """Return one sentence on the ``budget`` of a run, with its parts in one ``metric``."""
    names = budget["parts"]
    if hybrid := budget.get("diverged"):
        return f"cause: the {names[hybrid]} (with the exact score, the chains diverge)"
    found = {} if metric is None else budget["metrics"][metric]
    if found.get("first") is None:
        return "error budget: all within noise"
    parts = beyond_noise(found["parts"])
    least = _SMALL * max(map(abs, parts.values()))
    shown = {part: value for part, value in parts.items() if abs(value) >= least}
    total = sum(part["value"] for part in found["parts"].values())
    split = ", ".join(f"{names[part]} {value:+.2g}" for part, value in shown.items())
    rest = "" if len(shown) == len(found["parts"]) else ", the rest is small"
    return (
        f"cause: the {names[found['first']]} ({str(metric).replace('_', ' ')} {total:+.2g} ="
        f" {split}{rest})"
    )
