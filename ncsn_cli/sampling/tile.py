"""A tile: chains that run together, with a stream of random numbers of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import DivergedError
from ncsn_cli.core.score import MultilevelScore, Score, ScoreAtSigma, score_at
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import count_commitment, settled_from
from ncsn_cli.samplers import Level, LogProb, Memory, Sampler, State
from ncsn_cli.sampling.recording import Recording

TILE = {"cpu": 1280, "cuda": 65_536, "mps": 65_536}
"""Chains in a tile, by type of device."""

_BLOCK = 16  # max steps between checks that the chains are finite
_SECONDS_BETWEEN_NEWS = 0.1  # from a running tile


@dataclass(frozen=True)
class Setup:
    """What all tiles share.

    Args:
        sampler: The sampler.
        plan: Its levels.
        score: The score that the chains follow.
        log_prob: The log-density, for a sampler that ``needs_log_prob``.
        init: ``init(num, generator, first)`` draws initial points (num, D) on the device, those of
            the chains ``first``, ``first + 1``, ...
        truth: The distribution whose modes are counted.
        seed: Seed of all chains.
        device: Where the chains run.
        chains_in_tile: The number B of chains in a tile; None: as many as run fastest.
    """

    sampler: Sampler
    plan: list[Level]
    score: Score
    log_prob: LogProb | None
    init: Callable[[int, torch.Generator, int], Tensor]
    truth: Dataset
    seed: int
    device: torch.device
    chains_in_tile: int | None = None

    @property
    def num_steps(self) -> int:
        """The number of steps of a chain."""
        return self.sampler.ends(self.plan)[-1]

    @property
    def num_evaluations(self) -> int:
        """About as many evaluations of the score; a foreign sampler makes them in one step."""
        return max(self.num_steps, len(self.plan))

    @property
    def tile_size(self) -> int:
        """The number B of chains in a tile."""
        return self.chains_in_tile or TILE[self.device.type]


class ResumePoint(NamedTuple):
    """A tile at the start of a level.

    Args:
        step: Number of steps made before the level.
        level: Row of the plan.
        evaluations: Evaluations of the score made before the level.
        x: The chains (B, D).
        memory: What the sampler remembers besides ``x``, each (B, D).
        generator: State of the tile's stream of random numbers.
        labels: The mode of each chain at the end of each earlier level (ended, B).
    """

    step: int
    level: int
    evaluations: int
    x: NDArray[np.float32]
    memory: tuple[NDArray[np.float32], ...]
    generator: NDArray[np.uint8]
    labels: NDArray[np.int16]


class Running(NamedTuple):
    """The progress of a running tile.

    Args:
        resume_point: Where the tile resumes if it is stopped.
        step: Number of steps made so far.
        level: Row of the plan.
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


@torch.no_grad()
def run_tile(
    setup: Setup, recording: Recording, number: int, resume_point: ResumePoint | None
) -> Iterator[Running | Finished]:
    """Yield a tile's progress. The tile takes space only once the first value is asked for."""
    yield from Tile(setup, recording, number, resume_point).run()


