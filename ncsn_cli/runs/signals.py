"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop, without those that the program was started to ignore.

    ``nohup`` and ``trap '' HUP`` start their programs with a signal ignored. A shell does the same
    with SIGINT for programs that a script starts with ``&``. A signal whose handler is not
    Python's (None) is left out, too.
    """
    return [n for n in STOPPING if signal.getsignal(n) not in (signal.SIG_IGN, None)]


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Yield a list that collects signals that ask to stop, to be looked at between steps.

    The second signal of a kind acts as it would outside this context, so that Ctrl-C twice ends
    the run at once. A signal with submitit's handler ``bypass`` is not collected: submitit
    requests a stop by another signal. Ignored signals stay ignored.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in stop_signals()}
    before = {n: h for n, h in before.items() if getattr(h, "__name__", "") != "bypass"}

    def request(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        requests.append(number)

    for number in before:
        signal.signal(number, request)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_to_scheduler(number: int) -> None:
    """Pass a signal to submitit, if submitit runs this job, so that it queues the job again."""
    handler = signal.getsignal(number)
    if callable(handler) and getattr(handler, "__module__", "").startswith("submitit."):
        handler(number, None)
