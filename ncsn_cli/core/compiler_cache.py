"""The folder where torch keeps compiled code; the compiler's command line must hold its path."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from ncsn_cli.core.errors import ConfigError

_FOLDER, _HEADERS = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
_AMONG_OTHERS = f"ncsn_cli_{os.geteuid()}"  # in a folder where every user may write

# Torch writes a command line as text and splits it into words with shlex.
_UNSPEAKABLE = re.compile(r"[ \t\r\n'\"\\\ud800-\udfff]")
_WHY_UNSPEAKABLE = "the compiler's command line cannot hold its space, quote or backslash"


def keep_compiled_code() -> None:
    """Set the environment's folder for compiled steps, unless the user has set one.

    Compiled steps stay there from run to run. Torch chooses the folder with the first optimizer;
    its default lies among temporary files, where other users may have put files of their own.
    Precompiled headers are switched off: they would lie there too, and save no time.
    """
    os.environ.setdefault(_HEADERS, "0")
    if not os.environ.get(_FOLDER):
        folders = _folders()
        fit = (folder for folder in folders if _fault(folder) is None)
        os.environ[_FOLDER] = str(next(fit, folders[0]))


def prepare_compiling() -> None:
    """Make the folder for compiled code, and check that code can be compiled there.

    Raises:
        ConfigError: If nothing can be compiled. Torch would notice only after half a minute.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"there is no C++ compiler {compiler!r}; install it, or set CXX")
    for place in (compiler, os.path.dirname(torch.__file__), sysconfig.get_config_var("LIBDIR")):
        if _UNSPEAKABLE.search(str(place)):
            raise ConfigError(f"{place}: {_WHY_UNSPEAKABLE}; install it elsewhere")
    keep_compiled_code()
    folder = Path(os.path.abspath(os.environ[_FOLDER]))
    fault = _fault(folder)
    if fault is None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = _fault(folder)  # another user may have made it first
        except OSError as error:
            fault = str(error.strerror)
    if fault is not None:
        raise ConfigError(f"{folder}: {fault}; set {_FOLDER} to another folder")


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
    if folder.name == _AMONG_OTHERS and not _is_private(folder):
        return "another user could put code there"
    return None


def _is_private(folder: Path) -> bool:
    """Return whether no other user can write into ``folder`` or replace it."""
    parent = folder.parent.stat().st_mode
    if parent & 0o022 and not parent & stat.S_ISVTX:
        return False
    if not os.path.lexists(folder):
        return True
    found = folder.lstat()  # a link's mode lets everyone write, so links are refused
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077
