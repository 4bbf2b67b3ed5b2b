"""A score network as a list of tensor operations, which the live page carries out."""

from __future__ import annotations

import base64
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
    "sigmoid", "relu", "silu",
}  # fmt: skip
_SAME_NUMBERS = {  # in another shape
    "view", "_unsafe_view", "unsqueeze", "squeeze", "select", "select_backward", "clone",
    "detach", "alias", "lift_fresh", "_to_copy",
}  # fmt: skip


def _softmax(x: Tensor, axis: int, *_: Any) -> Tensor:  # noqa: ANN401
    powers = (x - x.amax(axis, keepdim=True)).exp()
    return powers / powers.sum(axis, keepdim=True)


_MADE_OF_OTHERS: dict[str, Callable[..., Tensor]] = {
    "mm": lambda a, b: torch.addmm(torch.zeros(b.shape[1], dtype=b.dtype), a, b),
    "ones_like": lambda a, **_: torch.ones((), dtype=a.dtype).expand(a.shape),
    "rsub": lambda a, b, alpha=1: torch.sub(torch.as_tensor(b), a, alpha=alpha),
    "reciprocal": lambda a: torch.ones((), dtype=a.dtype) / a,
    "square": lambda a: a.pow(2),
    "_softmax": _softmax,
    "tanh_backward": lambda slope, y: slope * (1 - y * y),
    "softplus_backward": lambda slope, x, *_: slope * torch.sigmoid(x),
}

_HARMLESS = {
    "dtype",
    "layout",
    "device",
    "pin_memory",
    "memory_format",
    "non_blocking",
    "implicit",
}
"""Keywords that change no number, but for rounding."""

_ROWS = (1009, 1013)
"""Numbers of points in the two records: sizes that no layer has."""


class UnknownOperationError(Exception):
    """A network that the live page cannot carry out."""


def program_of(score: Score, dim: int, levels: tuple[float, float]) -> dict[str, Any]:
    """Return ``score`` as a JSON object: constants, and operations in their order.

    An operation is [name, arguments, result, shape]. Arguments and result are names, of which
    ``x`` (B, D) and ``sigma`` () are the inputs; a constant is a float32 tensor in base64. The
    score is recorded twice: at each of the ``levels``, the highest and the lowest, with points on
    its scale and with another number of points. Both records must be the same. It is not noticed
    if the score takes another way only between these levels, or only at some points. ``score`` is
    on the CPU.

    Raises:
        UnknownOperationError: If the page does not know an operation, or if the records differ.
    """
    first, second = (
        _recorded(score, (1 + sigma) * torch.linspace(-1, 2, rows * dim).view(rows, dim), sigma)
        for rows, sigma in zip(_ROWS, levels, strict=True)
    )
    if first != second:
        raise UnknownOperationError("it computes otherwise at other points or levels")
    return first


def _recorded(score: Score, x: Tensor, sigma: float) -> dict[str, Any]:
    level = torch.tensor(sigma)
    recorder = _Recorder(x, level)
    with torch.no_grad(), recorder:
        output = recorder.name_of(score(x, level))
    # Leave out what the output does not need, such as the value of an energy.
    needed, operations = {output}, list[list[Any]]()
    for operation in reversed(recorder.operations):
        name, args, result, shape = operation
        if result in needed:
            needed |= {*args}
            operations.insert(0, operation)
            if name in ("sum", "amax") and ROWS in recorder.shapes[args[0]] and ROWS not in shape:
                raise UnknownOperationError("its score at a point depends on the other points")
    return {
        "constants": {name: c for name, c in recorder.constants.items() if name in needed},
        "operations": operations,
        "output": output,
        "dim": x.shape[1],
    }


