"""The errors that end a command, and their exit codes.

The codes of other exceptions (71, 73, 74, 130) are in ``commands/failures.py``.
"""

from __future__ import annotations

import signal


class NcsnError(Exception):
    """An error that a user can fix; the command ends with its ``exit_code``."""

    exit_code = 1


class ConfigError(NcsnError):
    """A wrong value in the configuration."""

    exit_code = 2


class UnknownTruthError(ConfigError):
    """Something of the dataset was asked for that is not known: only its draws are.

    Metrics that raise this error have no value.
    """


class DivergedError(NcsnError):
    """A number that should be finite is not."""

    exit_code = 3


class BadCheckpointError(NcsnError):
    """A file that is damaged, or not a checkpoint of this package."""

    exit_code = 65


class BadSamplesError(NcsnError):
    """A file that holds no samples, or samples of another dimension."""

    exit_code = 65


class MissingInputError(NcsnError):
    """An input file or folder that does not exist."""

    exit_code = 66


class FailedJobsError(NcsnError):
    """Jobs of a sweep failed, each for its own reason."""


class OutputExistsError(NcsnError):
    """The output folder holds another run, which is never overwritten."""

    exit_code = 73


class BusyFolderError(NcsnError):
    """Another process is working in the output folder."""

    exit_code = 75


class RefusedStart(BaseException):
    """A wrapper that carries an error, its cause, past Hydra.

    Hydra only warns of a callback's ``Exception``, so this class is not an ``Exception``.
    """


class OutsideFolderError(NcsnError):
    """A file would be written outside the output folder."""

    exit_code = 73


class InterruptedRun(KeyboardInterrupt):
    """A signal ended the run; ``exit_code`` is 128 + the signal's number, or 85 (start me again).

    85 is for SIGUSR1 and SIGUSR2, with which schedulers announce that they will end a job.
    This class is not an ``Exception``, so that a sweep stops too and does not start its next job.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self._signal_number = signal_number
        self.exit_code = (
            85 if signal_number in (signal.SIGUSR1, signal.SIGUSR2) else 128 + signal_number
        )

    def __reduce__(self) -> tuple[type[InterruptedRun], tuple[str, int]]:
        """Return how to pickle this error, so that it can leave a job's process.

        Joblib kills all jobs when it cannot unpickle an error.
        """
        return type(self), (str(self), self._signal_number)


def counted(num: int, noun: str) -> str:
    """Return ``num`` and ``noun``, as in *1 level* and *2 levels*."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def one_line(text: str, most: int = 400) -> str:
    """Collapse white space, replace unprintable characters, and truncate to ``most`` characters.

    A terminal shows the returned text on one line.
    """
    text = " ".join(text.split()) if len(text) <= most else f"{' '.join(text[:most].split())} ..."
    return "".join(c if c.isprintable() else "?" for c in text)
