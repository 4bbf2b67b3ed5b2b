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
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def exit_with(
    name: str, error: BaseException, job_started: bool, show_traceback: bool
) -> NoReturn:
    """Print in at most three lines what went wrong, and exit with the error's code."""
    if show_traceback:
        traceback.print_exception(error)
    from ncsn_cli.core.errors import one_line

    lines, code = _explain(name, error, job_started)
    for line in [f"ncsn-{name}: {lines[0]}", *lines[1:3]]:
        print(one_line(line, 2000), file=sys.stderr)
    sys.exit(code)


def status_file() -> Path:
    """Return the path of the running job's ``status.json``."""
    return Path(HydraConfig.get().runtime.output_dir) / "status.json"


def last_written(path: Path) -> int | None:
    """Return when a file was last written, in ns; None if there is no file."""
    return path.stat().st_mtime_ns if path.exists() else None


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def record_failure(name: str, error: BaseException, before: int | None) -> None:
    """Write the traceback into the job's log file, and the reason into ``status.json``.

    Once a run has started, it writes its own ``status.json``. ``before`` is when that file was
    last written before the job, in ns. A command that is refused leaves alone a run that its
    folder held before.
    """
    has_run = (status_file().parent / "run.json").exists()
    if has_run and last_written(status_file()) == before and not _in_sweep():
        return
    record = logging.LogRecord(
        __name__, logging.ERROR, __file__, 0, "the job failed", None, sys.exc_info()
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
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
        reason = without_home(" ".join(_explain(name, error, True)[0]))
        state = "failed" if isinstance(error, Exception) else "interrupted"
        status = {"state": state, "step": status.get("step", 0), "error": reason}
        write_atomic(status_file(), to_json(status))


_LESS_MEMORY = {
    "train": "lower trainer.batch_size or dataset.num_samples, or choose a smaller model",
    "sample": "lower num_samples or trajectories",
    "compare": "compare fewer runs",
}


def _explain(name: str, error: BaseException, job_started: bool) -> tuple[list[str], int]:
    """Return the lines to print for the user of ``ncsn-name``, and the exit code."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return [str(error), *getattr(error, "__notes__", [])], code
    if isinstance(error, KeyboardInterrupt):
        return ["stopped from the keyboard", *getattr(error, "__notes__", [])], 130
    if isinstance(error, OverrideParseException):
        lines = [f"{error.override}: {' '.join(_shorten(name, str(error)))}"]
        return [*lines, *_how_to_quote(str(error.override))], 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = _clash(error) or _shorten(name, str(error))
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
    if not job_started:
        return _with_overrides([what]), 2
    log = "" if name == "compare" else "The log in the run's folder has the traceback; "
    return [
        f"internal error: {type(error).__name__}: {what}",
        f"{log}HYDRA_FULL_ERROR=1 shows {'it here' if log else 'the traceback'}.",
    ], 1


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


def _with_overrides(lines: list[str]) -> list[str]:
    """Return ``lines``.

    If they name no override, add the shortened overrides to the first line.
    """
    given = [word for word in sys.argv[1:] if word]
    if any(word.lstrip("+~").partition("=")[0] in " ".join(lines) for word in given):
        return lines
    shown = " ".join(word if len(word) <= 60 else f"{word[:57]}..." for word in given)
    return [f"{lines[0]}; given: {shown[:200]}", *lines[1:]]


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on the CPU torch raises a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "allocate memory" in str(error)  # torch's "can't", the system's "Cannot"
    )


def _shorten(name: str, message: str) -> list[str]:
    """Return Hydra's explanation, which has many lines, in at most three for ``ncsn-name``."""
    if match := re.search(r"Could not override '(.*)'\.\n(?:To append|Key)", message):
        key = match[1]
        may_be_in_checkpoint = name == "sample" and "." in key
        advice = f"; ++{key}=... changes a checkpoint's value" if may_be_in_checkpoint else ""
        return [f"{key}: there is no such key here, see --cfg job{advice}"]
    if match := re.search(r"Could not (?:find|load|override) '([^']*)'", message):
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", message)
        remedy = f"choose from {', '.join(options[1].split())}" if options else "see --help"
        if match[1].startswith(("hydra/launcher", "hydra/sweeper")):
            remedy += "; more come with pip install 'ncsn_cli[parallel,slurm,optuna]'"
        return [f"{match[1]}: there is no such option; {remedy}"]
    match = re.search(r"Ambiguous value for argument '(.*)'", message)
    if match and (quoting := _how_to_quote(match[1])):
        return [f"{match[1]}: a comma separates values, which -m sweeps over", *quoting]
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return [line for line in lines if not line.startswith(("See https", "object_type"))][:3]
