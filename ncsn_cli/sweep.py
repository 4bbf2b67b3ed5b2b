"""What Hydra calls: a run's folder is held, a sweep is watched, and what came of it is told.

Jobs may run in other processes or on other machines. Each signs in with a file in a folder that
all of them see; the ``status.json`` in its own folder says the rest.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ncsn_cli.core.errors import ConfigError, InterruptedRun, RefusedStart
from ncsn_cli.names import ROSTER, SWEPT, for_shell, old_study_name, override, study_name
from ncsn_cli.runs.files import read_json, refuse_links, to_json, write_atomic
from ncsn_cli.runs.folder import hold, refuse_run, release_all
from ncsn_cli.runs.records import flatten, without_home
from ncsn_cli.runs.signals import heeded

_STOPPED = "stopped"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_SAVE = 3.0


@dataclass(frozen=True)
class Job:
    """What is known of a job that has begun.

    Args:
        folder: Its folder.
        state: That of ``status.json``.
        value: Its objective, if it is done and has one.
    """

    folder: Path
    state: str
    value: float | None

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a result, by itself."""
        return self.state in ("failed", "diverged")


def _refuse(callback: Callable[..., None]) -> Callable[..., None]:
    """Let errors end the command: Hydra itself would only warn of them."""

    @wraps(callback)
    def call(*arguments: object, **keywords: object) -> None:
        try:
            callback(*arguments, **keywords)
        except Exception as error:
            raise RefusedStart from error

    return call


class Sweep(Callback):
    """Hydra's callback, in the process that starts a sweep and in those that run its jobs."""

    @_refuse
    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Take the run's folder before anything is written."""
        folder = Path(config.hydra.run.dir)
        _check(config, folder)
        hold(folder)
        refuse_run(folder)

    @_refuse
    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Take the sweep's folder, open the roster, and show how far the jobs are."""
        _name_as_before(config)
        watch, overrides = _Watch(config), _overrides(config)
        _check(config, watch.folder)
        hold(watch.folder)
        watch.roster.mkdir(parents=True)
        swept = [*_params(config), *(key for key, o in overrides.items() if o.is_sweep_override())]
        write_atomic(watch.roster / SWEPT, "\n".join(swept).encode())
        if watch.is_study:
            _continue_study(config.hydra.sweeper)
        watch.total = _num_jobs(config, overrides)
        _Watch.current = watch
        watch.start()
        os.environ[ROSTER] = str(watch.roster)
        if not config.hydra.launcher["_target_"].endswith(".BasicLauncher"):
            for number in heeded():
                signal.signal(number, watch.interrupt)

    @_refuse
    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        """Record the overrides, and sign in; in a process beside others, be quiet."""
        roster = os.environ.get(ROSTER)
        if roster is not None and Path(roster, _STOPPED).exists():
            raise KeyboardInterrupt
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
        if roster is None:
            return
        entry = {
            "folder": os.path.relpath(config.hydra.runtime.output_dir, roster),
            "pid": os.getpid(),
        }
        write_atomic(Path(roster, f"{config.hydra.job.num}.json"), to_json(entry))
        shares_terminal = "submitit" not in config.hydra.launcher["_target_"]
        if _Watch.current is None and shares_terminal:
            _be_quiet()


def _check(config: DictConfig, folder: Path) -> None:
    """Refuse what would lead out of the folder that is to be written, or to another one."""
    if not re.fullmatch(r"(?a:\w[\w.-]{0,99})", config.hydra.job.name):  # as Hydra reads it
        raise ConfigError("hydra.job.name: a name has A to z, digits and _ . - only, at most 100")
    if config.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir: every path is read from the folder that the command is started in;"
            " leave this out (hydra.run.dir=FOLDER is where a run writes)"
        )
    if "${" in os.path.abspath(folder):
        raise ConfigError(f"{folder}: Hydra takes ${{ in this path for a value; choose another")
    refuse_links(folder)


