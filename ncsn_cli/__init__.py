"""Noise conditional score networks on mixtures whose score is known.

The names in ``__all__`` are for notebooks and scripts. They are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncsn_cli.commands.arrays import Mixture
    from ncsn_cli.commands.notebook import Run, load_run, measure, sample, train

__version__ = "0.1.0"

__all__ = ["Mixture", "Run", "__version__", "load_run", "measure", "sample", "train"]


def __getattr__(name: str) -> object:
    """Import and return a name of ``__all__``."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "arrays" if name == "Mixture" else "notebook"
    return getattr(importlib.import_module(f"ncsn_cli.commands.{module}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
