"""What tells whether a run may be resumed, or is done already."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ncsn_cli.commands.config import Config, without_paths
from ncsn_cli.commands.job import in_sweep, output_folder
from ncsn_cli.commands.moved import with_new_names, with_old_names
from ncsn_cli.commands.names import override
from ncsn_cli.core.errors import ConfigError, OutputExistsError
from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.records import flatten

log = logging.getLogger(__name__)


def digest_of(config: Config, checkpoint: Path | None = None) -> str:
    """What tells one request from another: the configuration and the checkpoint's content."""
    text = json.dumps(without_paths(config), sort_keys=True)
    digest = hashlib.sha256(with_old_names(text).encode())
    if checkpoint is not None:
        digest.update(checkpoint.read_bytes())
    return digest.hexdigest()


def refuse_changes(
    before: Config, now: Config, may_change: Callable[[str], bool], key: str, path: Path
) -> None:
    """Refuse to go on with the run at ``path``, as ``key`` asks, with other settings.

    Raises:
        ConfigError: If settings differ that may not; it names them, with what they were.
    """
    then, today = flatten(without_paths(with_new_names(before))), flatten(without_paths(now))
    changed = [key for key in then.keys() | today.keys() if then.get(key) != today.get(key)]
    if changed := sorted(key for key in changed if not may_change(key)):
        was = " ".join(override(key, then.get(key)) for key in changed[:5])
        raise ConfigError(f"{key}: {path} was made with {was}; repeat its own overrides")


def compile_again(
    asked: bool | Literal["auto"], record: Config, key: str
) -> bool | Literal["auto"]:
    """Return what ``key`` asks for, but false where compiling failed before ``record`` was kept.

    Steps that were plain stay so, to the same bits, also where they could be compiled.
    """
    if asked is False or record.get("compiling_failed") is not True:
        return asked
    log.info("%s: compiling failed before this run was stopped, so its steps stay plain", key)
    return False


def done_before(request: str) -> Config:
    """The metrics of this job if a sweep that is run again has it already, else empty.

    Raises:
        OutputExistsError: If the folder holds what was done at another request.
    """
    folder = output_folder()
    metrics = read_json(folder / "metrics.json")
    state = read_json(folder / "status.json").get("state")
    if not in_sweep() or state != "done" or not metrics:
        return {}
    if read_json(folder / "run.json").get("request") != request:
        raise OutputExistsError(
            f"{folder}: this folder holds a run with other settings; choose another"
            " hydra.sweep.dir"
        )
    log.info("done before: %s", folder)
    return metrics
