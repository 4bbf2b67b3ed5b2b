"""The progress of a tile of chains, and a score that counts its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.score import Score, at_level
from ncsn_cli.samplers import steps_with


class ResumePoint(NamedTuple):
    """A tile at the start of a level.

    Args:
        step: Number of steps made before the level.
        level: Row of ``Sampler.levels``.
        evaluations: Evaluations of the score made before the level.
        x: The chains (B, D).
        generator: State of the tile's stream of random numbers.
        labels: The mode of each chain at the end of each earlier level (ended, B).
    """

    step: int
    level: int
    evaluations: int
    x: NDArray[np.float32]
    generator: NDArray[np.uint8]
    labels: NDArray[np.int16]


class Running(NamedTuple):
    """The progress of a running tile.

    Args:
        resume_point: Where the tile resumes if it is stopped.
        step: Number of steps made so far.
        level: Row of ``Sampler.levels``.
        acceptance: The last step's acceptance; see ``State``.
    """

    resume_point: ResumePoint
    step: int
    level: int
    acceptance: float | None


class Finished(NamedTuple):
    """The contribution of a finished tile to the totals of the run.

    Args:
        counts: See ``metrics.count_commitment``.
        evaluations: Evaluations of the score, each for the whole tile.
    """

    counts: dict[str, NDArray[Any]]
    evaluations: int


class Counted:
    """A score that counts its evaluations."""

    def __init__(self, score: Score, evaluations: int) -> None:
        self._score = score
        self.evaluations = evaluations

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self.evaluations += 1
        return self._score(x, sigma)

    def at_level(self, sigma: Tensor) -> CountedAtLevel:
        """Return the score at ``sigma`` (); its evaluations are added to this count."""
        return CountedAtLevel(at_level(self._score, sigma), self)


class CountedAtLevel:
    """A score at one level that adds its evaluations to the count of ``total``."""

    def __init__(self, score: Callable[[Tensor], Tensor], total: Counted) -> None:
        self._score, self._steps, self._total = score, steps_with(score), total

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self._total.evaluations += 1
        return self._score(x)

    def langevin_steps(self, x: Tensor, z: Tensor, tau: Tensor) -> Iterable[Tensor]:
        """Return the state after each step, one per row of ``z`` (steps, B, D), and count them."""
        self._total.evaluations += len(z)
        return self._steps(x, z, tau)
