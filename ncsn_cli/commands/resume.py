"""Find out whether a run may be resumed, or is done already."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydra._internal.utils import get_args_parser
from torch import Tensor

from ncsn_cli.commands.config import Config, without_paths
from ncsn_cli.commands.job import continues_itself, in_sweep, output_folder
from ncsn_cli.commands.names import AUTO, for_shell, override
from ncsn_cli.commands.old_names import with_new_names, with_old_names
from ncsn_cli.commands.suggestions import known_options, option_settings
from ncsn_cli.core.errors import (
    BadCheckpointError,
    ConfigError,
    MissingInputError,
    OutputExistsError,
)
from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.records import flatten

log = logging.getLogger(__name__)


MAY_CHANGE = {
    "metric", "plot", "animation", "objective", "log_density", "budget", "checkpoint", "device",
    "resume", "plugins",
}  # fmt: skip
"""What a resumed run of either command may change: keys, and groups with all of their keys."""

MAY_CHANGE_IN_TRAINING = MAY_CHANGE | {
    "sampler", "init", "num_samples", "score", "trajectories", "trajectory_metrics", "compile",
    "trainer.steps", "trainer.max_seconds", "trainer.log_every", "trainer.eval_every",
    "trainer.checkpoint_every", "trainer.keep_last", "trainer.snapshots", "trainer.tensorboard",
    "trainer.resume",
}  # fmt: skip
"""The same for ``ncsn-train``, which does not use the keys of ``ncsn-sample``."""


def digest_of(config: Config, checkpoint: Path | None = None) -> str:
    """Return a digest of a request, that is of the configuration and the checkpoint's content."""
    text = json.dumps(without_paths(_as_before(config)), sort_keys=True)
    digest = hashlib.sha256(with_old_names(text).encode())
    if checkpoint is not None:
        digest.update(checkpoint.read_bytes())
    return digest.hexdigest()


_NO_LOGNORMAL = {"log_mean": -1.2, "log_std": 1.2}  # the defaults


def _as_before(config: Config) -> Config:
    """Return ``config`` as earlier versions recorded this request.

    ``auto`` asks for the same run as null. The standard deviations of a mixture were 1.0 by
    default, now they are null. There was no ``budget``, a loss had no lognormal levels, an init
    no ``quasi_random`` and a sampler no ``fit_levels``.
    """
    changed = dict(config)
    loss = config.get("loss")
    if isinstance(loss, dict) and _NO_LOGNORMAL.items() <= loss.items():
        changed["loss"] = {k: v for k, v in loss.items() if k not in _NO_LOGNORMAL}
    for group, key in (("init", "quasi_random"), ("sampler", "fit_levels")):
        values = config.get(group)
        if isinstance(values, dict) and values.get(key) is False:
            changed[group] = {k: v for k, v in values.items() if k != key}
    dataset, trainer = config.get("dataset"), config.get("trainer")
    if (
        isinstance(dataset, dict)
        and {"stds": None, "covariances": None}.items() <= dataset.items()
    ):
        changed["dataset"] = {**dataset, "stds": 1.0}
    if isinstance(trainer, dict) and trainer.get("resume") == AUTO:
        changed["trainer"] = {**trainer, "resume": None}
    if config.get("resume") == AUTO:
        changed["resume"] = None
    if config.get("budget") is False:
        del changed["budget"]
    return changed


@dataclass(frozen=True)
class Stopped:
    """What a stopped run left, to be resumed.

    Args:
        path: The file.
        tensors: Its tensors.
        record: Its other entries. ``config`` is the configuration of the run.
    """

    path: Path
    tensors: dict[str, Tensor]
    record: Config


def find_stopped(
    load: Callable[[Path], Stopped], resume: str | None, request: str
) -> Stopped | None:
    """Return what is to be resumed, read by ``load`` from a folder or file; None to start afresh.

    In a sweep that is run again, and for ``auto``, the run's own state comes first.

    Raises:
        OutputExistsError: If ``auto`` would start afresh in the folder of another ``request``.
    """
    if continues_itself(resume):
        folder = output_folder()
        try:
            return load(folder)
        except MissingInputError:
            pass
        except BadCheckpointError as error:
            log.warning("%s; starting afresh", error)
        if not in_sweep() and (folder / "run.json").exists():
            _refuse_another(folder, request)
    return None if resume in (None, AUTO) else load(Path(os.path.expanduser(str(resume))))


