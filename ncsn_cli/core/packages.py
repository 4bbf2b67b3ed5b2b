"""Machine code of traced functions, kept in the user's cache from run to run.

A package of AOTInductor holds the code of one function for inputs of given shapes. It loads within
milliseconds, without torch's compiler.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ncsn_cli.core.compiling import CODE_FOLDER, check_compiler, code_folder, is_private
from ncsn_cli.core.errors import ConfigError

log = logging.getLogger(__name__)

_VERSION = 1  # of this file, as far as the code depends on it
_MOST_BYTES = 2**31  # of all packages together
_OPTIONS = {
    "aot_inductor.embed_kernel_binary": True,  # the code then needs no files beside it
    # Otherwise torch first compiles and loads programs with its headers, one for each set of
    # vector instructions, for 3 s. Without them it takes the sets that the processor has; a
    # compiler that knows C++20, which torch needs, knows them, too.
    "cpp.vec_isa_ok": True,
    "aot_inductor.precompile_headers": False,  # torch would write them where names may hold spaces
}
_TRIES = 2
_SECONDS_TO_KEEP = 3600  # folders of processes that are still compiling


def compiled(
    traced: GraphModule,
    inputs: Sequence[Tensor],
    around: nn.Module | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return ``traced``, or the function ``around`` that calls it, as machine code.

    Either maps tensors to a tuple of tensors. The code is that for shapes like those of
    ``inputs``, for the device that they are on and the present number of threads. It is taken from
    the cache if the same graph, with the same code around it, was compiled before by the same
    torch for the same processor. If other users may write into the cache, the code is compiled
    anew and not kept.

    Args:
        traced: The graph.
        inputs: Examples of the function's arguments.
        around: A module of this package; its source file says what it does with the graph.
        options: Options of torch's inductor.

    Raises:
        ConfigError: If code cannot be compiled, or not kept.
        Exception: If torch cannot compile the function; torch raises several kinds.
    """
    options = {**_OPTIONS, **(options or {})}
    name = _digest(traced, inputs, around, options)

    def make(folder: Path) -> Path:
        check_compiler()
        torch.compiler.reset()  # torch counts compilations over all runs of a process
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's about itself
            program = torch.export.export(around or traced, tuple(inputs), strict=False)
            return _compile(program, options, folder, name)

    folder = code_folder() / "packages"
    folder.mkdir(mode=0o700, exist_ok=True)
    if is_private(folder):
        return _kept_or_made(folder, name, make)
    log.warning("%s: others may put code there, so compiled steps are not kept", folder)
    with TemporaryDirectory() as place:
        if not is_private(Path(place)):
            raise ConfigError(f"{place}: another user could put code there; set TMPDIR")
        return _load(make(Path(place)))


def _kept_or_made(
    folder: Path, name: str, make: Callable[[Path], Path]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function of the package ``name`` in ``folder``, which is made if missing."""
    with FileLock(folder / f"{name}.lock"):  # others may compile the same
        for _ in range(_TRIES):
            package = _kept(folder, name) or make(folder)
            with suppress(FileNotFoundError):  # another process made room at this moment
                os.utime(package)  # the oldest are removed
                return _load(package)
    raise ConfigError(f"{folder}: what was compiled does not stay there")


def _digest(
    traced: GraphModule,
    inputs: Sequence[Tensor],
    around: nn.Module | None,
    options: dict[str, Any],
) -> str:
    """Return a name for all that the code depends on."""
    tensors = {
        node.target: getattr(traced, node.target)
        for node in traced.graph.nodes
        if node.op == "get_attr"
    }
    source = "" if around is None else Path(inspect.getfile(type(around))).read_text("utf-8")
    shapes = [
        (each.shape, each.stride(), each.dtype, each.device)
        for each in (*inputs, *tensors.values())
    ]
    here = _VERSION, torch.__version__, torch.get_num_threads(), _processor(inputs[0].device)
    described = traced.code, source, shapes, list(tensors), sorted(options.items()), here
    digest = hashlib.sha256(repr(described).encode())
    for value in tensors.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:40]


def _processor(device: torch.device) -> str:
    """Return what names the processor and ``device``: code for one may not run on another."""
    described = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    if device.type == "cuda":
        described.append(torch.cuda.get_device_name(device))
    return "\n".join(described)


def _kept(folder: Path, name: str) -> Path | None:
    """Return the package ``name``; remove those of its name that are not what was written."""
    for path in folder.glob(f"{name}.*.pt2"):
        with suppress(FileNotFoundError):
            if path.name == _file_name(name, path):
                return path
            path.unlink()
    return None


def _file_name(name: str, package: Path) -> str:
    """Return the name of a file with the contents of ``package``, which the name digests."""
    with package.open("rb") as file:
        return f"{name}.{hashlib.file_digest(file, 'sha256').hexdigest()[:40]}.pt2"


def _compile(program: ExportedProgram, options: dict[str, Any], folder: Path, name: str) -> Path:
    from torch._inductor import aoti_compile_and_package

    before = os.environ[CODE_FOLDER]
    with TemporaryDirectory(dir=folder) as place:
        os.environ[CODE_FOLDER] = place  # what the compiler leaves there is not needed again
        try:
            made = Path(
                aoti_compile_and_package(
                    program,
                    package_path=os.path.join(place, "made.pt2"),
                    inductor_configs=options,
                )
            )
        finally:
            os.environ[CODE_FOLDER] = before
        _make_room(folder, made.stat().st_size)
        return made.rename(folder / _file_name(name, made))


def _make_room(folder: Path, size: int) -> None:
    """Remove the packages that were not used for longest, until ``size`` more bytes fit.

    Also remove what processes that were killed have left.
    """
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room, too
            if path.is_dir() and time.time() - path.stat().st_mtime > _SECONDS_TO_KEEP:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".pt2":
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = size + sum(bytes_of_it for _, bytes_of_it, _ in found)
    for _, bytes_of_it, path in sorted(found):
        if total <= _MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= bytes_of_it


def _load(package: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function in ``package``.

    Torch unpacks it into TMPDIR, which may forbid running code: here into a folder beside it.
    """
    before = os.environ.get("TMPDIR")
    with TemporaryDirectory(dir=package.parent) as place:
        os.environ["TMPDIR"] = place
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before
    run: Callable[[list[Tensor]], list[Tensor]] = loader.run
    return run