class _Watch(threading.Thread):
    """Shows how many jobs are done, have failed, and are running, and the best objective."""

    current: _Watch | None = None

    def __init__(self, config: DictConfig) -> None:
        super().__init__(daemon=True)
        study = config.hydra.sweeper.get("study_name")
        self.is_study = study is not None
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.rosters = self.folder / ".jobs" / (study or "sweep")
        self.roster = self.rosters / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        self.total: int | None = None
        self._overrides = {*config.hydra.overrides.task, *config.hydra.overrides.hydra}
        self._is_elsewhere = "submitit" in config.hydra.launcher["_target_"]
        self._objective: str | None = config.get("objective")
        self._finished: dict[Path, Job] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        with tqdm(total=self.total, desc="sweep", unit="job", disable=None) as progress:
            while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
                self._show(progress)
            self._show(progress)

    def interrupt(self, number: int, frame: object) -> None:
        """The launcher kills the jobs once it comes to know of it: let them save first.

        Ctrl-C reaches all processes, other signals this one alone, or all of them too. So the jobs
        get another one: the second of a kind would not let them save. A second one does not wait.
        """
        kinds = heeded()  # by the jobs, too
        for each in kinds:
            signal.signal(each, signal.default_int_handler)
        (self.roster / _STOPPED).touch()  # no further job begins
        other = next((each for each in reversed(kinds) if each != number), number)
        if number != signal.SIGINT and not self._is_elsewhere:
            for entry in self.roster.glob("*.json"):
                pid = read_json(entry).get("pid")
                if _read_job(entry, None).state == "running" and isinstance(pid, int):
                    with suppress(ProcessLookupError):
                        os.kill(pid, other)
        deadline = time.monotonic() + _SECONDS_TO_SAVE
        while time.monotonic() < deadline and any(j.state == "running" for j in self._jobs()):
            time.sleep(0.05)
        message = "the sweep was stopped from the keyboard"
        if number != signal.SIGINT:
            message = "the sweep was stopped by a signal"
        raise InterruptedRun(message, number)

    def with_place(self, words: list[str]) -> str:
        """Return the command line ``words`` for this sweep's folder, for a shell.

        Hydra reads overrides that follow each other alone, so its own stands beside those there.
        """
        place = override("hydra.sweep.dir", os.path.relpath(self.folder))
        last = max((i for i, word in enumerate(words) if word in self._overrides), default=-1)
        words = [shlex.quote(word) for word in words]
        words.insert(last + 1 if last >= 0 else len(words), place)
        is_old = re.compile(r"'?\+*hydra\.sweep\.dir=")
        return " ".join(word for word in words if word is place or not is_old.match(word))

    def end(self) -> list[Job]:
        """Stop looking; returns all jobs that have begun."""
        self._over.set()
        self.join()
        return self._jobs()

    def _jobs(self) -> list[Job]:
        jobs = []
        for path in sorted(self.roster.glob("*.json"), key=lambda path: int(path.stem)):
            job = self._finished.get(path) or _read_job(path, self._objective)
            if job.state == "done":
                self._finished[path] = job
            jobs.append(job)
        return jobs

    def _show(self, progress: tqdm[Any]) -> None:
        jobs = self._jobs()
        done = [job for job in jobs if job.state == "done"]
        failed = sum(job.has_failed for job in jobs)
        numbers: dict[str, Any] = {"running": len(jobs) - len(done) - failed, "failed": failed}
        values = [job.value for job in done if job.value is not None]
        if values:
            numbers[f"best {self._objective}"] = f"{min(values):.3g}"
        has_changed = progress.n != len(done) + failed
        progress.n = len(done) + failed
        progress.set_postfix(numbers)
        if progress.disable and has_changed:
            words = ", ".join(f"{name} {value}" for name, value in numbers.items())
            print(f"sweep: {len(done)} of {self.total or '?'} jobs done, {words}", flush=True)


