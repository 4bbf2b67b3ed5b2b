"""Short values of the command line, written out before Hydra starts.

Every record of a run then names a path.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from ncsn_cli.commands.mistyped import START
from ncsn_cli.commands.names import AUTO, for_hydra
from ncsn_cli.commands.suggestions import known_names, known_options
from ncsn_cli.core.errors import ConfigError, MissingInputError
from ncsn_cli.runs.files import read_json
from ncsn_cli.runs.folder import CHECKPOINTS, SAMPLES, STOPPED_CHAINS, is_held

_LATEST = {
    ("train", "trainer.resume"): (CHECKPOINTS, True, "stopped run of ncsn-train"),
    ("sample", "resume"): (STOPPED_CHAINS, True, "stopped run of ncsn-sample"),
    ("sample", "checkpoint"): (CHECKPOINTS, False, "run of ncsn-train with a checkpoint"),
}
"""By command and key: what ``latest`` is looked for by, whether it is a stopped run, its name."""


def expand(name: str, words: list[str]) -> list[str]:
    """Return the words after ``ncsn-name`` with short values written out.

    - ``latest`` becomes the path of a run below ``paths.outputs``: for ``checkpoint`` the newest
      with a checkpoint; for ``resume`` and ``trainer.resume`` the newest that was stopped. The
      newest run is the one that was started last.
    - Names of files after ``ncsn-measure`` become ``file=NAME``.
    - ``checkpoint=FOLDER``, where runs with checkpoints are below the folder, such as those of a
      sweep, becomes a sweep over these runs.

    A folder of the name ``latest`` in the current one is given as ``./latest``.

    Raises:
        MissingInputError: If there is no such run.
        ConfigError: If ``ncsn-train`` is given an experiment for ``ncsn-sample``.
    """
    if name == "train":
        _refuse_experiments_for_sampling(words)
    args = get_args_parser().parse_known_args(words)[0]
    is_shown = bool(args.cfg or args.info)  # Hydra shows no sweep
    if name == "measure":
        return _with_files(words, args.overrides, is_shown)
    outputs = next((v for w in reversed(words) for v in _values(w, "paths.outputs")), "outputs")
    expanded: list[str] = []
    is_sweep = False
    for each in words:
        key, paths = _key(each), list[str]()
        values = _values(each, key) if (name, key) in _LATEST else []
        for value in values:
            jobs = _jobs(value) if key == "checkpoint" and not is_shown else []
            is_sweep = is_sweep or bool(jobs)
            paths += jobs or [latest(name, key, outputs) if value == "latest" else value]
        expanded.append(each if paths == values else for_hydra(each.partition("=")[0], *paths))
    return as_sweep(expanded) if is_sweep else expanded


def refuse_missing(name: str, words: list[str]) -> None:
    """Raise a MissingInputError if a run or checkpoint that the ``words`` name does not exist.

    The command would find this out, too, but only once it has imported torch. A sweep over several
    is refused if one of them does not exist.
    """
    args = get_args_parser().parse_known_args(words)[0]
    if args.cfg or args.info or args.help or args.hydra_help:
        return
    last = {_key(each): each for each in args.overrides}  # the last word on a key counts
    for key, each in last.items():
        paths = _values(each, key) if (name, key) in _LATEST else []
        if len(paths) > 1 and not args.multirun:
            continue  # Hydra says how to quote a comma
        for path in paths:
            if path == AUTO or "$" in path or "\0" in path:
                continue
            if not os.path.exists(os.path.expanduser(path)):
                raise MissingInputError(f"{key}={path}: there is no such file or folder")


def _with_files(words: list[str], overrides: list[str], is_shown: bool) -> list[str]:
    """Return the words with ``file=NAME`` for the names of files; several files make a sweep.

    A folder with runs of ``ncsn-sample`` stands for the samples of each of them. Of a command that
    ``is_shown`` only, several files are the first.

    Raises:
        MissingInputError: If there is no such file.
    """

    def is_override(each: str) -> bool:
        key = re.split("[.@/]", _key(each).lstrip("~"))[0]
        return bool(START.match(each)) and (key in known_names("measure") or not exists(each))

    def exists(each: str) -> bool:
        return each == "-" or os.path.exists(each)

    files = [each for each in overrides if not is_override(each)]
    for each in files:
        if not exists(each):
            meant = f"; type dataset={each}" if each in known_options("dataset") else ""
            raise MissingInputError(
                f"{each}: there is no such file, and an override is key=value{meant}"
            )
    if not files:
        return words
    place, others = words.index(files[0]), [each for each in words if each not in files]
    found = {each: _runs(each, SAMPLES) if os.path.isdir(each) else [] for each in files}
    paths = [str(path) for each, runs in found.items() for path in (runs or [Path(each)])]
    paths = paths[:1] if is_shown else paths
    expanded = [*others[:place], for_hydra("file", *paths), *others[place:]]
    return as_sweep(expanded) if len(paths) > 1 else expanded


def as_sweep(words: list[str]) -> list[str]:
    """Return the words of a command that sweeps, with ``-m`` if that is missing."""
    return words if {"-m", "--multirun"} & {*words} else ["-m", *words]


def _key(each: str) -> str:
    return each.partition("=")[0].lstrip("+")


def _values(each: str, key: str) -> list[str]:
    """Return the texts that the word ``each`` gives to ``key``; [] if it gives none, or others."""
    if _key(each) != key:
        return []
    try:
        value = OverridesParser.create().parse_override(each).value()
    except HydraException:
        return []
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    texts = [each.text if isinstance(each, QuotedString) else each for each in values]
    return [str(text) for text in texts] if all(isinstance(each, str) for each in texts) else []


def latest(name: str, key: str, outputs: str) -> str:
    """Return the path of the newest run below ``outputs`` that ``key`` may name."""
    saved, is_stopped, what = _LATEST[name, key]
    found = [
        (str(read_json(folder / "run.json").get("start") or ""), _written(folder, saved), folder)
        for folder in _runs(outputs, saved)
        if not is_stopped or _is_stopped(folder)
    ]
    if not found:
        raise MissingInputError(f"{key}=latest: there is no {what} in or below {outputs}")
    return str(max(found)[-1])


def _jobs(value: str) -> list[str]:
    """Return the paths of the runs with checkpoints below a folder; [] if it is a run itself."""
    top = os.path.expanduser(value)
    found = _runs(top, CHECKPOINTS) if os.path.isdir(top) else []
    return [] if found == [Path(top)] else [str(folder) for folder in found]


def _runs(top: str, saved: str) -> list[Path]:
    """Return the folders in or below ``top`` with a file such as ``saved``, sorted."""
    found = []
    seen = set()
    for here, folders, files in os.walk(top, followlinks=True):
        folder = Path(here)
        if (real := os.path.realpath(here)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        has_saved = any(folder.glob(saved))
        if has_saved:
            found.append(folder)
        if has_saved or "run.json" in files:  # below a run there is no other one
            folders.clear()
        folders[:] = [each for each in folders if not each.startswith(".")]
    return sorted(found)


def _is_stopped(folder: Path) -> bool:
    """Return whether the run in ``folder`` has not finished, and no process works on it."""
    return read_json(folder / "status.json").get("state") != "done" and not is_held(folder)


def _written(folder: Path, saved: str) -> int:
    """Return when the last file such as ``saved`` was written, in ns."""
    times = [0]
    for file in folder.glob(saved):
        with suppress(FileNotFoundError):  # a running job removes old checkpoints
            times.append(file.stat().st_mtime_ns)
    return max(times)


def _refuse_experiments_for_sampling(words: list[str]) -> None:
    """Raise if an experiment of this package that chooses no loss is to be trained.

    If the command line chooses a loss, there is something to train.
    """
    if any(_key(each) == "loss" for each in words):
        return
    for experiment in (value for each in words for value in _values(each, "experiment")):
        if not _chooses_a_loss(experiment):
            raise ConfigError(
                f"experiment={experiment}: this experiment is for ncsn-sample, it chooses no loss:"
                f" ncsn-sample score=exact experiment={experiment}"
            )


def _chooses_a_loss(experiment: str) -> bool:
    """Return whether an experiment, or one that it starts from, chooses a loss.

    The answer for a user's own experiment is True.
    """
    from ncsn_cli.commands.cli import config_dir

    file = config_dir() / "experiment" / f"{experiment}.yaml"
    if not re.fullmatch(r"\w+", experiment) or not file.is_file():
        return True
    return any(
        _chooses_a_loss(entry) if isinstance(entry, str) else "override /loss" in entry
        for entry in yaml.safe_load(file.read_text())["defaults"]
    )
