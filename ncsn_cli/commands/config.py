"""The configuration of a command: its run-level keys, and the part that is recorded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass

from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.commands.suggestions import did_you_mean, options_with, or_words
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.runs.files import check_plain
from ncsn_cli.runs.records import flatten, without_home

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
        device: ``auto`` (cuda if there is one, otherwise cpu; the jobs of a sweep use several
            GPUs in turn), ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        objective: The number of ``metrics.json`` that a search minimises, nested keys joined by
            dots.
    """

    seed: NonNegativeInt
    device: str
    objective: str | None


@dataclass(frozen=True, config=STRICT)
class SampleSettings(TrainSettings):
    """Keys of ``ncsn-sample`` outside the groups.

    A new key also goes into ``configs/sample.yaml``, into ``_UNSET_SAMPLE_KEYS`` and
    ``MAY_CHANGE_IN_TRAINING`` in ``commands/resume.py``, and, if a resumed run of ``ncsn-sample``
    may change it, into ``MAY_CHANGE`` there.

    Args:
        seed: Seed of the initial points, the chains and the noise floors.
        device: As for ``ncsn-train``.
        objective: As for ``ncsn-train``.
        checkpoint: Folder of a training run (its newest checkpoint) or a checkpoint file. On the
            command line also a folder of such runs, which becomes a sweep over them, and
            ``latest``, the newest such run (a folder of this name is ``./latest``).
        score: ``checkpoint`` is the learned score, ``exact`` the dataset's own, ``empirical`` that
            of its training set smoothed by sigma, which a network that memorises would learn.
        num_samples: Number of chains; each gives one sample.
        trajectories: Number of chains whose path is kept.
        trajectory_metrics: Whether to measure the distance to p_sigma at each level, too.
        log_density: Whether to write the log-density that the score implies, on a grid.
        budget: Whether to split the samples' error into its parts: smallest level, steps, start
            and network.
        compile: Whether Langevin steps are compiled, several per call. Compiling takes 10 seconds
            or more at the start; the steps are then faster. ``auto``: compile where
            it pays. False is recorded if compiling failed.
        resume: Folder of the stopped run to resume; null: start afresh. On the command line
            ``latest`` is the newest such run. With ``auto`` the same command starts, resumes and
            finds finished the run in its own folder, which ``hydra.run.dir`` names. Folders of
            these names are ``./latest`` and ``./auto``.
        plugins: The user's own modules whose classes a checkpoint may name.
    """

    checkpoint: str | None
    score: Literal["checkpoint", "exact", "empirical"]
    num_samples: Count
    trajectories: Annotated[int, Field(ge=0, le=10**9)]
    trajectory_metrics: bool
    log_density: bool
    budget: bool
    compile: bool | Literal["auto"]
    resume: str | None
    plugins: list[str]


@dataclass(frozen=True, config=STRICT)
class MeasureSettings:
    """Keys of ``ncsn-measure`` outside the groups.

    Args:
        file: The samples: a file (.npy, .npz, .csv, .txt or .pt), or the folder of a run; ``-`` is
            standard input.
        key: Name of the array in a file with several.
        sigma: The level to measure against, >= 0, data units; 0 is the data itself.
        denoised: Whether the samples are posterior means of draws from p_sigma. Exact draws are
            then denoised by the exact score before samples are compared with them.
        seed: Seed of these exact draws.
        objective: As for ``ncsn-train``.
    """

    file: str | None
    key: str | None
    sigma: NonNegativeFloat
    denoised: bool
    seed: NonNegativeInt
    objective: str | None


Settings = TrainSettings | MeasureSettings


def read_config(cfg: DictConfig) -> Config:
    """Return the composed configuration as plain data; raise if a top-level key is unknown.

    The run's files will show it, so it may hold no environment variables, and only values that a
    checkpoint can hold. Errors name the key.
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
    known = {*GROUPS, *run_keys(SampleSettings), *run_keys(MeasureSettings)}
    for key in flatten(config):
        group = key.partition(".")[0]
        if group not in known:
            near = did_you_mean(group, known)
            raise ConfigError(f"{key}: there is no such key{near or '; --cfg job lists them'}")
    paths = config.get("paths")
    if not isinstance(paths, dict) or not isinstance(paths.get("outputs"), str) or len(paths) > 1:
        others = [key for key in paths if key != "outputs"] if isinstance(paths, dict) else []
        named = f"paths.{others[0]}: there is no such key; " if others else ""
        raise ConfigError(
            f"{named}paths should hold paths.outputs=FOLDER alone, got {shortened(paths)}"
        )
    return config


def _without_home(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_home(entry) for entry in value]
    return without_home(value) if isinstance(value, str) else value


def shortened(value: object) -> str:
    """Return ``value`` as a message shows it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def run_keys(kind: type[Settings]) -> list[str]:
    """Return the run-level keys that ``kind`` holds."""
    return [field.name for field in dataclasses.fields(kind)]


def settings(kind: type[Settings], config: Config) -> Any:  # noqa: ANN401
    """Return the run-level keys, validated, as a ``kind``."""
    try:
        values: Config = {key: config.get(key) for key in run_keys(kind)}
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(reason_of("", error)) from error


def reason_of(key: str, error: BaseException, known: Sequence[str] = ()) -> str:
    """Return one line for an error of a constructor called with the settings under ``key``.

    The messages about wrong values of settings are made here. ``known`` are the names of the
    constructor's parameters.
    """
    if isinstance(error, ConfigError):
        return f"{key}.{error}"
    if not isinstance(error, ValidationError):
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            return f"{key}.{match[1]}: there is no such key{_instead(key, match[1], known)}"
        return f"{key}: {' '.join(str(error).split())}"
    errors = error.errors(include_url=False)
    location, first = errors[0]["loc"], errors[0]
    # A union adds the tags of its members to the location: keep the parameter and list indices.
    named = [*location[:1], *(part for part in location[1:3] if isinstance(part, int))]
    place = ".".join(str(part) for part in [key, *named] if part != "")
    if "unexpected_keyword" in first["type"]:
        return f"{place}: there is no such key{_instead(key, str(location[0]), known)}"
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
    words = re.findall(r"'([^']+)'", " ".join(e["ctx"]["expected"] for e in errors
                                              if e["type"] == "literal_error"))  # fmt: skip
    near = did_you_mean(str(first["input"]), words)
    return f"{place}: it should {message}, got {shortened(first['input'])}{near}"


def _instead(group: str, key: str, known: Sequence[str]) -> str:
    """Return what to type for ``key``, which the chosen option of ``group`` lacks."""
    if near := did_you_mean(key, known):
        return near
    others = options_with(group, key)
    return f"; {group}={or_words(others)} has it" if others else ""


def without_paths(config: Config) -> Config:
    """Return the configuration that a run records: what it computes, not where it writes."""
    return {key: _without_home(value) for key, value in config.items() if key != "paths"}
