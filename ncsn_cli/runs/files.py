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

_MOST_BYTES = 1 << 24  # max size of a JSON file
_MOST_BYTES_OF_ARRAYS = 1 << 28  # max size of an npz file
_MOST_LISTS = 100_000  # max lists and objects in a JSON text; commas: max five times as many
_DEEPEST = 64  # max depth of nested lists and objects
_LARGEST = 1e100  # max absolute value of a number; its square is finite


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, durably: after a crash the file is the old one or the new one.

    The steps are: write a temporary file in the same folder, fsync, replace, fsync the folder.
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
            error.filename = str(path)  # instead of the temporary file
        raise
    _sync(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that an interrupted ``write_atomic`` left in ``folder``."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}\.tmp", path.name):  # as mkstemp names them
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, durably."""
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
    mask = os.umask(0)  # the mask can be read only by setting it
    os.umask(mask)
    return mask


_UMASK = _umask()


def to_json(value: Any) -> bytes:  # noqa: ANN401
    """Return ``value`` as indented JSON.

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
    """Open a file for reading, without waiting for another process to write to it.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If the file is larger than ``most`` bytes, or not a regular file but something
            such as a pipe or a device.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= most:
        return file
    file.close()
    if stat.S_ISREG(status.st_mode):
        raise ValueError(f"larger than the limit of {most} bytes")
    raise ValueError("not a regular file")


def read_regular(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of a file; raise the same errors as ``open_regular``."""
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # some files in /proc report a size of 0
        raise ValueError(f"larger than the limit of {most} bytes")
    return data


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401
    """Return plain values from JSON in which no key of an object appears twice.

    Raises:
        ValueError: If ``text`` is not such JSON, holds very many values, or ``check_plain``
            refuses it.
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
        raise ValueError("a key appears twice")
    return values


def check_plain(value: object) -> None:
    """Check that a value is one that this package could have written as JSON.

    Raises:
        ValueError: If nesting is deeper than 64, a number is not finite or above 1e100, text is
            not valid Unicode, or a type is not one of JSON's.
    """
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.keys()
                below += part.values()
                if not all(isinstance(key, str) for key in part):
                    raise ValueError("a key is not text")
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
    """Return the JSON object in a file; an empty one if there is no file or no valid object."""
    try:
        values = parse_json(read_regular(path))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_rows(path: Path, *headers: Sequence[str]) -> list[dict[str, float | None]]:
    """Return the rows of a CSV file of numbers under one of ``headers``; an empty cell is None.

    Raises:
        BadCheckpointError: If the file is not such a file, or cannot be read.
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
    """Return the arrays, by name, of a file with the bytes that ``to_npz`` returns.

    Raises:
        BadCheckpointError: If the file is not such a file, or cannot be read.
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
    except Exception as error:  # zipfile and numpy raise many kinds of errors
        raise BadCheckpointError(f"{path}: damaged ({error})") from None
    return arrays


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the bytes of a file from which ``numpy.load`` reads the arrays by name."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of the file ``name`` in ``folder``.

    Raises:
        OutsideFolderError: If the path leads out of the folder or through a link.
    """
    path, parent = folder / name, Path(name).parent
    if parent.is_absolute() or path.parent.resolve() != folder.resolve() / parent:
        raise OutsideFolderError(f"{path}: this would be written outside {folder}")
    return path


def refuse_links(folder: Path) -> None:
    """Check that no link in ``folder`` leads out of it, so that all files are written inside.

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
