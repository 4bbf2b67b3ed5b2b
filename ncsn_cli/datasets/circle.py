"""The uniform law on a circle, blurred by Gaussian noise."""

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
    r"""The uniform law on the circle |x| = R, convolved with N(0, std^2 I), D = 2.

    Perturbed by N(0, sigma^2 I), with v = std^2 + sigma^2, r = |x| and the modified Bessel
    functions I_0 and I_1:

        p_sigma(x) = exp(-(r^2 + R^2)/(2 v)) I_0(r R/v)/(2 pi v)
        grad log p_sigma(x) = (R I_1(r R/v)/I_0(r R/v) - r)/v x/r

    The data lie near a curve, as the manifold hypothesis assumes. Source: Song & Ermon (2019),
    arXiv:1907.05600, section 3.1; this dataset makes the argument there exact. The density
    and the score are evaluated in the dtype of ``x``, with the scaled functions exp(-u) I(u),
    which do not overflow.

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
        eye = torch.eye(2, dtype=torch.float64)
        self.mean, self.covariance = 0 * eye[0], (radius**2 / 2 + std**2) * eye
        self.weights, self.modes = eye.new_ones(1), eye.new_zeros(1, 2)  # the circle is one mode
        corner = eye.new_full((2,), radius + max(radius / 2, 5 * std))
        self.extent, self.smallest_std = (-corner, corner), std

    def has_density(self, sigma: float) -> bool:
        """Return whether p_sigma has a density: not if std and sigma are both 0."""
        return self._std > 0 or sigma > 0

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws from p_sigma, (num, D), float32, on the generator's device.

        ``sigma`` is () or (num,).
        """
        device = generator.device
        angle = 2 * math.pi * torch.rand(num, generator=generator, device=device)
        on_circle = self._radius * torch.stack([angle.cos(), angle.sin()], dim=-1)  # (num, 2)
        variance = self._variance(on_circle, sigma)[..., None]
        z = torch.randn(num, 2, generator=generator, device=device)
        return on_circle + variance.sqrt() * z

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        variance = self._positive_variance(x, sigma)
        r = _norm(x)
        # -(r^2 + R^2)/(2 v) + r R/v; the second term undoes the scaling of i0e
        exponent = -((r - self._radius) ** 2) / (2 * variance)
        bessel = i0e(r * self._radius / variance).log()
        return exponent + bessel - (2 * math.pi * variance).log()

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return P(mode | x) = 1, (B, 1)."""
        return torch.ones_like(x[:, :1])

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log p_sigma(x), (B, D), units 1/length.

        ``x`` is (B, D), ``sigma`` () or (B,).
        """
        variance = self._positive_variance(x, sigma)
        r = _norm(x)
        u = r * self._radius / variance
        mean_radius = self._radius * i1e(u) / i0e(u)  # E[y | x] . x/r, y the point on the circle
        return ((mean_radius - r) / (variance * r))[:, None] * x

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return the moments of all points, because there is only one mode."""
        return moments_from_sums(
            self.modes,
            self.weights,
            torch.zeros(1, 2, dtype=torch.float64),
            self.perturbed_covariance(sigma)[None],
        )

    def fisher(self, sigma: float) -> FisherInformation:
        """Return I/2 times the identity, I = integral of (d log p_sigma/dr)^2 p_sigma 2 pi r dr.

        Units 1/length^2. Gauss's rule with 200 nodes is used, up to 9 sqrt(v) on either side of R.
        The relative error is below 1e-12.
        """
        width = 9 * math.sqrt(self._std**2 + sigma**2)
        low, high = max(0.0, self._radius - width), self._radius + width
        nodes, node_weights = np.polynomial.legendre.leggauss(200)
        r = torch.from_numpy((low + high) / 2 + (high - low) / 2 * nodes)  # (200,)
        x = torch.stack([r, torch.zeros_like(r)], dim=-1)  # (200, 2)
        density = self.log_prob(x, sigma).exp() * 2 * math.pi * r  # the density of |x|
        integrand = density * self.score(x, sigma).square().sum(-1)
        information = float(torch.from_numpy(node_weights) @ integrand) * (high - low) / 2
        none = torch.zeros(2, 2, dtype=torch.float64)
        return FisherInformation(information / 2 * torch.eye(2).double(), 0.0, none)

    def _variance(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the variance std^2 + sigma^2, () or (B,), with the dtype and device of ``x``."""
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
    """Return |x|, (B,), but slightly above 0 at x = 0, so that x/|x| and its derivative exist."""
    return (x.square().sum(-1) + 1e-30).sqrt()
