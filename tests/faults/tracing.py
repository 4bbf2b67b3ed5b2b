"""strace on a process: its calls that change files, and a kill at one of them."""

import ctypes
import os
import re
import subprocess
import time
from pathlib import Path

import torch

from ncsn_cli.runs.checkpoints import checkpoint_path, save_checkpoint

CALLS = [
    "open", "openat", "creat", "write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "chmod",
    "fchmod", "fchmodat", "link", "linkat",
]  # fmt: skip
TRACE = "trace=" + ",".join(f"?{call}" for call in CALLS)  # ?: not every platform has it
REFUSED = 77


def save_under_strace(settings):
    """Save a checkpoint where an older one is, strace attached; ends this process.

    For ``before`` of ``helpers.forked``. ``beside``: the older one has another name. ``kill``: a
    call and its number, at which SIGKILL comes; without it the calls are written to ``report``.
    """
    folder = Path(settings["folder"])
    save(folder, 1, 1)
    if "kill" in settings:
        call, number = settings["kill"]
        options = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    else:
        options = ["-e", TRACE, "-o", settings["report"]]
    tracer = _attach(options)
    save(folder, 2 if settings["beside"] else 1, 2)
    tracer.terminate()
    tracer.wait()
    os._exit(0)


def save(folder, step, value):
    """A checkpoint of ``step``; all that is in it is ``value``, and larger than a buffer."""
    tensors = {"weight": torch.full((300_000,), float(value))}
    save_checkpoint(checkpoint_path(folder, step), tensors, {"step": value})


def _attach(options):
    ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # Yama: a child may trace this process
    status = os.open("/proc/self/status", os.O_RDONLY)
    tracer = subprocess.Popen(
        ["strace", "-qq", "-p", str(os.getpid()), *options], stderr=subprocess.DEVNULL
    )
    while re.search(rb"TracerPid:\t0\n", os.pread(status, 4096, 0)):  # a call not traced
        if tracer.poll() is not None:
            os._exit(REFUSED)
        time.sleep(0.005)
    time.sleep(0.02)
    return tracer


def events(log):
    """[call, path, new path] of every successful call in what strace -y wrote."""
    found = []
    for line in log.splitlines():
        match = re.match(r"(?:\[?\w* ?\d+\]? +)?(\w+)\((.*)", line)
        if match is None or re.search(r"\) = -1 ", line):
            continue
        call, rest = match[1], match[2]
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', rest)
        if call.startswith("open"):
            if re.search(r"O_CREAT|O_WRONLY|O_RDWR", rest):
                found.append(["open", names[0], None])
        elif call.startswith("rename"):
            found.append(["rename", names[0], names[1]])
        elif call.startswith(("unlink", "mkdir")):
            found.append([call.removesuffix("at"), names[0], None])
        elif descriptor := re.match(r"\d+<([^>]*)>", rest):
            name = {"pwrite64": "write", "writev": "write", "fdatasync": "fsync"}.get(call, call)
            found.append([name, descriptor[1], None])
    return found
