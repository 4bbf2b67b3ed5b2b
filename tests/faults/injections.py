"""Calls that change files below a folder, within a command: written down, failed or killed.

``inject`` is for the ``before`` of ``helpers.forked``: it puts itself between the program and
``os`` and ``open``. What C libraries write by themselves passes it by; ours write none.
"""

import builtins
import errno
import io
import json
import os
import signal

_REAL = {name: getattr(os, name) for name in ("open", "fsync", "mkdir", "chmod", "write")}
_REAL |= {name: getattr(os, name) for name in ("replace", "rename", "unlink", "remove")}
_OPEN = io.open
_FULL = {errno.ENOSPC, errno.EDQUOT}  # on a full disk files can still be removed


class _Injection:
    """Lets calls pass, up to the chosen one.

    Args:
        folder: Calls that change something below it count.
        after_checkpoint: Whether they count from the first checkpoint on, or from the start.
        at: The call chosen, from 1; 0: none.
        act: ``fail``, ``kill`` (before it acts) or ``half`` (when half of it is written).
        error: Name of the errno of ``fail``.
        for_good: Whether the calls after it fail, too.
        report: File to which the calls are appended, a line of JSON each.
    """

    def __init__(
        self, folder, after_checkpoint=False, at=0, act="fail", error="EIO", for_good=False,
        report=None,
    ):  # fmt: skip
        self.folder, self.counts, self.at, self.act = folder, not after_checkpoint, at, act
        self.error, self.for_good, self.number = getattr(errno, error), for_good, 0
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        self.report = None if report is None else _REAL["open"](report, flags)
        self.names = {}  # of open descriptors

    def passes(self, call, path, proceed, to=None):
        """Do what ``call`` would, or what was chosen to happen instead."""
        path = os.path.abspath(self.names.get(path, f"fd{path}") if type(path) is int else path)
        if not f"{path}{os.sep}".startswith(f"{self.folder}{os.sep}"):
            return proceed()
        if self.counts:
            self.number += 1
            if self.report is not None:
                _REAL["write"](self.report, (json.dumps([call, path, to]) + "\n").encode())
            self.strike(call, path, proceed)
        result = proceed()
        if call == "rename" and to.endswith(".safetensors"):
            self.counts = True
        return result

    def strike(self, call, path, proceed):
        again = self.for_good and 0 < self.at < self.number
        again = again and not (self.error in _FULL and call in ("unlink", "chmod"))
        if self.number != self.at and not again:
            return
        if self.act == "fail":
            raise OSError(self.error, os.strerror(self.error), path)
        if self.act == "half" and call == "write":
            proceed(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def open_descriptor(self, path, flags, *args, **kwargs):
        def proceed():
            descriptor = _REAL["open"](path, flags, *args, **kwargs)
            self.names[descriptor] = os.path.abspath(path)
            return descriptor

        changes = flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        return self.passes("open", path, proceed) if changes else proceed()

    def open_file(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None,
                  *args, **kwargs):  # fmt: skip
        if "r" in mode or "+" in mode:
            return _OPEN(file, mode, buffering, encoding, errors, newline, *args, **kwargs)
        make = lambda: _File(self, file, mode.replace("b", "").replace("t", ""))  # noqa: E731
        raw = make() if type(file) is int else self.passes("open", file, make)
        buffer = io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def mkdir(self, path, *args, **kwargs):
        proceed = lambda: _REAL["mkdir"](path, *args, **kwargs)  # noqa: E731
        return proceed() if os.path.isdir(path) else self.passes("mkdir", path, proceed)

    def one_path(self, call):
        return lambda path, *args, **kwargs: self.passes(
            call.replace("remove", "unlink"), path, lambda: _REAL[call](path, *args, **kwargs)
        )

    def two_paths(self, call):
        return lambda path, to, **kwargs: self.passes(
            "rename", path, lambda: _REAL[call](path, to, **kwargs), os.path.abspath(to)
        )


class _File(io.FileIO):
    """Whose every write passes the injection: file objects write by its method."""

    def __init__(self, injection, file, mode):
        super().__init__(file, mode)
        self._injection = injection
        if type(file) is not int:
            injection.names[self.fileno()] = os.path.abspath(file)

    def write(self, data):
        def proceed(share=1):
            return io.FileIO.write(self, memoryview(data)[: int(len(data) * share)])

        return self._injection.passes("write", self.fileno(), proceed)


def inject(settings):
    """Put an injection in place, for the rest of the process."""
    injection = _Injection(**settings)
    os.open, os.mkdir = injection.open_descriptor, injection.mkdir
    for call in ("fsync", "chmod", "unlink", "remove"):
        setattr(os, call, injection.one_path(call))
    os.replace, os.rename = injection.two_paths("replace"), injection.two_paths("rename")
    io.open = builtins.open = injection.open_file
