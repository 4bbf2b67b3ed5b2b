"""The score that a sampling run follows: the exact, the empirical or a learned one."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor, nn

from ncsn_cli.commands.build import build_from_checkpoint
from ncsn_cli.commands.config import Config
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import Score
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.models.one_level import Recentred
from ncsn_cli.samplers import LogProb


def exact_score(dataset: Dataset, origin: Tensor) -> tuple[Score, LogProb]:
    """Return the dataset's own score and log-density, in coordinates around ``origin`` (D,)."""
    local = dataset.centred() if bool((origin != 0).any()) else dataset
    return local.score, local.log_prob


def empirical_score(dataset: Dataset, origin: Tensor) -> tuple[Score, LogProb]:
    """Return score and log-density of the training set smoothed by sigma, around ``origin``."""
    data = dataset.training_set()
    if data is None:
        raise ConfigError(
            "dataset.num_samples: score=empirical needs a number here, the size of the"
            " training set"
        )
    around = (data - origin).tolist()
    points = GaussianMixture([1 / len(data)] * len(data), around, stds=0.0)
    chunk = max(1, 2_000_000 // len(data))  # chains at a time; limits memory

    def in_chunks(function: LogProb, x: Tensor, sigma: Tensor) -> Tensor:
        if bool((sigma == 0).any()):
            raise ConfigError(
                "schedule: score=empirical needs every sigma above 0, as in schedule=geometric"
            )
        sigmas = sigma.split(chunk) if sigma.ndim else itertools.repeat(sigma)
        return torch.cat(list(map(function, x.split(chunk), sigmas)))

    return partial(in_chunks, points.score), partial(in_chunks, points.log_prob)


def learned_score(
    network: nn.Module, origin: Tensor, device: torch.device
) -> tuple[Score, LogProb | None]:
    """Return the network's score around ``origin`` (D,), and its log-density if it has one."""
    network = network.to(device)
    energy: LogProb | None = getattr(network, "energy", None)
    score = Recentred(network, origin).to(device).eval() if bool((origin != 0).any()) else network
    if energy is None:
        return score, None
    return score, lambda x, sigma: -energy(x + origin.to(x), sigma)


def load_network(
    settings: object,
    chosen: Config | None,
    tensors: dict[str, Tensor],
    dim: int,
    plugins: list[str],
) -> nn.Module:
    """Return the checkpoint's network, with its averaged weights if there are any.

    Args:
        settings: The checkpoint's ``model``.
        chosen: The group ``model`` of the command line, which may only name a class.
        tensors: The checkpoint's tensors.
        dim: D of the dataset.
        plugins: See ``known_class``.

    Raises:
        ConfigError: If the network cannot be built, or its weights do not fit.
    """
    named = (chosen or {"_target_": None}).get("_target_", "")
    if named == "":
        raise ConfigError(
            "model: its values come from the checkpoint; train another model to change them"
        )
    if not isinstance(settings, dict):
        raise ConfigError("model: the checkpoint's value is not a group of settings")
    prefix = "ema.module." if "ema.n_averaged" in tensors else "network."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            made: nn.Module = build_from_checkpoint(settings, "model", plugins, named, dim=dim)
        return made

    shapes = {name: value.shape for name, value in weights.items()}
    is_ours = str(settings.get("_target_")).startswith("ncsn_cli.")
    # Check the size of this package's own networks before taking memory for them.
    for device in ["meta", "cpu"] if is_ours else ["cpu"]:
        with torch.device(device):
            network = build()
        if {name: value.shape for name, value in network.state_dict().items()} != shapes:
            raise ConfigError(
                f"dataset: D = {dim} does not fit the checkpoint's network; choose another dataset"
            )
    network.load_state_dict(weights)
    return network.eval()
