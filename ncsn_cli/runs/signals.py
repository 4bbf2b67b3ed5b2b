"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_SECONDS_TO_NEXT_TRY = 0.1

_held: list[int] = []
_handlers: dict[signal.Signals, Any] = {}


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop, without those that the program was started to ignore.

    ``nohup`` and ``trap '' HUP`` start their programs with a signal ignored. A shell does the same
    with SIGINT for programs that a script starts with ``&``. A signal whose handler is not
    Python's (None) is left out, too.
    """
    return [n for n in STOPPING if signal.getsignal(n) not in (signal.SIG_IGN, None)]


class _Ended(BaseException):
    """Raised to leave work that a signal ends."""


class StopSignals(list[int]):
    """The signals that have asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self._ends_work = False

    def add(self, number: int) -> None:
        """Record signal ``number`` and end the work that ``end`` does; called by the handlers."""
        self.append(number)
        self._raise()

    def end(self, work: Callable[[], None]) -> None:
        """Do ``work``. A request ends it at once, at any point, and may leave it in any state.

        One exception may not be enough: Python drops exceptions that are raised in destructors and
        in callbacks of weak references, and torch has many of these while it compiles. The
        exception is therefore raised again and again until it leaves ``work``. Without this, a
        sweep that is stopped would kill its jobs while they still compile.
        """
        hook = sys.unraisablehook
        sys.unraisablehook = lambda dropped: None if self else hook(dropped)
        try:
            try:
                self._ends_work = True
                if not self:
                    work()
            finally:  # no handler can run before the next line has cleared the flag
                self._ends_work = False
        except _Ended:
            pass
        finally:
            if self:
                signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = hook

    def _raise(self, *_: object) -> None:
        if self._ends_work:
            signal.signal(signal.SIGALRM, self._raise)
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_NEXT_TRY)
            raise _Ended


def hold_signals() -> None:
    """Keep signals that ask to stop until ``deliver_signals``, instead of ending this process.

    For a process of a sweep between two of its jobs: if it ended, Joblib would kill the jobs of
    the other processes before they could save.
    """
    for number in stop_signals():
        _handlers[number] = signal.signal(number, lambda held, _: _held.append(held))


def deliver_signals() -> None:
    """End what ``hold_signals`` has begun, and act on a signal that came in between."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _handlers.clear()
    if _held:
        first = _held[0]
        _held.clear()
        signal.raise_signal(first)


@contextmanager
def collect_stop_signals() -> Iterator[StopSignals]:
    """Yield a list that collects signals that ask to stop, to be looked at between steps.

    The second signal of a kind acts as it would outside this context, so that Ctrl-C twice ends
    the run at once. A signal with submitit's handler ``bypass`` is not collected: submitit
    requests a stop by another signal. Ignored signals stay ignored.
    """
    requests = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in stop_signals()}
    before = {n: h for n, h in before.items() if getattr(h, "__name__", "") != "bypass"}

    def request(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        requests.add(number)

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
