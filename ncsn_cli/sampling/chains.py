"""What finished chains leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Chains:
    """What finished chains leave, on the CPU.

    Args:
        samples: Their last state (N, D).
        init: Their first (N, D).
        paths: Some chains over time (frames, chains, D); None where none are kept.
        path_steps: The step of each frame (frames,).
        path_sigmas: The level of each frame (frames,).
        settled_sigma: The level from which each chain keeps its mode (N,), the first if it never
            changes.
        by_level: All chains (N, D) when they leave a level, by its sigma, for at most 20 levels
            evenly spread; empty unless asked for. The last are the samples, denoised if the
            sampler denoises.
        score_evaluations: Evaluations of the score, each of all chains.
        acceptance: Mean share of accepted proposals at each level, in whole tiles; empty where
            none are refused.
        mode_commitment: See ``metrics.mode_commitment``, with the ``sigmas`` of its levels.
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
