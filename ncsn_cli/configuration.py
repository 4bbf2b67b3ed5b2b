"""What both commands read from their configuration: run-level keys, and objects from groups."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import re
import sys
from typing import Annotated, Any, Literal, cast

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.core.settings import STRICT, Count, random_stream
from ncsn_cli.moved import with_new_names
from ncsn_cli.runs.checkpoints import known_class
from ncsn_cli.runs.files import check_plain
from ncsn_cli.runs.records import flatten, without_home
from ncsn_cli.schedules import FromData, Schedule

log = logging.getLogger(__name__)

Config = dict[str, Any]
GROUPS = [
    "dataset", "schedule", "loss", "model", "optimizer", "trainer", "sampler", "init", "metric",
    "plot", "animation", "paths",
]  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class TrainSettings:
    """Keys of ``ncsn-train`` outside the groups.

    Args:
        seed: Seed of the initial weights, the noise and the order of the data.
        device: ``auto`` (cuda where there is one, the jobs of a sweep in turn where there are
            several, else cpu), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        objective: The number of ``metrics.json`` that a search makes small, nested keys joined by
            dots.
    """

    seed: NonNegativeInt
    device: str
    objective: str | None


@dataclass(frozen=True, config=STRICT)
class SampleSettings(TrainSettings):
    """Keys of ``ncsn-sample`` outside the groups.

    Args:
        seed: Seed of the initial points, the chains and the noise floors.
        device: As for ``ncsn-train``.
        objective: As for ``ncsn-train``.
        checkpoint: Folder of a training run (its newest checkpoint) or a checkpoint file.
        score: ``checkpoint`` is the learned score, ``exact`` the dataset's own, ``empirical`` that
            of its training set smoothed by sigma, which a network that memorises would learn.
        num_samples: Chains run, one sample each.
        trajectories: Chains whose path is kept.
        trajectory_metrics: Whether to measure the distance to p_sigma level by level, too.
        log_density: Whether to write the log-density that the score implies, on a grid.
        compile: Whether Langevin steps are compiled, some to a call: 10 seconds or more to begin
            with, then quicker; ``auto``: where ``compiled_langevin.settle`` finds that it pays.
            What is recorded is false where compiling failed.
        resume: Folder of the stopped run to go on with; null: start afresh.
        plugins: Modules of the user's own whose classes a checkpoint may name.
    """

    checkpoint: str | None
    score: Literal["checkpoint", "exact", "empirical"]
    num_samples: Count
    trajectories: Annotated[int, Field(ge=0, le=10**9)]
    trajectory_metrics: bool
    log_density: bool
    compile: bool | Literal["auto"]
    resume: str | None
    plugins: list[str]


def read_config(cfg: DictConfig) -> Config:
    """The composed configuration as plain data, every top-level key known to a command.

    It is what the run's files will say, so it holds nothing of the environment, and numbers that
    a checkpoint can hold.
    """
    unresolved = cast("Config", OmegaConf.to_container(cfg))
    for key, value in flatten(without_paths(unresolved)).items():
        if re.search(r"\$\{\s*oc\.env\s*:", str(value)):
            raise ConfigError(
                f"{key}: the run's files would show this environment variable; write its value"
            )
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    config = cast("Config", with_new_names(container))
    for key, value in flatten(config).items():
        try:
            check_plain(value)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None
    known = {*GROUPS, *run_keys(SampleSettings)}
    for key in config:
        if key not in known:
            raise ConfigError(f"{key}: there is no such key; --cfg job lists them")
    paths = config.get("paths")
    if not isinstance(paths, dict) or not isinstance(paths.get("outputs"), str) or len(paths) > 1:
        raise ConfigError(f"paths: it should hold paths.outputs=FOLDER alone, got {_short(paths)}")
    return config


def _without_home(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_home(entry) for entry in value]
    return without_home(value) if isinstance(value, str) else value


def instantiate(config: Config, key: str, **runtime: Any) -> Any:  # noqa: ANN401
    """The object of a group that the user chose; its errors name the key."""
    settings = config.get(key)
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise ConfigError(f"{key}: choose an option, {key}=NAME; --help lists them")
    if given := settings.keys() & runtime.keys():
        raise ConfigError(f"{key}.{min(given)}: there is no such key; the dataset decides it")
    if str(settings["_target_"]).startswith("torch.optim."):
        _check_types(key, settings)
    try:
        made = hydra.utils.instantiate(settings, _convert_="all", **runtime)
        if isinstance(made, functools.partial):
            inspect.signature(made.func).bind(None, **made.keywords)
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError | RuntimeError) and key != "optimizer":
            raise cause from None  # of torch, as when there is no memory for so wide a network
        is_torchs = key == "optimizer" and "keyword" not in str(cause)
        reason = what_torch_refuses(settings, cause) if is_torchs else _reason(key, cause)
        raise ConfigError(reason) from error
    base = {"model": torch.nn.Module, "optimizer": torch.optim.Optimizer}.get(key, object)
    if not isinstance(made, base):
        raise ConfigError(f"{key}._target_: it should make a torch {base.__name__}")
    return made


def what_torch_refuses(optimizer: Config, error: BaseException) -> str:
    """Return one line for an ``optimizer``'s error, with the key of the setting that it names."""
    reason = one_line(str(error))
    named = [key for key in optimizer if re.search(rf"\b{key}\b", reason, re.IGNORECASE)]
    return f"optimizer{'.' if named else ''}{''.join(named[:1])}: {reason}"


