"""The uniform law on the black squares of a checkerboard."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, validate_call
from torch import Tensor
from torch.special import log_ndtr

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.expectation import (
    FisherInformation,
    ModeMoments,
    StratifiedDraws,
    moments_by_draws,
    moments_from_sums,
)
from ncsn_cli.core.settings import NUM_DRAWS, STRICT, Count, random_stream
from ncsn_cli.datasets.quadrature import MOST_GRID_TERMS, fisher_on_grid


class Checkerboard(Dataset):
    r"""The uniform law on the K black squares of a ``side`` x ``side`` board around 0, D = 2.

    Perturbed by N(0, sigma^2 I), with squares of width s and centres c_k:

        p_sigma(x) = 1/(K s^2) sum_k A(x_1 - c_k1) A(x_2 - c_k2)
        A(d) = Phi((d + s/2)/sigma) - Phi((d - s/2)/sigma)

    Source: the checkerboard that is commonly used to test flows and diffusion models, for example
    in the toy data of Grathwohl et al. (2019), arXiv:1810.01367. The default is that board:
    p = 1/32 on 8 squares of width 2.

    On the squares' edges p jumps. There log p is the limit for sigma -> 0. At sigma = 0 there is
    no score, and the Fisher information is infinite. The density and the score are evaluated in
    the dtype of ``x``, per axis and through logarithms, so that they stay finite far from the
    board.

    Args:
        side: Squares along an axis, at least 2. The square with the smallest coordinates is black.
        length: Length of the board, data units.
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    dim = 2

    @validate_call(config=STRICT)
    def __init__(
        self,
        side: Annotated[int, Field(ge=2, le=1000)] = 4,
        length: PositiveFloat = 8.0,
        num_samples: Count | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(num_samples, seed)
        self._length = length
        self._width = length / side  # s
        ticks = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * self._width  # (side,)
        black = [(i, j) for i in range(side) for j in range(side) if (i + j) % 2 == 0]
        self._ticks, self._black = ticks, torch.tensor(black)  # column and row: (K, 2)
        self.modes = ticks[self._black]  # centres of the black squares
        self.mean, self.weights = self.modes.mean(0), ticks.new_full((len(black),), 1 / len(black))
        # Cov[x] = Cov[c] + s^2/12 I, with the centre c of a square.
        within = self._width**2 / 12 * torch.eye(2, dtype=torch.float64)
        self.covariance = self.modes.T.cov(correction=0) + within
        corner = ticks.new_full((2,), 5 / 8 * length)
        self.extent, self.smallest_std = (-corner, corner), self._width / math.sqrt(12)

    def has_density(self, sigma: float) -> bool:
        """Return True: at sigma = 0 only the score does not exist."""
        return True

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws from p_sigma, (num, D), float32, on the generator's device.

        ``sigma`` is () or (num,).
        """
        device = generator.device
        k = torch.randint(len(self._black), (num,), generator=generator, device=device)
        offset = torch.rand(num, 2, generator=generator, device=device) - 0.5
        x = self.modes.to(offset)[k] + self._width * offset
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=device)
        return x + sigma[..., None] * torch.randn(num, 2, generator=generator, device=device)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)[..., None, None]
        near, far, _ = self._edges(x)
        at_zero = ((1 + near.detach().sign()) / 2).log()  # A = 1 inside, 1/2 on an edge
        log_shares = torch.where(sigma == 0, at_zero, _log_shares(near / sigma, far / sigma)[0])
        area = len(self._black) * self._width**2
        return self._on_squares(log_shares).sum(1).logsumexp(-1) - math.log(area)

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return P(square k | x) at level sigma, (B, K).

        At sigma = 0 the nearest square has probability 1.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)[..., None, None]
        near, far, _ = self._edges(x)
        outside = self._on_squares(near.clamp(max=0).square()).sum(1)  # distance^2: (B, K)
        nearest = torch.nn.functional.one_hot(outside.argmin(-1), len(self._black)).to(x)
        log_shares, _ = _log_shares(near / sigma, far / sigma)
        return torch.where(sigma[..., 0] == 0, nearest, self._responsibilities(log_shares))

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log p_sigma(x) = sum_k P(k | x) grad log A_k, (B, D), units 1/length.

        ``x`` is (B, D), ``sigma`` () or (B,). With u = (s/2 - |d|)/sigma, v = (-s/2 - |d|)/sigma
        and m = phi/Phi, the slope of log A is, as for a truncated normal law,

            d log A/d|d| = -(m(u) - q m(v))/((1 - q) sigma),    q = Phi(v)/Phi(u)

        Raises:
            ConfigError: At sigma = 0.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)[..., None, None]
        self._require_score(sigma)
        near, far, sign = self._edges(x)
        near, far = near / sigma, far / sigma
        log_shares, log_ratio = _log_shares(near, far)
        slope = (_mills(near) - log_ratio.exp() * _mills(far)) / (log_ratio.expm1() * sigma)
        pulls = self._on_squares(sign * slope)  # (B, 2, K)
        return (self._responsibilities(log_shares)[:, None] * pulls).sum(-1)

    def strata(self, num: int, sigma: float, generator: torch.Generator) -> StratifiedDraws:
        """Return equally many draws from each square at level sigma."""
        each = max(2, math.ceil(num / len(self._black)))
        k = torch.arange(len(self._black)).repeat_interleave(each)
        like: dict[str, Any] = {
            "generator": generator,
            "dtype": torch.float64,
            "device": generator.device,
        }
        offset = self._width * (torch.rand(len(k), 2, **like) - 0.5)
        offset = offset + sigma * torch.randn(len(k), 2, **like)
        return StratifiedDraws(self.weights, k, self.modes[k] + offset.cpu())

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return shares and moments of the points nearest to each square's centre.

        Draws account for the points that leak from one square to another. The result is exact at
        sigma = 0.
        """
        modes = self.modes
        one = (self._width**2 / 12 + sigma**2) * torch.eye(2, dtype=torch.float64)
        known = moments_from_sums(
            modes, self.weights, torch.zeros_like(modes), self.weights[:, None, None] * one
        )
        stream = random_stream(0, "mode moments")
        strata = self.strata(NUM_DRAWS, sigma, stream)
        return moments_by_draws(modes, strata, torch.arange(len(modes)), known)

    def fisher(self, sigma: float) -> FisherInformation:
        """Return the Fisher information E[s s^T] of p_sigma, units 1/length^2, and its error.

        The trapezoid rule is used, with a relative error below 1e-5. If sigma is small, p_sigma is
        flat except within 7 sigma of the squares' edges, so nodes are placed only there, sigma/3
        apart. If the rule needs more than 3e7 terms, draws are used instead.

        Raises:
            ConfigError: At sigma = 0, where the information is infinite.
        """
        self._require_score(torch.tensor(sigma))
        edges = torch.cat([self._ticks - self._width / 2, self._ticks[-1:] + self._width / 2])
        if sigma < self._width / 14:
            around = torch.linspace(-7, 7, 43, dtype=torch.float64) * sigma
            axis = (edges[:, None] + around).flatten()
        else:
            half = self._length / 2 + 7 * sigma
            num = math.ceil(6 * half / sigma) + 1
            axis = torch.linspace(-half, half, num, dtype=torch.float64)
        if len(axis) ** 2 * self.num_components > MOST_GRID_TERMS:
            return super().fisher(sigma)
        return fisher_on_grid(self, sigma, [axis, axis])

    def _require_score(self, sigma: Tensor) -> None:
        if bool((sigma == 0).any()):
            raise ConfigError(
                "dataset: the density jumps at the squares' edges, so at sigma = 0 there is no"
                " score and the Fisher information is infinite; use a level above 0"
            )

    def _edges(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return s/2 - |d|, -s/2 - |d| and the sign of d for each column and row, (B, 2, side).

        By symmetry A(d) = A(-|d|). Far from the square the two terms of A(-|d|) are small, not
        near 1.
        """
        offset = x[..., None] - self._ticks.to(x)  # d: (B, 2, side)
        sign = torch.where(offset < 0, -1.0, 1.0).to(x)  # never 0: |d| needs a derivative at 0
        distance = sign * offset
        return self._width / 2 - distance, -self._width / 2 - distance, sign

    def _responsibilities(self, log_shares: Tensor) -> Tensor:
        """Return P(square k | x), (B, K), from log A of each column and row (B, 2, side)."""
        # Otherwise a large number on one axis would round off the other axis in their sum.
        log_shares = log_shares - log_shares.amax(-1, keepdim=True)
        return self._on_squares(log_shares).sum(1).softmax(-1)

    def _on_squares(self, values: Tensor) -> Tensor:
        """Return the values of each square's column and row (B, 2, K), from all (B, 2, side)."""
        return values[:, torch.arange(2)[:, None], self._black.T]


def _log_shares(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Return log A = log(Phi(near) - Phi(far)), and log(Phi(far)/Phi(near))."""
    log_near = log_ndtr(near)
    log_ratio = log_ndtr(far) - log_near
    return log_near + (-log_ratio.expm1()).log(), log_ratio


def _mills(u: Tensor) -> Tensor:
    """Return phi(u)/Phi(u).

    u is clamped to 12, because erfcx would overflow in float32. The ratio is below 1e-31 there.
    """
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-u.clamp(max=12) / math.sqrt(2))
