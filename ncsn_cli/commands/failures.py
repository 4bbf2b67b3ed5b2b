"""Turn an error into at most three lines for the user, and an exit code.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ncsn_cli.commands.before import last_written
from ncsn_cli.commands.names import for_shell
from ncsn_cli.commands.suggestions import did_you_mean
from ncsn_cli.commands.unknown_keys import no_entry, unknown_key

BUG = 1
"""The exit code of an error that the user did not make."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def exit_with(
    name: str,
    error: BaseException,
    job_started: bool,
    show_traceback: bool,
    with_overrides: bool = False,
) -> NoReturn:
    """Print in at most three lines what went wrong, and exit with the error's code.

    ``with_overrides`` adds the overrides to a refusal that names none of them. A sweep has too
    many, and records those of each job.
    """
    if show_traceback:
        traceback.print_exception(error)
    from ncsn_cli.core.errors import one_line
    from ncsn_cli.runs.records import from_here

    lines, code = explain(name, error, job_started)
    lines = _with_overrides(lines) if code == 2 and with_overrides else lines
    for line in [f"ncsn-{name}: {lines[0]}", *lines[1:3]]:
        print(one_line(from_here(line), 2000), file=sys.stderr)
    sys.exit(code)


def code_of(name: str, error: BaseException, job_started: bool) -> int:
    """Return the exit code with which ``ncsn-name`` ends for ``error``."""
    return explain(name, error, job_started)[1]


def status_file() -> Path:
    """Return the path of the running job's ``status.json``."""
    return Path(HydraConfig.get().runtime.output_dir) / "status.json"


def record_failure(name: str, error: BaseException, before: int | None) -> None:
    """Write the reason and the traceback into the job's log, and the reason into ``status.json``.

    Once a run has started, it writes its own ``status.json``. ``before`` is when that file was
    last written before the job, in ns.
    """
    lines = explain(name, error, True)[0]
    shown = "\n".join([f"ncsn-{name}: {lines[0]}", *lines[1:3]])  # as in the terminal
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, shown, None, sys.exc_info())
    for handler in _log_files():
        handler.handle(record)
    from ncsn_cli.core.errors import BusyFolderError

    if isinstance(error, Exception | KeyboardInterrupt) and not isinstance(error, BusyFolderError):
        from ncsn_cli.runs.files import read_json, to_json, write_atomic
        from ncsn_cli.runs.records import without_home

        status = read_json(status_file())
        state, untouched = status.get("state"), last_written(status_file()) == before
        # Do not overwrite the status of a finished run. Write no status if a signal came before
        # the run started.
        may_record = state == "running" or (untouched and isinstance(error, Exception))
        if state == "done" or not may_record:
            return
        reason = without_home(" ".join(lines))
        state = "failed" if isinstance(error, Exception) else "interrupted"
        status = {"state": state, "step": status.get("step", 0), "error": reason}
        write_atomic(status_file(), to_json(status))


def _log_files() -> list[logging.FileHandler]:
    """Return the handlers that write the running job's log; after a job, those of the last one."""
    return [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]


_LESS_MEMORY = {
    "train": "lower trainer.batch_size or dataset.num_samples, or choose a smaller model",
    "sample": "lower num_samples or trajectories",
    "measure": "measure fewer samples",
    "compare": "compare fewer runs",
}


def explain(name: str, error: BaseException, job_started: bool) -> tuple[list[str], int]:
    """Return the lines to print for the user of ``ncsn-name``, and the exit code."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return [str(error), *getattr(error, "__notes__", [])], code
    if isinstance(error, KeyboardInterrupt):
        return ["stopped from the keyboard", *getattr(error, "__notes__", [])], 130
    if isinstance(error, OverrideParseException):
        lines = [f"{error.override}: {_without_tokens(str(error))}"]
        return [*lines, *_how_to_quote(str(error.override))], 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = _clash(error) or _unknown(name, error) or _shorten(str(error))
        lines = lines if job_started else _with_overrides(lines)
        # During a job, drop the third line: Hydra wrote it.
        return lines[: 2 if job_started else 3], 2
    if _is_out_of_memory(error):
        return [f"out of memory; {_LESS_MEMORY[name]}"], 71
    # Before the job, an OSError without errno is Hydra's own.
    if isinstance(error, OSError) and (job_started or error.errno is not None):
        place = error.filename or "the output folder"
        if job_started and error.errno in _FULL_DISK:
            return [f"{place}: {error.strerror}; all files saved before this are whole"], 74
        return [f"{place}: {error.strerror}; choose another place ({_place_option(name)})"], 73
    what = " ".join(str(error).split()) or "no message"
    if line := _no_name(error) or no_entry(error):
        return [line], 2
    if not job_started:
        return _with_overrides([what]), 2
    place = "HYDRA_FULL_ERROR=1 shows the traceback."
    if name != "compare" and (logs := _log_files()):
        log = os.path.relpath(logs[-1].baseFilename)
        place = f"{log} has the traceback; HYDRA_FULL_ERROR=1 shows it here."
    return [f"internal error: {type(error).__name__}: {what}", place], BUG


def _place_option(name: str) -> str:
    """Return the option that says where this command writes."""
    if name == "compare":
        return "--output FOLDER"
    given = [word.lstrip("+").partition("=")[0] for word in sys.argv[1:]]
    keys = (key for key in ("hydra.run.dir", "hydra.sweep.dir") if key in given)
    return f"{next(keys, 'paths.outputs')}=FOLDER"


_PATHS = {
    "checkpoint", "resume", "trainer.resume", "paths.outputs", "hydra.run.dir", "hydra.sweep.dir",
}  # fmt: skip


def _how_to_quote(word: str) -> list[str]:
    """Return a line on how to quote an override whose path Hydra's grammar misreads, or none."""
    from ncsn_cli.commands.names import override

    key, _, path = word.partition("=")
    if not path or not (key.lstrip("+") in _PATHS or os.path.exists(path)):
        return []
    if "," in path and not os.path.exists(path) and {"-m", "--multirun"} & {*sys.argv}:
        return [f"""quote each path for Hydra and all of it for the shell: '{key}="A","B"'"""]
    return [f"quote it for Hydra and for the shell: {override(key, path)}"]


