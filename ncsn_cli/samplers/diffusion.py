"""Samplers that step from each noise level to the next, so that x follows p_sigma all the way."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.samplers.base import Configured, Level, Memory, Step

_LONGEST = 1.25  # max ratio of a step to the step before, for extrapolating a parabola


@dataclass(frozen=True, config=STRICT)
class _Descent(Configured):
    """A sampler with a step from each level to the next."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level, without Langevin steps."""
        if bool((sigmas == 0).any()) or len(sigmas) < 2:
            raise ConfigError(
                "schedule: this sampler needs two levels or more, all above 0, as in"
                " schedule=geometric"
            )
        return [Level(sigma, 0.0, 0) for sigma in sigmas.tolist()]


@dataclass(frozen=True, config=STRICT)
class ReverseDiffusion(_Descent):
    """The reverse variance-exploding diffusion, by Euler-Maruyama steps in the time sigma^2.

        x  <-  x + (sigma_i^2 - sigma_{i+1}^2) score(x, sigma_i)
                 + sqrt(sigma_i^2 - sigma_{i+1}^2) z

    With ``denoise`` a last step without noise leads to sigma = 0.

    Source: Song et al. (2021), arXiv:2011.13456, eq. 46 and appendix E ("reverse diffusion").
    """

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after an Euler-Maruyama step."""
        change = step.sigma**2 - step.next_sigma**2
        noise = change.sqrt() * step.noise_like(x)
        return x + change * step.score(x, step.sigma) + noise, memory


@dataclass(frozen=True, config=STRICT)
class PredictorCorrector(ReverseDiffusion):
    """Reverse diffusion between levels, Langevin steps with tau = 2 (snr sigma)^2 at each level.

    Langevin steps are made at sigma_max too. The source makes none there, because it corrects only
    predicted points.

    Source: Song et al. (2021), arXiv:2011.13456, algorithms 2 and 4. There the step size is
    2 (snr ||z||/||score||)^2 with norms averaged over the batch, which couples the chains. Here
    the norms have their value on N(0, sigma^2 I), so that chains stay independent: eta = 2 snr^2.

    Args:
        denoise: See ``Sampler``.
        snr: The paper's signal-to-noise ratio r > 0; the paper uses .16.
        corrector_steps: Number M >= 1 of Langevin steps at each level, sigma_max included.
    """

    snr: PositiveFloat = 0.16
    corrector_steps: Count = 1

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, 2 (snr sigma_i)^2, M) for every level."""
        return [
            Level(sigma, 2 * (self.snr * sigma) ** 2, self.corrector_steps)
            for sigma, *_ in super().levels(sigmas)
        ]


