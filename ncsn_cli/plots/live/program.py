"""A score network as a list of tensor operations, which the live page carries out."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ncsn_cli.core.score import Score

ROWS = "B"
"""Stands for the number of points in the shapes of a program."""

_ELEMENTWISE = {
    "add", "sub", "mul", "div", "pow", "neg", "exp", "log", "sqrt", "sin", "cos", "tanh",
    "sigmoid", "relu", "silu", "softplus",
}  # fmt: skip
_SAME_NUMBERS = {  # in another shape
    "view", "_unsafe_view", "unsqueeze", "squeeze", "select", "select_backward", "clone",
    "detach", "alias", "lift_fresh", "_to_copy",
}  # fmt: skip


def _softmax(x: Tensor, axis: int, *_: Any) -> Tensor:  # noqa: ANN401
    powers = (x - x.amax(axis, keepdim=True)).exp()
    return powers / powers.sum(axis, keepdim=True)


_MADE_OF_OTHERS: dict[str, Callable[..., Tensor]] = {
    "mm": lambda a, b: torch.addmm(torch.zeros(b.shape[1]), a, b),
    "ones_like": lambda a, **_: torch.ones(()).expand(a.shape),
    "rsub": lambda a, b, *_: torch.sub(torch.as_tensor(b), a),
    "reciprocal": lambda a: torch.ones(()) / a,
    "square": lambda a: a.pow(2),
    "_softmax": _softmax,
    "tanh_backward": lambda slope, y: slope * (1 - y * y),
    "softplus_backward": lambda slope, x, *_: slope * torch.sigmoid(x),
}


class UnknownOperationError(Exception):
    """A network that the live page cannot carry out."""


def program_of(score: Score, dim: int) -> dict[str, Any]:
    """Return ``score`` as a JSON object: constants, and operations in their order.

    An operation is [name, arguments, result, shape]. Arguments and result are names, of which
    ``x`` (B, D) and ``sigma`` () are the inputs; a constant is a float32 tensor in base64. The
    score is run twice, with other points, another level and another number of points. Both
    must give the same list, so that it depends on none of these. ``score`` is on the CPU.

    Raises:
        UnknownOperationError: If the page does not know an operation, or if the lists differ.
    """
    first, second = (
        _recorded(score, torch.linspace(-1, last, rows * dim).view(rows, dim), sigma)
        for last, rows, sigma in ((1.0, 37, 0.5), (2.0, 41, 1.25))
    )
    if first != second:
        raise UnknownOperationError("it works otherwise at other points")
    return first


def _recorded(score: Score, x: Tensor, sigma: float) -> dict[str, Any]:
    level = torch.tensor(sigma)
    recorder = _Recorder(x, level)
    with torch.no_grad(), recorder:
        out = score(x, level)
    return {
        "constants": recorder.constants,
        "operations": recorder.operations,
        "output": recorder.name_of(out),
        "dim": x.shape[1],
    }


class _Recorder(TorchDispatchMode):
    """Records every operation on tensors that leads from ``x`` (B, D) and ``sigma`` ()."""

    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants: dict[str, dict[str, Any]] = {}
        self.operations: list[list[Any]] = []
        self._rows = len(x)
        self._names = {id(x): "x", id(sigma): "sigma"}
        self._alive: list[Tensor] = [x, sigma]  # so that no other tensor gets the same id

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Carry out an operation, and record it."""
        name, kwargs = func._schema.name.partition("::")[2], dict(kwargs or {})
        if name in _MADE_OF_OTHERS:
            with self:
                return _MADE_OF_OTHERS[name](*args, **kwargs)
        out = func(*args, **kwargs)
        parts = (each for arg in args for each in (arg if isinstance(arg, list) else [arg]))
        from_tensors = any(isinstance(each, Tensor) for each in parts)
        if isinstance(out, Tensor) and out.is_floating_point() and from_tensors:
            if "alpha" in kwargs:
                raise UnknownOperationError(f"{name} with a factor")
            self._record(name.rstrip("_"), list(args), out)
        return out

    def name_of(self, value: Tensor | float) -> str:
        """Return the name of a value; of one that no operation has made, that of a constant."""
        if isinstance(value, Tensor) and id(value) in self._names:
            return self._names[id(value)]
        number = torch.as_tensor(value, dtype=torch.float32).detach()
        name = f"c{len(self.constants)}"
        data = number.contiguous().numpy().tobytes()
        self.constants[name] = {
            "shape": _three_axes(number.shape),
            "data": base64.b64encode(data).decode(),
        }
        if isinstance(value, Tensor):
            self._know(value, name)
        return name

    def _know(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self._alive.append(tensor)

    def _record(self, name: str, args: list[Any], out: Tensor) -> None:
        shape = list(out.shape)
        if name in _ELEMENTWISE:
            if name == "softplus" and args[1:] not in ([], [1.0, 20.0]):
                raise UnknownOperationError("softplus with other settings")
            self._add(name, args[:1] if name == "softplus" else args, shape, out)
        elif name in _SAME_NUMBERS and out.numel() == args[0].numel():
            self._add("reshape", args[:1], shape, out)
        elif name in ("expand", "fill"):
            self._add("expand", [args[0] if name == "expand" else args[1]], shape, out)
        elif name in ("sum", "amax"):
            axes = {i % args[0].ndim for i in (args[1:] or [range(args[0].ndim)])[0]}
            kept = [1 if i in axes else n for i, n in enumerate(args[0].shape)]
            self._add("reshape", [self._add(name, args[:1], kept)], shape, out)
        elif name == "cat" and args[1] % out.ndim == out.ndim - 1:
            self._add(name, args[0], shape, out)
        elif (name == "t" and out.ndim == 2) or (name == "addmm" and len(args) == 3):
            self._add(name, args, shape, out)
        elif name != "empty_like":  # it holds no numbers yet
            raise UnknownOperationError(name)

    def _add(
        self, name: str, args: Sequence[Any], shape: list[int], out: Tensor | None = None
    ) -> str:
        """Add an operation; return the name of its result, which ``out`` has from now on."""
        names = [arg if isinstance(arg, str) else self.name_of(arg) for arg in args]
        result = f"v{len(self.operations)}"
        sizes = [ROWS if n == self._rows else n for n in _three_axes(shape)]
        self.operations.append([name, names, result, sizes])
        if out is not None:
            self._know(out, result)
        return result


def _three_axes(shape: Sequence[int]) -> list[int]:
    if len(shape) > 3:
        raise UnknownOperationError("a tensor with more than three axes")
    return [1, 1, 1, *shape][-3:]


def bytes_of(program: Mapping[str, Any]) -> int:
    """Return about how many bytes a program takes in a page."""
    sizes = (math.prod(each["shape"]) for each in program["constants"].values())
    return sum(4 * -(-4 * size // 3) for size in sizes) + 60 * len(program["operations"])
