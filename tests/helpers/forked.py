"""Runs commands in forks of one process that has made a command's imports already.

``helpers.commands.Server`` starts it. A line of JSON in is some calls at once, a line out their
results. The command's frame, Hydra and the job are the real ones, only the interpreter's start is
shared.
"""

import importlib
import json
import os
import sys
import time
import traceback
import warnings

_IMPORTED_LATE = [
    "ncsn_cli.commands.train", "ncsn_cli.commands.sample", "ncsn_cli.commands.callbacks",
    "ncsn_cli.commands.sweep", "ncsn_cli.commands.report", "ncsn_cli.plots",
    "matplotlib.backends.backend_agg", "scipy.integrate", "scipy.interpolate", "scipy.ndimage",
    "scipy.optimize.elementwise", "scipy.special", "scipy.stats", "torch._dynamo",
]  # fmt: skip


def show_warnings(_):
    """For ``before``: show all warnings but torch's own, as ``commands.run`` does."""
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)


def _child(request, streams):
    os.chdir(request["folder"])
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream.fileno(), number)
    sys.argv = [f"ncsn-{request['command']}", *request["arguments"]]
    from ncsn_cli.commands import cli

    code = 0
    try:
        if request["before"] is not None:
            module, function, argument = request["before"]
            getattr(importlib.import_module(module), function)(argument)
        getattr(cli, request["command"])()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child, signals):
    """The child's wait status, after the signals that it lived to get."""
    start = time.monotonic()
    for seconds, number in sorted(signals):
        while time.monotonic() - start < seconds:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        os.kill(child, number)  # a child that has ended is a zombie until it is waited for
    return os.waitpid(child, 0)[1]


def _serve():
    import tempfile

    import torch
    from hydra.core.plugins import Plugins

    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    Plugins.instance()  # imports what extends Hydra
    torch.set_num_threads(1)
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            out, error = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
            start = time.monotonic()
            child = os.fork()
            if child == 0:
                _child(request, (out, error))
            children.append((child, request["signals"], start, out, error))
        print(json.dumps([_answer(*each) for each in children]), flush=True)


def _answer(child, signals, start, out, error):
    """What has come of a child, once it has ended."""
    status = _wait(child, signals)
    with out, error:
        out.seek(0)
        error.seek(0)
        return {
            "seconds": time.monotonic() - start,
            "returncode": os.waitstatus_to_exitcode(status),
            "stdout": out.read(),
            "stderr": error.read(),
        }


if __name__ == "__main__":
    _serve()
