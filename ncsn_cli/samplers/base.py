"""The loop that every sampler shares: down the noise levels, with some steps at each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.score import Score, at_level
from ncsn_cli.core.settings import STRICT

_STEPS_A_DRAW = 16  # Langevin steps per draw of noise: one draw per step would double the cost

LogProb = Callable[[Tensor, Tensor], Tensor]
"""``log_prob(x, sigma)``: log p_sigma(x) up to a constant, (B,); x (B, D), sigma ()."""

Step = Callable[[Score, Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""``step(score, x, sigma, next_sigma, generator)``: x (B, D), moved to p_next_sigma.

``x`` follows p_sigma before the step.
"""


Steps = Callable[[Tensor, Tensor, Tensor], Iterable[Tensor]]
"""``steps(x, z, tau)``: ``langevin_steps`` with a fixed score."""


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
        level: Index into ``Sampler.levels``.
        sigma: The level's standard deviation: ``x`` should follow p_sigma.
        x: The chains (B, D).
        acceptance: Share of the proposals that were accepted; None for a step without
            an acceptance test.
    """

    level: int
    sigma: float
    x: Tensor
    acceptance: float | None = None


@dataclass(frozen=True, config=STRICT)
class Sampler(ABC):
    """A Markov chain down the noise levels; the base class owns the loop.

    A subclass plans its ``levels`` and may replace the Langevin steps at a level (``_at_level``).
    If it ``descends``, it also implements the step from one level to the next (``_to_next``).

    Args:
        denoise: Whether to end with the posterior mean x + sigma^2 score (Tweedie), where sigma is
            the last level. For N(0, s^2) the posterior mean has the variance
            s^4/(s^2 + sigma^2), a little below s^2.
    """

    denoise: bool

    descends: ClassVar[bool] = False
    needs_log_prob: ClassVar[bool] = False

    @property
    def remembers(self) -> bool:
        """Whether a step depends on more than the previous state."""
        return False

    @abstractmethod
    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return the levels to visit, from the schedule's descending ``sigmas`` (L,).

        Raises:
            ConfigError: If the sampler cannot work at these levels.
        """

    def levels_of_states(self, sigmas: Tensor) -> list[int]:
        """Return the level index of each state that ``chain`` yields."""
        levels: list[int] = []
        for i, level in enumerate(self.levels(sigmas)):
            levels += [i] * (level.steps + (self.descends and i > 0))
        return levels + [i] * self.denoise

    def chain(
        self,
        score: Score,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator,
        log_prob: LogProb | None = None,
        first: int = 0,
    ) -> Iterator[State]:
        """Yield the state after every step, from initial points ``x`` (B, D).

        ``sigmas`` (L,) descend. ``log_prob`` is for a sampler that ``needs_log_prob``. To resume
        chains, pass the level ``first`` and the points ``x`` with which the chains reached that
        level. A sampler that ``remembers`` more than ``x`` cannot resume in this way.
        """
        plan, to_next = self.levels(sigmas), self._descent()
        x = x.mT.contiguous().mT  # the layout of draws and networks: contiguous coordinates
        noise_levels = torch.tensor([level.sigma for level in plan], dtype=x.dtype).to(x.device)
        for i, level in list(enumerate(plan))[first:]:
            moves = self._at_level(score, x, noise_levels[i], level, generator, log_prob)
            for moved, acceptance in moves:
                x = moved
                yield State(i, level.sigma, x, acceptance)
            if self.descends and i + 1 < len(plan):
                x = to_next(score, x, noise_levels[i], noise_levels[i + 1], generator)
                yield State(i + 1, plan[i + 1].sigma, x)
        if self.denoise:
            x = x + level.sigma**2 * score(x, noise_levels[-1])
            yield State(i, level.sigma, x)

    def _at_level(
        self,
        score: Score,
        x: Tensor,
        sigma: Tensor,
        level: Level,
        generator: torch.Generator,
        log_prob: LogProb | None,
    ) -> Iterator[tuple[Tensor, float | None]]:
        """Yield x and the share of accepted proposals after each Langevin step at one level."""
        steps, tau = steps_with(at_level(score, sigma)), torch.full_like(sigma, level.tau)
        for first in range(0, level.steps, _STEPS_A_DRAW):
            num = min(_STEPS_A_DRAW, level.steps - first)
            z = torch.empty(num, *x.mT.shape, dtype=x.dtype, device=x.device)
            for moved in steps(x, z.normal_(generator=generator).mT, tau):
                x = moved
                yield x, None

    def _descent(self) -> Step:
        """Return the step to the next level for one run of the chain; the step may keep state."""
        return self._to_next

    def _to_next(
        self,
        score: Score,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x moved from p_sigma to p_next_sigma, next_sigma < sigma."""
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
        """Return samples (B, D): the last state of ``chain``."""
        for state in self.chain(score, x, sigmas, generator=generator, log_prob=log_prob):
            x = state.x
        return x


def langevin_steps(
    score: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, tau: Tensor
) -> Iterator[Tensor]:
    """Yield x (B, D) after each step x + tau score(x) + sqrt(2 tau) z, for ``z`` (T, B, D)."""
    for noise in (z * (2 * tau).sqrt()).unbind():
        x = torch.addcmul(x, score(x), tau).add_(noise)
        yield x


def steps_with(score: Callable[[Tensor], Tensor]) -> Steps:
    """Return the score's own ``langevin_steps`` if it has one, otherwise the generic function."""
    own: Steps | None = getattr(score, "langevin_steps", None)
    return own or partial(langevin_steps, score)


def standard_normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return draws of N(0, I) in the shape of ``x`` (B, D), with a contiguous transpose."""
    return torch.randn(x.mT.shape, generator=generator, device=x.device, dtype=x.dtype).mT
