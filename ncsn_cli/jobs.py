"""What both commands do around their own work: device, folder, going on, pictures."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ncsn_cli.configuration import Config, instantiate_list, without_paths
from ncsn_cli.core.errors import ConfigError, OutputExistsError
from ncsn_cli.core.scene import Scene
from ncsn_cli.moved import with_new_names, with_old_names
from ncsn_cli.names import for_shell, override
from ncsn_cli.report import drawing, html_report, tables_of
from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.records import flatten

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means here.

    Raises:
        ConfigError: If it is no device, or not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ConfigError(f"device: choose auto, cpu, cuda, cuda:N or mps, not {name!r}")
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


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def output_folder() -> Path:
    """The run's folder, which Hydra has made."""
    return Path(HydraConfig.get().runtime.output_dir)


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep what is freed, for the next tensor.

    By default it gives larger pieces back to the system, which clears them before they are used
    again: at every step for every temporary, several times what the arithmetic takes.
    """
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def open_folder(config: Config, facts: dict[str, Any]) -> RunFolder:
    """The run's folder as a context; a job of a sweep may find itself in it, begun before."""
    hydra_config = HydraConfig.get()
    words = sys.argv[1:]
    if in_sweep():  # the job alone, without the search that chose it
        words = [w for w in hydra_config.overrides.task if not w.startswith("hparams_search=")]
        words += [w for w in hydra_config.overrides.hydra if w.startswith("hydra.searchpath=")]
        for source in hydra_config.runtime.config_sources:
            if source.provider == "command-line":
                words = ["--config-dir", source.path, *words]  # one is free to add overrides
    places = ("paths.", "hydra.run.dir=", "hydra.sweep.dir=")
    words = [word for word in words if not word.lstrip("+").startswith(places)]
    command = f"ncsn-{hydra_config.job.config_name} {for_shell(words)}".rstrip()
    facts = {"threads": torch.get_num_threads(), **facts}
    return RunFolder(output_folder(), _as_yaml(config), command, facts, again=in_sweep())


def write_config(folder: RunFolder, config: Config) -> None:
    """Write ``config.yaml`` again, as something else was done than was asked for."""
    folder.write("config.yaml", _as_yaml(config).encode())


def _as_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(without_paths(config))


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


def objective_of(metrics: Config, name: str | None) -> float | None:
    """The number that a search makes small."""
    numbers = flatten(metrics)
    if name is not None and not isinstance(numbers.get(name), float | int):
        known = ", ".join(key for key, value in numbers.items() if isinstance(value, float | int))
        raise ConfigError(f"objective: there is no number {name!r} here; choose from {known}")
    return None if name is None else float(numbers[name])


class Pictures:
    """What is to be drawn, by name: functions of a ``Scene`` that give None where not applicable.

    ``plots`` give a matplotlib ``Figure``, ``animations`` a ``Film``.
    """

    def __init__(self, config: Config) -> None:
        self.plots: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "plot")
        self.animations: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "animation")

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.plots or self.animations)

    @property
    def by_key(self) -> dict[str, Callable[[Scene], Any]]:
        """All of them, under ``plot.NAME`` and ``animation.NAME``."""
        plots = {f"plot.{name}": plot for name, plot in self.plots.items()}
        return plots | {f"animation.{name}": film for name, film in self.animations.items()}


def present(
    folder: RunFolder,
    pictures: Pictures,
    compose: Callable[[], Scene],
    config: Config,
    metrics: dict[str, Any],
) -> None:
    """Write every picture that applies into ``plots/`` and ``animations/``, and the report.

    ``compose`` gives what they show.
    """
    missing = _draw(folder, pictures, compose) if pictures else {}
    job = HydraConfig.get().job
    defaults = OmegaConf.to_container(hydra.compose(job.config_name), resolve=True)
    before, now = (flatten(without_paths(cast("Config", c))) for c in (defaults, config))
    record = folder.record
    page = html_report(
        folder.path,
        title=f"ncsn-{job.config_name} {' '.join(HydraConfig.get().overrides.task)}",
        facts=f"{record['start']}, {record['device']}, seed {record['seed']}, "
        f"{metrics['seconds']:g} s",
        command=record["command"],
        changed={
            key: value
            for key, value in now.items()
            if before.get(key) != value and not key.endswith("._partial_")
        },
        tables=tables_of(metrics),
        missing=missing,
    )
    folder.write("report.html", page)


def _draw(folder: RunFolder, pictures: Pictures, compose: Callable[[], Scene]) -> dict[str, str]:
    """Write the pictures; return by name why some are missing.

    Those that do not apply are named for D > 2, and where the user chose them for this command.
    """
    from ncsn_cli.plots import NEEDS
    from ncsn_cli.plots.canvas import own_settings, to_gif, to_png

    missing: dict[str, str] = {}
    left_out: dict[str, str] = {}
    scene = None
    with drawing("every picture", missing):
        scene = compose()
    if scene is None:
        return missing
    words = HydraConfig.get().overrides.task
    named = {re.split("[=@]", word.lstrip("+~"))[0] for word in words}
    for key, draw in pictures.by_key.items():
        group, _, name = key.partition(".")
        drawn = data = None
        with drawing(key, missing), own_settings():
            drawn = draw(scene)
            if drawn is not None:
                data = to_png(drawn) if group == "plot" else to_gif(drawn, name)
        if data is not None:
            folder.write(
                f"plots/{name}.png" if group == "plot" else f"animations/{name}.gif", data
            )
        elif key not in missing:
            is_chosen = group in named or any(word.startswith(f"{key}.") for word in named)
            if scene.dim > 2 or is_chosen:
                function = getattr(draw, "func", draw)  # of a partial, as options make them
                needs = (f"needs {what}" for ours, what in NEEDS.items() if ours is function)
                left_out[key] = next(needs, "does not apply")
    if left_out:
        log.info("left out: %s", "; ".join(f"{key} {why}" for key, why in left_out.items()))
    return missing | left_out
