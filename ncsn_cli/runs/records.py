"""Values in a run's records: flattened, without the user's home folder, read within limits."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ncsn_cli.runs.files import check_plain, read_regular

_MOST_YAML = 1 << 20  # bytes per file
_DEEPEST = 64
_LONG_NUMBER = re.compile(r"[-+.0-9][-+.:_0-9a-zA-Z]{400,}")  # YAML's 1:59:59 takes quadratic time


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``values`` as a flat dictionary, with nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def without_home(text: str, name: str = "~") -> str:
    """Return ``text`` with ``name`` for the user's home folder, so that files do not reveal it."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", name, text) if home else text


def from_here(text: str) -> str:
    """Return ``text`` with the paths in it as seen from the current folder, if they are near it.

    Paths that need more than two ``..`` stay as they are, with ~ for the user's home folder.
    """
    with suppress(OSError):  # the current folder was removed
        folder = os.getcwd()
        for here in (".", "..", "../.."):
            if folder == os.path.dirname(folder):  # the root
                break
            path, inside = rf"(?<![\w.~/-]){re.escape(folder)}", "" if here == "." else f"{here}/"
            text = re.sub(rf"{path}/(?=[^\s/])", inside, text)
            text = re.sub(rf"{path}/?(?![\w/-]|\.\w)", here, text)
            folder = os.path.dirname(folder)
    return without_home(text)


def read_yaml(path: Path, none: Any) -> Any:  # noqa: ANN401
    """Return the values in a run's YAML file, which have the type of ``none``.

    If there is no file, return ``none``.

    Raises:
        ValueError: If the file holds a value of another type, an anchor or alias (with which a
            short text stands for a long one), or anything that ``check_plain`` refuses.
    """
    try:
        text = read_regular(path, _MOST_YAML).decode()
    except FileNotFoundError:
        return none
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{path.name}: nested too deeply, or it has an anchor or alias")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError(f"{path.name}: a number is too long")
    values = yaml.load(text, Loader=loader)
    check_plain(values)
    if values is not None and not isinstance(values, type(none)):
        raise ValueError(f"{path.name}: not a {type(none).__name__}")
    return values or none
