import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_cli.core.errors import DivergedError
from ncsn_cli.runs.workers import run_in_processes, shared_zeros


def is_running(process):
    """Whether it is there, and not only until its parent hears of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def told(tasks, workers):
    return [each for news in run_in_processes(tasks, workers) for each in news]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_all_that_every_task_yields_comes_in_its_order(workers):
    left = shared_zeros(7, dtype=torch.int64)

    def task(number):
        for i in range(number):
            yield np.arange(number)[i], i
        left[number] = number + 100 * (os.getpid() != here)

    here = os.getpid()
    found = told([task(number) for number in range(7)], workers)
    assert len(found) == sum(range(7))
    for number in range(7):
        assert [made for n, made in found if n == number] == [(i, i) for i in range(number)]
    assert left.tolist() == [number + 100 * (workers > 1) for number in range(7)]


def test_shared_zeros_are_as_other_tensors():
    for shape, dtype in [((2, 3), torch.float32), ((5,), torch.bool), ((0, 4), torch.float64)]:
        zeros = shared_zeros(*shape, dtype=dtype)
        assert torch.equal(zeros, torch.zeros(shape, dtype=dtype))
        assert zeros.dtype == dtype


def test_tasks_run_at_the_same_time():
    begun = shared_zeros(2, dtype=torch.bool)

    def task(number):
        begun[number] = True
        while not bool(begun.all()):
            time.sleep(0.001)
        yield number

    assert sorted(told([task(0), task(1)], 2)) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_task_raises_is_raised_here_and_ends_the_others(workers):
    process = shared_zeros(1, dtype=torch.int64)

    def waits():
        process[0] = os.getpid()
        yield 0
        time.sleep(60)

    def fails():
        while workers > 1 and process[0] == 0:
            time.sleep(0.001)
        raise DivergedError("not finite")
        yield 0

    tasks = [waits(), fails(), fails()] if workers > 1 else [fails(), fails()]
    with pytest.raises(DivergedError, match="not finite"):
        told(tasks, workers)
    if workers > 1:
        assert not is_running(int(process))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def ended():
    os._exit(5)


@pytest.mark.parametrize(("end", "error"), [(killed, MemoryError), (ended, RuntimeError)])
def test_a_worker_that_ends_is_an_error(end, error):
    def task():
        yield 0
        end()

    with pytest.raises(error):
        told([task(), task()], 2)


def test_workers_hear_no_signals_and_end_with_the_iteration():
    def task():
        yield os.getpid()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), each)
        yield os.getpid()
        time.sleep(60)

    with closing(run_in_processes([task(), task()], 2)) as all_news:
        processes = []
        for news in all_news:
            processes += [process for _, process in news]
            if len(processes) == 4:
                break
        assert len(set(processes)) == 2
        assert all(is_running(process) for process in processes)
    assert not any(is_running(process) for process in processes)


def test_all_workers_end_where_their_clean_up_is_interrupted(monkeypatch):
    def forever():
        while True:
            time.sleep(0.01)
            yield os.getpid()

    found = run_in_processes([forever(), forever()], 2)
    pids = set()
    while len(pids) < 2:
        pids |= {pid for _, pid in next(found)}

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt  # a second Ctrl-C

    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.process.BaseProcess, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.close()
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_workers_end_with_a_process_that_is_killed():
    source = (
        "import os, time\n"
        "from ncsn_cli.runs.workers import run_in_processes\n"
        "def task():\n"
        "    yield os.getpid()\n"
        "    time.sleep(60)\n"
        "    print('the end', flush=True)\n"
        "for news in run_in_processes([task(), task()], 2):\n"
        "    for _, process in news:\n"
        "        print(process, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        processes = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(is_running(process) for process in processes)
        parent.kill()
        said = parent.stdout.read()  # until nobody can write any more
    assert said == b""  # so their end was not that of their task, a minute later


def made_by_forks(_):
    tasks = [iter([np.array([number])]) for number in range(3)]
    return sum(int(made[0]) for news in run_in_processes(tasks, 2) for _, made in news)


def test_the_worker_of_a_pool_runs_all_itself():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(made_by_forks, [0]) == [3]
