"""Hydra's callbacks: they lock folders, write records and watch a sweep."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ncsn_cli.commands.before import FolderBefore
from ncsn_cli.commands.launching import choose_launcher
from ncsn_cli.commands.names import (
    AUTO,
    RESUME,
    ROSTER,
    SWEPT,
    old_study_name,
    study_name,
    swept_among,
)
from ncsn_cli.commands.sweep import STOPPED, Watch
from ncsn_cli.core.errors import ConfigError, RefusedStart
from ncsn_cli.runs.files import refuse_links, to_json, write_atomic
from ncsn_cli.runs.folder import hold, refuse_run
from ncsn_cli.runs.records import without_home
from ncsn_cli.runs.signals import deliver_signals, hold_signals, stop_signals


def _refuse(callback: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``callback`` so that its errors end the command; Hydra itself would only warn."""

    @wraps(callback)
    def call(*arguments: object, **keywords: object) -> None:
        try:
            callback(*arguments, **keywords)
        except Exception as error:
            raise RefusedStart from error

    return call


class FailedJob(JobReturn):
    """The return of a job that failed, which raises the job's error and prints nothing.

    Hydra's own prints the job's overrides, but a sweep has a line for each job already.
    """

    @property  # type: ignore[misc]  # it is never set again
    def return_value(self) -> object:
        """Raise the job's error."""
        raise self._return_value


class Callbacks(Callback):
    """Hydra's callbacks, in the process that starts a sweep and in those that run its jobs."""

    @_refuse
    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Lock the run's folder before anything is written, and refuse one that holds a run."""
        folder = Path(config.hydra.run.dir)
        _check(config, folder)
        before = FolderBefore.current = FolderBefore(folder, config.hydra.job.name)
        hold(folder)
        before.is_held = True
        if not _continues_itself(config):
            refuse_run(folder)

    def on_run_end(self, config: DictConfig, **kwargs: object) -> None:
        """Raise the job's error past Hydra, which would print all overrides in front of it."""
        job_return = cast("JobReturn", kwargs["job_return"])
        if job_return.status == JobStatus.FAILED:
            raise RefusedStart from job_return._return_value  # the public one prints

    @_refuse
    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Lock the sweep's folder, make the roster, and start to show the jobs' progress."""
        _name_as_before(config)
        watch, overrides = Watch(config), sweep_overrides(config)
        _check(config, watch.folder)
        hold(watch.folder)
        if watch.is_study:
            _continue_study(config.hydra.sweeper)
        watch.total = num_jobs(config, overrides)
        choose_launcher(config, watch.total)
        watch.roster.mkdir(parents=True)
        swept = [*_params(config), *(key for key, o in overrides.items() if o.is_sweep_override())]
        write_atomic(watch.roster / SWEPT, "\n".join(swept).encode())
        Watch.current = watch
        watch.start()
        os.environ[ROSTER] = str(watch.roster)
        if not config.hydra.launcher["_target_"].endswith(".BasicLauncher"):
            for number in stop_signals():
                signal.signal(number, watch.interrupt)

    @_refuse
    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """Record the configuration and the overrides, and add the job to the sweep's roster.

        Its lines go to its log alone, since the sweep shows one line for each job.
        """
        deliver_signals()
        roster = os.environ.get(ROSTER)
        if roster is not None and Path(roster, STOPPED).exists():
            raise KeyboardInterrupt
        # What ``auto`` finds in its folder stays as it is until the job has resumed it.
        if not (_continues_itself(config) and Path(config.hydra.run.dir, "run.json").exists()):
            _record_request(config)
        if roster is None:
            return
        task = cast("list[str]", OmegaConf.to_container(config.hydra.overrides.task))
        entry = {
            "folder": os.path.relpath(config.hydra.runtime.output_dir, roster),
            "pid": os.getpid(),
            "overrides": swept_among(task),
        }
        write_atomic(Path(roster, f"{config.hydra.job.num}.json"), to_json(entry))
        shares_terminal = "submitit" not in config.hydra.launcher["_target_"]
        if shares_terminal and not config.hydra.verbose:
            _be_quiet()

    @_refuse
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """Record the configuration and the overrides of a run that ``auto`` has resumed.

        Let Hydra raise the error of a job that failed without all of its overrides in front.
        """
        if job_return.status == JobStatus.FAILED:
            job_return.__class__ = FailedJob
        if _continues_itself(config) and job_return.status == JobStatus.COMPLETED:
            _record_request(config)
        if ROSTER in os.environ and Watch.current is None:  # a process that may get further jobs
            hold_signals()


def _continues_itself(config: DictConfig) -> bool:
    """Return whether a single run is to resume what its own folder holds."""
    key = RESUME.get(config.hydra.job.config_name, "")
    is_auto = OmegaConf.select(config, key) == AUTO
    return is_auto and config.hydra.mode != RunMode.MULTIRUN


def _record_request(config: DictConfig) -> None:
    """Write the configuration and the overrides into the folder ``.hydra`` of the run."""
    record = Path(config.hydra.runtime.output_dir, ".hydra")
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    hydra_config = OmegaConf.masked_copy(config, ["hydra"])
    for name, values in (
        ("config", job),
        ("hydra", hydra_config),
        ("overrides", config.hydra.overrides.task),
    ):
        text = without_home(OmegaConf.to_yaml(values))
        write_atomic(record / f"{name}.yaml", text.encode())


def _check(config: DictConfig, folder: Path) -> None:
    """Raise if the job's name, ``chdir``, a reference or a link moves files out of ``folder``."""
    if not re.fullmatch(r"(?a:\w[\w.-]{0,99})", config.hydra.job.name):  # Hydra reads no other
        raise ConfigError(
            "hydra.job.name: a name may hold A to z, digits and _ . - only, at most 100 characters"
        )
    if config.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir: paths are relative to the folder in which the command is started;"
            " leave this out (hydra.run.dir=FOLDER says where a run writes)"
        )
    for mode in ("run", "sweep"):
        if not str(config.hydra[mode].dir):
            raise ConfigError(f"hydra.{mode}.dir: it is empty; give a folder, or leave this out")
    if "${" in os.path.abspath(folder):
        raise ConfigError(
            f"{folder}: Hydra reads ${{ in this path as a reference; choose another path"
        )
    refuse_links(folder)


