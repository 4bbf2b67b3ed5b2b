"""Pictures that compare scores and samples with the truth: a ``Scene`` in, a ``Figure`` out.

A function returns None if its picture does not apply to the scene.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", "")):
    # An unknown backend would make the import fail, though writing files needs no backend.
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

from ncsn_cli.core.scene import Scene
from ncsn_cli.plots import animations
from ncsn_cli.plots.budget import budget
from ncsn_cli.plots.data import density
from ncsn_cli.plots.fields import (
    log_density,
    recovered_density,
    score,
    score_error,
    score_norm,
    visible_error,
)
from ncsn_cli.plots.learning import loss
from ncsn_cli.plots.sampling import chains, commitment, distances, samples

__all__ = [
    "budget",
    "chains",
    "commitment",
    "density",
    "distances",
    "log_density",
    "loss",
    "recovered_density",
    "samples",
    "score",
    "score_error",
    "score_norm",
    "visible_error",
]

NEED_TRUTH: dict[Callable[[Scene], Any], int] = {
    score_error: 2,
    visible_error: 2,
    recovered_density: 1,
    animations.recovered_density: 1,
}
"""The pictures for which only the true score may be missing, and the D to which they apply."""

NEEDS: dict[Callable[[Scene], Any], str] = {
    density: "the training data of ncsn-train",
    score: "a learned score",
    score_norm: "D = 2",
    score_error: "a learned score in 2D",
    visible_error: "ncsn-train in 2D, and a level that its grid resolves",
    recovered_density: "a learned score in 1D",
    log_density: "ncsn-sample in 1D or 2D with log_density=true, and a known density",
    loss: "two logged steps of ncsn-train",
    samples: "ncsn-sample",
    chains: "ncsn-sample with trajectories above 0",
    commitment: "ncsn-sample with two levels and two modes or more",
    budget: "ncsn-sample with budget=true",
    distances: "ncsn-sample with trajectory_metrics=true and two levels or more",
    animations.score: "ncsn-train in 1D or 2D",
    animations.recovered_density: "ncsn-train in 1D",
    animations.chains: "ncsn-sample with trajectories above 0",
}
"""The condition under which each picture applies."""
