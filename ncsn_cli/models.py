"""Score networks s(x, sigma), trained to approach grad log p_sigma(x)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from ncsn_cli.scores import STRICT

__all__ = ["MLP", "EmbeddingMLP"]

Activation = Literal["relu", "sigmoid", "softplus", "silu", "tanh", "gelu"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


class MLP(nn.Module):
    """Perceptron on x and the raw sigma: s(x, sigma) = f([x, sigma]).

    Source: the network of rmsrosa, Random notes, "Multiple denoising score matching", which has
    one hidden layer of 64 ReLU units. Initial weights are Glorot's uniform ones and biases 0, as
    there.

    Args:
        dim: D, taken from the dataset.
        hidden: Widths of the hidden layers.
        activation: Name of the nonlinearity.
        conditional: Whether sigma is an input; False is for a single level.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: PositiveInt,
        hidden: list[PositiveInt],
        activation: Activation,
        conditional: bool,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        self.layers = _perceptron(dim + int(conditional), hidden, dim, activation)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,)."""
        if self.conditional:
            x = torch.cat([x, _column(sigma, x)], dim=-1)  # (B, D + 1)
        return self.layers(x)


class EmbeddingMLP(nn.Module):
    """Perceptron on x and a learned embedding of sigma: s(x, sigma) = f([x, g(sigma)]).

    g is Linear(1, E), activation, Linear(E, E). This is the toy network that notebooks on Song
    & Ermon (2019), arXiv:1907.05600, commonly use.

    Args:
        dim: D, taken from the dataset.
        embedding: E, the width of the embedding.
        hidden: Widths of the hidden layers.
        activation: Name of the nonlinearity.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: PositiveInt,
        embedding: PositiveInt,
        hidden: list[PositiveInt],
        activation: Activation,
    ) -> None:
        super().__init__()
        self.embedding = _perceptron(1, [embedding], embedding, activation)
        self.layers = _perceptron(dim + embedding, hidden, dim, activation)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,)."""
        embedded = self.embedding(_column(sigma, x))  # (B, E)
        return self.layers(torch.cat([x, embedded], dim=-1))


def _column(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma () or (B,) as a column (B, 1) beside ``x`` (B, D)."""
    return sigma.to(x).reshape(-1, 1).expand(len(x), 1)


def _perceptron(
    inputs: int, hidden: list[int], outputs: int, activation: Activation
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([inputs, *hidden]):
        layers += [nn.Linear(width_in, width_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], outputs))
