"""Lines in the terminal and in logs: above progress bars, with paths as the user would type them.

``configs/hydra/default.yaml`` names both classes.
"""

from __future__ import annotations

import logging

from tqdm import tqdm

from ncsn_cli.runs.records import from_here


class AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler that clears the progress bars while it writes.

    It leaves out what Hydra's launchers tell about a sweep, which has lines of its own;
    ``hydra.verbose=true`` shows these lines, too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether ``record`` is shown."""
        is_launchers = "launcher" in record.name and record.levelno <= logging.INFO
        if is_launchers and logging.getLogger().level > logging.DEBUG:
            return False
        return bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class FromHere(logging.Formatter):
    """A formatter that shows paths as seen from the current folder, and the home folder as ~."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        return from_here(super().format(record))
