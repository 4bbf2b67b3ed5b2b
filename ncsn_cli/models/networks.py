"""The networks."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, validate_call
from torch import Tensor, nn

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import ScoreAtSigma
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.models.one_level import Network, Perceptron, matrix, residual, with_inputs

log = logging.getLogger(__name__)

Widths = Annotated[list[Count], Field(max_length=1000)]  # because a checkpoint may ask for more

Activation = Literal["relu", "sigmoid", "softplus", "silu", "tanh", "gelu"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}

_FEW = 8  # with 16 inputs, both products take equally long


class FewInputs(nn.Linear):
    """A linear layer with a bias, for points in rows of few inputs; fast to train on a CPU.

    The derivative by the weights is a product with as few columns as there are inputs. Torch
    computes it from a weight matrix (inputs, outputs) as a product with few rows, which is up to
    ten times as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, (B, outputs), at ``x`` (B, inputs)."""
        return torch.addmm(self.bias, x, self.weight.t().contiguous())


class MLP(Network):
    """Perceptron on x and the raw sigma: s(x, sigma) = f([x, sigma]).

    Source: the network of rmsrosa, Random notes, "Multiple denoising score matching", which has
    one hidden layer of 64 ReLU units. As in the source, the initial weights are Glorot's uniform
    ones and the biases are 0.

    Args:
        dim: D, taken from the dataset.
        hidden: Widths of the hidden layers.
        activation: Name of the nonlinearity.
        conditional: Whether sigma is an input; False is for a single level.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        hidden: Widths = [64],  # noqa: B006
        activation: Activation = "relu",
        conditional: bool = True,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        self.layers = _perceptron(dim + int(conditional), hidden, dim, activation)
        self.activation = _ACTIVATIONS[activation]()
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,)."""
        if self.conditional:
            x = torch.cat([x, _column(sigma, x)], dim=-1)  # (B, D + 1)
        return self.layers(x)

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` () as one matrix per layer."""
        first, *rest = _matrices(self.layers)
        if self.conditional:
            first = with_inputs(first, sigma.to(first).reshape(1))
        return Perceptron([first, *rest], self.activation)


class EmbeddingMLP(Network):
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
        dim: Count,
        embedding: Count = 16,
        hidden: Widths = [128],  # noqa: B006
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.embedding = _perceptron(1, [embedding], embedding, activation)
        self.layers = _perceptron(dim + embedding, hidden, dim, activation)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,)."""
        embedded = self.embedding(_column(sigma, x))  # (B, E)
        return self.layers(torch.cat([x, embedded], dim=-1))

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` () as one matrix per layer."""
        first, *rest = _matrices(self.layers)
        embedded = self.embedding(sigma.to(first).reshape(1, 1))[0]  # (E,)
        return Perceptron([with_inputs(first, embedded), *rest], self.activation)


