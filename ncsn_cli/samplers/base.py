"""The loop that every sampler shares: down the noise levels, with some steps at each level."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError, NcsnError, one_line
from ncsn_cli.core.score import Score, score_at
from ncsn_cli.core.settings import STRICT

_LARGEST_STEP = torch.finfo(torch.float32).max

_STEPS_A_DRAW = 16  # Langevin steps per draw of noise: one draw per step would double the cost

LogProb = Callable[[Tensor, Tensor], Tensor]
"""``log_prob(x, sigma)``: log p_sigma(x) up to a constant, (B,); x (B, D), sigma ()."""

Memory = tuple[Tensor, ...]
"""Tensors (B, D) that a sampler carries to the next level besides x. Most samplers carry none."""


class Level(NamedTuple):
    """A noise level that a sampler visits.

    Args:
        sigma: Its standard deviation, data units.
        tau: Langevin step size at this level, data units squared; 0 without Langevin steps.
        steps: Number of Langevin steps at this level.
    """

    sigma: float
    tau: float
    steps: int


class State(NamedTuple):
    """The state of the chains after a step.

    Args:
        level: Index into the plan of levels.
        sigma: The level's standard deviation: ``x`` should follow p_sigma.
        x: The chains (B, D).
        memory: See ``Memory``.
        acceptance: Share of the proposals that were accepted; None for a step without
            an acceptance test.
    """

    level: int
    sigma: float
    x: Tensor
    memory: Memory
    acceptance: float | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """Where the chains are, and what a step uses besides the points.

    Args:
        score: The score that the chains follow.
        sigmas: All levels of the plan (L,), on the device of the chains.
        index: The present level.
        tau: See ``Level``.
        num: Number of Langevin steps at the present level.
        generator: The chains' stream of random numbers.
        log_prob: The log-density, for a sampler that ``needs_log_prob``.
    """

    score: Score
    sigmas: Tensor
    index: int
    tau: float
    num: int
    generator: torch.Generator
    log_prob: LogProb | None

    @property
    def sigma(self) -> Tensor:
        """The present level, ()."""
        return self.sigmas[self.index]

    @property
    def next_sigma(self) -> Tensor:
        """The next level, (), below ``sigma``."""
        return self.sigmas[self.index + 1]

    def noise_like(self, x: Tensor) -> Tensor:
        """Return draws of N(0, I) in the shape of ``x`` (B, D), with a contiguous transpose."""
        return torch.randn(x.mT.shape, generator=self.generator, device=x.device, dtype=x.dtype).mT

    def noises_like(self, x: Tensor, num: int) -> Tensor:
        """Return the noise of ``num`` steps from ``x`` (B, D) in one draw, (num, B, D)."""
        z = torch.empty(num, *x.mT.shape, dtype=x.dtype, device=x.device)
        return z.normal_(generator=self.generator).mT


class Sampler(ABC):
    """A Markov chain down the noise levels; the base class owns the loop.

    To write your own, implement ``levels``, the plan. You may replace the Langevin steps at a
    level (``langevin``), and add a step from each level to the next (``step_down``). Steps draw
    from ``step.generator`` alone: then a stopped run resumes to the same bits.

    Args:
        denoise: Whether to end with the posterior mean x + sigma^2 score (Tweedie), where sigma is
            the last level. For N(0, s^2) the posterior mean has the variance
            s^4/(s^2 + sigma^2), a little below s^2.
    """

    denoise: bool = False

    descends: ClassVar[bool] = False
    """Whether there are steps to the next level: whether a subclass has a ``step_down``."""
    needs_log_prob: ClassVar[bool] = False

    def __init__(self, *, denoise: bool = False) -> None:
        self.denoise = denoise

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Set ``descends``."""
        super().__init_subclass__(**kwargs)
        cls.descends = cls.step_down is not Sampler.step_down

    @abstractmethod
    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return the plan: the levels to visit, from the schedule's descending ``sigmas`` (L,).

        Raises:
            ConfigError: If the sampler cannot work at these levels.
        """

    def ends(self, plan: list[Level]) -> list[int]:
        """Return the number of steps that ``chain`` has made when it leaves each level (L,)."""
        ends, step = [], 0
        for i, level in enumerate(plan):
            step += level.steps + (self.descends and i > 0)
            ends.append(step)
        ends[-1] += self.denoise
        return ends

    def chain(
        self,
        score: Score,
        x: Tensor,
        plan: list[Level],
        *,
        generator: torch.Generator,
        log_prob: LogProb | None = None,
        first: int = 0,
        memory: Memory = (),
    ) -> Iterator[State]:
        """Yield the state after every step, from initial points ``x`` (B, D).

        ``plan`` is what ``levels`` returned. ``log_prob`` is for a sampler that
        ``needs_log_prob``. To resume chains, pass the level ``first``, and the points ``x`` and
        the ``memory`` with which the chains reached that level.
        """
        x = x.mT.contiguous().mT  # the layout of draws and networks: contiguous coordinates
        sigmas = torch.tensor([level.sigma for level in plan], dtype=x.dtype).to(x.device)
        for i, level in list(enumerate(plan))[first:]:
            step, made = Step(score, sigmas, i, level.tau, level.steps, generator, log_prob), 0
            for moved, acceptance in self.langevin(step, x):
                x, made = moved, made + 1
                yield State(i, level.sigma, x, memory, acceptance)
            if made != level.steps:  # results are recorded by the steps of the plan
                raise ConfigError(
                    f"sampler: {type(self).__name__}.langevin made {made} steps at level {i + 1},"
                    f" but its plan has {level.steps}"
                )
            if self.descends and i + 1 < len(plan):
                x, memory = self.step_down(step, x, memory)
                yield State(i + 1, plan[i + 1].sigma, x, memory)
        if self.denoise:
            x = x + level.sigma**2 * score(x, sigmas[-1])
            yield State(i, level.sigma, x, memory)

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield x after each Langevin step at one level, and the share of accepted proposals.

        The share is None for steps without an acceptance test.
        """
        score, tau = score_at(step.score, step.sigma), torch.full_like(step.sigma, step.tau)
        for first in range(0, step.num, _STEPS_A_DRAW):
            z = step.noises_like(x, min(_STEPS_A_DRAW, step.num - first))
            for moved in score.steps(x, z, tau):
                x = moved
                yield x, None

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x moved from p_sigma to p_next_sigma, and what the next step has to know."""
        raise NotImplementedError

    def __call__(
        self,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator,
        log_prob: LogProb | None = None,
    ) -> Tensor:
        """Return samples (B, D): the last state of ``chain``, started at ``x`` (B, D)."""
        plan = plan_of(self, sigmas)
        for state in self.chain(score, x, plan, generator=generator, log_prob=log_prob):
            x = state.x
        return x


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Configured(Sampler):
    """A sampler whose settings are the fields of a dataclass.

    Args:
        denoise: See ``Sampler``.
    """

    denoise: bool = False


def some_levels(num: int, most: int) -> list[int]:
    """Return at most ``most`` of the places 0, ..., num - 1, evenly spread, with both ends."""
    return torch.linspace(0, num - 1, min(num, most)).round().int().tolist()


def plan_of(sampler: Sampler, sigmas: Tensor) -> list[Level]:
    """Return the plan of ``sampler`` for the schedule's ``sigmas`` (L,), as plain numbers.

    Raises:
        ConfigError: If the sampler cannot work at these levels, or its ``levels`` are no plan.
    """
    try:
        found: Any = sampler.levels(sigmas)
        found = [*found] if isinstance(found, Iterable) else found
    except (NcsnError, MemoryError):
        raise
    except Exception as error:  # of a class of the user's own
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError(f"sampler: {type(sampler).__name__}.levels failed: {reason}") from error
    try:
        plan = [Level(float(sigma), float(tau), int(steps)) for sigma, tau, steps in found]
    except (TypeError, ValueError):
        plan = []
    numbers = [number for level in plan for number in level]
    are_numbers = plan and all(math.isfinite(n) and n >= 0 for n in numbers)
    if not (are_numbers and sampler.ends(plan)[-1] > 0):
        raise ConfigError(
            f"sampler: {type(sampler).__name__}.levels should return a list of"
            " Level(sigma, tau, steps), finite numbers >= 0 with a step to make, got"
            f" {one_line(repr(found), 200)}"
        )
    for sigma, tau, _ in plan:
        if tau > _LARGEST_STEP:
            raise ConfigError(
                f"schedule: at sigma = {sigma:g} the sampler's step would be tau = {tau:.3g}, more"
                " than a float32 holds; choose a smaller sigma_max"
            )
    return plan
