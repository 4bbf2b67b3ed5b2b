"""Checkpoints: tensors and JSON in one safetensors file, read as data, never as code.

One metadata key ``ncsn_cli`` holds the JSON; its ``sha256`` is over that JSON without the digest
and over every tensor's name, dtype, shape and bytes, in the order of their names.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from ncsn_cli.core.errors import BadCheckpointError, ConfigError, MissingInputError, one_line
from ncsn_cli.runs.files import open_regular, parse_json, write_atomic

_MOST_BYTES = 1 << 28  # hashed in two seconds
_MOST_BYTES_OF_HEADER = 1 << 22
_MOST_TENSORS = 20_000
_MOST_AXES = 8
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Entry = tuple[torch.dtype, list[int], int, int]
"""A tensor's type and shape, and where its bytes begin and end behind the header."""

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint after ``step`` steps."""
    return folder / "checkpoints" / f"step_{step:09d}.safetensors"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` under ``path``, durably.

    Raises:
        ConfigError: If it could not be read back.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_size(sum(tensor.nbytes for tensor in tensors.values()), len(tensors))
    parts = [
        (name, tensor.dtype, list(tensor.shape), [tensor.reshape(-1).view(torch.uint8).numpy()])
        for name, tensor in sorted(tensors.items())
    ]
    record = {**record, "sha256": _digest(record, parts)}
    metadata = {"ncsn_cli": json.dumps(record, allow_nan=False)}
    data = save(tensors, metadata)
    try:
        _read_header(io.BytesIO(data), len(data))
    except ValueError as error:
        raise ConfigError(f"a checkpoint of this run could not be read back: {error}") from None
    write_atomic(path, data)


def check_size(num_bytes: int, num_tensors: int) -> None:
    """Refuse tensors that ``load_checkpoint`` would.

    Raises:
        ConfigError: If they are too large or too many.
    """
    if num_bytes > _MOST_BYTES - _MOST_BYTES_OF_HEADER or num_tensors > _MOST_TENSORS:
        raise ConfigError(
            f"model: a checkpoint would hold {num_tensors} tensors, {num_bytes / 2**20:.0f} MiB;"
            f" at most {_MOST_TENSORS}, 250 MiB, can be read back"
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint file, after its digest was checked.

    Raises:
        MissingInputError: If there is no such file.
        BadCheckpointError: If it is damaged or not one of ours.
    """
    try:
        with open_regular(path, _MOST_BYTES) as file:
            entries, record, start = _read_header(file, os.fstat(file.fileno()).st_size)
            parts = (
                (name, dtype, shape, _blocks(file, start + begin, end - begin))
                for name, (dtype, shape, begin, end) in sorted(entries.items())
            )
            if record.pop("sha256", None) != _digest(record, parts):
                raise BadCheckpointError(f"{path}: damaged, its SHA-256 does not match")
            tensors = {}  # memory is taken only now
            for name, (dtype, shape, begin, end) in entries.items():
                file.seek(start + begin)
                data = bytearray(end - begin)
                if file.readinto(data) != len(data):
                    raise ValueError("it became shorter")
                flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                tensors[name] = flat.reshape(shape)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or 'No such file'}") from None
    except KeyError:
        raise BadCheckpointError(f"{path}: this is no checkpoint of ncsn-train") from None
    except ValueError as error:
        reason = one_line(str(error))
        raise BadCheckpointError(f"{path}: damaged, or no checkpoint ({reason})") from None
    return tensors, record


def load_newest(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The checkpoint that ``path`` means, itself or a run folder's newest: its file and content.

    One that is damaged gives way to the next older one of the folder, with a warning.

    Raises:
        MissingInputError: If there is none.
        BadCheckpointError: If none is whole.
    """
    path = Path(os.path.expanduser(path))  # that of pathlib raises where there is no home folder
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise MissingInputError(f"{str(path)!r}: no name of a file ({error})") from None
    files = sorted((path / "checkpoints").glob("step_*.safetensors")) if is_folder else [path]
    if not files:
        raise MissingInputError(
            f"{path}: no checkpoints in this folder; give that of a run of ncsn-train"
        )
    for file in reversed(files):
        try:
            tensors, record = load_checkpoint(file)
            if not isinstance(record.get("config"), dict) or type(record.get("step")) is not int:
                raise BadCheckpointError(f"{file}: this is no checkpoint of ncsn-train")
            return file, tensors, record
        except (BadCheckpointError, MissingInputError) as error:
            if file == files[0]:
                raise
            log.warning("%s; taking an older checkpoint", error)
    raise AssertionError


def _read_header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, Entry], dict[str, Any], int]:
    """The entries of a safetensors file by name, its record, and where its data begin.

    Raises:
        KeyError: If there is no record.
        ValueError: If anything is not as ``save_checkpoint`` writes it.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MOST_BYTES_OF_HEADER, num_bytes - 8):
        raise ValueError("its header is empty, too long or cut")
    header = parse_json(file.read(length))
    if not isinstance(header, dict) or len(header) > _MOST_TENSORS + 1:
        raise ValueError("its header is no list of tensors, or too long a one")
    metadata = header.pop("__metadata__", {})
    entries = {name: _read_entry(entry) for name, entry in header.items()}
    position = 0
    for _, _, begin, end in sorted(entries.values(), key=lambda entry: entry[2:]):
        if begin != position:
            raise ValueError("its tensors overlap or leave gaps")
        position = end
    if position != num_bytes - 8 - length:
        raise ValueError("its tensors do not end where the file does")
    text = metadata["ncsn_cli"] if isinstance(metadata, dict) else None
    record = parse_json(text) if isinstance(text, str) else None
    if not isinstance(record, dict):
        raise ValueError("its record is no object")
    if text != json.dumps(record, allow_nan=False):  # 1E-08 would be read as 1e-08
        raise ValueError("its record is not as it was written")
    return entries, record, 8 + length


def _read_entry(entry: object) -> Entry:
    match entry:
        case {"dtype": str(name), "shape": [*sizes], "data_offsets": [int(begin), int(end)]} if (
            name in _DTYPES
            and len(sizes) <= _MOST_AXES
            and all(isinstance(size, int) and size >= 0 for size in sizes)
            and math.prod(max(size, 1) for size in sizes) <= _MOST_BYTES
            and begin >= 0
            and end - begin == math.prod(sizes) * _DTYPES[name].itemsize
        ):
            return _DTYPES[name], sizes, begin, end
    raise ValueError("a tensor's type, shape or place is none of ours")


def _blocks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """``length`` bytes of a file, some at a time."""
    file.seek(start)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        yield block
        length -= len(block)


def _digest(
    record: dict[str, Any], tensors: Iterable[tuple[str, torch.dtype, list[int], Iterable[Any]]]
) -> str:
    """Of a record and tensors in the order of their names, their bytes in blocks."""
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    for name, dtype, shape, blocks in tensors:
        sha256.update(json.dumps([name, str(dtype), shape]).encode())
        for block in blocks:
            sha256.update(block)
    return sha256.hexdigest()
