"""Tasks run side by side, in processes of this machine."""

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

from ncsn_cli.runs.signals import STOPPING

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def shared_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros on the CPU, in memory that the processes of ``side_by_side`` share with this one."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)


def side_by_side(
    tasks: Sequence[Iterator[T]], workers: int
) -> Generator[list[tuple[int, T]], None, None]:
    """What the tasks yield, each with its task's number; now and then an empty list.

    At most ``workers`` tasks run at a time, in forks of this process with one thread each:
    threads of one Python would wait for each other at every operation on small tensors. What a
    task does is seen here by what it yields and in shared memory alone; it should yield arrays,
    as torch sends tensors by files in memory, of which there may be few. The forks end with this
    process, and with the iteration. One worker is this process itself, as are all of them where
    the system is not Linux.

    Raises:
        Exception: What a task raises.
        MemoryError: If a fork was killed, as the system does where memory is short.
        RuntimeError: If one ended otherwise.
    """
    if min(workers, len(tasks)) <= 1 or sys.platform != "linux":
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
            forks[ours] = context.Process(target=_work, args=(tasks, theirs, os.getpid()))
            forks[ours].start()
            theirs.close()  # so that ours ends with the fork
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
        for fork in forks.values():
            fork.kill()
            fork.join()


def _end_of(code: int) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryError()
    return RuntimeError(f"a worker ended with code {code}")


def _work(tasks: Sequence[Iterator[T]], theirs: Connection, parent: int) -> None:
    """Run tasks in a fork: None asks for the next one; what they yield or raise is sent."""
    for number in STOPPING:  # a terminal and a scheduler send them to all processes of a run
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    torch.set_num_threads(1)  # those of the parent are not here
    try:
        theirs.send(None)
        while (number := theirs.recv()) is not None:
            for made in tasks[number]:
                theirs.send(made)
            theirs.send(None)
    except Exception as error:
        error.add_note(traceback.format_exc())
        theirs.send(error)
