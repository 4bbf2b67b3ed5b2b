"""The line on a key that the configuration lacks: which option has this key, or a key near it.

Nothing here imports torch.
"""

from __future__ import annotations

import traceback
from typing import Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ncsn_cli.commands.mistyped import with_plus
from ncsn_cli.commands.names import for_shell
from ncsn_cli.commands.suggestions import (
    SEVERAL,
    known_keys,
    known_options,
    nearest,
    nearest_key,
    option_settings,
    options_with,
    or_words,
)

_OTHER_WORDS = {"schedule.sigmas": "schedule.levels"}
"""Keys that no option has, with the key that a user means."""

_NO_PARTS = ("hydra", "paths")
"""Groups that say where a job writes, not what it is made of."""

_ALMOST_EQUAL = 0.75
"""How near a key has to be to come before an option that has the very key that was typed."""


def unknown_key(name: str, key: str, error: BaseException) -> str:
    """Return a line on ``key``, which the configuration lacks that Hydra composed.

    ``error`` is what Hydra raised for it.
    """
    cause = error.__cause__
    known, here = known_keys(name), getattr(cause, "parent_node", None)
    missing = getattr(cause, "full_key", None) or key
    group = here._get_full_key(None) if isinstance(here, DictConfig) else ""
    there = [f"{group}.{each!s}".lstrip(".") for each in here or ()] if group else []
    choices, typed = _chosen(error)
    value = typed.get(key, "")
    top = key.partition(".")[0]
    if line := _inside_a_value(key, {top: _settings(top, choices.get(top))}):
        return line
    if "." in group and top not in (*SEVERAL, *_NO_PARTS):  # a dictionary that an option holds
        return f"{key}: {group} takes keys of your own with a +: {for_shell([f'+{key}={value}'])}"
    is_exact = typed.get("score") in ("exact", "empirical") and "checkpoint" not in typed
    option = None if top in _NO_PARTS else choices.get(top)
    root = cast("DictConfig", here._get_root()) if isinstance(here, DictConfig) else None
    if root is not None and (line := _of_one_not_chosen(name, key, root)):
        return line
    is_open = (isinstance(option, str) or is_exact) and not _is_almost(key, there)
    if is_open and (line := _of_another_option(key, value, option)):
        return line
    if not group and missing in known:  # the whole group is to come from a checkpoint
        missing = key
    elif isinstance(here, DictConfig):  # it may hold the user's own keys, and it has no others
        there = there or [*map(str, here)]
        known = there + [each for each in known if not group or not each.startswith(f"{group}.")]
    near = None if key in known else nearest_key(key, known) or nearest_key(missing, known)
    if near is not None and not key.startswith(f"{near}."):
        is_here = root is not None and _holds(root, near)
        shown = near if is_here else with_plus(name, near, typed)
        return f"{key}: there is no such key here; did you mean {shown}?"
    in_checkpoint = with_plus(name, key, typed)
    advice = "" if in_checkpoint == key else f"; {in_checkpoint}=... changes a checkpoint's value"
    return f"{key}: there is no such key here, see --cfg job{advice}"


def no_entry(error: BaseException) -> str | None:
    """Return a line on a key such as ``dataset.weights.x``, no entry of a list, if it is at fault.

    The message of ``error`` names no key, but the frame that merged the override knows it.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_apply_overrides_to_config":
            override: Override = frame.f_locals["override"]
            key = override.key_or_group
            place, _, last = key.rpartition(".")
            line = _inside_a_value(key, OmegaConf.to_container(frame.f_locals["cfg"]))
            if line is None and override.is_delete() and last.isdecimal():
                return f"{key}: an entry of a list is not removed alone; {place}=[...] sets all"
            return line
    return None


def _inside_a_value(key: str, held: Any) -> str | None:  # noqa: ANN401
    """Return the line if ``key`` is inside one value, or is no entry of a list.

    ``held`` is the configuration, or a part of it, as plain data.
    """
    parts = key.split(".")
    for num, part in enumerate(parts):
        place = ".".join(parts[:num])
        if isinstance(held, dict):
            if part not in held:
                return None
            held = held[part]
        elif isinstance(held, list):
            if not part.isdecimal() or int(part) >= len(held):
                first = f"{place}.0 is its first entry, and {place}=[...] sets all"
                return f"{key}: {place} is a list; {first}"
            held = held[int(part)]
        elif str(held).startswith("${"):  # it may stand for anything
            return None
        else:
            return f"{key}: {place} is one value and has no keys; {place}=... sets it"
    return None


def _of_another_option(key: str, value: str, option: str | None) -> str | None:
    """Return the line if other options of the group have ``key``; otherwise None.

    ``option`` is the one that is chosen, if any is.
    """
    meant = _OTHER_WORDS.get(key, key)
    group, _, last = meant.partition(".")
    if not (others := options_with(group, last.partition(".")[0])):
        return None
    plus = "+" if "." in last else ""
    words = for_shell([f"{group}={others[0]}", f"{plus}{meant}={value}"])
    why = f"{group}={option} has no such key" if option else f"no {group} is chosen"
    asked = "this key" if meant == key else f"a key {last}"
    return f"{key}: {why}; {group}={or_words(others)} has {asked} ({words})"


def _of_one_not_chosen(name: str, key: str, config: DictConfig) -> str | None:
    """Return the line if ``key`` is in an option such as ``metric.mmd`` that ``config`` lacks."""
    group, _, rest = key.partition(".")
    if (name, group) == ("train", "metric"):
        return f"{key}: ncsn-train has no samples to measure; use metric with ncsn-sample"
    option, chosen = rest.partition(".")[0], [*map(str, config.get(group) or ())]
    if group not in SEVERAL or option in chosen or option not in known_options(group):
        return None
    words = for_shell([f"{group}=[{','.join([*chosen, option])}]"])
    return f"{key}: {group} {option} is not chosen; {words} adds it"


def _is_almost(key: str, there: list[str]) -> bool:
    """Return whether a key in the chosen option is nearly equal to ``key``."""
    last, beside = key.rpartition(".")[2], [each.rpartition(".")[2] for each in there]
    return key not in _OTHER_WORDS and nearest(last, beside, _ALMOST_EQUAL) is not None


def _settings(group: str, option: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the values of this package's ``option`` of ``group``; {} if there is none."""
    if isinstance(option, str) and option in known_options(group):
        return option_settings(group, option)
    return {}


def _holds(config: DictConfig, key: str) -> bool:
    """Return whether ``config`` has ``key``."""
    group, _, last = key.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    return isinstance(node, DictConfig) and last in node


def _chosen(error: BaseException) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the option of each group, and the value of each key that was typed.

    Hydra's message has neither, but the frame that composed the configuration has both.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if (
            frame.f_code.co_name == "_load_configuration_impl"
            and "defaults_list" in frame.f_locals
        ):
            given: list[Override] = frame.f_locals["parsed_overrides"]
            typed = {o.key_or_group: str(o.input_line).partition("=")[2] for o in given}
            return dict(frame.f_locals["defaults_list"].overrides.known_choices), typed
    return {}, {}
