"""Records of a run as values: flat, without the user's home folder, read within limits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from ncsn_cli.runs.files import check_plain, read_regular

_MOST_YAML = 1 << 20  # bytes of a file
_DEEPEST = 64
_LONG_NUMBER = re.compile(r"[-+.0-9][-+.:_0-9a-zA-Z]{400,}")  # YAML's 1:59:59 is quadratic


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def without_home(text: str, name: str = "~") -> str:
    """``text`` with ``name`` for the user's home folder: what is written tells nobody of it."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", name, text) if home else text


def read_yaml(path: Path, none: Any) -> Any:  # noqa: ANN401
    """The values in a file of a run, of the type of ``none``, which stands for no file.

    Aliases are refused, by which a short text is a long one, and what ``check_plain`` refuses.
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
            raise ValueError(f"{path.name}: nested too deeply, or with an alias")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise ValueError(f"{path.name}: a number is too long")
    values = yaml.load(text, Loader=loader)
    check_plain(values)
    if values is not None and not isinstance(values, type(none)):
        raise ValueError(f"{path.name}: no {type(none).__name__}")
    return values or none
