"""Words that Hydra and a shell read: names of a sweep's folders, overrides and commands."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.records import without_home

ROSTER = "NCSN_CLI_SWEEP"
"""Environment variable: the folder in which each job of a sweep registers with a file."""

SWEPT = "swept"
"""File in that folder: the keys for which the sweep has several values, one per line."""

AUTO = "auto"
"""Value of ``RESUME``: the run's own folder is resumed, if it holds the run, stopped earlier."""

RESUME = {"train": "trainer.resume", "sample": "resume"}
"""For each command, the key that names the run to resume."""

# Groups that say where a job writes and who asked for the job, not what it computes.
_PLACES = {"paths", "hydra", "hparams_search"}
_LONGEST = 80  # characters before the digest; file systems allow 255 bytes


def job_folder(sweep: str, overrides: list[str]) -> str:
    """Return the name of the job's folder inside ``sweep``.

    A job is recognised by the overrides recorded in its folder, whatever the folder's name. If
    several folders match, one with a finished job comes first. A new name says what was swept.
    """
    folder, identity, shown = (
        Path(sweep),
        _identity(overrides),
        swept_among(overrides) or overrides,
    )
    name = _name([_with_short_path(each) for each in shown], overrides)
    if (folder / name).exists():  # the search below is slower
        return name
    files = sorted(folder.glob("*/.hydra/overrides.yaml"))
    known = [file.parent.parent for file in files if _recorded(file) == identity]
    known.sort(key=lambda job: read_json(job / "status.json").get("state") != "done")
    return known[0].name if known else name


def swept_among(overrides: list[str]) -> list[str]:
    """Return those of a job's ``overrides`` for which its sweep has several values."""
    swept = _swept_keys()
    return [each for each in overrides if each.partition("=")[0] in swept]


def study_name(overrides: list[str]) -> str:
    """Return the name of the Optuna study that a command line with these ``overrides`` makes."""
    return _name(overrides, overrides)


def _with_short_path(each: str) -> str:
    """Return an override to be shown in a name: of a checkpoint's path the last part alone."""
    key, _, value = each.partition("=")
    last = value.strip("'\"/").rpartition("/")[2]
    return f"{key}={last}" if key.lstrip("+") == "checkpoint" else each


def old_study_name(dirname: str) -> str:
    """Return a study's name in the old form, which is made from Hydra's ``override_dirname``."""
    digest = hashlib.sha256(dirname.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.,=+-]', '_', dirname)[:80]}_{digest}"


def _name(shown: list[str], overrides: list[str]) -> str:
    """Return a name of letters, digits and ``. _ -``, made from the overrides ``shown``.

    The digest, of all ``overrides``, keeps names unique where some were simplified, cut off or
    left out.
    """
    parts = [word.lstrip("+~").replace("=", "-", 1) for word in _without_places(shown)]
    text = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("_") for part in parts)
    digest = hashlib.sha256(json.dumps(_identity(overrides)).encode()).hexdigest()[:8]
    return f"{text.strip('._-')[:_LONGEST] or 'job'}_{digest}"


def _identity(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that tell one job of a sweep from another, sorted."""
    return [without_home(word) for word in _without_places(overrides)]


def _without_places(overrides: Iterable[str]) -> list[str]:
    groups = ((re.split(r"[=.@/]", word.lstrip("+~"))[0], word) for word in overrides)
    return sorted(word for group, word in groups if group not in _PLACES)


def _swept_keys() -> set[str]:
    """Return the keys for which this job's sweep has several values."""
    file = Path(os.environ.get(ROSTER, os.devnull), SWEPT)
    return set(file.read_text().splitlines()) if file.is_file() else set()


@functools.cache
def _recorded(file: Path) -> list[str] | None:
    """Return the identity of the job that wrote ``file``; None if it is not a list of texts."""
    import yaml

    from ncsn_cli.runs.records import read_yaml

    try:
        words = read_yaml(file, [])
    except (OSError, ValueError, OverflowError, yaml.YAMLError):
        return None
    return _identity(words) if all(isinstance(word, str) for word in words) else None


def for_shell(words: Iterable[str]) -> str:
    """Return a command's words, quoted for a shell, with the home folder as ``$HOME``."""
    return " ".join(map(_for_shell, words))


def _for_shell(word: str) -> str:
    if without_home(word) == word:
        return shlex.quote(word)
    escaped = re.sub(r'(["$`\\])', r"\\\1", word)
    return f'"{without_home(escaped, "$HOME")}"'


def override(key: str, value: Any) -> str:  # noqa: ANN401
    """Return ``key=value``, quoted for a shell so that Hydra reads this value."""
    return shlex.quote(for_hydra(key, value))


def own_modules(config: dict[str, Any]) -> list[str]:
    """Return the user's own modules that a checkpoint with this ``config`` is built from."""
    groups = (config.get(key) or {} for key in ("model", "dataset", "schedule", "sampler", "init"))
    targets = [group["_target_"] for group in groups if "_target_" in group]
    modules = {str(target).rpartition(".")[0] for target in targets}
    return sorted(module for module in modules if not module.startswith("ncsn_cli."))


def sample_command(folder: Path, config: dict[str, Any]) -> str:
    """Return the command that samples from the run in ``folder``, or from the runs of a sweep.

    It names the modules of the user's own classes.
    """
    own = own_modules(config)
    words = [
        override("checkpoint", os.path.relpath(folder)),
        *([override("plugins", own)] if own else []),
    ]
    return " ".join(["ncsn-sample", *words])


def for_hydra(key: str, *values: Any) -> str:  # noqa: ANN401
    """Return ``key=value`` so that Hydra reads this value; a sweep is over several values."""
    return f"{key}={','.join(map(_in_hydras_grammar, values))}"


def _in_hydras_grammar(value: Any) -> str:  # noqa: ANN401
    """Return ``value`` as it stands in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_in_hydras_grammar, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_in_hydras_grammar(v)}' for key, v in value.items())}}}"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """Return a text, in quotes if Hydra's grammar would otherwise read another value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    try:
        is_plain = OverridesParser.create().parse_override(f"key={text}").value() == text
    except HydraException:
        is_plain = False
    if is_plain and text and "${" not in text:
        return text
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # otherwise OmegaConf would replace it
    return QuotedString(escaped, Quote.double).with_quotes()
