"""Exact problems, and networks to hold against them."""

import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.models import MLP


def stream(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def two_modes_1d(**kwargs):
    return GaussianMixture(weights=[0.1, 0.9], means=[-3.0, 3.0], stds=1.0, **kwargs)


def two_modes_2d(**kwargs):
    return GaussianMixture(weights=[0.95, 0.05], means=[[-5, -5], [5, 5]], stds=1.0, **kwargs)


def correlated_2d():
    return GaussianMixture(
        weights=[0.3, 0.7],
        means=[[-2.0, 0.0], [1.0, 1.0]],
        covariances=[[[1.0, 0.8], [0.8, 1.5]], [[0.3, -0.1], [-0.1, 0.2]]],
    )


def shaken(network):
    """Weights away from their start, where the residual networks are 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=stream(1)).to(parameter)
    return network


def network_2d(kind=MLP, **settings):
    """The same network at every call, neither trained nor at its start."""
    settings = settings or {"activation": "tanh"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shaken(kind(2, hidden=[16], **settings))


def two_modes_5d():
    """The axes of its covariance are none of the five."""
    return GaussianMixture(
        weights=[0.3, 0.7],
        means=[[-2.0, 0.0, 1.0, 0.0, 0.0], [2.0, 1.0, -1.0, 0.5, 0.0]],
        stds=[[1.0, 0.5, 1.0, 2.0, 0.3], [0.5, 1.0, 0.7, 1.5, 0.3]],
    )
