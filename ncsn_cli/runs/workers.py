"""Running tasks in parallel, in processes of this machine."""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

from ncsn_cli.core.errors import NcsnError
from ncsn_cli.runs.signals import STOPPING

T = TypeVar("T")

CORES = torch.get_num_threads()  # on import: the second job of a sweep would find 1
"""How many processes may compute at a time."""

_SECONDS_BETWEEN_LOOKS = 0.1  # max wait for news from the forks
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def shared_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros on the CPU, in memory shared with the processes of ``run_in_processes``."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)


def run_in_processes(  # noqa: C901  # one loop between the pipes' ends and the forks' ends
    tasks: Sequence[Iterator[T]], workers: int
) -> Generator[list[tuple[int, T]], None, None]:
    """Run the tasks; yield lists of pairs: a task's number, and something that the task yielded.

    A list is empty if no task yielded anything for a while. At most ``workers`` tasks run at a
    time, in forks of this process with one thread each. (Threads of one Python process would wait
    for each other at every operation on small tensors.) This process sees only what a task yields
    and what it writes to shared memory. A task should yield arrays: torch sends each tensor
    through a file in memory, and the system limits the number of these files. The forks end with
    this process, and with the iteration. With one worker, if the system is not Linux, and
    in a worker of ``multiprocessing``, this process runs all tasks itself.

    Raises:
        Exception: If a task raises it.
        MemoryError: If a fork was killed; the system does so when memory is short.
        RuntimeError: If a fork ended in another way.
    """
    is_daemon = multiprocessing.current_process().daemon  # a pool's worker, which may not fork
    if min(workers, len(tasks)) <= 1 or sys.platform != "linux" or is_daemon:
        for number, task in enumerate(tasks):
            for made in task:
                yield [(number, made)]
        return
    context, numbers = multiprocessing.get_context("fork"), iter(range(len(tasks)))
    forks: dict[Connection, Any] = {}
    running: dict[Connection, int | None] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            fork = context.Process(target=_work, args=(tasks, theirs, os.getpid()))
            fork.start()
            forks[ours] = fork
            theirs.close()  # so that ``ours`` is closed when the fork ends
            running[ours] = None
        while running:
            news: list[tuple[int, T]] = []
            ready = wait(list(running), _SECONDS_BETWEEN_LOOKS)
            for ours in [each for each in running if each in ready]:
                try:
                    message = ours.recv()
                    if message is None:
                        running[ours] = next(numbers, None)
                        ours.send(running[ours])
                except (EOFError, ConnectionError):
                    forks[ours].join()
                    raise _end_of(forks[ours].exitcode) from None
                if isinstance(message, Exception):
                    raise message
                current = running[ours]
                if current is None:
                    del running[ours]
                elif message is not None:
                    news.append((current, message))
            yield news
    finally:
        for fork in forks.values():  # all of them first: a second Ctrl-C may end this clean-up
            fork.kill()
        for fork in forks.values():
            fork.join()


def _end_of(code: int) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryError()
    return RuntimeError(f"a worker ended with code {code}")


def _work(tasks: Sequence[Iterator[T]], theirs: Connection, parent: int) -> None:
    """Run tasks in a fork: send None to ask for the next, and send what tasks yield or raise."""
    for number in STOPPING:  # terminals and schedulers send these to all processes of a run
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    torch.set_num_threads(1)  # the parent's threads do not exist in a fork
    try:
        theirs.send(None)
        while (number := theirs.recv()) is not None:
            for made in tasks[number]:
                theirs.send(made)
            theirs.send(None)
    except Exception as error:
        if not isinstance(error, NcsnError):  # this one says all in its message
            error.add_note(traceback.format_exc())
        theirs.send(error)
