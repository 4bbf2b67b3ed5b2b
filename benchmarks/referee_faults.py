"""Faults planted in samplers one at a time, and the number that names each.

    python -m benchmarks.referee_faults

Numbers are found for the sampler without and with the fault, with the exact score:

- ``order``: the p with which the distance from the exact flow, from the same starts, falls as
  N^-p, from 32 to 64 steps;
- ``width``: how many times as wide as the true modes those of the samples are
  (``metric=width``);
- ``sigma``: the level at which p_sigma is as wide as the samples (the same metric);
- ``temperature``: the square of the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.quality import dataset
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import Width
from ncsn_cli.mistakes import LevelsReversed
from ncsn_cli.samplers import AnnealedLangevin, Level, Memory, ProbabilityFlow, Sampler, Step
from ncsn_cli.schedules import Geometric, Karras

SIGMA_MAX, SIGMA_MIN, NUM = 20.0, 0.5, 20_000
LAW = "two_modes_2d"


class DummyLastStep(ProbabilityFlow):
    """A solver whose last step leads nowhere: it ends at the last level but one."""

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after a step, but unchanged by the last one."""
        is_last = step.index + 2 == len(step.sigmas)
        return (x, memory) if is_last else super().step_down(step, x, memory)


class EpsilonForTwoTau(AnnealedLangevin):
    """Langevin steps with the drift of one convention and the noise of the other."""

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield x + eps score + eps^(1/2) z, which should be x + eps/2 score + eps^(1/2) z."""
        for _ in range(step.num):
            x = x + step.tau * step.score(x, step.sigma) + math.sqrt(step.tau) * step.noise_like(x)
            yield x, None


class LevelsShifted(ProbabilityFlow):
    """A solver that asks for the score one level too low."""

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after a step with the score of the next level."""
        next_sigma, score = step.next_sigma, step.score
        shifted = Step(
            lambda x, sigma: score(x, next_sigma), step.sigmas, step.index, step.tau, step.num,
            step.generator, step.log_prob,
        )  # fmt: skip
        return super().step_down(shifted, x, memory)


class HeunOfOrderOne(ProbabilityFlow):
    """Heun's method, whose second slope is taken at the point before the step."""

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after a step."""
        change = step.next_sigma - step.sigma
        slopes = [
            -sigma * step.score(x, sigma) for sigma in (step.sigma, step.next_sigma)
        ]  # the second at x, which should be x + change * slope
        return x + change * (slopes[0] + slopes[1]) / 2, memory


class WrongLastSigma(ProbabilityFlow):
    """A solver that ends at twice the last level."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return the levels, with another one for the last."""
        *before, last = super().levels(sigmas)
        return [*before, Level(2 * last.sigma, 0.0, 0)]


def order(sampler: Sampler) -> float:
    """Return the order of a solver of the probability flow."""
    truth = dataset(LAW)
    x = truth.sample(2000, sigma=SIGMA_MAX, generator=random_stream(0, "starts")).double()

    def end(sampler: Sampler, steps: int) -> Tensor:
        sigmas = Karras(SIGMA_MAX, SIGMA_MIN, steps + 1).sigmas
        return sampler(truth.score, x, sigmas, generator=random_stream(0, "chains"))

    exact = end(ProbabilityFlow(), 1000)
    first, second = (float((end(sampler, steps) - exact).norm(dim=1).mean()) for steps in (32, 64))
    return math.log2(first / second)


def samples(sampler: Sampler) -> Tensor:
    """Return samples after 20 levels; Langevin dynamics makes 100 small steps at each."""
    truth, ladder = dataset(LAW), Geometric if isinstance(sampler, AnnealedLangevin) else Karras
    x = truth.sample(NUM, sigma=SIGMA_MAX, generator=random_stream(0, "starts"))
    return sampler(
        truth.score, x, ladder(SIGMA_MAX, SIGMA_MIN, 20).sigmas,
        generator=random_stream(0, "chains"),
    )  # fmt: skip


def sigma(sampler: Sampler) -> float:
    """Return the level at which p_sigma is as wide as the samples."""
    found = Width().details(samples(sampler), dataset(LAW), SIGMA_MIN)["sigma"]
    return math.nan if found is None else float(found)


def width(sampler: Sampler) -> float:
    """Return how many times as wide as the true modes those of the samples are."""
    return float(Width().details(samples(sampler), dataset(LAW), SIGMA_MIN)["width"])


def temperature(sampler: Sampler) -> float:
    """Return the variance of the samples in their modes over the true one."""
    return width(sampler) ** 2


LANGEVIN = {"step_size": 0.02, "steps_per_level": 100}
FAULTS: dict[str, tuple[Callable[[Sampler], float], Sampler, Sampler]] = {
    "a last step that leads nowhere": (sigma, ProbabilityFlow(), DummyLastStep()),
    "eps where 2 tau is meant": (
        temperature, AnnealedLangevin(**LANGEVIN), EpsilonForTwoTau(**LANGEVIN),
    ),
    "levels reversed": (width, AnnealedLangevin(**LANGEVIN), LevelsReversed(**LANGEVIN)),
    "levels shifted by one": (order, ProbabilityFlow(), LevelsShifted()),
    "a solver of order 2 that has order 1": (
        order, ProbabilityFlow(solver="heun"), HeunOfOrderOne(),
    ),
    "another last level": (sigma, ProbabilityFlow(), WrongLastSigma()),
}  # fmt: skip
"""By fault: the number that names it, the sampler without it, and the sampler with it."""


@torch.no_grad()
def main() -> None:
    """Print the table."""
    print("| fault | number that names it | without | with |\n|---|---|---|---|")
    for fault, (number, right, faulty) in FAULTS.items():
        print(f"| {fault} | {number.__name__} | {number(right):.2f} | {number(faulty):.2f} |")


if __name__ == "__main__":
    main()
