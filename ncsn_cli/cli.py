"""The frame of the console scripts: Hydra's start, errors in three lines, exit codes.

Nothing here imports torch before a job runs, so ``--help``, ``--cfg job`` and refused overrides
answer fast.
"""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ncsn_cli.moved import MovedOptions

if TYPE_CHECKING:
    from ncsn_cli.sweep import Job


def _job_folder(sweep: str, overrides: ListConfig) -> str:
    from ncsn_cli.names import job_folder

    return job_folder(sweep, cast("list[str]", OmegaConf.to_container(overrides)))


def _study_name(overrides: ListConfig) -> str:
    from ncsn_cli.names import study_name

    return study_name(cast("list[str]", OmegaConf.to_container(overrides)))


# Here, so that processes which run jobs of a sweep know them, too.
OmegaConf.register_new_resolver("ncsn_cli.job_folder", _job_folder, replace=True)
OmegaConf.register_new_resolver("ncsn_cli.study_name", _study_name, replace=True)

Plugins.instance().register(MovedOptions)

# Hydra copies its store, a singleton that it only reads from, 127 times for --help: 1 s.
ConfigStore.__deepcopy__ = lambda store, _: store  # type: ignore[attr-defined]

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def config_dir() -> Path:
    """The package's own configs: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(
        folder
        for folder in (package / "configs", package.parent / "configs")
        if (folder / "train.yaml").is_file()
    )


def train() -> None:
    """``ncsn-train``."""
    _run("train")


def sample() -> None:
    """``ncsn-sample``."""
    _run("sample")


def compare() -> None:
    """``ncsn-compare``."""
    importlib.import_module("ncsn_cli.streams").forgive()
    try:
        importlib.import_module("ncsn_cli.compare").compare(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        _exit("compare", error, True, os.environ.get("HYDRA_FULL_ERROR") == "1")


def _run(name: str) -> None:
    from ncsn_cli.streams import forgive

    forgive()
    if any(len(word) > 2 and "--version".startswith(word) for word in sys.argv[1:]):
        print("ncsn_cli", importlib.import_module("ncsn_cli").__version__)  # not Hydra's
        return
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    state = _Progress()

    def job(cfg: DictConfig) -> float | None:
        state.job_started = True
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) is signal.SIG_DFL:  # else a scheduler's, or ignored
                signal.signal(number, _interrupt)
        before = _written(_status())
        _keep_home_out_of_logs()
        try:
            return _task(name)(cfg)
        except BaseException as error:
            _record_failure(name, error, before)
            raise

    start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(job)
    error = _error_of(start)
    try:
        sweep = sys.modules.get("ncsn_cli.sweep")  # --help and the like do without it
        jobs: list[Job] = [] if sweep is None else sweep.conclude()
    except (Exception, KeyboardInterrupt) as raised:
        jobs, error = [], error or raised
    failed = sum(job.has_failed for job in jobs)
    if failed and getattr(error, "exit_code", None) is None:
        from ncsn_cli.core.errors import FailedJobsError

        error = FailedJobsError(f"{failed} of {len(jobs)} jobs failed; they are named above")
    if isinstance(error, SystemExit):
        raise error
    if error is not None:
        _exit(name, error, state.job_started, show_traceback)


def _error_of(start: Callable[[], object]) -> BaseException | None:
    """Return what ends a command, None if that is its work."""
    from ncsn_cli.core.errors import RefusedStart

    try:
        _refuse_rerun()
        sys.path.append(os.getcwd())  # a user's own classes
        start()
    except RefusedStart as refused:
        return refused.__cause__
    except BaseException as raised:
        return raised
    return None


def _task(name: str) -> Callable[[DictConfig], float | None]:
    """The command's function. Importing torch makes much, and nothing to collect, now or later."""
    module = f"ncsn_cli.{name}"
    if module not in sys.modules:  # once: an earlier job of a sweep leaves what is to be collected
        gc.disable()
        try:
            importlib.import_module(module)
            gc.freeze()
        finally:
            gc.enable()
    return getattr(sys.modules[module], name)


def _refuse_rerun() -> None:
    """Hydra's flag unpickles a file, which can run anything; argparse knows it by its start."""
    if any(word.startswith("--e") for word in sys.argv[1:]):
        from ncsn_cli.core.errors import ConfigError

        raise ConfigError(
            "--experimental-rerun: it runs what a pickle says; run.json has the command"
        )


def _exit(name: str, error: BaseException, job_started: bool, show_traceback: bool) -> NoReturn:
    """Say in at most three lines what went wrong."""
    if show_traceback:
        traceback.print_exception(error)
    from ncsn_cli.core.errors import one_line

    lines, code = _explain(name, error, job_started)
    for line in [f"ncsn-{name}: {lines[0]}", *lines[1:3]]:
        print(one_line(line, 2000), file=sys.stderr)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    """These signals end a job as Ctrl-C does, so that its folder says so."""
    from ncsn_cli.core.errors import InterruptedRun

    raise InterruptedRun("stopped by a signal", number)


class _HomelessFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from ncsn_cli.runs.records import without_home

        return without_home(super().format(record))


def _keep_home_out_of_logs() -> None:
    logging.raiseExceptions = False  # a full disk is not to be told once a line
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.formatter is not None:
            style = handler.formatter
            handler.setFormatter(_HomelessFormatter(style._fmt, style.datefmt))


class _Progress:
    job_started = False


def _status() -> Path:
    return Path(HydraConfig.get().runtime.output_dir) / "status.json"


