"""What a command changes in the libraries that it uses, so that users wait less.

Each function says what it saves, on two cores with everything in the disk's cache. Nothing here
imports torch on import.
"""

from __future__ import annotations

import ctypes
import inspect
import os
from contextlib import suppress

from hydra.core.config_store import ConfigStore

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def share_hydras_store() -> None:
    """Let Hydra read its store of configurations without copying it.

    Hydra copies the store 127 times for ``--help``, which takes 1.5 s.
    """
    ConfigStore.__deepcopy__ = lambda store, _: store  # type: ignore[attr-defined]


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep soon when they wait for each other, unless the user has set this.

    This matters for ``trainer.threads=2`` and more. By default the threads spin for milliseconds.
    Beside other work that takes the cores from the thread they wait for: on two cores beside two
    busy loops, 1000 steps of ``mdsm_1d`` took 12 s by default and 8 s with this. Alone, they took
    8 % longer with this.
    The number of threads, and so every sum, stays. This has to come before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"  # some microseconds, enough for short waits


def prepare_process() -> None:
    """Set up this process for a job: its threads, and its folder for compiled code."""
    import torch

    from ncsn_cli.core.compiling import keep_compiled_code

    torch.set_num_threads(1)  # sums depend on the number of threads
    keep_compiled_code()


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep freed memory for the next tensor.

    By default the allocator gives larger pieces back to the system, which clears them before they
    are used again. Keeping the memory saves 2 of 11 s of 300 default training steps.
    """
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def spare_the_compiler() -> None:
    """Let torch's optimizers work without importing torch's compiler.

    At the first call of a method such as ``state_dict``, torch imports its compiler, marks the
    method as not to be compiled, and keeps the marked method in the attribute
    ``__dynamo_disable``. Nothing here compiles these methods, so the attributes may hold the plain
    ones. A version of torch that does not read the attribute imports its compiler as before. This
    saves 1.7 s per training.
    """
    from torch.optim import Optimizer

    for name in ("add_param_group", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(Optimizer, name))
        method.__dynamo_disable = method
