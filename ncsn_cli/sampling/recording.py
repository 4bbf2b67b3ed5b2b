"""Which states of the chains are recorded, and the results that all processes write."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import torch
from torch import Tensor

from ncsn_cli.metrics import mode_commitment
from ncsn_cli.runs.workers import shared_zeros
from ncsn_cli.samplers import Level, Sampler, some_levels
from ncsn_cli.sampling.chains import Chains

_FRAMES = 200  # max states of a kept path
_KEPT_LEVELS = 20  # max levels at whose end all chains are kept


class Recording:
    """The results of all chains, in memory shared with the processes that run them.

    Steps are counted from 0, the initial points, to ``last``.

    Args:
        sampler: The sampler.
        plan: Its levels.
        dim: D.
        num: Number of chains.
        tile_size: Number of chains in a tile.
        num_paths: Number of chains whose path is kept: the first ones.
        keep_by_level: Whether to keep all chains at the end of some levels.
    """

    def __init__(
        self,
        sampler: Sampler,
        plan: list[Level],
        dim: int,
        num: int,
        tile_size: int,
        num_paths: int,
        keep_by_level: bool,
    ) -> None:
        self._sampler, self._plan, self._num, self._tile_size = sampler, plan, num, tile_size
        self.num_tiles = -(-num // tile_size)
        self._ends = sampler.ends(plan)
        self.last = self._ends[-1]
        # A tile resumes where a level starts: at the end of the level before or one step later.
        starts = [0, *(end + sampler.descends for end in self._ends)]
        self._starts: dict[int, int] = {}
        for level, step in enumerate(starts):
            if level == 0 or step < self.last:
                self._starts.setdefault(step, level)  # before levels without a step
        frames = [*range(0, self.last, -(-self.last // _FRAMES)), self.last]
        self._frames = {step: frame for frame, step in enumerate(frames)}
        self._stops = sorted({*self._starts, *self._frames, *self._ends})
        # A foreign sampler's chains are not known at the levels between the first and the last.
        known = [i for i, at in enumerate(plan) if i == 0 or at.steps or sampler.descends]
        places = some_levels(len(known), _KEPT_LEVELS) if keep_by_level else []
        kept = [known[place] for place in places]
        self._kept_levels = {level: i for i, level in enumerate(kept)}
        self.tensors = {
            "samples": shared_zeros(num, dim),
            "init": shared_zeros(num, dim),
            "settled": shared_zeros(num, dtype=torch.int32),
            "by_level": shared_zeros(len(kept), num, dim),
            "paths": shared_zeros(len(frames), min(num_paths, num), dim),
            "accepted": shared_zeros(
                self.num_tiles * sampler.needs_log_prob, len(plan), dtype=torch.float64
            ),  # one row per tile: a float sum depends on the order in which tiles finish
            "finished": shared_zeros(self.num_tiles, dtype=torch.bool),
        }
        """The results, by name; a stopped run saves them."""

    def next_stop(self, step: int) -> int:
        """Return the first step after ``step`` at which something is recorded."""
        return self._stops[bisect_right(self._stops, step)]

    def level_starting_at(self, step: int) -> int | None:
        """Return the level that starts at ``step``, where a tile may resume; otherwise None."""
        return self._starts.get(step)

    def num_ended(self, step: int) -> int:
        """Return the number of levels that have ended at ``step``."""
        return bisect_right(self._ends, step)

    def has_ended(self, level: int, step: int) -> bool:
        """Return whether ``level`` ends at ``step``."""
        return self._ends[level] == step

    def write(self, number: int, name: str, x: Tensor) -> None:
        """Write a value per chain of the tile ``number`` into the tensor ``name``."""
        self.tensors[name][self._rows(number)] = x[: self.num_chains(number)].cpu()

    def write_state(self, number: int, step: int, level: int, x: Tensor) -> None:
        """Record the chains ``x`` (B, D) of the tile ``number`` where ``step`` is to be kept."""
        rows, paths = self._rows(number), self.tensors["paths"]
        if step in self._frames:
            kept = paths[self._frames[step], rows]
            kept.copy_(x[: len(kept)])
        if level in self._kept_levels and self.has_ended(level, step):
            by_level = self.tensors["by_level"][self._kept_levels[level]]
            by_level[rows] = x[: self.num_chains(number)].cpu()

    def accepted(self, number: int) -> Tensor:
        """Return the tile's row of summed acceptances, (1, L), or (0, L) without a test."""
        return self.tensors["accepted"][number : number + 1]

    def num_chains(self, number: int) -> int:
        """Return how many chains of the tile ``number`` were asked for; the first ones count."""
        return min(self._tile_size, self._num - number * self._tile_size)

    def _rows(self, number: int) -> slice:
        return slice(number * self._tile_size, number * self._tile_size + self.num_chains(number))

    def chains(self, counts: dict[str, Tensor], evaluations: int) -> Chains:
        """Return the results with the ``counts`` of ``metrics.count_commitment``."""
        tensors, sigmas = self.tensors, [level.sigma for level in self._plan]
        steps = torch.tensor([level.steps for level in self._plan])
        acceptance = tensors["accepted"].sum(0) / (steps * self.num_tiles)
        return Chains(
            samples=tensors["samples"],
            init=tensors["init"],
            paths=tensors["paths"].numpy() if tensors["paths"].shape[1] else None,
            path_steps=np.array(list(self._frames)),
            path_sigmas=np.array([sigmas[bisect_left(self._ends, s)] for s in self._frames]),
            settled_sigma=np.array(sigmas)[tensors["settled"].numpy()],
            by_level={sigmas[k]: tensors["by_level"][i] for k, i in self._kept_levels.items()},
            score_evaluations=evaluations,
            acceptance=acceptance.tolist() if self._sampler.needs_log_prob else [],
            mode_commitment={"sigmas": sigmas, **mode_commitment(counts)},
        )
