"""Progress bars, for terminals and notebooks."""

from __future__ import annotations

import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without widgets, whose bar is text
    from tqdm.auto import tqdm as tqdm

HIDDEN: bool | None = False if "ipykernel" in sys.modules else None
"""What to pass as ``disable``. A bar is hidden where the stream is no terminal, such as a file.
(A notebook's stream is no terminal either, but shows bars.)"""