def conclude() -> list[Job]:
    """At the end, however it came: folders are free, and a sweep has a table over its jobs.

    Returns these jobs, and says how to go on with them; none where there was no sweep.
    """
    release_all()
    watch, _Watch.current = _Watch.current, None
    if watch is None:
        return []
    del os.environ[ROSTER]
    print(flush=True)
    jobs, folder = watch.end(), os.path.relpath(watch.folder)
    # All trials of a study belong together, those of another day too.
    entries = watch.rosters.glob("*/*.json") if watch.is_study else watch.roster.glob("*.json")
    begun = dict.fromkeys(_folder_of(path) for path in sorted(entries))
    runs = [os.path.relpath(job) for job in begun if job.is_dir()]  # one may have removed some
    program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    hydras = watch.folder / "multirun.yaml"
    if hydras.is_file():
        write_atomic(hydras, without_home(hydras.read_text("utf-8")).encode())
    if runs:
        from ncsn_cli.compare import compare

        compare([f"--output={folder}", "--", *runs], f"{program} {for_shell(words)}")
    if any(job.state != "done" for job in jobs) or len(jobs) < (watch.total or 0):
        print(f"\nwhat is done stays done; for the rest: {program} {watch.with_place(words)}")
    return jobs


def _name_as_before(config: DictConfig) -> None:
    """Let a study that was begun under its old name go on under it, in ``config``."""
    sweeper, jobs = config.hydra.sweeper, Path(config.hydra.sweep.dir, ".jobs")
    task = OmegaConf.to_container(config.hydra.overrides.task)
    if sweeper.get("study_name") == study_name(cast("list[str]", task)):
        before = old_study_name(config.hydra.job.override_dirname)
        if (jobs / before).is_dir():
            sweeper.study_name = before


def _continue_study(sweeper: DictConfig) -> None:
    """Of an Optuna study begun before, let ``sweeper`` make only the trials that are missing.

    A trial that was stopped is made again with its own values, so that its job goes on.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    except (KeyError, ValueError):  # there is none, or it is not kept
        return
    states = [trial.state for trial in study.trials]
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    sweeper.n_trials = max(0, sweeper.n_trials - states.count(optuna.trial.TrialState.COMPLETE))
    if sweeper.sampler.get("seed") is not None:
        sweeper.sampler.seed += len(states)  # or it would draw the first values again


def _params(config: DictConfig) -> dict[str, str]:
    """Return what the sweep's configuration sweeps over, values by key."""
    return {str(key): str(v) for key, v in (config.hydra.sweeper.get("params") or {}).items()}


def _overrides(config: DictConfig) -> dict[str, Override]:
    """Return what the sweep's configuration and then its command line override, by key."""
    words = [f"{key}={values}" for key, values in _params(config).items()]
    parsed = OverridesParser.create().parse_overrides([*words, *config.hydra.overrides.task])
    return {each.get_key_element(): each for each in parsed}


def _num_jobs(config: DictConfig, overrides: dict[str, Override]) -> int | None:
    """How many jobs the sweep will have, if that can be seen from its overrides."""
    if "n_trials" in config.hydra.sweeper:
        return int(config.hydra.sweeper.n_trials)
    swept = [each for each in overrides.values() if each.is_discrete_sweep()]
    try:
        return math.prod(len(list(each.sweep_string_iterator())) for each in swept)
    except HydraException:  # as for glob(), which needs to know where the options are
        return None


def _folder_of(entry: Path) -> Path:
    """The folder of the job that has signed in by the file ``entry``."""
    return Path(os.path.normpath(entry.parent / str(read_json(entry).get("folder", "."))))


def _read_job(path: Path, objective: str | None) -> Job:
    folder = _folder_of(path)
    state = str(read_json(folder / "status.json").get("state", "running"))
    numbers = flatten(read_json(folder / "metrics.json")) if state == "done" else {}
    value = numbers.get(objective or "")
    return Job(folder, state, value if isinstance(value, int | float) else None)


def _be_quiet() -> None:
    """Progress bars of several processes would garble the terminal; their logs are in files."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    logging.captureWarnings(True)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
