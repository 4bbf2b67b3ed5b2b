"""Samples in files of every common kind, checked row by row."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.errors import BadSamplesError, MissingInputError, one_line
from ncsn_cli.runs.folder import SAMPLES

_TEXT = (".csv", ".tsv", ".txt", ".dat")
_TORCH = (".pt", ".pth")
_KINDS = ".npy, .npz, .csv, .txt or .pt"

_TOO_LARGE = 1e100
"""Size of a number, in data units, from which on distances could overflow."""


class Samples(NamedTuple):
    """Samples as a file holds them.

    Args:
        x: The samples in data units (N, D), float32 or float64.
        origin: The point (D,), float64, around which ``ncsn-sample`` ran its chains. None for
            other files.
        offsets: The samples around ``origin`` (N, D), float32, before ``ncsn-sample`` rounded them
            to data units. None for other files.
    """

    x: Tensor
    origin: Tensor | None = None
    offsets: Tensor | None = None

    def around(self, origin: Tensor) -> Tensor:
        """Return the samples in coordinates around ``origin`` (D,), as exactly as possible."""
        if self.offsets is not None and self.origin is not None and self.origin.equal(origin):
            return self.offsets
        return self.x - origin if bool((origin != 0).any()) else self.x


def samples_file(name: str) -> Path | None:
    """Return the file that ``name`` names: a file, or that of a run's folder; None for ``-``.

    Raises:
        MissingInputError: If there is no such file.
    """
    if name == "-":
        return None
    path = Path(name, SAMPLES) if os.path.isdir(name) else Path(name)
    if not name or not os.path.exists(path):  # pathlib's raises for a name that is too long
        raise MissingInputError(f"{path if name else 'file'}: there is no such file")
    if not os.path.isfile(path):
        raise MissingInputError(f"{path}: this is no regular file; - reads standard input")
    try:
        path.open("rb").close()
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None
    return path


def read_samples(file: Path | None, key: str | None, dim: int) -> Samples:
    """Return the samples in ``file``, which are points in D = ``dim``.

    Args:
        file: A file; None is standard input.
        key: Which array of a file with several; None is ``samples``, or the only one.
        dim: D. For D = 1 the samples may be a vector (N,).

    Raises:
        BadSamplesError: If it cannot be read, or holds anything else than N >= 1 finite points.
    """
    path = file or Path("standard input")
    try:
        arrays = _read(path, _standard_input() if file is None else None)
        origin, offsets = (arrays.get(name) for name in ("origin", "offsets"))
        x = as_points(str(path), _chosen(path, arrays, key), dim)
        if key is None and origin is not None and offsets is not None:
            centre, around = torch.from_numpy(origin), torch.from_numpy(offsets)
            if centre.shape == (dim,) and x.equal((around + centre).float()):
                return Samples(x, centre, around)
    except (BadSamplesError, MissingInputError, MemoryError):
        raise
    except Exception as error:  # numpy, zipfile and torch raise many kinds
        reason = one_line(str(error), 200) or type(error).__name__
        if type(error).__name__ == "UnpicklingError":  # torch advises to run code from the file
            reason = "it is damaged, or holds more than tensors; torch.save the samples alone"
        # Numpy counts rows from 0 here, columns from 1.
        reason = re.sub(
            r"at row (\d+), column", lambda m: f"at row {int(m[1]) + 1}, column", reason
        )
        raise BadSamplesError(f"{path}: cannot be read as samples ({reason})") from error
    return Samples(x)


def as_points(name: str, values: NDArray[Any], dim: int) -> Tensor:
    """Return ``values`` as points (N, D), float32 or float64.

    Raises:
        BadSamplesError: If they are anything else than N >= 1 finite points; it begins with
            ``name``.
    """
    if values.dtype.kind not in "fiu":
        raise BadSamplesError(f"{name}: its values are {values.dtype}; samples are real numbers")
    if values.ndim == 1 and dim == 1:
        values = values[:, None]
    if values.shape[:1] == (0,):
        raise BadSamplesError(f"{name}: it has no rows")
    if values.ndim != 2 or values.shape[1] != dim:
        raise BadSamplesError(
            f"{name}: its shape is {values.shape}, but points in D = {dim} have the shape"
            f" (N, {dim}), a row per point; {_remedy(values.shape, dim)}"
        )
    limits = {np.inf: "are not finite"}
    if values.dtype.itemsize > 4:  # smaller types hold no such number
        limits[_TOO_LARGE] = f"have numbers of {_TOO_LARGE:g} or more"
    for limit, what in limits.items():
        is_bad = ~(abs(values) < limit).all(axis=1)  # nan is not below either
        if num := int(is_bad.sum()):
            raise BadSamplesError(
                f"{name}: {num} of {len(values)} rows {what}, the first is row"
                f" {int(is_bad.argmax()) + 1}; remove them"
            )
    kept = np.float32 if values.dtype == np.float32 else np.float64
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kept))


def _remedy(shape: tuple[int, ...], dim: int) -> str:
    """Return how an array of this ``shape`` may become points (N, ``dim``)."""
    if len(shape) == 2 and shape[0] == dim:
        return "transpose it: x.T"
    if len(shape) == 2:
        return f"choose a dataset of D = {shape[1]}"
    if shape and math.prod(shape) % dim == 0:
        return f"if its numbers are in this order: x.reshape(-1, {dim})"
    return "stack the points as rows"


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise MissingInputError("standard input: it is closed")
    return sys.stdin.buffer.read()


def _read(path: Path, data: bytes | None) -> dict[str, NDArray[Any]]:
    """Return the arrays in the file ``path``, or in its content ``data``, by name.

    An array without a name has the name "". No file can run code.
    """
    suffix = path.suffix.lower()
    if data is not None:
        is_numpys = data.startswith(b"\x93NUMPY")
        suffix = ".npy" if is_numpys else ".npz" if data.startswith(b"PK") else ".csv"
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        if suffix == ".npy":
            return {"": np.lib.format.read_array(file, allow_pickle=False)}
        if suffix == ".npz":
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as members:
                return {k: v for k, v in members.items() if isinstance(v, np.ndarray)}
        if suffix in _TEXT:
            return {"": _read_text(file)}
        if suffix in _TORCH:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of files of other programs
                found = torch.load(file, map_location="cpu", weights_only=True)
            named = found if isinstance(found, dict) else {"": found}
            tensors = {str(k): v.detach() for k, v in named.items() if isinstance(v, Tensor)}
            return {k: _as_array(v) for k, v in tensors.items()}
    raise ValueError(f"it should be {_KINDS}")


def _as_array(tensor: Tensor) -> NDArray[Any]:
    dense = tensor.resolve_conj().resolve_neg().to_dense()
    return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()


def _read_text(file: BinaryIO) -> NDArray[np.float64]:
    """Return the numbers of a text (N, D): a row a line, between commas, semicolons or blanks.

    A first line without a number names the columns, and is left out.
    """
    with io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        skipped, first = 0, ""
        for line in lines:
            if first := line.partition("#")[0].strip():
                break
            skipped += 1
        mark = next((m for m in ",;\t" if m in first), None)
        skipped += not any(map(_is_number, first.split(mark)))
        lines.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of a text without rows
            return np.loadtxt(lines, delimiter=mark, ndmin=2, skiprows=skipped, quotechar='"')


def _is_number(word: str) -> bool:
    try:
        float(word.strip(' "'))
    except ValueError:
        return False
    return True


def _chosen(path: Path, arrays: dict[str, NDArray[Any]], key: str | None) -> NDArray[Any]:
    """Return the array that ``key`` names."""
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    name = "samples" if key is None else key
    if name not in arrays:
        known = ", ".join(k for k in arrays if k)
        remedy = f"choose key=NAME from: {known}" if known else "its array has no name"
        remedy = remedy if arrays else "it has none at all"
        raise BadSamplesError(f"{path}: it has no array {name!r}; {remedy}")
    return arrays[name]