class Tile:
    """The chains of one tile; they write their results into ``recording``.

    Args:
        setup: What all tiles share.
        recording: The results of all tiles.
        number: The number of this tile.
        resume_point: Where to resume; None to start with initial points.
    """

    def __init__(
        self, setup: Setup, recording: Recording, number: int, resume_point: ResumePoint | None
    ) -> None:
        self._setup, self._recording, self._number = setup, recording, number
        self._stream = random_stream(setup.seed, f"chains {number}", setup.device)
        self._labels = torch.zeros(len(setup.plan), setup.tile_size, dtype=torch.int16)
        if resume_point is None:
            self._score = Counted(setup.score, 0)
            x = setup.init(setup.tile_size, self._stream, number * setup.tile_size)
            recording.write(number, "init", x)
            self._record(0, 0, x)
            self._resume_point = self._mark(0, 0, x, ())
        else:
            self._score = Counted(setup.score, resume_point.evaluations)
            self._stream.set_state(torch.from_numpy(resume_point.generator))
            self._labels[: len(resume_point.labels)] = torch.from_numpy(resume_point.labels)
            self._resume_point = resume_point
        self._accepted = recording.accepted(number)
        self._accepted[:, self._resume_point.level :] = 0

    def run(self) -> Iterator[Running | Finished]:
        """Make all steps; yield the progress now and then, and a ``Finished`` at the end."""
        setup, recording, start = self._setup, self._recording, self._resume_point
        step, device = start.step, setup.device
        chain = setup.sampler.chain(
            self._score,
            torch.from_numpy(start.x).to(device),
            setup.plan,
            generator=self._stream,
            log_prob=setup.log_prob,
            first=start.level,
            memory=tuple(torch.from_numpy(kept).to(device) for kept in start.memory),
        )
        last_news = time.monotonic()
        while step < recording.last:
            block = list(islice(chain, min(recording.next_stop(step) - step, _BLOCK)))
            _refuse_non_finite(block, step)
            for state in block:
                if state.acceptance is not None:
                    self._accepted[:, state.level] += state.acceptance
            step += len(block)
            self._record(step, state.level, state.x)
            starting = recording.level_starting_at(step)
            if starting is not None:
                self._resume_point = self._mark(step, starting, state.x, state.memory)
            if time.monotonic() - last_news > _SECONDS_BETWEEN_NEWS:
                yield Running(self._resume_point, step, state.level, state.acceptance)
                last_news = time.monotonic()
        yield Running(self._resume_point, step, state.level, state.acceptance)  # the last numbers
        yield self._finish(state.x)

    def _record(self, step: int, level: int, x: Tensor) -> None:
        """Record the chains ``x`` and, if a level ends here, their modes."""
        self._recording.write_state(self._number, step, level, x)
        ended = self._recording.num_ended(step)
        if self._recording.has_ended(level, step):  # and, with it, levels without a step
            self._labels[level:ended] = self._setup.truth.nearest_mode(x)

    def _mark(self, step: int, level: int, x: Tensor, memory: Memory) -> ResumePoint:
        """Return the point from which this tile can resume at the start of ``level``."""
        labels = self._labels[: self._recording.num_ended(step)]
        kept = tuple(each.cpu().numpy() for each in memory)
        return ResumePoint(
            step, level, self._score.evaluations, x.cpu().numpy(), kept,
            self._stream.get_state().numpy(), labels.numpy(),
        )  # fmt: skip

    def _finish(self, x: Tensor) -> Finished:
        """Record the last state ``x`` and return what this tile adds to the run."""
        self._recording.write(self._number, "samples", x)
        modes = self._labels[:, : self._recording.num_chains(self._number)]  # (L, n)
        self._recording.write(self._number, "settled", settled_from(modes))
        counts = count_commitment(modes, len(self._setup.truth.modes))
        numbers = {name: count.numpy() for name, count in counts.items()}
        return Finished(numbers, self._score.evaluations)


class Counted(MultilevelScore):
    """A score that counts its evaluations."""

    def __init__(self, score: Score, evaluations: int) -> None:
        self._score = score
        self.evaluations = evaluations

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self.evaluations += 1
        return self._score(x, sigma)

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return the score at ``sigma`` (); its evaluations are added to this count."""
        return _CountedAtSigma(score_at(self._score, sigma), self)


class _CountedAtSigma(ScoreAtSigma):
    """A score at one level that adds its evaluations to the count of ``total``."""

    def __init__(self, score: ScoreAtSigma, total: Counted) -> None:
        self._score, self._total = score, total

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score at ``x`` (B, D), and count this evaluation."""
        self._total.evaluations += 1
        return self._score(x)

    def steps(self, x: Tensor, z: Tensor, tau: Tensor) -> Iterator[Tensor]:
        """Return the state after each step, one per row of ``z`` (T, B, D), and count them."""
        self._total.evaluations += len(z)
        return self._score.steps(x, z, tau)


def _refuse_non_finite(block: list[State], step: int) -> None:
    """Check that the states after ``step`` are finite.

    Checks the last state first, because a point that is not finite stays so.

    Raises:
        DivergedError: If a chain is not finite; the error names the first such state.
    """
    # The sum is cheaper to check. It is finite for finite points, unless they are beyond 1e34.
    if math.isfinite(float(block[-1].x.sum())):
        return
    for number, state in enumerate(block, start=step + 1):
        if not bool(torch.isfinite(state.x).all()):
            raise DivergedError(
                f"a sample is not finite (inf or nan) at step {number}, level {state.level + 1}"
                f" (sigma = {state.sigma:g}); take smaller steps"
            )
