"""Score-matching losses: smallest at the true score, where their value, the floor, is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.scores import STRICT, ConfigError, Score

__all__ = ["Denoising"]


class Loss(ABC):
    """A functional of the score whose excess over its floor is the weighted Fisher divergence.

    At one level: loss(s) - loss(grad log p_sigma) = lambda(sigma)/2 E||s - grad log p_sigma||^2.
    """

    @abstractmethod
    def __call__(
        self,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The loss, (), on data ``x`` (B, D) at the levels ``sigmas`` (L,).

        ``noise`` (B, L, D) are the draws to use at each point and level; None draws fresh ones.
        """

    @abstractmethod
    def weight(self, sigma: float) -> float:
        """lambda(sigma) >= 0."""

    @abstractmethod
    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """The loss of the true score at one level, from D and I(p_sigma)."""

    @abstractmethod
    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at levels where the loss is not defined."""

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Noise (N, L, D) drawn once for the training set ``x`` (N, D); None: fresh every step."""
        return None


@dataclass(frozen=True, config=STRICT)
class Denoising(Loss):
    r"""Denoising score matching at every noise level.

        1/L sum_i lambda(sigma_i)/2 E || s(x + sigma_i z, sigma_i) + z/sigma_i ||^2,   z ~ N(0, I)

    summed over dimensions, lambda(sigma) = sigma^weight_power. Its floor is
    lambda/2 (D/sigma^2 - I(p_sigma)): it is not 0, however good the network.

    Source: Vincent (2011), doi:10.1162/NECO_a_00142, eq. 9; Song & Ermon (2019),
    arXiv:1907.05600, eq. 5 and 6 (weight_power = 2).

    Args:
        levels: ``all`` uses every level for every point; ``random`` one level a point, uniform.
        noise: ``fresh`` draws z at every step; ``fixed`` once for each training point and level.
        weight_power: Exponent of sigma in lambda.
    """

    levels: Literal["all", "random"]
    noise: Literal["fresh", "fixed"]
    weight_power: float

    def __call__(
        self,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The loss, (), on data ``x`` (B, D) at the levels ``sigmas`` (L,)."""
        batch, dim = x.shape
        if self.levels == "all":
            shape = (batch, len(sigmas), dim)
            z = _normal(shape, x, generator) if noise is None else noise
            x_noisy = (x[:, None] + sigmas[:, None] * z).reshape(-1, dim)  # (B L, D)
            z = z.reshape(-1, dim)
            sigma = sigmas.repeat(batch)  # (B L,)
        else:
            level = torch.randint(len(sigmas), (batch,), generator=generator, device=x.device)
            sigma = sigmas[level]  # (B,)
            if noise is None:
                z = _normal((batch, dim), x, generator)
            else:
                z = noise[torch.arange(batch, device=x.device), level]
            x_noisy = x + sigma[:, None] * z
        residual = sigma[:, None] * score(x_noisy, sigma) + z  # sigma (s + z/sigma)
        return (sigma ** (self.weight_power - 2) * residual.square().sum(-1)).mean() / 2

    def weight(self, sigma: float) -> float:
        """lambda(sigma) = sigma^weight_power."""
        return sigma**self.weight_power

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """lambda/2 (D/sigma^2 - I(p_sigma))."""
        return self.weight(sigma) / 2 * (dim / sigma**2 - fisher_information)

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at sigma = 0: there is no noise to remove."""
        if bool((sigmas == 0).any()):
            raise ConfigError("schedule: loss=denoising needs every sigma above 0")

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Noise (N, L, D) drawn once, if ``noise`` is ``fixed``."""
        if self.noise == "fresh":
            return None
        return _normal((len(x), len(sigmas), x.shape[-1]), x, generator)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
