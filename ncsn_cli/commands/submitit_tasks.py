"""Submitit's launchers with several runs in a task, for runs that take seconds.

A scheduler takes seconds to start a task, and often limits their number. Importing this module
gives the options ``submitit_slurm`` and ``submitit_local`` of ``hydra/launcher`` the key
``runs_per_task``.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (
    BaseSubmititLauncher,
    LocalLauncher,
    SlurmLauncher,
)
from omegaconf import open_dict

from ncsn_cli.commands.launching import most_at_once
from ncsn_cli.core.errors import ConfigError, NcsnError


class _PackedLauncher(BaseSubmititLauncher):
    """Runs ``runs_per_task`` jobs of the sweep in each task, as many at once as it has cores.

    Each job resumes and reports by itself. If one fails, or its process is killed, the others go
    on. If the scheduler ends the task early, the jobs save, and the task is queued again.
    """

    def __init__(self, runs_per_task: int = 1, **params: Any) -> None:  # noqa: ANN401
        super().__init__(**params)
        self._runs_per_task = runs_per_task

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the tasks, and return what their jobs return."""
        if self._runs_per_task < 1:
            raise ConfigError("hydra.launcher.runs_per_task: it should be 1 or more")
        if self._runs_per_task == 1:
            return super().launch(job_overrides, initial_job_idx)
        # The parent hands texts on to ``__call__``: here one for each run.
        texts = [json.dumps(each) for each in enumerate(map(list, job_overrides), initial_job_idx)]
        starts = range(0, len(texts), self._runs_per_task)
        tasks = [texts[start : start + self._runs_per_task] for start in starts]
        made: Any = super().launch(tasks, initial_job_idx)
        return [each for task in made for each in task]

    def __call__(self, sweep_overrides: list[str], job_dir_key: str, *rest: Any) -> Any:  # noqa: ANN401
        """Run the jobs of a task in its process."""
        number, _, state = rest
        if self._runs_per_task == 1:
            return self._run(number, sweep_overrides, state)
        assert self.config is not None
        jobs = [
            (words, partial(self._run, number, words, state))
            for number, words in map(json.loads, sweep_overrides)
        ]
        command, device = self.config.hydra.job.config_name, self.config.get("device")
        return run_side_by_side(jobs, str(command), str(device))

    def _run(self, number: int, words: list[str], state: dict[Any, Any]) -> JobReturn:
        """Run one job, as the parent's ``__call__``, which knows no ``runs_per_task``."""
        import submitit

        Singleton.set_state(state)  # this looks for plugins anew, and forgets this module's keys
        _give_keys()
        setup_globals()
        assert self.hydra_context is not None and self.task_function is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            config.hydra.job.num = number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class PackedSlurmLauncher(_PackedLauncher, SlurmLauncher):
    """Slurm's tasks."""


class PackedLocalLauncher(_PackedLauncher, LocalLauncher):
    """Tasks that are processes of this machine."""


@dataclass
class _Slurm(SlurmQueueConf):
    runs_per_task: int = 1


@dataclass
class _Local(LocalQueueConf):
    runs_per_task: int = 1


def run_side_by_side(
    jobs: Sequence[tuple[list[str], Callable[[], JobReturn]]], command: str, device: str
) -> list[JobReturn]:
    """Run the jobs, pairs of overrides and a function, in forks; return what they return.

    If the scheduler sends a signal, the running jobs get one, too, and no further job starts.
    Once they have saved, submitit's handler queues the task again and ends this process.
    """
    most = most_at_once(device)
    at_once = min(most, len(jobs))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, most // at_once)))
    importlib.import_module(f"ncsn_cli.commands.{command}")  # once, not in each fork
    returns: dict[int, JobReturn] = {}
    running: dict[Connection, tuple[int, Any]] = {}
    received: list[int] = []
    handlers = _handlers_of_submitit()

    def stop(number: int, frame: object) -> None:
        received.append(number)
        # The scheduler may have sent this one to the jobs, too, and a second one of a kind would
        # end them before they have saved.
        if len(received) == 1:
            for _, fork in running.values():
                os.kill(fork.pid, signal.SIGINT)

    for kind in handlers:
        signal.signal(kind, stop)
    waiting = list(enumerate(jobs))
    while running or (waiting and not received):
        while waiting and not received and len(running) < at_once:
            number, (_, job) = waiting.pop(0)
            ours, fork = _start(job, list(handlers))
            running[ours] = number, fork
        ready = wait(list(running))
        for ended in [each for each in running if each in ready]:
            number, fork = running.pop(ended)
            returns[number] = _received(ended, fork, jobs[number][0])
    if received:
        handlers[received[0]](received[0], None)
    return [returns[number] for number in sorted(returns)]


def _handlers_of_submitit() -> dict[int, Any]:
    """Return the handlers that queue a task again, by signal."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGUSR2)}
    return {n: h for n, h in handlers.items() if "checkpoint" in getattr(h, "__name__", "")}


def _start(job: Callable[[], JobReturn], handled: list[int]) -> tuple[Connection, Any]:
    """Start a job in a fork; return the end of the pipe through which it sends, and the fork."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    fork = context.Process(target=_run, args=(job, theirs, handled))
    fork.start()
    theirs.close()  # so that ``ours`` is closed when the fork ends
    return ours, fork


def _received(ours: Connection, fork: Any, words: list[str]) -> JobReturn:  # noqa: ANN401
    """Return what a fork has sent, or a failed job if it was killed."""
    from ncsn_cli.commands.callbacks import FailedJob  # every command imports this module

    try:
        made: JobReturn = ours.recv()
    except Exception:  # it was killed, or its error can be sent but not read
        fork.join()
        made = FailedJob(overrides=words, status=JobStatus.FAILED)
        made._return_value = NcsnError(f"a job's process ended with code {fork.exitcode}")
    fork.join()
    return made


def _run(job: Callable[[], JobReturn], theirs: Connection, handled: list[int]) -> None:
    """Run a job in a fork; a signal ends it as it ends a command."""
    for number in (*handled, signal.SIGTERM):  # submitit ignores the last one
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    theirs.send(job())


def _give_keys() -> None:
    """Let Hydra make the launchers of this module in place of their parents, with their keys."""
    for name, node, launcher in (
        ("submitit_slurm", _Slurm(), PackedSlurmLauncher),
        ("submitit_local", _Local(), PackedLocalLauncher),
    ):
        ConfigStore.instance().store(name, node, group="hydra/launcher", provider="ncsn_cli")
        # Hydra takes launchers from ``hydra_plugins`` alone, so the names stay the parents'.
        Plugins.instance().class_name_to_class[node._target_] = launcher


_give_keys()
