"""The data that pictures show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = {1: 801, 2: 121}
"""Points per axis of the grid that pictures show, for D = 1 and 2."""

ARROWS = slice(3, None, 6)
"""The grid points along each axis that get an arrow, for D = 2; A is the number of arrows."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The arrays that pictures of every run show, all on one grid of G points, at M of the levels.

    Args:
        dim: D. For D > 2 all points and fields are projections on the first two principal axes of
            the truth, and densities are those of the projection.
        axes: The grid's axes: one of length G for D = 1, otherwise two. With two axes, G is the
            product of their lengths, and the second axis varies faster.
        modes: Centres of the modes (K, D).
        sigmas: The levels shown (M,), descending.
        clean_density: p on the grid (G,); None where p has no density.
        densities: p_sigma on the grid (M, G).
        true_scores: grad log p_sigma on the grid (M, G, D); for D > 2 at ``places`` (M, A, 2).
            None if only draws of the dataset are known: the densities are then estimated.
        scores: The learned score at the same points; None if there is no learned score.
        places: For D > 2, some exact draws of p_sigma (M, A, 2).
        score_name: Name of the learned score in the pictures.
        visible_errors: For D = 2, the part of the learned score's error that reaches samples, on
            the grid (M, G, 2); nan where p_sigma is negligible, or at a level without a split.
        visible_shares: E||visible part||^2 over that of the whole error, at each level (M,).
        recovered: For D = 1, the density recovered from the learned score at each level (M, G).
        recovered_kl: KL(p_sigma || recovered) in nats, at each level (M,).
    """

    dim: int
    axes: tuple[NDArray[np.float64], ...]
    modes: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    clean_density: NDArray[np.float64] | None
    densities: NDArray[np.float64]
    true_scores: NDArray[np.float64] | None
    scores: NDArray[np.float64] | None = None
    places: NDArray[np.float64] | None = None
    score_name: str = "learned"
    visible_errors: NDArray[np.float64] | None = None
    visible_shares: NDArray[np.float64] | None = None
    recovered: NDArray[np.float64] | None = None
    recovered_kl: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingScene(Scene):
    """A ``Scene`` with what only pictures of a training show.

    Args:
        data: Training points (N, D), or draws if the dataset is endless.
        history: Columns of ``history.csv`` by name.
        loss_floor: The loss of the true score; None if it is not known.
        snapshots: See ``snapshots.Snapshots.arrays``; None if none were kept.
    """

    data: NDArray[np.float32]
    history: dict[str, NDArray[np.float64]]
    loss_floor: float | None
    snapshots: dict[str, NDArray[Any]] | None = None


@dataclass(frozen=True)
class Paths:
    """Chains over time.

    Args:
        x: The chains (frames, chains, D), the first frame their start.
        steps: The step of each frame (frames,).
        sigmas: The level of each frame (frames,).
        densities: p_sigma on the grid for each frame (frames, G).
    """

    x: NDArray[np.float64]
    steps: NDArray[np.int64]
    sigmas: NDArray[np.float64]
    densities: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SamplingScene(Scene):
    """A ``Scene`` with what only pictures of samples show.

    Args:
        samples: Samples (N, D).
        exact: As many exact draws from p_sigma_min (N, D).
        is_denoised: Whether samples and exact draws are denoised.
        denoised_density: For D = 1, the density of denoised exact draws from the last level (G,).
        level_sigmas: The levels that the sampler visited (V,).
        committed: Share of chains that never change mode after each of these levels (V,).
        mode_shares: Share of chains in each mode after each of these levels (V, K); empty for
            many modes.
        foretold: Levels of ``speciation`` and ``collapse``, if they are known: ``foretold``, and
            the ``median_of_chains`` or None.
        distances: See ``evaluation.evaluate_trajectory``; None unless asked for.
        budget: See ``sampling.budget.Budget.split``; None unless asked for.
        log_density: Log of the density that the score implies at the smallest level (G,); None
            unless asked for.
        paths: Chains over time; None if no path was kept.
        drawn_from: From how many samples ``samples`` were drawn; None if they are all.
    """

    samples: NDArray[np.float32]
    exact: NDArray[np.float32]
    level_sigmas: NDArray[np.float64]
    committed: NDArray[np.float64]
    mode_shares: NDArray[np.float64]
    is_denoised: bool = False
    denoised_density: NDArray[np.float64] | None = None
    foretold: dict[str, dict[str, float | None]] = field(default_factory=dict)
    distances: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    log_density: NDArray[np.float64] | None = None
    paths: Paths | None = None
    drawn_from: int | None = None