def instantiate_list(config: Config, key: str) -> dict[str, Any]:
    """The objects of a group of which several may be chosen, by name."""
    chosen = config.get(key) or {}
    if not isinstance(chosen, dict):
        raise ConfigError(
            f"{key}: choose a list of options, {key}=[NAME,...], or in an experiment's defaults"
            f" list - override /{key}: [NAME,...]; --help lists them"
        )
    entries = {f"{key}.{name}": value for name, value in chosen.items() if value is not None}
    for path in entries:  # files are named so
        if not re.fullmatch(r"\w[\w.+=,-]{0,99}", path.removeprefix(f"{key}.")):
            raise ConfigError(
                f"{path}: a name has letters, digits and _ . + = , - only, at most 100"
            )
    return {path.removeprefix(f"{key}."): instantiate(entries, path) for path in entries}


def _check_types(key: str, settings: Config) -> None:
    """Torch's optimizers take nan and texts, or refuse them without their key."""
    try:
        parameters = inspect.signature(hydra.utils.get_class(settings["_target_"])).parameters
    except (ImportError, ValueError, TypeError):
        return  # refused with a reason when it is made

    def is_like(value: object, default: object) -> bool:
        if isinstance(default, tuple):  # of numbers, or None for a number that torch chooses
            parts = zip(value if isinstance(value, list) else [], default, strict=False)
            return isinstance(value, list) and all(
                is_like(v, 1.0) or (v is None and d is None) for v, d in parts
            )
        if isinstance(default, bool) or isinstance(value, bool):
            return isinstance(default, bool) and isinstance(value, bool)
        return isinstance(value, float | int) and abs(value) <= sys.float_info.max

    for name, value in settings.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(default, tuple | bool | float | int) and not is_like(value, default):
            like = (
                f"one like {default}" if isinstance(default, tuple | bool) else "a finite number"
            )
            raise ConfigError(f"{key}.{name}: it should be {like}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def build_from_checkpoint(
    settings: Config,
    key: str,
    plugins: list[str],
    named: str | None = None,
    **runtime: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """The object of a group read from a checkpoint: plain values into a known constructor.

    ``named`` is the class that the user named for it on the command line, which may then be of
    the user's own, as those of the modules ``plugins``. Errors name the key.
    """
    values = {**settings, **runtime}
    target = values.pop("_target_", None)
    try:
        if named is not None and named == target:
            return hydra.utils.get_class(named)(**values)
        return known_class(target, plugins)(**values)
    except (ConfigError, ValidationError, TypeError, ImportError) as error:
        raise ConfigError(_reason(key, error)) from error


def run_keys(kind: type[TrainSettings]) -> list[str]:
    """The run-level keys that ``kind`` holds."""
    return [field.name for field in dataclasses.fields(kind)]


def settings(kind: type[TrainSettings], config: Config) -> Any:  # noqa: ANN401
    """The validated run-level keys."""
    try:
        values: Config = {key: config.get(key) for key in run_keys(kind)}
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(_reason("", error)) from error


def _reason(key: str, error: BaseException) -> str:
    """One line for an error of a constructor called with the settings under ``key``."""
    if isinstance(error, ConfigError):
        return f"{key}.{error}"
    if not isinstance(error, ValidationError):
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            return f"{key}.{match[1]}: there is no such key"
        return f"{key}: {' '.join(str(error).split())}"
    errors = error.errors(include_url=False)
    location, first = errors[0]["loc"], errors[0]
    # A union adds the tags of its members to the location: keep the parameter and list indices.
    named = [*location[:1], *(part for part in location[1:3] if isinstance(part, int))]
    place = ".".join(str(part) for part in [key, *named] if part != "")
    if "unexpected_keyword" in first["type"]:
        return f"{place}: there is no such key"
    if "missing" in first["type"]:
        return f"{place}: this key is missing"
    messages = dict.fromkeys(
        e["msg"].removeprefix("Value error, ").removeprefix("Input should ")
        for e in errors
        if e["loc"][:1] == location[:1]
    )
    message = " or ".join(messages)
    if not location:
        return f"{place}: {message}"
    return f"{place}: it should {message}, got {_short(first['input'])}"


def known_points(dataset: Dataset, seed: int) -> Tensor:
    """Points (N, D) from which scales are taken: the training set, or draws if it is endless."""
    data = dataset.training_set()
    if data is not None:
        return data
    log.info("the dataset is endless: 10000 draws stand for it where its scale is needed")
    return dataset.sample(10_000, generator=random_stream(seed, "data seen beforehand"))


def fit_schedule(config: Config, schedule: Schedule | FromData, data: Tensor) -> Schedule:
    """The schedule, with levels; what ``data`` (N, D) decides is written into ``config``."""
    if isinstance(schedule, Schedule):
        return schedule
    try:
        fitted = schedule.fit(data)
    except ConfigError as error:
        raise ConfigError(_reason("schedule", error)) from error
    target = f"{type(fitted).__module__}.{type(fitted).__qualname__}"
    config["schedule"] = {"_target_": target, **dataclasses.asdict(fitted)}
    return fitted


def without_paths(config: Config) -> Config:
    """The configuration that a run records: what it computes, not where it writes."""
    return {key: _without_home(value) for key, value in config.items() if key != "paths"}
