"""One Gaussian, for draws and for its density; the standard normal density."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Gaussian:
    """N(mean, covariance), evaluated in the eigenbasis of the covariance.

    Args:
        mean: (D,), float64, data units.
        covariance: (D, D), float64, data units squared. Draws may have a singular covariance.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self._mean = mean
        self._variances, self._rotation = torch.linalg.eigh(covariance)  # (D,), (D, D)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Return draws (num, D), float32, on the generator's device."""
        z = torch.randn(num, len(self._mean), generator=generator, device=generator.device)
        return self.transformed(z)

    def transformed(self, z: Tensor) -> Tensor:
        """Return the draws that are made of ``z`` ~ N(0, I), both (num, D)."""
        root = self._rotation * self._variances.clamp(min=0).sqrt()  # root root^T = covariance
        return self._mean.to(z) + z @ root.T.to(z)

    def whiten(self, x: Tensor) -> Tensor:
        """Return z ~ N(0, I) for draws ``x``, both (B, D): covariance^(-1/2) (x - mean)."""
        root = self._rotation / self._variances.sqrt() @ self._rotation.T  # (D, D)
        return (x - self._mean.to(x)) @ root.to(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density at ``x`` (B, D), (B,), in nats."""
        offset = (x - self._mean.to(x)) @ self._rotation.to(x)  # (B, D)
        variances = self._variances.to(x)
        return -(offset**2 / variances + (2 * math.pi * variances).log()).sum(-1) / 2


def standard_density(u: Tensor) -> Tensor:
    """Return the density of N(0, 1) at u."""
    return torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
