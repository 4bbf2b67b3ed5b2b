"""The results of finished chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Chains:
    """The results of finished chains, on the CPU.

    Args:
        samples: The last state of each chain (N, D).
        init: The first state of each chain (N, D).
        paths: Some chains over time (frames, chains, D); None if no paths are kept.
        path_steps: The step of each frame (frames,).
        path_sigmas: The level of each frame (frames,).
        settled_sigma: The level from which each chain keeps its mode (N,); the first level for a
            chain that never changes its mode.
        by_level: All chains (N, D) when they leave a level, by its sigma, for at most 20 levels
            evenly spread; empty unless asked for. The last entry holds the samples, denoised if
            the sampler denoises.
        score_evaluations: Evaluations of the score, each for all chains.
        acceptance: Mean share of accepted proposals at each level, over whole tiles; empty if the
            sampler refuses no proposals.
        mode_commitment: See ``metrics.mode_commitment``; with the ``sigmas`` of the levels.
    """

    samples: Tensor
    init: Tensor
    paths: NDArray[np.float32] | None
    path_steps: NDArray[np.int64]
    path_sigmas: NDArray[np.float64]
    settled_sigma: NDArray[np.float64]
    by_level: dict[float, Tensor]
    score_evaluations: int
    acceptance: list[float]
    mode_commitment: dict[str, Any]

    def in_data_units(self, origin: Tensor) -> Chains:
        """Return these chains, run in coordinates around ``origin`` (D,), in data units."""
        paths = None if self.paths is None else (self.paths + origin.numpy()).astype(np.float32)
        return replace(
            self,
            samples=(self.samples + origin).float(),
            init=(self.init + origin).float(),
            paths=paths,
            by_level={s: (x + origin).float() for s, x in self.by_level.items()},
        )
