"""The runs to compare: what they left in their folders."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ncsn_cli.commands.names import RESUME
from ncsn_cli.commands.old_names import OPTIONS
from ncsn_cli.core.errors import MissingInputError, one_line
from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.records import flatten, read_yaml

Value = str | float | int | bool | None

OF_TRAINING = ("loss", "optimizer", "trainer")
"""Groups that a run of ncsn-sample has from its checkpoint's run alone."""

TRAINING_SEED = "checkpoint.seed"
"""Key, in ``Run.settings``, of the seed of the checkpoint's run."""


@dataclass(frozen=True)
class Run:
    """The contents of one run's folder.

    Args:
        folder: The folder.
        state: ``done``, or why there is no result.
        error: The reason, one line.
        overrides: The overrides of its command line.
        named: The keys of these overrides, and of those of its checkpoint's run.
        config: The effective configuration, nested keys joined by dots.
        settings: The configuration that was asked for, each group's option under the group's name;
            what is used in training alone is that of its checkpoint's run.
        metrics: The numbers of ``metrics.json``, nested keys joined by dots.
        highest: The upper end of the band of exact draws (``floor_quantiles``), by the key of the
            metric, such as ``clean.moments``.
        sigma: The level whose p_sigma is the target of the samples; None if it is unknown.
    """

    folder: Path
    state: str
    error: str
    overrides: str
    named: set[str]
    config: dict[str, Value]
    settings: dict[str, Value]
    metrics: dict[str, float]
    highest: dict[str, float] = field(default_factory=dict)
    sigma: float | None = None

    @property
    def has_samples(self) -> bool:
        """Whether the run's numbers are of samples, and not of a training."""
        parts = {key.partition(".")[0] for key in self.metrics}
        return bool(parts & {"num_samples", "score_evaluations", "clean", "perturbed", "denoised"})


def find_runs(names: Iterable[str]) -> list[Path]:
    """Return the folders of the runs in, or below, the folders ``names``.

    Raises:
        MissingInputError: If a folder does not exist, or holds no run.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):  # pathlib's raises for a name that is too long
            raise MissingInputError(f"{path}: there is no such folder")
        below = [path] if _is_run(path) else [p.parent for p in path.rglob(".hydra")]
        if not below:
            raise MissingInputError(f"{path}: no run of ncsn-train or ncsn-sample is in it")
        found |= dict.fromkeys(sorted(below, key=_natural))
    return list(found)


def _is_run(path: Path) -> bool:
    return (path / ".hydra").is_dir() or (path / "run.json").is_file()


def _natural(path: Path) -> tuple[str, int, str]:
    """Return a sort key that puts the folder ``2`` of a sweep before ``10``."""
    return str(path.parent), int(path.name) if path.name.isdigit() else -1, path.name


def read_run(folder: Path) -> Run:
    """Return the contents of a run's folder; a damaged folder has the state ``damaged``."""
    status = read_json(folder / "status.json")
    state, error = str(status.get("state", "unfinished")), str(status.get("error") or "")
    metrics = read_json(folder / "metrics.json")
    if state == "done" and not metrics:
        state, error = "damaged", "metrics.json is missing or not JSON"
    try:
        values = read_yaml(folder / "config.yaml", {})
        words = [str(word) for word in read_yaml(folder / ".hydra" / "overrides.yaml", [])]
        asked = read_yaml(folder / ".hydra" / "config.yaml", {})
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as reason:
        return Run(folder, "damaged", one_line(str(reason)), "", set(), {}, {}, {})
    found = flatten(metrics)
    highest = {
        key.removesuffix(".floor_quantiles"): value[1]
        for key, value in found.items()
        if key.endswith(".floor_quantiles") and isinstance(value, list) and _are_two(value)
    }
    # Compare what was asked for, without what data and sizes decided. Groups that were left to a
    # checkpoint are in the effective configuration only.
    whole = {
        key: value
        for key, value in asked.items()
        if ("_target_" in value if isinstance(value, dict) else value is not None)
    }
    options, named = _chosen(folder)
    trained: dict[str, Any] = {}
    for source in _sources(folder, values.get("checkpoint")):
        of_it, named_for_it = _chosen(source)
        options = {k: v for k, v in of_it.items() if k != "experiment"} | options
        named |= named_for_it
        trained = trained or _records(source, "config.yaml")
    of_training = {key: trained[key] for key in OF_TRAINING if key in trained}
    settings = _with_options(_flat(of_training | values | whole), options)
    if trained:
        settings[TRAINING_SEED] = trained.get("seed")
    return Run(
        folder, one_line(state), one_line(error), one_line(shlex.join(words)),
        named | _keys(words), _flat(values), settings,
        {key: value for key, value in found.items() if _is_number(value)},
        highest, _last_level(found, settings),
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_two(values: list[Any]) -> bool:
    return len(values) == 2 and all(map(_is_number, values))


def _last_level(found: dict[str, Any], settings: dict[str, Value]) -> float | None:
    """Return the level at which sampling ended, or that ncsn-measure was given."""
    visited = found.get("mode_commitment.sigmas")
    last = visited[-1] if isinstance(visited, list) and visited else None
    keys = ("sigma", "schedule.sigma_min", "schedule.sigma")
    levels = (last, *(settings.get(key) for key in keys))
    return next((float(level) for level in levels if _is_number(level)), None)  # type: ignore[arg-type]


def _flat(values: dict[str, Any]) -> dict[str, Value]:
    """Return ``values`` in a form to compare: nested keys joined by dots, lists as text."""
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in flatten(values).items()
    }


