"""How far a tile of chains has come, and how often it has evaluated its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.score import Score, at_level
from ncsn_cli.samplers import steps_with


class Begun(NamedTuple):
    """A tile that has come to the beginning of a level.

    Args:
        step: States of its chains before.
        level: Row of ``Sampler.levels``.
        evaluations: Evaluations of the score before.
        x: The chains (B, D).
        generator: State of their stream of random numbers.
        labels: The mode of each chain at the end of the levels before (ended, B).
    """

    step: int
    level: int
    evaluations: int
    x: NDArray[np.float32]
    generator: NDArray[np.uint8]
    labels: NDArray[np.int16]


class Running(NamedTuple):
    """How far a tile has come.

    Args:
        begun: Where it goes on from if it is stopped.
        step: States of its chains so far.
        level: Row of ``Sampler.levels``.
        acceptance: See ``State``, of the last of them.
    """

    begun: Begun
    step: int
    level: int
    acceptance: float | None


class Finished(NamedTuple):
    """What finished tiles add up.

    Args:
        counts: See ``metrics.count_commitment``.
        evaluations: Evaluations of the score, each of a whole tile.
    """

    counts: dict[str, NDArray[Any]]
    evaluations: int


class Counted:
    """A score, and how often it was evaluated."""

    def __init__(self, score: Score, evaluations: int) -> None:
        self._score = score
        self.evaluations = evaluations

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self.evaluations += 1
        return self._score(x, sigma)

    def at_level(self, sigma: Tensor) -> CountedAtLevel:
        """Return the score at ``sigma`` (), whose evaluations are counted here."""
        return CountedAtLevel(at_level(self._score, sigma), self)


class CountedAtLevel:
    """A score at one level, whose evaluations ``total`` counts."""

    def __init__(self, score: Callable[[Tensor], Tensor], total: Counted) -> None:
        self._score, self._steps, self._total = score, steps_with(score), total

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self._total.evaluations += 1
        return self._score(x)

    def langevin_steps(self, x: Tensor, z: Tensor, tau: Tensor) -> Iterable[Tensor]:
        """Return the states after each of the steps, one for each row of ``z`` (steps, B, D)."""
        self._total.evaluations += len(z)
        return self._steps(x, z, tau)
