"""Standard output and error streams on which a failed write does not end a run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class _Forgiving(io.TextIOWrapper):
    """A text stream that replaces ``stream``, and drops all text once its reader is gone."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # kept: it would close the buffer if nothing held it

    def write(self, text: str) -> int:
        """Write ``text``, or drop it if that fails."""
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Write waiting text, or drop it if that fails."""
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Point the descriptor to the null device, so that waiting text goes there, too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        with suppress(OSError):
            super().flush()


def ignore_failed_writes() -> None:
    r"""Replace ``sys.stdout`` and ``sys.stderr`` by streams on which no write fails.

    Characters that the encoding lacks are written as ``\xb1``. A descriptor that is closed, such
    as by ``2>&-``, is opened on the null device. Otherwise the next file would get its number,
    and so the text that libraries write to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends
        elif type(stream) is io.TextIOWrapper:  # not a notebook's, a test's or ours
            setattr(sys, name, _Forgiving(stream))
