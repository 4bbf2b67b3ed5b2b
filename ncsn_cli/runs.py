"""The run folder: what a run writes, each file whole or not at all."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import platform
import re
import signal
import stat
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncsn_cli.errors import (
    BadCheckpointError,
    BusyFolderError,
    DivergedError,
    OutputExistsError,
    OutsideFolderError,
)

_LOCK = ".lock"
_UNFINISHED = ".tmp"

_MOST_BYTES = 1 << 22  # of a file of JSON
_MOST_BYTES_OF_ARRAYS = 1 << 28
_MOST_LISTS = 100_000
_DEEPEST = 64
_LARGEST = 1e100  # its square is finite


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, durably: after a crash the file is the old one or the new one.

    A temporary file in the same folder, fsync, replace, fsync of the folder.
    """
    _make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:200]}.", suffix=_UNFINISHED
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)  # mkstemp makes it 0600
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # not the temporary one
        raise
    _sync(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder with those above it, durably."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        _sync(each.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


_UMASK = _umask()


def to_json(value: Any) -> bytes:  # noqa: ANN401
    """Indented JSON; a number that is not finite is an error, never a silent NaN."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def open_regular(path: Path, most: int) -> io.BufferedReader:
    """A file opened for reading, without waiting for whoever might write to it.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no regular file, as a pipe or a device, or larger than ``most`` bytes.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= most:
        return file
    file.close()
    if stat.S_ISREG(status.st_mode):
        raise ValueError(f"larger than the {most} bytes that are read")
    raise ValueError("no regular file")


def read_regular(path: Path, most: int = _MOST_BYTES) -> bytes:
    """The content of a file; errors as of ``open_regular``."""
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # some of /proc say that they are empty
        raise ValueError(f"larger than the {most} bytes that are read")
    return data


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401
    """Plain values from JSON that says each key once.

    Raises:
        ValueError: If it is none, holds very many values, or ``check_plain`` refuses it.
    """
    text = text if isinstance(text, str) else text.decode()
    if text.count("[") + text.count("{") > _MOST_LISTS or text.count(",") > 5 * _MOST_LISTS:
        raise ValueError("too many values")
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_plain(value)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice")
    return values


def check_plain(value: object) -> None:
    """Refuse, by a ``ValueError``, what JSON of ours never holds.

    That is nesting deeper than 64, a number that is not finite or above 1e100, text that is no
    Unicode, and types other than those of JSON.
    """
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.keys()
                below += part.values()
                if not all(isinstance(key, str) for key in part):
                    raise ValueError("a key is no text")
            elif isinstance(part, list):
                below += part
            elif isinstance(part, str):
                part.encode()
            elif isinstance(part, int | float):
                if not abs(part) <= _LARGEST:
                    raise ValueError("a number is not finite or too large")
            elif part is not None:
                raise ValueError(f"a value is a {type(part).__name__}")
        if not (level := below):
            return
    raise ValueError("nested too deeply")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if it is not there or is none."""
    try:
        values = parse_json(read_regular(path))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, float | None]]:
    """The rows of a CSV file of numbers with these columns, of which cells may be empty.

    Raises:
        BadCheckpointError: If it is none.
    """
    try:
        lines = io.StringIO(read_regular(path, most=1 << 26).decode(), newline="")
        reader = csv.reader(lines, strict=True)
        if next(reader, None) != list(columns):
            raise ValueError(f"its columns are not {','.join(columns)}")
        rows = [
            {name: float(text) if text else None for name, text in zip(columns, row, strict=True)}
            for row in reader
        ]
    except (OSError, ValueError, csv.Error) as error:
        raise BadCheckpointError(f"{path}: damaged ({error})") from None
    if not all(value is None or math.isfinite(value) for row in rows for value in row.values()):
        raise BadCheckpointError(f"{path}: damaged (a number is not finite)")
    return rows


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that ``to_npz`` wrote.

    Raises:
        BadCheckpointError: If the file is none of these.
    """
    arrays = {}
    try:
        with open_regular(path, _MOST_BYTES_OF_ARRAYS) as file, zipfile.ZipFile(file) as members:
            entries = members.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
            if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
                raise ValueError("its members overlap")
            for entry in entries:
                data = io.BytesIO(members.read(entry))
                array = np.lib.format.read_array(data, allow_pickle=False)
                arrays[entry.filename.removesuffix(".npy")] = array
    except Exception as error:  # zipfile and numpy raise many kinds
        raise BadCheckpointError(f"{path}: damaged ({error})") from None
    return arrays


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays by name, as ``numpy.load`` reads them."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def without_home(text: str) -> str:
    """``text`` with ~ for the user's home folder, so that what is written tells nobody of it."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home else text


_held: dict[Path, int] = {}  # folders that are this process's, and their lock's descriptor


def hold(folder: Path) -> None:
    """Make ``folder`` and keep other processes out of it until ``release``, or this one's end.

    Raises:
        BusyFolderError: If another process holds it.
    """
    folder = folder.absolute()
    if folder in _held:
        return
    _make_folder(folder)
    lock = folder / _LOCK
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "another one"
            os.close(descriptor)
            raise BusyFolderError(
                f"{folder}: process {holder} works in this folder; wait for it, or choose another"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                break
        os.close(descriptor)  # whoever held it has just removed it
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    _held[folder] = descriptor


def release_all() -> None:
    """Let other processes into whatever is held."""
    for folder in list(_held):
        release(folder)


def release(folder: Path) -> None:
    """Let other processes into a folder that is held."""
    descriptor = _held.pop(folder.absolute(), None)
    if descriptor is not None:
        with suppress(OSError):  # one that stays is no lock
            (folder / _LOCK).unlink()
        os.close(descriptor)


def inside(folder: Path, name: str) -> Path:
    """The path of a file of ``folder``.

    Raises:
        OutsideFolderError: If it would not lie there, or behind a link.
    """
    path, parent = folder / name, Path(name).parent
    if parent.is_absolute() or path.parent.resolve() != folder.resolve() / parent:
        raise OutsideFolderError(f"{path}: this would be written outside {folder}")
    return path


def refuse_links(folder: Path) -> None:
    """Refuse an existing folder from which links lead out: what is written there must stay there.

    Raises:
        OutsideFolderError: If there is such a link.
    """
    top = folder.resolve()
    for here, folders, files in os.walk(top):
        for path in (Path(here, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(top):
                raise OutsideFolderError(f"{path}: this link leads out of the folder; remove it")


class RunFolder:
    """One run's folder, as a context: ``status.json`` and ``run.json`` follow what happens in it.

    Args:
        path: The folder.
        config: The effective configuration, as YAML.
        command: The command that repeats the run.
        facts: What else ``run.json`` records (device, seed, ...).
        again: Whether the folder may hold this run already, begun before.

    ``record`` is what ``run.json`` holds.
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
        """Write the configuration and say that the run has begun.

        Raises:
            BusyFolderError: If another process works in the folder.
            OutputExistsError: If the folder holds a run already.
        """
        hold(self.path)
        if not self._again:
            refuse_run(self.path)
        for left in self.path.rglob(f".*{_UNFINISHED}"):  # by a process that died
            left.unlink(missing_ok=True)
        self.write("config.yaml", self._config.encode())
        self.write("run.json", to_json(self.record))
        self.set_status("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say how the run ended."""
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
        """Write one file of the run; returns its path."""
        path = inside(self.path, name)
        write_atomic(path, data)
        return path

    def set_status(self, state: str, error: str | None = None) -> None:
        """Write ``status.json``."""
        error = None if error is None else without_home(error)
        self.write("status.json", to_json({"state": state, "step": self.step, "error": error}))


def refuse_run(folder: Path) -> None:
    """Refuse a folder in which a run began before.

    Raises:
        OutputExistsError: If there is one.
    """
    if (folder / "run.json").exists():
        raise OutputExistsError(f"{folder}: this folder holds a run; choose another one")


@contextmanager
def signals_as_requests() -> Iterator[list[int]]:
    """Collect signals that ask to stop in a list, to be looked at between steps.

    The second signal of a kind acts as it would have without this, so Ctrl-C twice ends at once.
    What submitit lets pass is let pass here: it asks by another signal.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may set handlers
        return
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {n: h for n, h in before.items() if getattr(h, "__name__", "") != "bypass"}

    def request(number: int, frame: object) -> None:
        requests.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_to_scheduler(number: int) -> None:
    """Give a signal to submitit, if it runs this job: it will then queue the job again."""
    handler = signal.getsignal(number)
    if callable(handler) and getattr(handler, "__module__", "").startswith("submitit."):
        handler(number, None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
