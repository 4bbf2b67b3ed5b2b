"""The parts of the error of samples: their names, their noise, and what they are in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARTS = ("smallest_level", "steps", "start", "network")
"""The parts in their order; see ``sampling.budget``. With the exact score the last is missing."""

FINITE_DATA = "finite data"
"""What the part of a network that memorises its training set is called."""

_BEYOND_NOISE = 3.0  # standard errors; chance alone exceeds them once in 70 cases

_SMALL = 0.02  # of the largest part: what is not written

Part = Mapping[str, Any]
"""The ``value`` of a part and its ``standard_error``, which is None where it is not known."""


def part_names(score_name: str | None) -> dict[str, str]:
    """Return the names of the parts in words; the last is ``score_name``, or missing if None."""
    *first, last = PARTS
    names = {part: part.replace("_", " ") for part in first}
    return names if score_name is None else names | {last: score_name}


def beyond_noise(parts: Mapping[str, Part]) -> dict[str, float]:
    """Return the values of those ``parts`` that are not noise, the largest first."""
    values = {
        name: float(part["value"])
        for name, part in parts.items()
        if abs(part["value"]) > _BEYOND_NOISE * (part["standard_error"] or 0.0)
    }
    return dict(sorted(values.items(), key=lambda item: -abs(item[1])))


def in_words(budget: Mapping[str, Any], metric: str | None) -> str:
    """Return one sentence on the ``budget`` of a run, with its parts in one ``metric``.

    The parts in nats follow, if all are known.
    """
    names = budget["parts"]
    if hybrid := budget.get("diverged"):
        return f"cause: the {names[hybrid]} (with the exact score, the chains diverge)"
    found, nats = {} if metric is None else budget["metrics"][metric], ""
    if (known := budget.get("nats")) and known["value"] is not None:
        values = {part: each["value"] for part, each in known["parts"].items()}
        nats = f"; in nats {_as_sum(values, names)}"
    total = sum(part["value"] for part in found.get("parts", {}).values())
    if found.get("first") is None:
        shows = bool(found) and found["exact_draws"] + total > found["visible_above"]
        what = "no part alone is beyond its noise" if shows else "all within noise"
        return f"error budget: {what}{nats}"
    split = _as_sum(beyond_noise(found["parts"]), names, total)
    name = names[found["first"]]
    first = name if name == FINITE_DATA else f"the {name}"
    return f"cause: {first} ({str(metric).replace('_', ' ')} {split}{nats})"


def _as_sum(
    values: Mapping[str, float], names: Mapping[str, str], total: float | None = None
) -> str:
    """Return ``values`` as a sum, the largest first, without those that are small.

    ``names`` are the names of all parts. ``total`` is the sum of all, if ``values`` are not all.
    """
    least = _SMALL * max(map(abs, values.values()))
    shown = {part: value for part, value in values.items() if abs(value) >= least}
    parts = sorted(shown.items(), key=lambda item: -abs(item[1]))
    text = ", ".join(f"{names[part]} {value:+.2g}" for part, value in parts)
    rest = "" if len(shown) == len(names) else ", the rest is small"
    return f"{sum(values.values()) if total is None else total:+.2g} = {text}{rest}"
