"""Checkpoints: tensors and JSON in one safetensors file, read as data, never as code.

One metadata key ``ncsn_cli`` holds the JSON; its ``sha256`` is over that JSON without the digest
and over every tensor's name, dtype, shape and bytes, in the order of their names. What the JSON
names (``_target_``) is built from this package's own classes and from nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ncsn_cli.errors import BadCheckpointError, ConfigError, MissingInputError
from ncsn_cli.runs import write_atomic

log = logging.getLogger(__name__)

_MODULES = [
    f"ncsn_cli.{name}"
    for name in ("bugs", "datasets", "schedules", "losses", "models", "samplers")
]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint after ``step`` steps."""
    return folder / "checkpoints" / f"step_{step:09d}.safetensors"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` under ``path``, durably."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = {**record, "sha256": _digest(tensors, record)}
    metadata = {"ncsn_cli": json.dumps(record, allow_nan=False)}
    write_atomic(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint file, after its digest was checked.

    Raises:
        MissingInputError: If there is no such file.
        BadCheckpointError: If it is damaged or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["ncsn_cli"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = record.pop("sha256") == _digest(tensors, record)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or 'No such file'}") from None
    except KeyError:
        raise BadCheckpointError(f"{path}: this is no checkpoint of ncsn-train") from None
    except (SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadCheckpointError(f"{path}: damaged, or no checkpoint ({error})") from None
    if not whole:
        raise BadCheckpointError(f"{path}: damaged, its SHA-256 does not match")
    return tensors, record


def load_newest(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The checkpoint that ``path`` means, itself or a run folder's newest: its file and content.

    One that is damaged gives way to the next older one of the folder, with a warning.

    Raises:
        MissingInputError: If there is none.
        BadCheckpointError: If none is whole.
    """
    path = path.expanduser()
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None
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
        except BadCheckpointError as error:
            if file == files[0]:
                raise
            log.warning("%s; taking an older checkpoint", error)
    raise AssertionError


def known_class(target: object, plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """What a checkpoint's ``_target_`` names, if it is a public name of this package's modules.

    Or a public class defined in one of the modules ``plugins``, which the user names.

    Raises:
        ConfigError: If it is anything else.
    """
    module, _, name = str(target).rpartition(".")
    if module in plugins and not name.startswith("_"):
        own = getattr(importlib.import_module(module), name, None)
        if isinstance(own, type) and own.__module__ == module:
            return own
    if module not in _MODULES or name not in importlib.import_module(module).__all__:
        raise ConfigError(
            f"_target_: {target} is no class of ncsn_cli, and a checkpoint may name no other;"
            " choose that group again on the command line, or name its module in plugins=[MODULE]"
        )
    known: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return known


def _digest(tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()