def _clash(error: BaseException) -> list[str]:
    """Return a line on a config that has a list where a group's values belong, or none.

    Hydra's message does not name the key, but the frame in which the merge failed knows the key.
    """
    match = re.search(r"In '(.*)': .*\nCannot merge DictConfig with ListConfig", str(error))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    nodes = [f.f_locals.get("self") for f in frames if f.f_code.co_name == "_merge_with"]
    node = nodes[-1] if nodes else None
    if match is None or not isinstance(node, DictConfig):
        return []
    key = node._get_full_key(None)
    remedy = "write its values as key: value"
    if key in ("plot", "metric", "animation"):
        remedy = f"choose its options in the defaults list: - override /{key}: []"
    return [f"{key}: in {match[1]} this is a list; {remedy}"]


def _no_name(error: BaseException) -> str | None:
    """Return a line on an override that gives a group something else than an option's name.

    Hydra's message does not name the key, but the frame that raised knows the override.
    """
    if not str(error).startswith("Config group override must be a string"):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    word = frame.f_locals["override"].input_line
    return f"{word}: a group takes the name of an option; --help lists them"


def _with_overrides(lines: list[str]) -> list[str]:
    """Return ``lines``.

    If they name no override, add the shortened overrides to the first line.
    """
    given = [word for word in sys.argv[1:] if word]
    if any(word.lstrip("+~").partition("=")[0] in " ".join(lines) for word in given):
        return lines
    shown = " ".join(word if len(word) <= 60 else f"{word[:57]}..." for word in given)
    if not shown:
        return lines
    return [f"{lines[0]}; given: {shown[:200]}", *lines[1:]]


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on the CPU torch raises a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "allocate memory" in str(error)  # torch's "can't", the system's "Cannot"
    )


def _unknown(name: str, error: BaseException) -> list[str]:
    """Return a line on a key or an option that Hydra does not know, with the nearest; or none."""
    message = str(error)
    if line := no_entry(error):
        return [line]
    if match := re.search(
        r"Could not override '(.*)'\.\n(?:To append to your config|Key)", message
    ):
        return [unknown_key(name, match[1], error)]
    if match := re.search(r"Could not delete from config\. '(.*)' does not exist", message):
        return [unknown_key(name, match[1], error)]
    if match := re.search(
        r"Could not override '(.*)'\.\nDid you mean to override (.*)\?", message
    ):
        return [f"{match[1]}: there is no such group here; did you mean {match[2]}?"]
    if match := re.search(r"Cannot find primary config '([^']*)'", message):
        return [f"--config-name {match[1]}: there is no such file in the folders of configs"]
    if match := re.search(r"Could not (?:find|load) '([^']*)'", message):
        return [_unknown_option(match[1], error)]
    if match := re.search(r"Could not override '([^']*)'", message):
        return [f"{match[1]}: there is no such option; see --help"]
    return []


def _unknown_option(path: str, error: BaseException) -> str:
    """Return a line on the option at ``path``, such as ``dataset/ring2d``."""
    parts = path.split("/")
    group = "/".join(parts[: 1 + (parts[0] == "hydra")])
    folder = "/".join(parts[:-1])
    known = list(getattr(error, "options", None) or ())
    if folder != group or not known:  # Hydra's message lists the places in which it has looked
        places = re.findall("path=file://(.*)", str(error))
        known = [file.stem for place in places for file in Path(place).glob(f"{folder}/*.yaml")]
    prefix = folder.removeprefix(group).removeprefix("/")
    known = sorted({f"{prefix}/{each}" if prefix else each for each in known})
    name = path.removeprefix(f"{group}/")
    remedy = f"; choose from {', '.join(known)}" if known else "; see --help"
    if group in ("hydra/launcher", "hydra/sweeper"):
        remedy += "; more come with pip install 'ncsn_cli[slurm,optuna]'"
    return f"{group}={name}: there is no such option{did_you_mean(name, known) or remedy}"


def _without_tokens(message: str) -> str:
    """Return the parser's explanation of a word, without the list of all tokens it would take."""
    return re.sub(r" expecting \{.*\}", "", " ".join(_shorten(message)))


def _shorten(message: str) -> list[str]:
    """Return Hydra's explanation, which has many lines, in at most three."""
    if match := re.search(r"Ambiguous value for argument '(.*)'", message):
        said = f"{match[1]}: a comma separates values, which -m sweeps over"
        key, _, values = match[1].partition("=")
        if all(os.path.exists(path) for path in values.split(",")):
            return [said]
        if quoting := _how_to_quote(match[1]):
            return [said, *quoting]
        return [f"{said}; for one run with a list, type {for_shell([f'{key}=[{values}]'])}"]
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return [line for line in lines if not line.startswith(("See https", "object_type"))][:3]
