"""Values as the records of a run hold them: flat, and without the user's home folder."""

from __future__ import annotations

import os
import re
from typing import Any


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
