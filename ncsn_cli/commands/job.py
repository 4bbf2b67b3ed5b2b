"""The job that Hydra has started: its device, its folder, its command, its objective."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ncsn_cli.commands.config import Config, without_paths
from ncsn_cli.commands.names import AUTO, for_shell
from ncsn_cli.commands.suggestions import did_you_mean
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.evaluation.verdict import Verdict
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.records import flatten

log = logging.getLogger(__name__)

_WIDE = 120  # columns of a log without a terminal


def in_sweep() -> bool:
    """Return whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def in_search() -> bool:
    """Return whether this run is a job of a sweep that chooses its jobs by their objective."""
    return in_sweep() and not HydraConfig.get().sweeper["_target_"].endswith(".BasicSweeper")


def is_published(trained: Mapping[str, Any] | None = None) -> bool:
    """Return whether dataset, schedule and sampler are those of our experiments, unchanged.

    ``trained`` is the ``run.json`` of the run that a checkpoint is from.
    """
    hydra_config = HydraConfig.get()
    named = (re.split(r"[./=@]", word.lstrip("+~"))[0] for word in hydra_config.overrides.task)
    if {"dataset", "schedule", "sampler"}.intersection(named):
        return False
    sources = hydra_config.runtime.config_sources
    ours = next(Path(source.path) for source in sources if source.provider == "main")
    name = hydra_config.runtime.choices.get("experiment")
    if name and (ours / "experiment" / f"{name}.yaml").is_file() and not name.startswith("bug_"):
        return True
    return ((trained or {}).get("schedule") or {}).get("is_published") is True


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` means on this machine.

    Raises:
        ConfigError: If ``name`` is not a device, or the device is not available.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        meant = re.sub(r"gpu", "cuda", name.lower())
        near = did_you_mean(meant, ["auto", "cpu", "cuda", "mps"])
        if re.fullmatch(r"cuda(:\d+)?|cpu|mps", meant):
            near = f"; did you mean {meant}?"
        raise ConfigError(f"device: choose auto, cpu, cuda, cuda:N or mps, not {name!r}{near}")
    if name == "auto" and in_sweep() and torch.cuda.device_count() > 1:
        return torch.device("cuda", HydraConfig.get().job.num % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise ConfigError(f"device: {name} is not available here; device=cpu is")
    return device


def output_folder() -> Path:
    """Return the run's folder, which Hydra has made."""
    return Path(HydraConfig.get().runtime.output_dir)


def continues_itself(resume: str | None) -> bool:
    """Return whether the run's own folder may already hold this run, stopped or finished earlier.

    It may in a sweep, and if the value of the key ``resume`` or ``trainer.resume`` is ``auto``.
    """
    return in_sweep() or resume == AUTO


def open_folder(config: Config, facts: dict[str, Any], resume: str | None) -> RunFolder:
    """Return the run's folder; entering it as a context locks it."""
    hydra_config = HydraConfig.get()
    words = [*hydra_config.overrides.task, *hydra_config.overrides.hydra]
    if in_sweep():  # this job alone, without the search that chose it
        apart = ("hparams_search=", "hydra.", "hydra/")
        words = [w for w in words if not w.startswith(apart) or w.startswith("hydra.searchpath=")]
    for source in hydra_config.runtime.config_sources:
        if source.provider == "command-line":
            words = ["--config-dir", source.path, *words]  # in front: overrides follow
    places = ("paths.", "hydra.run.dir=", "hydra.sweep.dir=", "hydra.mode=")  # Hydra adds the last
    words = [word for word in words if not word.lstrip("+").startswith(places)]
    command = f"ncsn-{hydra_config.job.config_name} {for_shell(words)}".rstrip()
    facts = {"threads": torch.get_num_threads(), **facts}
    again = continues_itself(resume)
    return RunFolder(output_folder(), _as_yaml(config), command, facts, again)


def log_unknown(names: Iterable[str]) -> None:
    """Log why the numbers ``names`` are null in ``metrics.json``."""
    log.info("%s", why_unknown(names))


def why_unknown(names: Iterable[str]) -> str:
    """Return why the numbers ``names`` are null."""
    return f"null, because only draws of the dataset are known: {', '.join(names)}"


def write_config(folder: RunFolder, config: Config) -> None:
    """Write ``config.yaml`` again after a setting changed during the run, such as ``compile``."""
    folder.write("config.yaml", _as_yaml(config).encode())


def _as_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(without_paths(config))


def objective_of(metrics: Config, name: str | None) -> float | None:
    """Return the number that a search minimises; None without a ``name``.

    Outside a search, it may also be null in ``metrics``, and None is returned.
    """
    numbers = flatten(metrics)
    if name in numbers and numbers[name] is None and not in_search():
        return None
    if name is not None and not isinstance(numbers.get(name), float | int):
        known = ", ".join(key for key, value in numbers.items() if isinstance(value, float | int))
        raise ConfigError(f"objective: there is no number {name!r} here; choose from {known}")
    return None if name is None else float(numbers[name])


def compare_command() -> str:
    """Return the command that compares the run with those beside it, if these are runs."""
    folder = Path(os.path.relpath(output_folder()))
    compared = folder.parent if folder.parent.name == "runs" else folder
    return f"ncsn-compare {for_shell([str(compared)])}"


def log_next(folder: Path, command: str, verdict: Verdict | None = None) -> None:
    """Log as a finished run's last lines what its numbers mean, its report and the next command.

    ``command`` is what a user types next. A sweep ends with a report and commands of its own.
    """
    if verdict is not None and (
        text := verdict.as_text(shutil.get_terminal_size((_WIDE, 0)).columns)
    ):
        log.info("what the numbers mean:\n%s", text)
    if not in_sweep():
        log.info("report: %s", os.path.relpath(folder / "report.html"))
        log.info("next: %s", command)
