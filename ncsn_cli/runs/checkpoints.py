"""Checkpoints: tensors and JSON in one safetensors file, read as data, never as code.

One metadata key ``ncsn_cli`` holds the JSON. The JSON's ``sha256`` covers the JSON without that
digest, and every tensor's name, dtype, shape and bytes, sorted by name. The other entries of a
training checkpoint's JSON are ``config`` (added by ``_save`` in ``commands/train.py``), and those
of ``Training.state`` in ``training/state.py``: ``step``, ``device_type``, ``optimizer`` (numbers
that are not tensors) and, if compiling failed, ``compiling_failed``.
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

_MOST_BYTES = 1 << 28  # of a file, which is hashed in two seconds
_MOST_BYTES_OF_HEADER = 1 << 22
_MOST_TENSORS = 20_000
_MOST_AXES = 8
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Entry = tuple[torch.dtype, list[int], int, int]
"""A tensor's type and shape, and where its bytes begin and end, counted from the header's end."""

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a run's checkpoint after ``step`` steps."""
    return folder / "checkpoints" / f"step_{step:09d}.safetensors"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` to ``path``, durably.

    Raises:
        ConfigError: If the checkpoint could not be read back.
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
    """Check that ``load_checkpoint`` would accept tensors of this size and number.

    Raises:
        ConfigError: If the tensors are too large or too many.
    """
    if num_bytes > _MOST_BYTES - _MOST_BYTES_OF_HEADER or num_tensors > _MOST_TENSORS:
        raise ConfigError(
            f"model: a checkpoint would hold {num_tensors} tensors, {num_bytes / 2**20:.0f} MiB;"
            f" at most {_MOST_TENSORS}, 250 MiB, can be read back"
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of a checkpoint file, after checking its digest.

    Raises:
        MissingInputError: If the file cannot be opened or read.
        BadCheckpointError: If the file is damaged, or not a checkpoint of this package.
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
            tensors = {}  # memory is allocated only now
            for name, (dtype, shape, begin, end) in entries.items():
                file.seek(start + begin)
                data = bytearray(end - begin)
                if file.readinto(data) != len(data):
                    raise ValueError("it became shorter while it was read")
                flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                tensors[name] = flat.reshape(shape)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or 'No such file'}") from None
    except KeyError:
        raise BadCheckpointError(f"{path}: this is not a checkpoint of ncsn-train") from None
    except ValueError as error:
        reason = one_line(str(error))
        raise BadCheckpointError(f"{path}: damaged, or not a checkpoint ({reason})") from None
    return tensors, record


def load_newest(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the path, tensors and record of a checkpoint: the file ``path`` or a folder's newest.

    If a run folder's newest checkpoint is damaged, the next older one is used, with a warning.

    Raises:
        MissingInputError: If there is no checkpoint.
        BadCheckpointError: If every checkpoint is damaged.
    """
    path = Path(os.path.expanduser(path))  # Path.expanduser raises if there is no home folder
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise MissingInputError(f"{str(path)!r}: not a valid file name ({error})") from None
    files = sorted((path / "checkpoints").glob("step_*.safetensors")) if is_folder else [path]
    if not files:
        raise MissingInputError(
            f"{path}: no checkpoints in this folder; give the folder of a run of ncsn-train"
        )
    for file in reversed(files):
        try:
            tensors, record = load_checkpoint(file)
            if not isinstance(record.get("config"), dict) or type(record.get("step")) is not int:
                raise BadCheckpointError(f"{file}: this is not a checkpoint of ncsn-train")
            return file, tensors, record
        except (BadCheckpointError, MissingInputError) as error:
            if file == files[0]:
                raise
            log.warning("%s; using an older checkpoint instead", error)
    raise AssertionError


def _read_header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, Entry], dict[str, Any], int]:
    """Return a safetensors file's entries by name, its record, and where its data begin.

    Raises:
        KeyError: If there is no record.
        ValueError: If anything differs from what ``save_checkpoint`` writes.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MOST_BYTES_OF_HEADER, num_bytes - 8):
        raise ValueError("its header is empty, too long or cut")
    header = parse_json(file.read(length))
    if not isinstance(header, dict) or len(header) > _MOST_TENSORS + 1:
        raise ValueError("its header is not a list of tensors, or is too long")
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
        raise ValueError("its record is not a JSON object")
    if text != json.dumps(record, allow_nan=False):  # for example, 1E-08 is read as 1e-08
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
    raise ValueError("a tensor has a type, shape or position that no checkpoint has")


def _blocks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """Yield ``length`` bytes of a file from ``start`` on, in blocks of at most 1 MiB."""
    file.seek(start)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        yield block
        length -= len(block)


def _digest(
    record: dict[str, Any], tensors: Iterable[tuple[str, torch.dtype, list[int], Iterable[Any]]]
) -> str:
    """Return the SHA-256 of a record and of tensors sorted by name, whose bytes come in blocks."""
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    for name, dtype, shape, blocks in tensors:
        sha256.update(json.dumps([name, str(dtype), shape]).encode())
        for block in blocks:
            sha256.update(block)
    return sha256.hexdigest()
