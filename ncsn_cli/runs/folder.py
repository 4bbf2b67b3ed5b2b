"""The run's folder: it belongs to one process, and its files say how the run progresses."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ncsn_cli.core.errors import BusyFolderError, DivergedError, OutputExistsError
from ncsn_cli.runs.files import (
    make_folder,
    path_inside,
    read_regular,
    remove_unfinished,
    to_json,
    write_atomic,
)
from ncsn_cli.runs.records import without_home

CHECKPOINTS = "checkpoints/step_*.safetensors"
"""The files from which a run of ncsn-train resumes."""

STOPPED_CHAINS = "sampling.safetensors"
"""The file from which a run of ncsn-sample resumes."""

SAMPLES = "samples.npz"
"""The samples of a run of ncsn-sample."""

_LOCK = ".lock"

_held: dict[Path, FileLock] = {}  # folders that this process holds


def hold(folder: Path) -> None:
    """Make ``folder`` and keep other processes out until ``release`` or the end of this process.

    Raises:
        BusyFolderError: If another process holds the folder.
    """
    folder = Path(os.path.abspath(folder))  # Hydra's path has no .. either
    if folder in _held:
        return
    make_folder(folder)
    # Wait a moment: a holder that is just ending removes the file of its lock.
    lock = FileLock(folder / _LOCK, timeout=0.2, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = "(number unknown)"
        with suppress(OSError, ValueError):
            holder = read_regular(folder / _LOCK, most=20).decode() or holder
        raise BusyFolderError(
            f"{folder}: process {holder} works in this folder; wait for it, or choose another"
        ) from None
    (folder / _LOCK).write_text(str(os.getpid()))
    _held[folder] = lock


def is_held(folder: Path) -> bool:
    """Return whether a process holds ``folder``."""
    try:
        with open(folder / _LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
    except BlockingIOError:
        return True
    except OSError:  # there is no lock
        return False
    return False


def release_all() -> None:
    """Let other processes into every folder that this process holds."""
    for folder in list(_held):
        release(folder)


def release(folder: Path) -> None:
    """Let other processes into ``folder``, if this process holds it."""
    lock = _held.pop(Path(os.path.abspath(folder)), None)
    if lock is not None:
        with suppress(OSError):  # a lock file left behind is harmless: releasing unlocks it
            (folder / _LOCK).unlink()
        lock.release()


class RunFolder:
    """One run's folder, as a context: ``status.json`` and ``run.json`` say how the run progresses.

    Args:
        path: The folder.
        config: The effective configuration, as YAML.
        command: The command that repeats the run.
        facts: Further entries of ``run.json`` (device, seed, ...).
        again: Whether the folder may already hold this run, started earlier.

    ``record`` is the content of ``run.json``.
    """

    def __init__(
        self, path: Path, config: str, command: str, facts: dict[str, Any], again: bool = False
    ) -> None:
        self.path = path
        self._again = again
        self.step = 0
        self._config = config
        self._started = time.monotonic()
        self.record: dict[str, Any] = {
            "command": command,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("ncsn_cli", "torch", "numpy", "hydra-core")},
            },
            "platform": platform.platform(),
            **facts,
            "start": _now(),
            "end": None,
            "seconds": None,
        }

    def __enter__(self) -> RunFolder:
        """Lock the folder, write the configuration and record that the run has started.

        Raises:
            BusyFolderError: If another process is working in the folder.
            OutputExistsError: If the folder already holds a run.
        """
        hold(self.path)
        if not self._again:
            refuse_run(self.path)
        for folder in ("", "checkpoints", "plots", "animations", ".hydra"):
            remove_unfinished(self.path / folder)  # left by a process that died
        self.write("config.yaml", self._config.encode())
        self.set_status("running")  # before run.json, so that every run has a status
        self.write("run.json", to_json(self.record))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record how the run ended, and release the folder."""
        try:
            self._end(error)
        finally:
            release(self.path)

    def _end(self, error: BaseException | None) -> None:
        self.record |= {"end": _now(), "seconds": round(time.monotonic() - self._started, 3)}
        self.write("run.json", to_json(self.record))
        if error is None:
            self.set_status("done")
        elif isinstance(error, DivergedError):
            self.set_status("diverged", str(error))
        elif isinstance(error, KeyboardInterrupt):
            self.set_status("interrupted", str(error) or "stopped from the keyboard")
        elif isinstance(error, SystemExit):
            self.set_status("interrupted", "stopped by the scheduler, to be started again")
        else:
            self.set_status("failed", " ".join(str(error).split()) or type(error).__name__)

    def write(self, name: str, data: bytes) -> Path:
        """Write one file of the run, and return its path."""
        path = path_inside(self.path, name)
        write_atomic(path, data)
        return path

    def set_status(self, state: str, error: str | None = None) -> None:
        """Write ``status.json``."""
        error = None if error is None else without_home(error)
        self.write("status.json", to_json({"state": state, "step": self.step, "error": error}))


def refuse_run(folder: Path) -> None:
    """Check that no run has started in ``folder``.

    Raises:
        OutputExistsError: If the folder holds a run.
    """
    if (folder / "run.json").exists():
        raise OutputExistsError(f"{folder}: this folder holds a run; choose another one")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
