"""What a run's folder was before the command, to be restored if the command is refused.

Nothing here imports torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path


def last_written(path: Path) -> int | None:
    """Return when a file was last written, in ns; None if there is no file."""
    return path.stat().st_mtime_ns if path.exists() else None


class FolderBefore:
    """The folder of a single run and its parents, before the command changes them.

    Args:
        folder: The folder, which need not exist.
        job: The job's name, after which its log is named.

    ``is_held`` is to be set once this process holds the folder. ``current`` is set while a single
    command runs.
    """

    current: FolderBefore | None = None

    def __init__(self, folder: Path, job: str) -> None:
        self.is_held = False
        self._folder = folder = Path(os.path.abspath(folder))
        places = (folder / ".hydra", folder, *folder.parents)
        self._missing = [place for place in places if not place.exists()]
        # All that is written before a run starts.
        records = [f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")]
        written = [
            folder / name for name in (f"{job}.log", "status.json", "config.yaml", *records)
        ]
        self._new = [path for path in written if not os.path.lexists(path)]
        self._old = {path: (path.read_bytes(), path.stat()) for path in written if path.is_file()}
        self._run = last_written(folder / "run.json")

    def restore(self) -> None:
        """Remove what was created since and write again what was changed, unless a run started.

        A folder that this process does not hold may be another's: only empty folders are removed.
        """
        if last_written(self._folder / "run.json") != self._run:
            return
        if self.is_held:
            _close_logs(self._folder)
            if self._folder in self._missing:
                shutil.rmtree(self._folder, ignore_errors=True)
            for path in self._new:
                with suppress(OSError):
                    path.unlink()
            for path, (data, status) in self._old.items():
                if last_written(path) != status.st_mtime_ns:
                    path.write_bytes(data)
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for place in self._missing:
            with suppress(OSError):  # it was never made, or another command has written there
                place.rmdir()


def _close_logs(folder: Path) -> None:
    """Close the log files in ``folder``, so that nothing is written to them later."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if (
            isinstance(handler, logging.FileHandler)
            and folder in Path(handler.baseFilename).parents
        ):
            root.removeHandler(handler)
            handler.close()
