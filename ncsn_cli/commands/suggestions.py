"""The known name nearest to a mistyped one.

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

SEVERAL = ("metric", "plot", "animation")
"""Groups from which several options may be chosen; their keys are ``group.option.key``."""

_IN_TRAINING = {"loss", "model", "optimizer", "trainer"}
UNUSED = {
    "sample": _IN_TRAINING,
    "measure": _IN_TRAINING | {"animation", "init", "sampler", "schedule"},
}
"""Groups, by command, that it has for the sake of experiments."""


def nearest(name: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """Return the name in ``known`` that is spelled most like ``name``; None if none is near.

    ``least`` is difflib's ratio from which a name counts as near; equal names have ratio 1.
    """
    by_spelling = {each.lower(): each for each in known if each != name}
    found = difflib.get_close_matches(name.lower(), by_spelling, n=1, cutoff=least)
    return by_spelling[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question to put behind a message about ``name``; nothing if no name is near."""
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {near}?"


def nearest_key(typed: str, known: Sequence[str]) -> str | None:
    """Return the dotted key in ``known`` that ``typed`` may stand for; None if none is near.

    The first of these that exists: a key beside it in the same group; the key with the same last
    part, whatever its group; the nearest key in the nearest group, or in any if none was typed;
    the nearest group.
    """
    group, _, last = typed.replace("-", "_").replace("/", ".").rpartition(".")

    def inside(place: str) -> dict[str, str]:
        keys = (key.rpartition(".") for key in known)
        return {end: f"{start}{dot}{end}" for start, dot, end in keys if start == place}

    beside, ends = inside(group), {key.rpartition(".")[2]: key for key in reversed(known)}
    if (near := nearest(last, beside)) and group:
        return beside[near]
    if last in ends and typed not in known:
        return ends[last]
    if group:
        place = nearest(group, {key.rpartition(".")[0] for key in known} - {""})
        there = inside(place) if place is not None and not beside else {}
        near = last if last in there else nearest(last, there)
        return place if near is None and there else there.get(near or "")
    near = near or nearest(last, ends, least=0.75)  # the more names, the more are near by chance
    return None if near is None else beside.get(near, ends[near])


@functools.cache
def known_names(command: str) -> list[str]:
    """Return the keys without a dot that ``ncsn-command`` takes: its values and its groups."""
    from ncsn_cli.commands.cli import config_dir

    values = _read(config_dir() / f"{command}.yaml")
    groups = [next(iter(each)) for each in values.pop("defaults") if isinstance(each, dict)]
    return [*values, *(group for group in groups if group not in values)]


@functools.cache
def known_keys(command: str) -> list[str]:
    """Return the keys of ``ncsn-command``, and those that any option of its groups has.

    Those that are changed most come first.
    """
    from ncsn_cli.commands.cli import config_dir

    names = known_names(command)
    groups = sorted(
        names, key=lambda name: name != ("trainer" if command == "train" else "sampler")
    )
    unused = UNUSED.get(command, set())
    groups = [group for group in groups if group not in unused]
    keys = [*names, "hydra.run.dir", "hydra.sweep.dir"]
    for group in groups:
        for path in sorted(config_dir().glob(f"{group}/*.yaml")):
            if group in ("experiment", "hparams_search", "hydra"):
                continue
            place = f"{group}.{path.stem}" if group in SEVERAL else group
            keys += [
                f"{place}.{key}" for key in _read(path) if key not in ("defaults", "_target_")
            ]
    return list(dict.fromkeys(keys))


@functools.cache
def known_options(group: str) -> list[str]:
    """Return the names of the options that this package has in ``group``."""
    from ncsn_cli.commands.cli import config_dir

    return sorted(path.stem for path in config_dir().glob(f"{group}/*.yaml"))


def option_settings(group: str, option: str) -> dict[str, Any]:
    """Return the values that this package's ``option`` of ``group`` has in its own file."""
    from ncsn_cli.commands.cli import config_dir

    return _read(config_dir() / group / f"{option}.yaml")


@functools.cache
def options_with(group: str, key: str) -> list[str]:
    """Return the names of this package's options of ``group`` that have ``key``.

    The option that ``ncsn-train`` chooses by itself comes first. For a place inside of a group,
    such as ``metric.mmd``, there are none.
    """
    from ncsn_cli.commands.cli import config_dir

    defaults = _read(config_dir() / "train.yaml")["defaults"]
    found = [each for each in known_options(group) if key in _all_settings(group, each)]
    return sorted(found, key=lambda option: {group: option} not in defaults)


def _all_settings(group: str, option: str) -> dict[str, Any]:
    """Return the values of ``option``, with those of the option that it starts from."""
    values = option_settings(group, option)
    for base in values.pop("defaults", []):
        if base != "_self_":
            values = {**_all_settings(group, base), **values}
    return values


def or_words(names: Sequence[str]) -> str:
    """Return ``names`` in one phrase, joined by commas and *or*."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8")) or {}