class NCSNv2MLP(Network):
    """Perceptron on x alone, divided by sigma: s(x, sigma) = f(x)/sigma.

    Source: Song & Ermon (2020), arXiv:2006.09011, section 3.3, Technique 3. The network
    has to infer the level from ||x||. This works in high dimensions, but in low dimensions even
    the best possible f is wrong.

    Args:
        dim: D, taken from the dataset.
        hidden: Widths of the hidden layers.
        activation: Name of the nonlinearity.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        hidden: Widths = [128],  # noqa: B006
        activation: Activation = "softplus",
    ) -> None:
        super().__init__()
        if dim <= 2:
            log.warning(
                "model=ncsnv2_mlp does not see sigma, and for D = %d no f(x)/sigma is right at"
                " all levels: for N(0, I) and 8 levels from 20 to .01, the best f(x)/sigma is %s"
                " times the true score at sigma_min",
                dim,
                {1: 18.6, 2: 17.9}[dim],
            )
        self.layers = _perceptron(dim, hidden, dim, activation)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,), > 0."""
        return self.layers(x) / _positive_column(sigma, x)

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` () as one matrix per layer."""
        *layers, last = _matrices(self.layers)
        return Perceptron([*layers, last / _positive_column(sigma, last)], self.activation)


class _ResidualNetwork(nn.Module):
    """Residual blocks F(x, sigma), each with Fourier features of log sigma as a second input.

        h <- h + W2 act(W1 h + U phi(log sigma)),   phi(t) = (cos w_k t, sin w_k t)

    The frequencies w_k are in geometric progression from 1/4 to 8, so that levels a factor 2
    apart differ clearly and no level aliases. Initially F = 0.
    """

    frequencies: Tensor

    def __init__(
        self, dim: int, outputs: int, features: int, hidden: list[int], activation: Activation
    ) -> None:
        super().__init__()
        width = hidden[0]
        frequencies = torch.logspace(math.log10(0.25), math.log10(8.0), max(1, features // 2))
        self.register_buffer("frequencies", frequencies)
        self.entry = _linear(dim, width)
        self.inner = nn.ModuleList(nn.Linear(width, inner) for inner in hidden)
        self.level = nn.ModuleList(
            nn.Linear(2 * len(frequencies), inner, bias=False) for inner in hidden
        )
        self.outer = nn.ModuleList(nn.Linear(inner, width) for inner in hidden)
        self.exit = nn.Linear(width, outputs)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return F (B, outputs) at ``x`` (B, D) and ``sigma``, a column (1, 1) or (B, 1)."""
        features = self._features(sigma)
        h = self.entry(x)
        for inner, level, outer in zip(self.inner, self.level, self.outer, strict=True):
            h = h + outer(self.activation(inner(h) + level(features)))
        return self.exit(h)

    def scaled_at(
        self, sigma: Tensor, mean: Tensor, scale: Tensor, factor: Tensor, skip: Tensor
    ) -> ScoreAtSigma:
        """Return the function x -> factor F((x - mean)/scale, sigma) + skip (x - mean).

        x is (B, D) and ``mean`` (D,); the other arguments are single numbers, (1, 1).
        """
        features = self._features(sigma)
        entry = matrix(self.entry)
        entry = torch.cat([entry[:, :-1] / scale, entry[:, -1:]], dim=1)
        blocks = []
        for inner, level, outer in zip(self.inner, self.level, self.outer, strict=True):
            shift = nn.functional.pad(level(features).mT, (self.entry.out_features, 0))
            blocks.append((matrix(inner) + shift, matrix(outer)))
        return residual(entry, blocks, factor * matrix(self.exit), self.activation, mean, skip)

    def _features(self, sigma: Tensor) -> Tensor:
        """Return phi(log sigma), (1 or B, features), at ``sigma`` (1 or B, 1)."""
        angles = sigma.log() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FourierMLP(Network):
    """Residual perceptron on x and Fourier features of log sigma: s = F(x/sqrt(1+sigma^2))/sigma.

    Source: the conditioning of Song et al. (2021), arXiv:2011.13456, appendix H, applied to a
    perceptron.

    Args:
        dim: D, taken from the dataset.
        features: Number of Fourier features of log sigma.
        hidden: Inner widths of the residual blocks; the first is also the width between blocks.
        activation: Name of the nonlinearity.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        features: Count = 16,
        hidden: Widths = [64, 64, 64],  # noqa: B006
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.network = _ResidualNetwork(dim, dim, features, hidden, activation)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,), > 0."""
        sigma = _positive_column(sigma, x)
        return self.network(x / (1 + sigma**2).sqrt(), sigma) / sigma

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` () as one matrix per layer."""
        weight = self.network.entry.weight
        sigma, nothing = _positive_column(sigma, weight), torch.zeros_like(weight[0])
        scale = (1 + sigma**2).sqrt()
        return self.network.scaled_at(sigma, nothing, scale, 1 / sigma, 0 * sigma)


class _DataScale(Network):
    """A network that stores the mean and standard deviation of its training data as buffers."""

    mean: Tensor
    sigma_data: Tensor

    def __init__(self, dim: int, sigma_data: float | Literal["auto"]) -> None:
        super().__init__()
        self.is_automatic = sigma_data == "auto"
        value = 1.0 if sigma_data == "auto" else sigma_data
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("sigma_data", torch.tensor(value))

    def adapt_to(self, data: Tensor) -> None:
        """Set ``mean`` and, if automatic, ``sigma_data`` to those of ``data`` (N, D)."""
        self.mean.copy_(data.mean(0))
        if self.is_automatic:
            self.sigma_data.copy_(data.var(0, correction=0).mean().sqrt().clamp(min=1e-6))


class PreconditionedMLP(_DataScale):
    """The denoiser of Karras et al. with its preconditioning, as a score.

        D(x) = c_skip x + c_out F(c_in x, sigma),   s = (D - x)/sigma^2, that is

        s = -x/(sigma^2 + sigma_data^2) + sigma_data/(sigma sqrt(sigma^2 + sigma_data^2)) F

    with x measured from the data's mean, c_skip = sigma_data^2/(sigma^2 + sigma_data^2),
    c_out = sigma sigma_data c_in, c_in = 1/sqrt(sigma^2 + sigma_data^2); F sees Fourier features
    of log sigma. At F = 0, s is the score of the Gaussian N(mean, sigma_data^2 I).

    Source: Karras et al. (2022), arXiv:2206.00364, table 1.

    Args:
        dim: D, taken from the dataset.
        sigma_data: Standard deviation of the data, > 0, data units. ``auto`` takes it from the
            training set.
        features: Number of Fourier features of log sigma.
        hidden: Inner widths of the residual blocks; the first is also the width between blocks.
        activation: Name of the nonlinearity.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        sigma_data: PositiveFloat | Literal["auto"] = "auto",
        features: Count = 16,
        hidden: Widths = [64, 64, 64],  # noqa: B006
        activation: Activation = "silu",
    ) -> None:
        super().__init__(dim, sigma_data)
        self.network = _ResidualNetwork(dim, dim, features, hidden, activation)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,), > 0."""
        sigma, x = _positive_column(sigma, x), x - self.mean
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return self.sigma_data / (sigma * total) * self.network(x / total, sigma) - x / total**2

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return ``forward`` at ``sigma`` () as one matrix per layer."""
        sigma = _positive_column(sigma, self.mean)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        factor = self.sigma_data / (sigma * total)
        return self.network.scaled_at(sigma, self.mean, total, factor, -1 / total**2)


