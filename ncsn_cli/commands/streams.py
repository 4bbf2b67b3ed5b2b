"""Standard output and error that end no run: what cannot be written there is no failure."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class _Forgiving(io.TextIOWrapper):
    """The text of ``stream``, of which no more is written once its reader is gone."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # without others that hold it, it would close the buffer

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Write what waits, or drop it."""
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Lead the descriptor to nowhere, so that what still waits goes there at the end, too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        with suppress(OSError):
            super().flush()


def forgive() -> None:
    r"""Replace ``sys.stdout`` and ``sys.stderr`` by streams on which no write fails.

    Characters that the encoding has not are written as ``\xb1``. Where a descriptor is closed, as
    by ``2>&-``, it is opened to nowhere: the next file would get its number, and with that what
    libraries write to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends
        elif type(stream) is io.TextIOWrapper:  # not that of a notebook or a test, nor ours
            setattr(sys, name, _Forgiving(stream))
