"""Checkpoints: tensors and JSON in one safetensors file, read as data, never as code.

One metadata key ``ncsn_cli`` holds the JSON. The JSON's ``sha256`` covers the JSON without that
digest, and every tensor's name, dtype, shape and bytes, sorted by name. The other entries of a
training checkpoint's JSON are ``config`` (added by ``save_training`` in ``commands/train.py``),
and those of ``Training.state`` in ``training/state.py``: ``step``, ``device_type``, ``optimizer``
(numbers that are not tensors) and, if compiling failed, ``compiling_failed``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ncsn_cli.core.errors import BadCheckpointError, ConfigError, MissingInputError, one_line
from ncsn_cli.runs.files import parse_json, read_regular, write_atomic

_MOST_BYTES = 1 << 28  # of a file, which is hashed in two seconds
_MOST_BYTES_OF_HEADER = 1 << 22
_MOST_TENSORS = 20_000
_SPARE = 1 << 25  # bytes that safetensors may need beside the tensors
_MOST_AXES = 8
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}

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
    record = {**record, "sha256": _digest(record, tensors)}
    metadata = {"ncsn_cli": json.dumps(record, allow_nan=False)}
    data = save(tensors, metadata)
    try:
        _check_header(data)
        _parse_record(metadata)
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
        data = read_regular(path, _MOST_BYTES)
        header = _check_header(data)
        bytearray(len(data) + _SPARE)  # this raises if memory is short; safetensors would abort
        tensors = load(data)
        record = _parse_record(header.get("__metadata__") or {})
        if record.pop("sha256", None) != _digest(record, tensors):
            raise BadCheckpointError(f"{path}: damaged, its SHA-256 does not match")
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or 'No such file'}") from None
    except KeyError:
        raise BadCheckpointError(f"{path}: this is not a checkpoint of ncsn-train") from None
    except (ValueError, SafetensorError) as error:
        what = f"damaged, or not a checkpoint ({one_line(str(error))})"
        if path.suffix != ".safetensors":
            what = "checkpoints are .safetensors files; ncsn-measure reads samples"
        raise BadCheckpointError(f"{path}: {what}") from None
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
        run = "a run of ncsn-train"
        if any(path.glob("step_*.safetensors")):  # its folder checkpoints
            run = f"the run, {path.absolute().parent}"
        raise MissingInputError(f"{path}: no run is in this folder; give the folder of {run}")
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


def _check_header(data: bytes) -> dict[str, Any]:
    """Return a file's header, after checks that safetensors does not make.

    These are the size of the header, keys that appear twice, types, and shapes.

    Raises:
        ValueError: If no file of ``save_checkpoint`` has such a header.
    """
    length = int.from_bytes(data[:8], "little")
    if length > _MOST_BYTES_OF_HEADER:
        raise ValueError("its header is too long")
    entries = parse_json(data[8 : 8 + length])
    if not isinstance(entries, dict) or len(entries) > _MOST_TENSORS + 1:
        raise ValueError("its header is not a list of tensors, or is too long")
    for name, entry in entries.items():
        match entry:
            case {"dtype": dtype, "shape": [*sizes]} if (
                dtype not in _DTYPES
                or len(sizes) > _MOST_AXES
                or not all(type(size) is int for size in sizes)
                or math.prod(max(size, 1) for size in sizes) > _MOST_BYTES
            ):
                raise ValueError(f"{name} has a type or shape that no checkpoint has")
    return entries


def _parse_record(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the record in the metadata of a file.

    Raises:
        KeyError: If there is none.
        ValueError: If it is not a JSON object as ``save_checkpoint`` writes it.
    """
    text = metadata["ncsn_cli"]
    record = parse_json(text)
    if not isinstance(record, dict):
        raise ValueError("its record is not a JSON object")
    if text != json.dumps(record, allow_nan=False):  # for example, 1E-08 is read as 1e-08
        raise ValueError("its record is not as it was written")
    return record


def _digest(record: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a record and of contiguous tensors, sorted by name."""
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        entry = [name, str(tensor.dtype), list(tensor.shape)]
        sha256.update(json.dumps(entry).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
