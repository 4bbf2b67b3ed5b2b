"""One class of one's own for each group of ncsn_cli; docs/how_to/own_classes.md explains them."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional

from ncsn_cli.core.scene import SamplingScene
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.losses import Loss
from ncsn_cli.samplers import Level


class Cross(GaussianMixture):
    """Two long Gaussians that cross at a right angle, turned by ``angle`` in degrees; D = 2."""

    def __init__(self, angle=30.0, long=3.0, short=0.3, num_samples=None, seed=0):
        turn = np.radians(angle)
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        bars = [axes @ np.diag(v) @ axes.T for v in ([long**2, short**2], [short**2, long**2])]
        covariances = [((bar + bar.T) / 2).tolist() for bar in bars]
        super().__init__([0.5, 0.5], [[0.0, 0.0]] * 2, None, covariances, num_samples, seed)


class Cosine:
    """Levels from sigma_max to sigma_min, closest together in log sigma at both ends."""

    def __init__(self, sigma_max=20.0, sigma_min=0.1, num_levels=20):
        t = (1 - np.cos(np.pi * np.linspace(0, 1, num_levels))) / 2
        self.sigmas = sigma_max * (sigma_min / sigma_max) ** t


class Huber(Loss):
    """Huber's loss of the residual sigma s + z; its minimiser is close to the score, not equal."""

    def __init__(self, delta=1.0, levels="all"):
        self.delta, self.levels = delta, levels

    def term(self, score, perturbed):
        x, sigma, z, *_ = perturbed
        residual = sigma[:, None] * score(x, sigma) + z  # (P, D)
        zero = torch.zeros_like(residual)
        return functional.huber_loss(residual, zero, reduction="none", delta=self.delta).sum(-1)


class Shrinking(nn.Module):
    """The score of N(0, I) at sigma, -x/(1 + sigma^2), plus what a small network adds to it."""

    def __init__(self, dim, width=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 1, width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x, sigma):
        scale = (1 + sigma**2).sqrt().expand(len(x))[:, None]  # (B, 1), for sigma () and (B,)
        return (self.layers(torch.cat([x / scale, scale.log()], dim=-1)) - x / scale) / scale


class Churned:
    """To the posterior mean and part of the way back; ``churn`` of the noise is fresh (0 to 1)."""

    def __init__(self, churn=0.5):
        self.churn = churn

    def levels(self, sigmas):
        return [Level(sigma, tau=0.0, steps=0) for sigma in sigmas.tolist()]

    def step_down(self, step, x, memory):
        sigma, after = step.sigma, step.next_sigma
        mean = x + sigma**2 * step.score(x, sigma)  # Tweedie
        fresh = self.churn * after * (1 - (after / sigma) ** 2).sqrt()
        kept = (after**2 - fresh**2).sqrt() / sigma
        return mean + kept * (x - mean) + fresh * step.noise_like(x), memory


class Radii:
    """The mean difference between deciles of ||x - mean|| of the samples and of exact draws."""

    def __init__(self, num_draws=100_000):
        self.num_draws = num_draws

    def distance(self, truth, sigma, num):
        def deciles(x):
            return np.quantile((x.double().cpu() - truth.mean).norm(dim=1), np.arange(1, 10) / 10)

        draws = truth.sample(self.num_draws, sigma=sigma, generator=torch.Generator())
        true = deciles(draws)
        return lambda samples, generator: np.abs(deciles(samples) - true).mean()


def radii(scene, bins=60):
    """Draw how far the points are from 0: of samples and exact draws, or of the training data."""
    if isinstance(scene, SamplingScene):
        points = {"samples": scene.samples, "exact draws": scene.exact}
    else:
        points = {"training data": scene.data}
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="distance from 0", ylabel="density")
    for name, x in points.items():
        axes.hist(np.linalg.norm(x, axis=1), bins, density=True, histtype="step", label=name)
    axes.legend()
    return figure
