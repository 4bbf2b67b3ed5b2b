"""What a command may refuse or break off, and its exit code."""

from __future__ import annotations

import signal


class NcsnError(Exception):
    """An error that a user can mend; ``exit_code`` is the command's."""

    exit_code = 1


class ConfigError(NcsnError):
    """A wrong value in the configuration."""

    exit_code = 2


class DivergedError(NcsnError):
    """A number that should be finite is not."""

    exit_code = 3


class BadCheckpointError(NcsnError):
    """A file that is no checkpoint of this package, or a damaged one."""

    exit_code = 65


class MissingInputError(NcsnError):
    """An input file or folder that is not there."""

    exit_code = 66


class FailedJobsError(NcsnError):
    """Jobs of a sweep failed; each has its own reason."""


class OutputExistsError(NcsnError):
    """The output folder holds another run, which is never overwritten."""

    exit_code = 73


class BusyFolderError(NcsnError):
    """Another process works in the output folder."""

    exit_code = 75


class RefusedStart(BaseException):
    """Brings an error, its cause, past Hydra, which only warns of a callback's ``Exception``."""


class OutsideFolderError(NcsnError):
    """A file would be written outside the output folder."""

    exit_code = 73


class InterruptedRun(KeyboardInterrupt):
    """A signal ended the run; ``exit_code`` is 128 + its number, or 85 (start me again).

    85 is for SIGUSR1 and SIGUSR2, by which schedulers announce that they will end a job.
    Not an ``Exception``, so that a sweep stops too instead of going on with its next job.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self._signal_number = signal_number
        self.exit_code = (
            85 if signal_number in (signal.SIGUSR1, signal.SIGUSR2) else 128 + signal_number
        )

    def __reduce__(self) -> tuple[type[InterruptedRun], tuple[str, int]]:
        """How it leaves a job's process; joblib kills all jobs when an error cannot be read."""
        return type(self), (str(self), self._signal_number)


def one_line(text: str, most: int = 400) -> str:
    """Text of which a terminal shows one line, whatever it holds, cut to ``most`` characters."""
    text = " ".join(text.split()) if len(text) <= most else f"{' '.join(text[:most].split())} ..."
    return "".join(c if c.isprintable() else "?" for c in text)
