"""Score networks s(x, sigma), trained to approach grad log p_sigma(x)."""

from ncsn_cli.models.mixture import MixtureScore
from ncsn_cli.models.networks import (
    MLP,
    EmbeddingMLP,
    EnergyMLP,
    FourierMLP,
    NCSNv2MLP,
    PreconditionedMLP,
)

__all__ = [
    "MLP",
    "EmbeddingMLP",
    "EnergyMLP",
    "FourierMLP",
    "MixtureScore",
    "NCSNv2MLP",
    "PreconditionedMLP",
]