def _with_options(values: dict[str, Value], options: dict[str, str]) -> dict[str, Value]:
    """Return ``values`` with each group's option (or class, if unknown) under its name."""
    settings: dict[str, Value] = {k: v for k, v in options.items() if k == "experiment"}
    for key, value in values.items():
        group = title_of(key)
        if is_target(key):
            settings[group] = options.get(group, value)
        if group in options or not is_target(key):
            settings[key] = value
    return settings


def _records(folder: Path, name: str) -> dict[str, Any]:
    """Return what Hydra recorded in the file ``name``; {} if that is missing or damaged."""
    try:
        values: dict[str, Any] = read_yaml(folder / ".hydra" / name, {})
    except (OSError, ValueError, OverflowError, yaml.YAMLError):
        return {}
    return values


def _sources(folder: Path, checkpoint: object) -> list[Path]:
    """Return where the run with the ``checkpoint`` that the run in ``folder`` names may be."""
    if not isinstance(checkpoint, str):
        return []
    cwd = str(flatten(_records(folder, "hydra.yaml")).get("hydra.runtime.cwd"))
    place = Path(os.path.expanduser(cwd), os.path.expanduser(checkpoint))
    return [place, place.parent.parent]  # a run's folder, or a file in one


def with_successor(run: Run, runs: Iterable[Run]) -> Run:
    """Return ``run``; if one of ``runs`` resumed it in another folder, its reason names this."""
    here = run.folder.resolve()
    for other in runs:
        for key in RESUME.values():
            places = _sources(other.folder, other.config.get(key))
            if other is not run and here in [place.resolve() for place in places]:
                reason = "; ".join(filter(None, [run.error, f"continued in {other.folder}"]))
                return replace(run, error=reason)
    return run


def _chosen(folder: Path) -> tuple[dict[str, str], set[str]]:
    """Return a run's options, by group, and the keys that its command line named.

    Both are empty if Hydra's records are missing.
    """
    hydra = flatten(_records(folder, "hydra.yaml"))
    options = {
        key.removeprefix("hydra.runtime.choices."): value
        for key, value in hydra.items()
        if key.startswith("hydra.runtime.choices.") and isinstance(value, str)
    }
    options = {group: OPTIONS.get(f"{group}/{name}", name) for group, name in options.items()}
    words = hydra.get("hydra.overrides.task")
    return options, _keys(words if isinstance(words, list) else [])


def _keys(words: list[Any]) -> set[str]:
    """Return the keys of the overrides ``words``."""
    return {re.split("[=@]", str(word).lstrip("+~"))[0] for word in words}


def is_target(key: str) -> bool:
    """Return whether ``key`` names the class of a group."""
    return key.endswith("._target_")


def title_of(key: str) -> str:
    """Return how a table names ``key``: a group's class by its group."""
    return key.removesuffix("._target_")