def check_same_request(
    before: Config, now: Config, may_change: set[str], key: str, path: Path
) -> None:
    """Check that the run at ``path`` may be resumed, as ``key`` asks, with the settings ``now``.

    Raises:
        ConfigError: If a setting that must not change has changed. It names the command that
            resumes the run or, if this is not recorded, the old values as overrides.
    """
    before = with_new_names(before)
    configs = _as_before(before), _as_before(now)
    then, today = (flatten(without_paths(config)) for config in configs)
    changed = [name for name in then.keys() | today.keys() if then.get(name) != today.get(name)]
    changed = sorted(n for n in changed if not {n, n.partition(".")[0]} & may_change)
    if not changed:
        return
    # Of a group with another class, all values differ.
    groups = [name.removesuffix("._target_") for name in changed if name.endswith("._target_")]
    single = [name for name in changed if not name.startswith(tuple(f"{g}." for g in groups))]
    run = path if path.is_dir() else path.parent.parent
    asked = flatten(now).get(key) or os.path.relpath(path)
    if command := command_to_resume(run, key, asked):
        names = ", ".join([*groups, *single][:5])
        raise ConfigError(f"{key}: {path} was made with another {names}; type {command}")
    words = [word for group in groups for word in _as_overrides(group, before.get(group) or {})]
    words += [override(name, then.get(name)) for name in single]
    was = " ".join(words) or f"another {', '.join(groups)}"
    raise ConfigError(f"{key}: {path} was made with {was}; repeat its own overrides")


@contextmanager
def resume_command(folder: RunFolder, key: str, resume: str | None, saved: str) -> Iterator[None]:
    """Return a context in which a stop gets a note with the command that resumes the run.

    The run in ``folder`` is resumed through ``key``, whose value is ``resume`` now, if ``folder``
    has a file such as ``saved``. A sweep ends with one command for all of its jobs instead.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not in_sweep() and any(folder.path.glob(saved)):
            place = "hydra.run.dir" if resume == AUTO else key
            own = override(place, os.path.relpath(folder.path))
            stop.add_note(f"Resume: {_with(own, folder.record['command'])}")
        raise


def command_to_resume(run: Path, key: str, value: str) -> str | None:
    """Return the recorded command of ``run`` with ``key=value``; None if it may not be shown."""
    recorded = read_json(run / "run.json").get("command")
    return None if _may_name_code(recorded) else _with(override(key, value), recorded)


def _may_name_code(command: object) -> bool:
    """Return whether a recorded ``command``, which may come from anywhere, could run any code."""
    return re.search(r"_target_|hydra[./]|config-|-c[dnp]\b", str(command)) is not None


def _with(place: str, command: object) -> str | None:
    """Return the recorded ``command``, quoted anew, with the override ``place`` for its own.

    A record that is not a command of this package gives None: it may come from anywhere.
    """
    try:
        program, *words = shlex.split(command if isinstance(command, str) else "")
        words = [word.replace("$HOME", os.path.expanduser("~")) for word in words]
        key = place.lstrip("'").partition("=")[0]
        words = [word for word in words if not word.lstrip("+").startswith(f"{key}=")]
        args, _ = get_args_parser().parse_known_args(words)
    except (ValueError, SystemExit):
        return None
    if program not in ("ncsn-train", "ncsn-sample"):
        return None
    flags = [word for word in words if word not in args.overrides]
    return " ".join([program, for_shell([*flags, *args.overrides]), place])  # in one group


def _as_overrides(group: str, values: Config) -> list[str]:
    """Return the overrides that choose the option nearest to ``values``, and its other values."""
    others = {}
    for option in known_options(group):
        settings = option_settings(group, option)
        if settings.get("_target_") == values.get("_target_"):
            others[option] = {n: v for n, v in values.items() if settings.get(n, "none") != v}
    if not others:  # a class of the user's own, and a checkpoint may name any
        return []
    nearest = min(others, key=lambda option: len(others[option]))
    return [
        f"{group}={nearest}",
        *(override(f"{group}.{n}", v) for n, v in others[nearest].items()),
    ]


def compile_setting_on_resume(
    asked: bool | Literal["auto"], record: Config, key: str
) -> bool | Literal["auto"]:
    """Return ``asked``, the value of ``key``, but false if ``record`` says that compiling failed.

    Steps that were not compiled stay so, even where they could be compiled now, so that results
    are bit-identical.
    """
    if asked is False or record.get("compiling_failed") is not True:
        return asked
    log.info("%s: compiling failed before this run was stopped, so its steps stay plain", key)
    return False


def done_before(request: str, resume: str | None) -> Config:
    """Return this run's metrics if it finished earlier in this folder; otherwise {}.

    It is looked for in a sweep, and if ``resume`` is ``auto``.

    Raises:
        OutputExistsError: If the folder holds a run that was done for another request.
    """
    folder = output_folder()
    metrics = read_json(folder / "metrics.json")
    state = read_json(folder / "status.json").get("state")
    if not continues_itself(resume) or state != "done" or not metrics:
        return {}
    _refuse_another(folder, request)
    log.info("done before: %s", folder)
    return metrics


def _refuse_another(folder: Path, request: str) -> None:
    """Raise if the run in ``folder`` was started for another request."""
    if read_json(folder / "run.json").get("request") != request:
        key = "hydra.sweep.dir" if in_sweep() else "hydra.run.dir"
        raise OutputExistsError(
            f"{folder}: this folder holds a run with other settings; choose another {key}"
        )