class _Recorder(TorchDispatchMode):
    """Records every operation on tensors that leads from ``x`` (B, D) and ``sigma`` ()."""

    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants: dict[str, dict[str, Any]] = {}
        self.operations: list[list[Any]] = []
        self.shapes: dict[str, list[Any]] = {"x": [1, ROWS, x.shape[1]], "sigma": [1, 1, 1]}
        self._rows = len(x)
        self._names = {id(x): "x", id(sigma): "sigma"}
        self._alive: list[Tensor] = [x, sigma]  # so that no other tensor gets the same id
        self._seen_through: set[int] = set()  # tensors of which there are views

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Carry out an operation, and record it."""
        name, kwargs = func._schema.name.partition("::")[2], dict(kwargs or {})
        if not kwargs.keys() <= _HARMLESS:
            raise UnknownOperationError(f"{name} with {', '.join(kwargs)}")
        if name in _MADE_OF_OTHERS:
            with self:
                return _MADE_OF_OTHERS[name](*args, **kwargs)
        out = func(*args, **kwargs)
        if func._schema.is_mutable and (args[0]._is_view() or id(args[0]) in self._seen_through):
            raise UnknownOperationError(f"{name} that changes a view")
        parts = (each for arg in args for each in (arg if isinstance(arg, list) else [arg]))
        from_tensors = any(isinstance(each, Tensor) for each in parts)
        if isinstance(out, Tensor) and out.is_floating_point() and from_tensors:
            if _is_seen_through(out, args[0]):
                self._seen_through.add(id(args[0]))
            self._record(name.rstrip("_"), list(args), out)
        return out

    def name_of(self, value: Tensor | float) -> str:
        """Return the name of a value; of one that no operation has made, that of a constant."""
        if isinstance(value, Tensor) and id(value) in self._names:
            return self._names[id(value)]
        number = torch.as_tensor(value, dtype=torch.float32).detach()
        name = f"c{len(self.constants)}"
        data = number.contiguous().numpy().tobytes()
        self.shapes[name] = _three_axes(number.shape)
        self.constants[name] = {
            "shape": self.shapes[name],
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
        if name == "softplus" and args[1:] in ([], [1.0, 20.0]):
            self._add(name, args[:1], shape, out)
        elif name in _ELEMENTWISE and len(args) <= 2:  # a third would be a factor
            self._add(name, args, shape, out)
        elif name in _SAME_NUMBERS and out.numel() == args[0].numel():
            self._add("reshape", args[:1], shape, out)
        elif name in ("expand", "fill"):
            self._add("expand", [args[0] if name == "expand" else args[1]], shape, out)
        elif name in ("sum", "amax"):
            axes = {i % args[0].ndim for i in (args[1] if args[1:] else []) or range(args[0].ndim)}
            kept = [1 if i in axes else n for i, n in enumerate(args[0].shape)]
            self._add("reshape", [self._add(name, args[:1], kept)], shape, out)
        elif name == "cat" and (args[1] if args[1:] else 0) % out.ndim == out.ndim - 1:
            self._add(name, args[0], shape, out)
        elif (name == "t" and out.ndim == 2) or (name == "addmm" and args[0].ndim == 1):
            self._add(name, args, shape, out)
        elif name not in ("empty_like", "zeros_like", "new_zeros"):  # these are constants
            raise UnknownOperationError(name)

    def _add(
        self, name: str, args: Sequence[Any], shape: list[int], out: Tensor | None = None
    ) -> str:
        """Add an operation; return the name of its result, which ``out`` has from now on."""
        names = [arg if isinstance(arg, str) else self.name_of(arg) for arg in args]
        result = f"v{len(self.operations)}"
        sizes = [ROWS if n == self._rows else n for n in _three_axes(shape)]
        self.operations.append([name, names, result, sizes])
        self.shapes[result] = sizes
        if out is not None:
            self._know(out, result)
        return result


def _is_seen_through(view: Tensor, base: object) -> bool:
    """Return whether ``view`` shows the numbers of the tensor ``base``."""
    if not isinstance(base, Tensor) or view is base:
        return False
    return view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()


def _three_axes(shape: Sequence[int]) -> list[int]:
    if len(shape) > 3:
        raise UnknownOperationError("a tensor with more than three axes")
    return [1, 1, 1, *shape][-3:]