def _written(path: Path) -> int | None:
    """When a file was written, in ns; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _record_failure(name: str, error: BaseException, before: int | None) -> None:
    """The traceback into the job's log file, its reason into ``status.json``.

    A run says so itself once it has begun; ``before`` is when that file was written before.
    """
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

        status = read_json(_status())
        state, untouched = status.get("state"), _written(_status()) == before
        # A finished run is not lost because its folder was named again; a signal before a run
        # leaves nothing.
        is_begun = state == "running" or (untouched and isinstance(error, Exception))
        if state == "done" or not is_begun:
            return
        reason = without_home(" ".join(_explain(name, error, True)[0]))
        state = "failed" if isinstance(error, Exception) else "interrupted"
        status = {"state": state, "step": status.get("step", 0), "error": reason}
        write_atomic(_status(), to_json(status))


_LESS_MEMORY = {
    "train": "lower trainer.batch_size or dataset.num_samples, or choose a smaller model",
    "sample": "lower num_samples or trajectories",
    "compare": "compare fewer runs",
}


def _explain(name: str, error: BaseException, job_started: bool) -> tuple[list[str], int]:
    """What to tell the user of ``ncsn-name``, and the exit code."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return [str(error)], code
    if isinstance(error, KeyboardInterrupt):
        return ["stopped from the keyboard"], 130
    if isinstance(error, OverrideParseException):
        lines = [f"{error.override}: {' '.join(_shorten(name, str(error)))}"]
        return [*lines, *_how_to_quote(str(error.override))], 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = _clash(error) or _shorten(name, str(error))
        lines = lines if job_started else _with_overrides(lines)
        return lines[: 2 if job_started else 3], 2  # Hydra adds a line for a job
    if _is_out_of_memory(error):
        return [f"out of memory; {_LESS_MEMORY[name]}"], 71
    if isinstance(error, OSError) and (job_started or error.errno is not None):  # else Hydra's
        place = error.filename or "the output folder"
        if job_started and error.errno in _FULL_DISK:
            return [f"{place}: {error.strerror}; what was saved before is whole"], 74
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
    """The option that says where this command writes."""
    if name == "compare":
        return "--output FOLDER"
    given = [word.lstrip("+").partition("=")[0] for word in sys.argv[1:]]
    keys = (key for key in ("hydra.run.dir", "hydra.sweep.dir") if key in given)
    return f"{next(keys, 'paths.outputs')}=FOLDER"


_PATHS = {
    "checkpoint", "resume", "trainer.resume", "paths.outputs", "hydra.run.dir", "hydra.sweep.dir",
}  # fmt: skip


def _how_to_quote(word: str) -> list[str]:
    """A line on an override that names a path in which Hydra's grammar sees more, else none."""
    from ncsn_cli.names import override

    key, _, path = word.partition("=")
    if not path or not (key.lstrip("+") in _PATHS or os.path.exists(path)):
        return []
    if "," in path and not os.path.exists(path) and {"-m", "--multirun"} & {*sys.argv}:
        return [f"""quote each for Hydra and all for the shell, as '{key}="A","B"'"""]
    return [f"quote it for Hydra and for the shell: {override(key, path)}"]


def _clash(error: BaseException) -> list[str]:
    """A line on a config in which a list stands where a group's values belong, else none.

    The message does not name the key; the frame in which the two could not be merged knows it.
    """
    match = re.search(r"In '(.*)': .*\nCannot merge DictConfig with ListConfig", str(error))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    nodes = [f.f_locals.get("self") for f in frames if f.f_code.co_name == "_merge_with"]
    node = nodes[-1] if nodes else None
    if match is None or not isinstance(node, DictConfig):
        return []
    key = node._get_full_key(None)
    remedy = "its values are key: value"
    if key in ("plot", "metric", "animation"):
        remedy = f"choose its options in the defaults list, as - override /{key}: []"
    return [f"{key}: in {match[1]} this is a list; {remedy}"]


def _with_overrides(lines: list[str]) -> list[str]:
    """With what was given, in short, where Hydra does not say which of it is wrong."""
    given = [word for word in sys.argv[1:] if word]
    if any(word.lstrip("+~").partition("=")[0] in " ".join(lines) for word in given):
        return lines
    shown = " ".join(word if len(word) <= 60 else f"{word[:57]}..." for word in given)
    return [f"{lines[0]}; given: {shown[:200]}", *lines[1:]]


def _is_out_of_memory(error: BaseException) -> bool:
    """On the CPU torch raises a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "can't allocate memory" in str(error)
    )


def _shorten(name: str, message: str) -> list[str]:
    """Hydra's explanations to ``ncsn-name``, of many lines, in at most three."""
    if match := re.search(r"Could not override '(.*)'\.\n(?:To append|Key)", message):
        key = match[1]
        is_theirs = name == "sample" and "." in key
        advice = f"; ++{key}=... changes a checkpoint's value" if is_theirs else ""
        return [f"{key}: there is no such key here, see --cfg job{advice}"]
    if match := re.search(r"Could not (?:find|load|override) '([^']*)'", message):
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", message)
        remedy = f"choose from {', '.join(options[1].split())}" if options else "see --help"
        if match[1].startswith(("hydra/launcher", "hydra/sweeper")):
            remedy += "; more come with pip install 'ncsn_cli[parallel,slurm,optuna]'"
        return [f"{match[1]}: there is no such option; {remedy}"]
    match = re.search(r"Ambiguous value for argument '(.*)'", message)
    if match and (quoting := _how_to_quote(match[1])):
        return [f"{match[1]}: a comma parts values, which -m sweeps over", *quoting]
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return [line for line in lines if not line.startswith(("See https", "object_type"))][:3]
