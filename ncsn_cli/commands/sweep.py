"""Watch the jobs of a sweep, and report their results at the end.

Jobs may run in other processes or on other machines. Each job registers with a file in the
roster, a folder that all of them see. Each job's state is in the ``status.json`` of its own
folder.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from ncsn_cli.commands.names import ROSTER, for_shell, override, sample_command
from ncsn_cli.core.errors import InterruptedRun, counted, one_line
from ncsn_cli.core.progress import BAR
from ncsn_cli.runs.files import read_json, write_atomic
from ncsn_cli.runs.folder import CHECKPOINTS, release_all
from ncsn_cli.runs.records import flatten, from_here, read_yaml, without_home
from ncsn_cli.runs.signals import stop_signals

STOPPED = "stopped"  # a file in the roster, after which no further job starts

_WORDS = {"done": "done", "failed": "failed", "diverged": "diverged", "interrupted": "stopped"}
"""What the terminal says of a job that has ended, by its state."""

_SECONDS_BETWEEN_LOOKS = 0.5  # between updates of the display

_SECONDS_TO_SAVE = 10.0  # longest wait for the jobs to save after a signal: beside other work


@dataclass(frozen=True)
class Job:
    """The state of a job that has started.

    Args:
        entry: The file with which it registered, named by its number.
        folder: Its folder.
        state: The state in ``status.json``.
        value: Its objective, if it is done and has one.
    """

    entry: Path
    folder: Path
    state: str
    value: float | None

    @property
    def may_save(self) -> bool:
        """Return whether the job's run has started and not ended; before, nothing is to save."""
        return self.state == "running" and (self.folder / "status.json").exists()

    @property
    def has_failed(self) -> bool:
        """Return whether the job ended without a result, and not because it was stopped."""
        return self.state in ("failed", "diverged")


class Watch(threading.Thread):
    """A thread that shows a line for each job that ends, and how many have ended, in a bar."""

    current: Watch | None = None

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
        self._shown: dict[Path, str] = {}  # the state in the last line of a job
        self._over = threading.Event()

    def run(self) -> None:
        """Update the display twice a second; without a bar, end with the numbers of jobs."""
        jobs = counted(self.total, "job") if self.total else "? jobs"
        print(f"sweep: {jobs} in {os.path.relpath(self.folder)}", flush=True)
        with tqdm(total=self.total, desc="sweep", bar_format=BAR, disable=None) as progress:
            while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
                self._show(progress)
            numbers, is_hidden = self._show(progress), progress.disable
        if is_hidden:
            num = sum(job.state == "done" for job in self._jobs())
            print(f"sweep: {num} of {self.total or '?'} jobs done{numbers}", flush=True)

    def interrupt(self, number: int, frame: object) -> None:
        """Handle a signal: let the jobs save, then raise InterruptedRun.

        The launcher kills the jobs once it learns of the signal, so they must save before that.
        Ctrl-C reaches all processes. Another signal may or may not have reached the jobs. They are
        sent a different one: a second signal of the same kind would end a job that is saving. If
        this process gets a second signal, it does not wait.
        """
        kinds = stop_signals()  # the jobs handle the same signals
        for each in kinds:
            signal.signal(each, signal.default_int_handler)
        (self.roster / STOPPED).touch()  # no further job starts
        other = next((each for each in reversed(kinds) if each != number), number)
        if number != signal.SIGINT and not self._is_elsewhere:
            for entry in self.roster.glob("*.json"):
                pid = read_json(entry).get("pid")
                if _read_job(entry, None).state == "running" and isinstance(pid, int):
                    with suppress(ProcessLookupError):
                        os.kill(pid, other)
        deadline = time.monotonic() + _SECONDS_TO_SAVE
        while time.monotonic() < deadline and any(job.may_save for job in self._jobs()):
            time.sleep(0.05)
        message = "the sweep was stopped from the keyboard"
        if number != signal.SIGINT:
            message = "the sweep was stopped by a signal"
        raise InterruptedRun(message, number)

    def with_place(self, words: list[str]) -> str:
        """Return the command line ``words`` for a shell, with this sweep's folder as an override.

        Hydra accepts overrides only in one unbroken group, so the new override is put beside the
        others.
        """
        place = override("hydra.sweep.dir", os.path.relpath(self.folder))
        last = max((i for i, word in enumerate(words) if word in self._overrides), default=-1)
        words = [shlex.quote(word) for word in words]
        words.insert(last + 1 if last >= 0 else len(words), place)
        is_old = re.compile(r"'?\+*hydra\.sweep\.dir=")
        return " ".join(word for word in words if word is place or not is_old.match(word))

    def end(self) -> list[Job]:
        """Stop watching, and return all jobs that have started."""
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

    def _show(self, progress: tqdm[Any]) -> str:
        """Print a line for each job that has ended, and update the bar; return its numbers."""
        jobs = self._jobs()
        for job in jobs:
            if job.state in _WORDS and self._shown.get(job.entry) != job.state:
                self._shown[job.entry] = job.state
                with tqdm.external_write_mode():  # clears the bars
                    print(self._line(job), flush=True)
        done = [job for job in jobs if job.state == "done"]
        failed = sum(job.has_failed for job in jobs)
        shown = f", {failed} failed" if failed else ""
        values = [job.value for job in done if job.value is not None]
        if values:
            shown += f", best {self._objective} {min(values):.3g}"
        progress.n = len(done) + failed
        progress.set_postfix_str(shown.removeprefix(", "))
        return shown

    def _line(self, job: Job) -> str:
        """Return the line of a ``job`` that has ended."""
        words = " ".join(read_json(job.entry).get("overrides") or ())
        parts = [f"job {int(job.entry.stem) + 1} of {self.total or '?'}", _WORDS[job.state], words]
        record = read_json(job.folder / "run.json")
        if job.state != "done":
            error = str(read_json(job.folder / "status.json").get("error"))
            parts.append(from_here(os.path.expanduser(error)))
        elif _mtime(job.folder / "metrics.json") < _mtime(job.entry):
            parts[1] = "done before"
        elif isinstance(seconds := record.get("seconds"), int | float):
            value = "" if job.value is None else f"{self._objective} {job.value:.3g}"
            parts += [value, f"{seconds:.3g} s"]
        return "  ".join(one_line(part) for part in parts if part)