@dataclass(frozen=True, config=STRICT)
class ProbabilityFlow(_Descent):
    """The ordinary differential equation dx/dsigma = -sigma score(x, sigma), from level to level.

    The flow carries p_sigma_max to p_sigma_min without noise. With ``denoise`` an Euler step
    continues to sigma = 0. With the posterior mean d = x + sigma^2 score the equation is
    dx/dlog sigma = x - d, and so, without error in x,

        x_{i+1} = r x_i + integral from 0 to h of exp(u - h) d(u) du,   h = -log r,

    with r = sigma_{i+1}/sigma_i and u = log(sigma_i/sigma). ``multistep`` approximates d(u) by the
    parabola through the last three posterior means (an exponential Adams-Bashforth method). If a
    step is more than 1.25 times as long, in log sigma, as the step before, d(u) is approximated by
    a constant. Geometric levels and Karras's levels suit ``multistep``.

    Source: Song et al. (2021), arXiv:2011.13456, eq. 13; Karras et al. (2022), arXiv:2206.00364,
    algorithm 1 (Heun); Lu et al. (2022), arXiv:2211.01095, eq. 9 (the integral).

    Args:
        denoise: See ``Sampler``.
        solver: ``euler``, order 1, and ``multistep``, order 3, evaluate the score once per step.
            ``heun``, order 2, evaluates it twice.
        fit_levels: Whether ``ncsn-sample`` moves the levels between the first and the last to
            where the flow comes nearest to the exact flow.
    """

    solver: Literal["euler", "heun", "multistep"] = "multistep"
    fit_levels: bool = False

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after one step of the solver, and the posterior means for the next step."""
        if self.solver == "multistep":
            return self._multistep(step, x, memory)
        change = step.next_sigma - step.sigma
        slope = -step.sigma * step.score(x, step.sigma)
        euler = x + change * slope
        if self.solver == "euler":
            return euler, memory
        slope_there = -step.next_sigma * step.score(euler, step.next_sigma)
        return x + change * (slope + slope_there) / 2, memory

    def _multistep(self, step: Step, x: Tensor, past: Memory) -> tuple[Tensor, Memory]:
        """Return x after one step, and the posterior means that the next step uses.

        ``past`` holds the posterior means (B, D) of the levels before, the newest first. It is
        empty at the first step. It has one entry if the previous step used no slope, in which case
        this step adds the missing part. Otherwise it has two entries.
        """
        log_sigma = math.log(step.sigma)
        h = log_sigma - math.log(step.next_sigma)
        r = math.exp(-h)
        # Integrals of exp(u - h) u^j over the step, j = 0, 1, 2.
        phi_0 = 1 - r
        phi_1 = h - phi_0
        phi_2 = h**2 - 2 * phi_1
        mean = x + step.sigma**2 * step.score(x, step.sigma)  # (B, D)
        if not past:
            return r * x + phi_0 * mean, (mean,)
        # Newton's form of the polynomial through u = 0, -a, -b.
        a = math.log(step.sigmas[step.index - 1]) - log_sigma
        slope = (mean - past[0]) / a
        if len(past) == 1:
            x = x + (a - (1 - math.exp(-a))) * slope
        moved = r * x + phi_0 * mean
        if h > _LONGEST * a:
            return moved, (mean,)
        moved = moved + phi_1 * slope
        if len(past) == 2:
            b = math.log(step.sigmas[step.index - 2]) - log_sigma
            earlier_slope = (past[0] - past[1]) / (b - a)
            moved = moved + (phi_2 + a * phi_1) * (slope - earlier_slope) / b
        return moved, (mean, past[0])


@dataclass(frozen=True, config=STRICT)
class ConsistentAnnealed(_Descent):
    """One step per level that keeps the variance sigma_i^2 around each data point exactly.

        x  <-  x + eta sigma_i^2 score(x, sigma_i) + sqrt(sigma_{i+1}^2 - (1 - eta)^2 sigma_i^2) z

    On a point mass x has the variance sigma_i^2 at every level, whereas annealed Langevin dynamics
    keeps part of the noise of the previous level. To make more steps, use more levels.

    Source: Jolicoeur-Martineau et al. (2020), arXiv:2009.05475, algorithm 2, where the noise is
    beta sigma_{i+1} and epsilon = eta sigma_L^2.

    Args:
        denoise: See ``Sampler``.
        eta: tau_i/sigma_i^2, with 1 - gamma <= eta <= 1 + gamma for every ratio
            gamma = sigma_{i+1}/sigma_i. With eta = 1 a step goes to the posterior mean and adds
            fresh noise. With eta = 1 - gamma it is an Euler step of the probability flow. ``auto``
            is 1 - gamma^2 at each level, the ancestral sampling of Song et al. (2021),
            arXiv:2011.13456, eq. 47.
    """

    eta: PositiveFloat | Literal["auto"] = "auto"

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, eta sigma_i^2, 0) for every level, with tau = 0 at the last."""
        levels = super().levels(sigmas)
        ratios = sigmas[1:] / sigmas[:-1]
        smallest = float(ratios.min())
        if self.eta != "auto" and abs(1 - self.eta) > smallest:
            raise ConfigError(
                f"sampler.eta: with neighbouring levels in the ratio {smallest:.3g} it should lie"
                f" between {1 - smallest:.3g} and {1 + smallest:.3g}, got {self.eta:g}"
            )
        taus = [
            self._eta(ratio) * level.sigma**2 for ratio, level in zip(ratios, levels, strict=False)
        ]
        return [
            Level(level.sigma, tau, 0) for level, tau in zip(levels, [*taus, 0.0], strict=True)
        ]

    def _eta(self, ratio: Tensor) -> float:
        return float(1 - ratio**2) if self.eta == "auto" else self.eta

    def step_down(self, step: Step, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return x after the level's one step."""
        sigma, next_sigma = step.sigma, step.next_sigma
        eta = self._eta(next_sigma / sigma)
        variance = next_sigma**2 - ((1 - eta) * sigma) ** 2
        noise = variance.clamp(min=0).sqrt() * step.noise_like(x)
        return x + eta * sigma**2 * step.score(x, sigma) + noise, memory
