"""Networks at one noise level, for many evaluations without gradients.

Columns are points and rows are features, with a row of ones below. A layer, including everything
in it that depends on sigma, is then one matrix [W, b] (outputs, inputs + 1). An evaluation
multiplies a small matrix by a wide matrix, and overwrites the result of the last evaluation. It is
fastest if the transpose of the points is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ncsn_cli.core.score import FunctionAtSigma, MultilevelScore, ScoreAtSigma, score_at

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Sigmoid: torch.sigmoid_,
    nn.Tanh: torch.tanh_,
    nn.SiLU: partial(functional.silu, inplace=True),
}


def matrix(layer: nn.Module) -> Tensor:
    """Return [W, b], (outputs, inputs + 1), of an ``nn.Linear``."""
    weight, bias = layer.parameters()
    return torch.cat([weight, bias[:, None]], dim=1)


def with_inputs(layer: Tensor, values: Tensor) -> Tensor:
    """Return the matrix [W, b] of ``layer`` with its last inputs fixed to ``values`` (inputs,)."""
    rest = layer.shape[1] - 1 - len(values)
    constant = layer[:, rest:] @ torch.cat([values, values.new_ones(1)])  # (outputs,)
    return torch.cat([layer[:, :rest], constant[:, None]], dim=1)


class _Columns:
    """A buffer ``all`` (width + 1, B) for the features of points; its last row is ones.

    ``features`` (width, B) and ``points`` (B, width) are views of ``all``.
    """

    def __init__(self, width: int, x: Tensor) -> None:
        self.all = x.new_ones(width + 1, len(x))
        self.features = self.all[:-1]
        self.points = self.features.mT


class Network(MultilevelScore, nn.Module):
    """A score network: ``forward`` for any sigmas, and a faster form ``at`` one sigma.

    The scores of both are the same up to rounding. A subclass that replaces ``forward`` alone
    gets the generic ``at``, because the inherited one would not call the new ``forward``.
    """

    _forward_of_at: ClassVar[Any] = nn.Module.forward  # the ``forward`` that ``at`` computes

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Give a subclass that replaces ``forward`` alone the generic ``at``."""
        super().__init_subclass__(**kwargs)
        if "at" in vars(cls):
            cls._forward_of_at = cls.forward
        elif cls.forward is not cls._forward_of_at:
            cls.at = Network.at  # type: ignore[method-assign]

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` (), with the present weights and without gradients."""
        return FunctionAtSigma(lambda x: self(x, sigma))


class Perceptron(ScoreAtSigma):
    """A perceptron at one level, whose layers are the matrices ``layers``."""

    def __init__(self, layers: list[Tensor], activation: nn.Module) -> None:
        self.layers, self.activation = layers, activation
        self._activate = _in_place(activation)
        self._columns: list[_Columns] = []
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []  # matrix, its inputs and outputs

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores (B, D) at ``x`` (B, D)."""
        if not self._columns or self._columns[0].points.shape != x.shape:
            widths = [x.shape[1], *(len(layer) for layer in self.layers)]
            self._columns = columns = [_Columns(width, x) for width in widths]
            self._products = [
                (layer, before.all, after.features)
                for layer, (before, after) in zip(self.layers, pairwise(columns), strict=True)
            ]
        self._columns[0].points.copy_(x)
        for layer, inputs, outputs in self._products[:-1]:
            self._activate(torch.mm(layer, inputs, out=outputs))
        layer, inputs, outputs = self._products[-1]
        torch.mm(layer, inputs, out=outputs)
        return self._columns[-1].points


def one_hidden_layer(layers: Sequence[Tensor], activation: nn.Module, x: Tensor) -> Tensor:
    """Return scores (B, D) of the ``Perceptron`` of two matrices, at ``x`` (B, D).

    The code is written so that it compiles to one loop over hidden units. The units are split into
    two halves, whose sums do not wait for each other.
    """
    first, last = layers
    scores = last[:, -1:]
    for into, out in zip(first.chunk(2), last[:, :-1].chunk(2, dim=1), strict=True):
        hidden = activation((into[:, :-1, None] * x.mT).sum(1) + into[:, -1:])
        scores = scores + (out[:, :, None] * hidden).sum(1)
    return scores.mT


def residual(
    entry: Tensor,
    blocks: list[tuple[Tensor, Tensor]],
    leave: Tensor,
    activation: nn.Module,
    mean: Tensor,
    skip: Tensor,
) -> ScoreAtSigma:
    """Return the function x -> leave(h) + skip (x - mean) of a residual network.

        h = entry(x - mean),   h <- h + outer(activation(inner(h))) for each block

    ``blocks`` are pairs (inner, outer). All arguments except ``activation``, ``mean`` (D,) and
    ``skip`` () are matrices.
    """
    activate, slope = _in_place(activation), float(skip)
    columns: list[_Columns] = []

    def score(x: Tensor) -> Tensor:
        if not columns or columns[0].points.shape != x.shape:
            widths = [x.shape[1], len(entry), len(leave)]
            widths += [len(inner) for inner, _ in blocks]
            columns[:] = [_Columns(width, x) for width in widths]
        inputs, h, scores, *hidden = columns
        torch.sub(x, mean, out=inputs.points)
        torch.mm(entry, inputs.all, out=h.features)
        for (inner, outer), inside in zip(blocks, hidden, strict=True):
            activate(torch.mm(inner, h.all, out=inside.features))
            h.features.addmm_(outer, inside.all)
        torch.mm(leave, h.all, out=scores.features)
        return scores.points.add_(inputs.points, alpha=slope)

    return FunctionAtSigma(score)


class Recentred(Network):
    """A network for data units, in coordinates around ``origin``: y -> network(y + origin, sigma).

    Args:
        network: Scores (B, D) at points (B, D) in data units and sigma () or (B,).
        origin: (D,), float64.
    """

    def __init__(self, network: nn.Module, origin: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("origin", origin)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D) at ``x`` (B, D) and ``sigma`` () or (B,)."""
        scores: Tensor = self.network(x + self.get_buffer("origin").to(x), sigma)
        return scores

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` (), as a ``Perceptron`` if possible."""
        here = score_at(self.network, sigma)
        origin = self.get_buffer("origin")
        if not isinstance(here, Perceptron):
            offset = origin.to(sigma)
            return FunctionAtSigma(lambda x: here(x + offset))
        first, *rest = here.layers
        exact = first.cpu().double()
        exact[:, -1] += exact[:, :-1] @ origin.cpu()
        return Perceptron([exact.to(first), *rest], here.activation)


def _in_place(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``activation`` as a function that overwrites its input."""
    return _IN_PLACE.get(type(activation), lambda x: x.copy_(activation(x)))