class EnergyMLP(_DataScale):
    """A score that is a gradient by design: s = -grad E, so exp(-E) is a density up to a constant.

        E(x, sigma) = ||x||^2/(2 (sigma^2 + sigma_data^2)) + sigma_data/sigma G(c_in x, sigma)

    with x measured from the data's mean and c_in = 1/sqrt(sigma^2 + sigma_data^2), so that the
    score is scaled as in ``PreconditionedMLP``.

    Source: Salimans & Ho (2021), "Should EBMs model the energy or the score?".

    Args:
        dim: D, taken from the dataset.
        sigma_data: Standard deviation of the data, > 0, data units. ``auto`` takes it from the
            training set.
        features: Number of Fourier features of log sigma.
        hidden: Inner widths of the residual blocks; the first is also the width between blocks.
        activation: Name of the nonlinearity. It should be smooth, because the score is its
            derivative.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        sigma_data: PositiveFloat | Literal["auto"] = "auto",
        features: Count = 16,
        hidden: Widths = [64, 64, 64],  # noqa: B006
        activation: Activation = "silu",
    ) -> None:
        super().__init__(dim, sigma_data)
        if activation == "relu":
            raise ConfigError("activation: relu has no second derivative to learn from; try silu")
        self.network = _ResidualNetwork(dim, 1, features, hidden, activation)

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E (B,), in nats, at ``x`` (B, D) and ``sigma`` () or (B,), > 0."""
        sigma, x = _positive_column(sigma, x), x - self.mean
        total = (sigma**2 + self.sigma_data**2).sqrt()
        correction = self.sigma_data / sigma * self.network(x / total, sigma)  # (B, 1)
        return ((x / total).square().sum(-1, keepdim=True) / 2 + correction)[:, 0]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,), > 0."""
        # torch.func.grad works with gradients off too, and a caller can differentiate the result.
        return -torch.func.grad(lambda points: self.energy(points, sigma).sum())(x)


def _positive_column(sigma: Tensor, x: Tensor) -> Tensor:
    """Return sigma () or (B,), above 0, as a column (1, 1) or (B, 1) like ``x``."""
    # Sigmas (B,) are not checked at each step: the smallest sigma was tried alone before.
    if sigma.ndim == 0 and not bool(sigma > 0):
        raise ConfigError("schedule: this network divides by sigma and needs every sigma above 0")
    return sigma.to(x).reshape(-1, 1)


def _column(sigma: Tensor, x: Tensor) -> Tensor:
    """Return sigma () or (B,) as a column (B, 1) beside ``x`` (B, D)."""
    return sigma.to(x).reshape(-1, 1).expand(len(x), 1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return (FewInputs if inputs <= _FEW else nn.Linear)(inputs, outputs)


def _perceptron(
    inputs: int, hidden: list[int], outputs: int, activation: Activation
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([inputs, *hidden]):
        layers += [_linear(width_in, width_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], outputs))


def _matrices(layers: nn.Sequential) -> list[Tensor]:
    return [matrix(layer) for layer in layers if isinstance(layer, nn.Linear)]
