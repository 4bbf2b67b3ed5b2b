"""Score-matching losses. Each is smallest at the true score; its value there is the floor."""

from ncsn_cli.losses.base import Draws as Draws
from ncsn_cli.losses.base import Loss as Loss
from ncsn_cli.losses.base import Perturbed as Perturbed
from ncsn_cli.losses.implicit import Implicit, ImplicitRegularized, Sliced
from ncsn_cli.losses.regression import (
    ControlVariate,
    Denoising,
    Explicit,
    StableTarget,
    TargetScore,
)
from ncsn_cli.losses.regression import Regression as Regression

__all__ = [
    "ControlVariate",
    "Denoising",
    "Explicit",
    "Implicit",
    "ImplicitRegularized",
    "Sliced",
    "StableTarget",
    "TargetScore",
]
