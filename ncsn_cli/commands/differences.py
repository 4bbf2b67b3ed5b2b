"""What tells runs apart: the settings in which they differ, the law and the target of samples."""

from __future__ import annotations

import re

from ncsn_cli.commands.found_runs import (
    OF_TRAINING,
    TRAINING_SEED,
    Run,
    Value,
    is_target,
    title_of,
)
from ncsn_cli.core.errors import one_line

Key = tuple[Value, ...]

IGNORED = (
    "paths", "plot", "animation", "metric", "objective", "trainer.resume", "trainer.snapshots",
    "trajectories", "trajectory_metrics", "log_density", "budget",
)  # fmt: skip
"""The first words of keys that do not tell runs apart."""

_OF_DRAWS = ("dataset.num_samples", "dataset.seed")  # two training sets of one law

_WHAT_WAS_RUN = {
    True: ("experiment", "score", "schedule", "sampler", "num_samples"),
    False: ("experiment", "model", "loss", "schedule", "trainer.steps"),
}  # by Run.has_samples


def keys_apart(runs: list[Run]) -> list[str]:
    """Return the keys, without the seed, that tell runs apart.

    These are the keys that a command line named and in which runs differ. Options, and then
    values, are added if runs that agree so far differ in them, which presets and checkpoints may
    cause. The checkpoint's path says least, so it is tried last; it may differ with the seed of
    its training.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.settings))
    options = {
        "experiment",
        *(title_of(key) for run in runs for key in run.config if is_target(key)),
    }
    groups = list(dict.fromkeys(["experiment", *(key.partition(".")[0] for key in known)]))
    known.sort(key=lambda key: (groups.index(key.partition(".")[0]), key not in options))
    differing = [
        key
        for key in known
        if key not in ("seed", TRAINING_SEED)
        if not key.startswith(IGNORED) and differ(runs, key)
    ]
    named = {key for run in runs for key in run.named} - {"checkpoint"}
    columns = [key for key in differing if key in named]
    others = [key for key in differing if key not in named]
    for key in sorted(others, key=lambda key: (key == "checkpoint", key not in options)):
        agree = [*columns, TRAINING_SEED] if key == "checkpoint" else columns
        if any(differ(some, key) for some in group(runs, agree).values()):
            columns.append(key)
    return [key for key in differing if key in columns]


def differ(runs: list[Run], key: str) -> bool:
    """Return whether runs differ in the setting ``key``."""
    if key.partition(".")[0] in OF_TRAINING:  # with the exact score there is no training
        runs = [run for run in runs if key in run.settings]
    return len({run.settings.get(key) for run in runs}) > 1


def group(runs: list[Run], by: list[str]) -> dict[Key, list[Run]]:
    """Return the runs for each combination of the values of the keys ``by``."""
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(key) for key in by), []).append(run)
    return groups


def show(value: Value) -> str:
    """Return a setting as tables and pictures show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else one_line(str(value))
    return text.rpartition(".")[2] if text.startswith(("ncsn_cli.", "torch.")) else text


def by_law(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs by what may stand in one table: trainings or samples, of one law.

    The keys are titles that name the dataset, and the values by which its laws differ.
    """
    found: dict[tuple[bool, Key], list[Run]] = {}
    for run in runs:
        found.setdefault((run.has_samples, law_of(run)), []).append(run)
    firsts = [*{law: some[0] for (_, law), some in found.items()}.values()]
    titled: dict[str, list[Run]] = {}
    for (has_samples, _), some in sorted(found.items(), key=lambda item: item[0][0]):
        title = f"{'samples' if has_samples else 'training'}{_named(some[0], firsts)}"
        again = sum(other == title or other.startswith(f"{title} (") for other in titled)
        titled[f"{title} ({again + 1})" if again else title] = some
    return titled


def law_of(run: Run) -> Key:
    """Return what fixes the law of the run's dataset: its settings, without those of its draws."""
    return tuple(
        f"{key}={_plain(value)}"
        for key, value in sorted(run.config.items())
        if key.startswith("dataset.") and key not in _OF_DRAWS
    )


def _plain(value: Value) -> str:
    """Return the text of a setting, in which 1 and 1.0 are the same, also in lists."""
    return re.sub(r"(?<![\w.+-])(-?\d+)(?![\w.])", r"\1.0", str(value))


def _named(run: Run, firsts: list[Run]) -> str:
    """Return `` of DATASET``, with the values that tell it from those of ``firsts``."""
    name = run.settings.get("dataset")
    if name is None:
        return ""
    namesakes = [other for other in firsts if other.settings.get("dataset") == name]
    keys = [key for key in run.settings if key.startswith("dataset.") and key not in _OF_DRAWS]
    values = [f"{key}={show(run.settings[key])}" for key in keys if differ(namesakes, key)]
    return f" of {', '.join([show(name), *values])}"


def moving(runs: list[Run]) -> list[str]:
    """Return the words for what moves the target of samples, p_sigma, between runs."""
    runs = [run for run in runs if run.has_samples]
    targets: dict[str, set[object]] = {
        "the dataset": {law_of(run) for run in runs},
        "sigma_min": {_last_level(run) for run in runs},
        "denoise": {_is_denoised(run) for run in runs},
    }
    return [name for name, values in targets.items() if len(values) > 1]


def _last_level(run: Run) -> object:
    """Return the last level or, if it is unknown, the noise floors, which depend on it."""
    if run.sigma is not None:
        return run.sigma
    return tuple(
        (key, value)
        for key, value in sorted(run.metrics.items())
        if key.endswith(".floor") and not key.startswith("clean.")
    )


def _is_denoised(run: Run) -> bool:
    return bool(run.settings.get("sampler.denoise") or run.settings.get("denoised"))


def constants(runs: list[Run]) -> list[str]:
    """Return what is the same in all runs that have it, as overrides.

    That is what was run, and the keys that a command line named.
    """
    has_samples = runs[0].has_samples
    keys = [*_WHAT_WAS_RUN[has_samples]]
    if has_samples and all(run.settings.get("score") == "checkpoint" for run in runs):
        keys[2:2] = ["model", "loss"]
    named = {key for run in runs for key in run.named}
    keys += dict.fromkeys(key for run in runs for key in run.settings if key in named)
    found = {}
    for key in keys:
        values = {run.settings[key] for run in runs if key in run.settings}
        if key != "dataset" and not key.startswith(IGNORED) and len(values) == 1:
            found[key] = values.pop()
    return [f"{key}={show(value)}" for key, value in found.items() if value is not None]
