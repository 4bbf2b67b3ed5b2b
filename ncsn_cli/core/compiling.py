"""Compiling steps: when it pays, where the code is kept, and what happens if it fails.

The compiler's command line must hold the folder's path.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import torch

from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.core.importing import import_without_collecting

log = logging.getLogger(__name__)

T = TypeVar("T")

_SECONDS_TO_SAVE = 5.0  # ``auto`` compiles where more than this is saved

CODE_FOLDER, _HEADERS = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
_AMONG_OTHERS = f"ncsn_cli_{os.geteuid()}"  # in a folder where every user may write

# Torch writes a command line as text and splits it into words with shlex.
_UNSPEAKABLE = re.compile(r"[ \t\r\n'\"\\\ud800-\udfff]")
_WHY_UNSPEAKABLE = "the compiler's command line cannot hold its space, quote or backslash"


def resolve_compile(
    setting: bool | Literal["auto"], earlier: object, obstacle: str | None, seconds_saved: float
) -> bool:
    """Return whether to compile, as the key ``compile`` asks.

    Compiling changes the last bits of results, so ``auto`` must depend on sizes alone, not on the
    machine.

    Args:
        setting: The key's value.
        earlier: What an earlier part of the run had, which ``auto`` keeps; None if the run is new.
        obstacle: The message of the error if ``setting`` is true but nothing would be gained; None
            if something may be gained.
        seconds_saved: What compiling would save.

    Raises:
        ConfigError: If ``setting`` is true and there is an obstacle.
    """
    if setting is True and obstacle is not None:
        raise ConfigError(obstacle)
    if setting != "auto":
        return setting
    if isinstance(earlier, bool):
        return earlier
    return obstacle is None and seconds_saved > _SECONDS_TO_SAVE


def compile_or_stay_plain(make: Callable[[], T], key: str, has_earlier_steps: bool) -> T | None:
    """Return what ``make`` compiles, or None if compiling fails; log the seconds or the reason.

    ``key`` names the setting. ``has_earlier_steps`` says that the run has compiled steps already.
    """
    start = time.monotonic()
    log.info("%s: compiling the steps", key)
    try:
        code_folder()  # before torch makes it, for others to read
        _import_compiler()
        made = make()
    except Exception as error:  # torch raises many kinds, and plain steps always work
        what = "the steps stay plain"
        if has_earlier_steps:
            what = (
                "the steps are plain from here on; those before were compiled, so the last bits of"
                " this run will differ from those of an undisturbed one"
            )
        log.warning("%s: %s; %s", key, one_line(str(error)), what)
        return None
    log.info("%s: compiled in %.1f s", key, time.monotonic() - start)
    return made


def _import_compiler() -> None:
    """Import torch's compiler, so that its many objects cost the garbage collector no time."""
    if "torch._dynamo" in sys.modules:
        return
    import_without_collecting("torch._dynamo")
    if gc.get_freeze_count():  # a command, which has done the same for torch
        gc.freeze()


def keep_compiled_code() -> None:
    """Set the environment's folder for compiled steps, unless the user has set one.

    Compiled steps stay there from run to run. Torch chooses the folder with the first optimizer;
    its default lies among temporary files, where other users may have put files of their own.
    Precompiled headers are switched off: they would lie there too, and save no time.
    """
    os.environ.setdefault(_HEADERS, "0")
    if not os.environ.get(CODE_FOLDER):
        folders = _folders()
        fit = (folder for folder in folders if _fault(folder) is None)
        os.environ[CODE_FOLDER] = str(next(fit, folders[0]))


def check_compiler() -> None:
    """Check that code can be compiled here.

    Raises:
        ConfigError: If nothing can be compiled. Torch would notice only after half a minute.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"there is no C++ compiler {compiler!r}; install it, or set CXX")
    for place in (compiler, os.path.dirname(torch.__file__), sysconfig.get_config_var("LIBDIR")):
        if _UNSPEAKABLE.search(str(place)):
            raise ConfigError(f"{place}: {_WHY_UNSPEAKABLE}; install it elsewhere")


def code_folder() -> Path:
    """Return the folder for compiled code, which is made if it does not exist.

    Raises:
        ConfigError: If code cannot be kept there, or others may have put code there.
    """
    keep_compiled_code()
    folder = Path(os.path.abspath(os.environ[CODE_FOLDER]))
    fault = _fault(folder)
    if fault is None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = _fault(folder)  # another user may have made it first
        except OSError as error:
            fault = str(error.strerror)
    if fault is not None:
        raise ConfigError(f"{folder}: {fault}; set {CODE_FOLDER} to another folder")
    return folder


def _folders() -> list[Path]:
    """Return the folders where compiled code could be kept, the best first."""
    folders = []
    with suppress(RuntimeError):  # the home folder is unknown
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(os.path.abspath(cache), "ncsn_cli"))
    with suppress(OSError):
        folders.append(Path(os.path.abspath(tempfile.gettempdir()), _AMONG_OTHERS))
    return [*folders, Path(os.devnull)]


def _fault(folder: Path) -> str | None:
    """Return why nothing can be compiled in ``folder``, or None; it need not exist yet."""
    if _UNSPEAKABLE.search(str(folder)):
        return _WHY_UNSPEAKABLE
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        return "nothing can be written there"
    if os.statvfs(nearest).f_flag & getattr(os, "ST_NOEXEC", 0):
        return "no code may be run from there"
    if folder.name == _AMONG_OTHERS and not is_private(folder):
        return "another user could put code there"
    return None


def is_private(folder: Path) -> bool:
    """Return whether no other user can write into ``folder`` or replace it; it need not exist."""
    above = folder.parent.resolve()
    for parent in (above, *above.parents):
        found = parent.stat()
        is_open = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if is_open or found.st_uid not in (0, os.geteuid()):
            return False
    if not os.path.lexists(folder):
        return True
    found = folder.lstat()  # a link's mode lets everyone write, so links are refused
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077
