"""Files: written whole or not at all, read within limits, and never outside their folder."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncsn_cli.core.errors import BadCheckpointError, DivergedError, OutsideFolderError

_MOST_BYTES = 1 << 24  # of a file of JSON
_MOST_BYTES_OF_ARRAYS = 1 << 28
_MOST_LISTS = 100_000
_DEEPEST = 64
_LARGEST = 1e100  # its square is finite


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, durably: after a crash the file is the old one or the new one.

    A temporary file in the same folder, fsync, replace, fsync of the folder.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:200]}.", suffix=".tmp"
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


def remove_unfinished(folder: Path) -> None:
    """Remove what ``write_atomic`` left in a folder, no longer at work there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}\.tmp", path.name):  # as mkstemp names them
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
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
    """Indented JSON.

    Raises:
        DivergedError: If a number is not finite.
    """
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except ValueError:
        raise DivergedError(
            "a number to be written is not finite; take less extreme values"
        ) from None


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


def read_rows(path: Path, *headers: Sequence[str]) -> list[dict[str, float | None]]:
    """The rows of a CSV file of numbers under one of these headers; cells may be empty.

    Raises:
        BadCheckpointError: If it is none.
    """
    try:
        lines = io.StringIO(read_regular(path, most=1 << 26).decode(), newline="")
        reader = csv.reader(lines, strict=True)
        columns = next(reader, [])
        if columns not in map(list, headers):
            raise ValueError(f"its columns are not {','.join(headers[0])}")
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
    top = Path(os.path.realpath(folder))
    for here, folders, files in os.walk(top):
        for path in (Path(here, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(top):
                raise OutsideFolderError(
                    f"{path}: this link leads out of the folder; choose another, or remove it"
                )
