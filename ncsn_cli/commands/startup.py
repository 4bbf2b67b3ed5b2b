"""Set up a job before its work: the device, and the memory allocator."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress

import torch
from hydra.core.hydra_config import HydraConfig

from ncsn_cli.commands.job import in_sweep
from ncsn_cli.core.compiling import keep_compiled_code
from ncsn_cli.core.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` means on this machine.

    Raises:
        ConfigError: If ``name`` is not a device, or the device is not available.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ConfigError(f"device: choose auto, cpu, cuda, cuda:N or mps, not {name!r}")
    if name == "auto" and in_sweep() and torch.cuda.device_count() > 1:
        return torch.device("cuda", HydraConfig.get().job.num % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise ConfigError(f"device: {name} is not available here; device=cpu is")
    return device


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep freed memory for the next tensor.

    By default the allocator gives larger pieces back to the system, which clears them before they
    are used again. For the temporaries of each step, this takes several times as long as the
    arithmetic.
    """
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def prepare_process() -> None:
    """Set up this process for a job: its threads, its memory and its folder for compiled code."""
    torch.set_num_threads(1)  # sums depend on the number of threads
    keep_freed_memory()
    keep_compiled_code()