def conclude() -> list[Job]:
    """Release all folders; if there was a sweep, write the table of its jobs.

    Called at the end of a command, however it ended. Returns the jobs of the sweep, and prints
    the command that resumes it, or that samples from its networks; returns no jobs if there was no
    sweep.
    """
    release_all()
    watch, Watch.current = Watch.current, None
    if watch is None:
        return []
    del os.environ[ROSTER]
    jobs, folder = watch.end(), os.path.relpath(watch.folder)
    print(flush=True)
    if not jobs:  # refused before the first one
        shutil.rmtree(watch.roster, ignore_errors=True)
        for place in (watch.rosters, watch.rosters.parent, watch.folder):
            with suppress(OSError):  # it holds something else
                place.rmdir()
    # All trials of a study belong together, including those of another day.
    entries = watch.rosters.glob("*/*.json") if watch.is_study else watch.roster.glob("*.json")
    started = dict.fromkeys(_folder_of(path) for path in sorted(entries))
    runs = [
        os.path.relpath(job) for job in started if job.is_dir()
    ]  # a user may have removed some
    program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    hydras = watch.folder / "multirun.yaml"
    if hydras.is_file():
        write_atomic(hydras, without_home(hydras.read_text("utf-8")).encode())
    if runs:
        from ncsn_cli.commands.compare import compare

        compare([f"--output={folder}", "--", *runs], f"{program} {for_shell(words)}")
    missing = max(0, (watch.total or 0) - len(jobs))
    if jobs and (missing or any(job.state != "done" for job in jobs)):
        left = f"; {missing} of {watch.total} jobs had not started" if missing else ""
        print(f"\nfinished jobs are kept{left}; for the rest: {program} {watch.with_place(words)}")
    elif jobs and any(jobs[0].folder.glob(CHECKPOINTS)):
        config = read_yaml(jobs[0].folder / "config.yaml", {})
        print(f"\nnext: {sample_command(watch.folder, config)}")
    return jobs


def _folder_of(entry: Path) -> Path:
    """Return the folder of the job that registered with the file ``entry``."""
    return Path(os.path.normpath(entry.parent / str(read_json(entry).get("folder", "."))))


def _mtime(path: Path) -> float:
    """Return when ``path`` was last written, or infinity if there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _read_job(path: Path, objective: str | None) -> Job:
    folder = _folder_of(path)
    state = str(read_json(folder / "status.json").get("state", "running"))
    numbers = flatten(read_json(folder / "metrics.json")) if state == "done" else {}
    value = numbers.get(objective or "")
    return Job(path, folder, state, value if isinstance(value, int | float) else None)
