"""Strict rules for the values that constructors take, and streams of random numbers."""

from __future__ import annotations

import hashlib
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Pydantic's rules for every constructor; by default it accepts unknown keys, nan and True."""

Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of steps or the size of an array.

The limit keeps sizes within torch's 64 bits; a run of more steps would never end.
"""

NUM_DRAWS = 200_000
"""Number of exact draws for a value without a closed form; its standard error is reported."""

Modes = Annotated[int, Field(gt=0, le=10_000)]
"""A number of modes, limited because each mode is written out."""


def random_stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for ``seed`` and ``name``; different names give independent streams."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))
