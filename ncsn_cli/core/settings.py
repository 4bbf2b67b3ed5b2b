"""What constructors share: strict rules for their values, and streams of random numbers."""

from __future__ import annotations

import hashlib
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Pydantic's rules for every constructor; by default it accepts unknown keys, nan and True."""

Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of steps or the size of an array: torch counts in 64 bits, and more never ends."""

NUM_DRAWS = 200_000
"""Exact draws behind a number without a closed form, whose error it reports."""

Modes = Annotated[int, Field(gt=0, le=10_000)]
"""A number of modes, each of which is written out."""


def random_stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for ``seed`` and ``name``; those of different names are independent."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))
