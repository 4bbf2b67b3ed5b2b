"""Progress bars, for terminals and notebooks."""

from __future__ import annotations

from tqdm.asyncio import tqdm as bar_of_terminals
from tqdm.auto import tqdm as tqdm

HIDDEN: bool | None = None if tqdm is bar_of_terminals else False
"""What to pass as ``disable``. A bar is hidden where the stream is no terminal, such as a file.
(A notebook's stream is no terminal either, but shows bars.)"""