def _name_as_before(config: DictConfig) -> None:
    """Set a study's old name in ``config`` if the study was started under that name."""
    sweeper, jobs = config.hydra.sweeper, Path(config.hydra.sweep.dir, ".jobs")
    task = OmegaConf.to_container(config.hydra.overrides.task)
    if sweeper.get("study_name") == study_name(cast("list[str]", task)):
        before = old_study_name(config.hydra.job.override_dirname)
        if (jobs / before).is_dir():
            sweeper.study_name = before


def _continue_study(sweeper: DictConfig) -> None:
    """Modify ``sweeper`` so that a resumed Optuna study makes only the missing trials.

    A trial that was stopped is queued again with its own values, so that its job resumes.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except (KeyError, ValueError):  # there is no such study, or it is not stored
        return
    states = [trial.state for trial in study.trials]
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    sweeper.n_trials = max(0, sweeper.n_trials - states.count(optuna.trial.TrialState.COMPLETE))
    if sweeper.sampler.get("seed") is not None:
        sweeper.sampler.seed += len(states)  # otherwise it draws the first values again


def _params(config: DictConfig) -> dict[str, str]:
    """Return the values, by key, that the sweep's configuration sweeps over."""
    return {str(key): str(v) for key, v in (config.hydra.sweeper.get("params") or {}).items()}


def sweep_overrides(config: DictConfig) -> dict[str, Override]:
    """Return the overrides, by key, of the sweep's configuration, then of its command line."""
    words = [f"{key}={values}" for key, values in _params(config).items()]
    parsed = OverridesParser.create().parse_overrides([*words, *config.hydra.overrides.task])
    return {each.get_key_element(): each for each in parsed}


def num_jobs(config: DictConfig, overrides: dict[str, Override]) -> int | None:
    """Return how many jobs the sweep will have, or None if its overrides do not tell."""
    if "n_trials" in config.hydra.sweeper:
        return int(config.hydra.sweeper.n_trials)
    swept = [each for each in overrides.values() if each.is_discrete_sweep()]
    try:
        return math.prod(len(list(each.sweep_string_iterator())) for each in swept)
    except HydraException:  # such as glob(), which needs to know where the options are
        return None


def _be_quiet() -> None:
    """Log to files only; in a process of its own, also drop standard error.

    Progress bars of several processes would garble the terminal.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    logging.captureWarnings(True)
    if Watch.current is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
        # A process that is stopped would leave the semaphore of tqdm's own lock behind.
        tqdm.set_lock(threading.RLock())
