"""The steps of a sampler as functions: of a point, and of one number in place of its noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ncsn_cli.core.score import Score
from ncsn_cli.samplers import AnnealedMALA, Foreign, Level, LogProb, Place, Sampler, Step

_NO_NOISE = 1e-6  # of sigma: a narrower noise is the rounding error of a variance that is 0


class NoLaw(Exception):
    """The law of a chain is not known; the message says why, in a sentence without a full stop."""


@dataclasses.dataclass(frozen=True)
class Scripted(Step):
    """A step whose noise is the same number in every coordinate."""

    noise: float

    def noise_like(self, x: Tensor) -> Tensor:
        """Return the noise (B, D)."""
        return torch.full_like(x, self.noise)

    def noises_like(self, x: Tensor, num: int) -> Tensor:
        """Return the noise of ``num`` steps (num, B, D)."""
        return torch.full((num, *x.shape), self.noise, dtype=x.dtype, device=x.device)


@dataclasses.dataclass(frozen=True)
class Move:
    """Steps x <- mean(x) + width z, z ~ N(0, I), that are all alike.

    Args:
        mean: From x to the mean of the next state, both (B, D).
        width: Standard deviation of the noise, data units; 0 for a map.
        sigma: The level whose p_sigma the steps lead to.
        repeats: Number of steps.
        proposed_by: The step that a Metropolis test follows; None where there is none.
    """

    mean: Callable[[Tensor], Tensor]
    width: float
    sigma: float
    repeats: int
    proposed_by: Step | None = None


def moves_of(
    sampler: Sampler, plan: list[Level], score: Score, log_prob: LogProb | None, probe: Tensor
) -> list[Move]:
    """Return all steps of ``sampler``, in order, without the last denoising step.

    Means and widths are found by making the sampler's own steps with the noise 0 and 1.

    Args:
        sampler: The sampler.
        plan: Its levels.
        score: The score that the chains follow, which takes float64.
        log_prob: The log-density, for a sampler that ``needs_log_prob``.
        probe: Some points (n, D), float64, where the widths are compared.

    Raises:
        NoLaw: If the steps are those of the user's own class, or no such steps.
    """
    if isinstance(sampler, Foreign):
        raise NoLaw("a foreign sampler goes all the way in one step")
    for method in (sampler.chain, sampler.langevin, sampler.step_down):
        if method.__module__.partition(".")[0] != "ncsn_cli":
            raise NoLaw(
                f"{type(sampler).__name__} has steps of its own, whose noise is not known to be"
                " Gaussian"
            )
    sigmas, moves = torch.tensor([level.sigma for level in plan], dtype=torch.float64), []
    for i, level in enumerate(plan):
        at = partial(Scripted, score, sigmas, i, level.tau, 1, torch.Generator(), log_prob)
        if level.steps and isinstance(sampler, AnnealedMALA):
            move = _move(partial(_propose, at), probe, level.sigma, level.steps)
            moves.append(dataclasses.replace(move, proposed_by=at(0.0)))
        elif level.steps:
            langevin = partial(_langevin, sampler, at)
            moves.append(_move(langevin, probe, level.sigma, level.steps))
        if sampler.descends and i + 1 < len(plan):
            moves.append(_move(partial(_step_down, sampler, at), probe, plan[i + 1].sigma, 1))
    return moves


def last_state(
    sampler: Sampler,
    plan: list[Level],
    score: Score,
    log_prob: LogProb | None,
    first: int,
    x: Tensor,
) -> Tensor:
    """Return the last state (B, D) of chains without noise that reach the level ``first`` at x."""
    chain = sampler.chain(
        score, x, plan, generator=torch.Generator(), log_prob=log_prob, first=first
    )
    for state in chain:
        x = state.x
    return x


_At = Callable[[float], Scripted]
"""From the noise to the step."""

_NoisyStep = Callable[[Tensor, float], Tensor]
"""From x (B, D) and the noise to the next state (B, D)."""


def _langevin(sampler: Sampler, at: _At, x: Tensor, noise: float) -> Tensor:
    return next(iter(sampler.langevin(at(noise), x)))[0].clone()  # a score reuses its memory


def _step_down(sampler: Sampler, at: _At, x: Tensor, noise: float) -> Tensor:
    return sampler.step_down(at(noise), x, ())[0]


def _propose(at: _At, x: Tensor, noise: float) -> Tensor:
    step = at(noise)
    return Place.at(x, step).proposal(step.noise_like(x), step.tau)


def _move(step: _NoisyStep, probe: Tensor, sigma: float, repeats: int) -> Move:
    widths = step(probe, 1.0) - step(probe, 0.0)  # (n, D)
    width = float(widths.mean())
    if not torch.allclose(widths, torch.full_like(widths, width), rtol=1e-6, atol=1e-9 * sigma):
        raise NoLaw("the noise of a step is not the same everywhere")
    width *= width > _NO_NOISE * sigma
    return Move(lambda x: step(x, 0.0), width, sigma, repeats)
