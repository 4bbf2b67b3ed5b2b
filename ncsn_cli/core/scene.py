"""The data that pictures show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = {1: 801, 2: 121}
"""Points per axis of the grid that pictures show, for D = 1 and 2."""

ARROWS = slice(3, None, 6)
"""The grid points along each axis that get an arrow, for D = 2; A is the number of arrows."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The arrays that pictures show, all on one grid of G points, at M of the levels.

    Args:
        dim: D. For D > 2 all points and fields are projections on the first two principal axes of
            the truth, and densities are those of the projection.
        axes: The grid's axes: one of length G for D = 1, otherwise two. With two axes, G is the
            product of their lengths, and the second axis varies faster.
        modes: Centres of the modes (K, D).
        sigmas: The levels shown (M,), descending.
        clean_density: p on the grid (G,); None where p has no density.
        densities: p_sigma on the grid (M, G).
        denoised_density: For D = 1, the density of denoised exact draws from the last level (G,).
        is_denoised: Whether samples and exact draws are denoised.
        true_scores: grad log p_sigma on the grid (M, G, D); for D > 2 at ``places`` (M, A, 2).
        scores: The learned score at the same points; None if there is no learned score.
        places: For D > 2, some exact draws of p_sigma (M, A, 2).
        score_name: Name of the learned score in the pictures.
        recovered: For D = 1, the density recovered from the learned score at each level (M, G).
        recovered_kl: KL(p_sigma || recovered) in nats, at each level (M,).
        log_density: Log of the density that the learned score implies at the smallest level (G,).
        distances: See ``evaluation.evaluate_trajectory``.
        data: Training points (N, D), or draws if the dataset is endless; None in sampling.
        history: Columns of ``history.csv`` by name; None in sampling.
        loss_floor: The loss of the true score.
        snapshots: See ``snapshots.Snapshots.arrays``.
        samples: Samples (N, D); None in training.
        exact: As many exact draws from p_sigma_min (N, D).
        paths: Chains over time (frames, chains, D), the first frame their start.
        level_sigmas: The levels that the sampler visited (V,).
        committed: Share of chains that never change mode after each of these levels (V,).
        mode_shares: Share of chains in each mode after each of these levels (V, K); empty for
            many modes.
        path_steps: The step of each frame (frames,).
        path_sigmas: The level of each frame (frames,).
        path_densities: p_sigma on the grid for each frame (frames, G).
    """

    dim: int
    axes: tuple[NDArray[np.float64], ...]
    modes: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    clean_density: NDArray[np.float64] | None
    densities: NDArray[np.float64]
    true_scores: NDArray[np.float64]
    denoised_density: NDArray[np.float64] | None = None
    is_denoised: bool = False
    scores: NDArray[np.float64] | None = None
    places: NDArray[np.float64] | None = None
    score_name: str = "learned"
    recovered: NDArray[np.float64] | None = None
    recovered_kl: NDArray[np.float64] | None = None
    log_density: NDArray[np.float64] | None = None
    distances: dict[str, Any] | None = None
    data: NDArray[np.float32] | None = None
    history: dict[str, NDArray[np.float64]] | None = None
    loss_floor: float | None = None
    snapshots: dict[str, NDArray[Any]] | None = None
    samples: NDArray[np.float32] | None = None
    exact: NDArray[np.float32] | None = None
    paths: NDArray[np.float32] | None = None
    level_sigmas: NDArray[np.float64] | None = None
    committed: NDArray[np.float64] | None = None
    mode_shares: NDArray[np.float64] | None = None
    path_steps: NDArray[np.int64] | None = None
    path_sigmas: NDArray[np.float64] | None = None
    path_densities: NDArray[np.float64] | None = None
