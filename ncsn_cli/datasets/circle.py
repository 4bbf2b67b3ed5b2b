"""The uniform law on a circle, blurred."""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, validate_call
from torch import Tensor
from torch.special import i0e, i1e

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.expectation import FisherInformation, ModeMoments, moments_from_sums
from ncsn_cli.core.settings import STRICT, Count


class Circle(Dataset):
    r"""Uniform on the circle |x| = R, convolved with N(0, std^2 I), D = 2.

    Perturbed by N(0, sigma^2 I), with v = std^2 + sigma^2, r = |x| and the modified Bessel
    functions I_0 and I_1:

        p_sigma(x) = exp(-(r^2 + R^2)/(2 v)) I_0(r R/v)/(2 pi v)
        grad log p_sigma(x) = (R I_1(r R/v)/I_0(r R/v) - r)/v x/r

    Data near a curve, as the manifold hypothesis has it. Source: Song & Ermon (2019),
    arXiv:1907.05600, section 3.1, whose argument this makes exact. Evaluated by the scaled
    functions exp(-u) I(u), which do not overflow; in the dtype of ``x``.

    Args:
        radius: R, data units.
        std: Standard deviation of the noise, data units; 0 puts all data on the circle.
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    dim = 2

    @validate_call(config=STRICT)
    def __init__(
        self,
        radius: PositiveFloat = 2.0,
        std: NonNegativeFloat = 0.01,
        num_samples: Count | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(num_samples, seed)
        self._radius = radius
        self._std = std

    @property
    def mean(self) -> Tensor:
        """E[x] = 0, (D,), float64."""
        return torch.zeros(2, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """Cov[x] = (R^2/2 + std^2) I, (D, D), float64."""
        return (self._radius**2 / 2 + self._std**2) * torch.eye(2, dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """The circle is one mode: 1, (1,), float64."""
        return torch.ones(1, dtype=torch.float64)

    @property
    def modes(self) -> Tensor:
        """The circle's centre, (1, D), float64."""
        return torch.zeros(1, 2, dtype=torch.float64)

    @property
    def extent(self) -> tuple[Tensor, Tensor]:
        """The box that pictures show, lower and upper corner (D,): R/2 or 5 std around."""
        margin = max(self._radius / 2, 5 * self._std)
        corner = torch.full((2,), self._radius + margin, dtype=torch.float64)
        return -corner, corner

    @property
    def smallest_std(self) -> float:
        """Std, across the circle, data units."""
        return self._std

    def has_density(self, sigma: float) -> bool:
        """Whether p_sigma has one: not where std and sigma are both 0."""
        return self._std > 0 or sigma > 0

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Independent draws from p_sigma, (num, D), float32, on the generator's device.

        ``sigma`` is () or (num,).
        """
        device = generator.device
        angle = 2 * math.pi * torch.rand(num, generator=generator, device=device)
        on_circle = self._radius * torch.stack([angle.cos(), angle.sin()], dim=-1)  # (num, 2)
        variance = self._variance(on_circle, sigma)[..., None]
        z = torch.randn(num, 2, generator=generator, device=device)
        return on_circle + variance.sqrt() * z

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        variance = self._positive_variance(x, sigma)
        r = _norm(x)
        # -(r^2 + R^2)/(2 v) + r R/v, the latter out of I_0
        exponent = -((r - self._radius) ** 2) / (2 * variance)
        bessel = i0e(r * self._radius / variance).log()
        return exponent + bessel - (2 * math.pi * variance).log()

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """P(mode | x) = 1, (B, 1)."""
        return torch.ones_like(x[:, :1])

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Grad log p_sigma(x), (B, D), units 1/length; ``x`` (B, D), ``sigma`` () or (B,)."""
        variance = self._positive_variance(x, sigma)
        r = _norm(x)
        u = r * self._radius / variance
        mean_radius = self._radius * i1e(u) / i0e(u)  # E[y] . x/r, y the point on the circle
        return ((mean_radius - r) / (variance * r))[:, None] * x

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return the moments of all points: there is one mode."""
        return moments_from_sums(
            self.modes,
            self.weights,
            torch.zeros(1, 2, dtype=torch.float64),
            self.perturbed_covariance(sigma)[None],
        )

    def fisher(self, sigma: float) -> FisherInformation:
        """Return I/2 times the identity, I = integral of (d log p_sigma/dr)^2 p_sigma 2 pi r dr.

        Units 1/length^2. By Gauss's rule with 200 nodes, to 9 sqrt(v) on either side of R;
        relative error below 1e-12.
        """
        width = 9 * math.sqrt(self._std**2 + sigma**2)
        low, high = max(0.0, self._radius - width), self._radius + width
        nodes, node_weights = np.polynomial.legendre.leggauss(200)
        r = torch.from_numpy((low + high) / 2 + (high - low) / 2 * nodes)  # (200,)
        x = torch.stack([r, torch.zeros_like(r)], dim=-1)  # (200, 2)
        density = self.log_prob(x, sigma).exp() * 2 * math.pi * r  # of |x|
        integrand = density * self.score(x, sigma).square().sum(-1)
        information = float(torch.from_numpy(node_weights) @ integrand) * (high - low) / 2
        none = torch.zeros(2, 2, dtype=torch.float64)
        return FisherInformation(information / 2 * torch.eye(2).double(), 0.0, none)

    def _variance(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The variance std^2 + sigma^2, () or (B,), like ``x``."""
        return self._std**2 + torch.as_tensor(sigma, dtype=x.dtype, device=x.device) ** 2

    def _positive_variance(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        variance = self._variance(x, sigma)
        if bool((variance == 0).any()):
            raise ConfigError(
                "dataset: the data lie on the circle (std 0), so there is no density or score at"
                " sigma = 0; use a level or a std above 0"
            )
        return variance


def _norm(x: Tensor) -> Tensor:
    """|x|, (B,); at 0 a little more, so that x/|x| and its derivative exist."""
    return (x.square().sum(-1) + 1e-30).sqrt()
