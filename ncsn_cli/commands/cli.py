"""The console scripts: they start Hydra, report errors in three lines and set exit codes.

Nothing here imports torch before a job runs, so that ``--help``, ``--cfg job`` and refused
overrides answer fast.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, ListConfig, OmegaConf

from ncsn_cli.commands.before import FolderBefore, last_written
from ncsn_cli.commands.failures import BUG, code_of, exit_with, record_failure, status_file
from ncsn_cli.commands.old_names import MovedOptions
from ncsn_cli.commands.startup import (
    keep_freed_memory,
    let_threads_sleep,
    share_hydras_store,
    spare_the_compiler,
)
from ncsn_cli.core.importing import import_without_collecting

if TYPE_CHECKING:
    from ncsn_cli.commands.sweep import Job


def _job_folder(sweep: str, overrides: ListConfig) -> str:
    from ncsn_cli.commands.names import job_folder

    return job_folder(sweep, cast("list[str]", OmegaConf.to_container(overrides)))


def _study_name(overrides: ListConfig) -> str:
    from ncsn_cli.commands.names import study_name

    return study_name(cast("list[str]", OmegaConf.to_container(overrides)))


Task = Callable[[DictConfig], float | None]

# Registered on import, so that processes that run jobs of a sweep know them, too.
OmegaConf.register_new_resolver("ncsn_cli.job_folder", _job_folder, replace=True)
OmegaConf.register_new_resolver("ncsn_cli.study_name", _study_name, replace=True)
Plugins.instance().register(MovedOptions)
with suppress(ModuleNotFoundError):  # there may be no plugin at all
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # an extra
        importlib.import_module("ncsn_cli.commands.submitit_tasks")


def config_dir() -> Path:
    """Return the folder of configs: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(
        folder
        for folder in (package / "configs", package.parent / "configs")
        if (folder / "train.yaml").is_file()
    )


def train() -> None:
    """Run ``ncsn-train``."""
    _run("train")


def sample() -> None:
    """Run ``ncsn-sample``."""
    _run("sample")


def measure() -> None:
    """Run ``ncsn-measure``."""
    _run("measure")


def compare() -> None:
    """Run ``ncsn-compare``."""
    importlib.import_module("ncsn_cli.commands.streams").ignore_failed_writes()
    try:
        if "--schema" in sys.argv[1:]:
            from ncsn_cli.core.errors import ConfigError

            raise ConfigError(
                "--schema: this command has flags alone, which --help lists; ncsn-train,"
                " ncsn-sample and ncsn-measure have a schema"
            )
        importlib.import_module("ncsn_cli.commands.compare").compare(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        exit_with("compare", error, True, os.environ.get("HYDRA_FULL_ERROR") == "1")


def _run(name: str) -> None:
    from ncsn_cli.commands.streams import ignore_failed_writes

    ignore_failed_writes()
    share_hydras_store()
    let_threads_sleep()
    if any(len(word) > 2 and "--version".startswith(word) for word in sys.argv[1:]):
        print("ncsn_cli", importlib.import_module("ncsn_cli").__version__)  # not Hydra's
        return
    if "--schema" in sys.argv[1:]:
        schema = importlib.import_module("ncsn_cli.commands.schema")
        print(schema.as_text(schema.schema_of(name)))
        return
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    state = _Progress()

    def job(cfg: DictConfig) -> float | None:
        state.job_started = True
        # Leave alone a signal that is ignored or has a scheduler's handler.
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _interrupt)
        logging.raiseExceptions = False  # otherwise a full disk is reported at every line
        return recording_failures(name, _task(name), cfg)

    # Run one job, or all jobs of a sweep.
    start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(job)
    error = _error_of(name, start)
    if error is not None:
        leave_nothing(code_of(name, error, state.job_started))
    # Report the sweep, if there was one, then end with the exit code.
    try:
        sweep = sys.modules.get("ncsn_cli.commands.sweep")  # not imported for --help, for example
        jobs: list[Job] = [] if sweep is None else sweep.conclude()
    except (Exception, KeyboardInterrupt) as raised:
        jobs, error = [], error or raised
    failed = [job.state for job in jobs if job.has_failed]
    if failed and getattr(error, "exit_code", None) is None:  # a search goes on after failures
        from ncsn_cli.core.errors import DivergedError, FailedJobsError

        kind = DivergedError if {*failed} == {"diverged"} else FailedJobsError
        error = kind(f"{len(failed)} of {len(jobs)} jobs failed; they are named above")
    if isinstance(error, SystemExit):
        raise error
    if error is not None:
        exit_with(name, error, state.job_started, show_traceback, with_overrides=not jobs)


def recording_failures(name: str, task: Task, cfg: DictConfig) -> float | None:
    """Run ``task``; if it fails, write the reason into the job's folder."""
    before = last_written(status_file())
    try:
        return task(cfg)
    except BaseException as error:
        record_failure(name, error, before)
        raise


@contextmanager
def log_into(path: Path) -> Iterator[None]:
    """Write log lines into the file ``path``, as the commands do."""
    from ncsn_cli.commands.terminal import FromHere

    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(FromHere("[%(asctime)s] %(message)s", "%H:%M:%S"))
    root, shown = logging.getLogger(), logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [handler]
    if not root.handlers:  # otherwise nothing would show warnings
        handlers.append(shown)
    for each in handlers:
        root.addHandler(each)
    try:
        yield
    finally:
        for each in handlers:
            root.removeHandler(each)
        handler.close()


def _error_of(name: str, start: Callable[[], object]) -> BaseException | None:
    """Call ``start`` and return the exception that ended it, or None if it finished."""
    from ncsn_cli.commands.mistyped import refuse_mistyped
    from ncsn_cli.commands.shorthand import expand, refuse_missing
    from ncsn_cli.core.errors import RefusedStart

    try:
        refuse_mistyped(name, sys.argv[1:], has_files=name == "measure")
        _refuse_rerun()
        sys.argv[1:] = expand(name, sys.argv[1:])
        refuse_missing(name, sys.argv[1:])
        sys.path.append(os.getcwd())  # for a user's own classes
        start()
    except RefusedStart as refused:
        return refused.__cause__
    except BaseException as raised:
        return raised
    return None


def leave_nothing(code: int) -> None:
    """Remove what a single command created that ends with ``code``, unless its run has started.

    After a bug, whose log says where it is, everything stays.
    """
    before, FolderBefore.current = FolderBefore.current, None
    if before is not None and code != BUG:
        before.restore()


def _task(name: str) -> Callable[[DictConfig], float | None]:
    """Return the command's function, and set up this process for it."""
    module = f"ncsn_cli.commands.{name}"
    if module not in sys.modules:  # the first job: later there is garbage of earlier jobs
        import_without_collecting(module)
        gc.freeze()  # the collector passes over what exists now
    keep_freed_memory()
    spare_the_compiler()
    return getattr(sys.modules[module], name)


def _refuse_rerun() -> None:
    """Raise if ``--experimental-rerun`` or an abbreviation that argparse accepts is given.

    With this flag Hydra unpickles a file, which can run any code.
    """
    if any(word.startswith("--e") for word in sys.argv[1:]):
        from ncsn_cli.core.errors import ConfigError

        raise ConfigError(
            "--experimental-rerun: this flag can run any code in a pickle; run.json has the"
            " command"
        )


def _interrupt(number: int, frame: object) -> None:
    """Raise InterruptedRun, which ends a job as Ctrl-C does, so that its folder says so."""
    from ncsn_cli.core.errors import InterruptedRun

    raise InterruptedRun("stopped by a signal", number)


class _Progress:
    job_started = False
