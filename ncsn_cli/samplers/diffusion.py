"""Samplers that step from each noise level to the next, so that x follows p_sigma all the way."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.samplers.base import Level, Sampler, Step, standard_normal

_LONGEST = 1.25  # max ratio of a step to the step before, for extrapolating a parabola


@dataclass(frozen=True, config=STRICT)
class _Descent(Sampler):
    """A sampler with a step from each level to the next."""

    descends: ClassVar[bool] = True

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

    def _to_next(
        self,
        score: Score,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        change = sigma**2 - next_sigma**2
        return x + change * score(x, sigma) + change.sqrt() * standard_normal(x, generator)


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

    snr: PositiveFloat
    corrector_steps: Count

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
    """

    solver: Literal["euler", "heun", "multistep"]

    @property
    def remembers(self) -> bool:
        """Whether a step depends on more than the previous state."""
        return self.solver == "multistep"

    def _descent(self) -> Step:
        if self.solver == "multistep":
            return partial(self._multistep, [])
        return self._to_next

    def _multistep(
        self,
        past: list[tuple[float, Tensor]],
        score: Score,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x after one step, and update ``past``.

        ``past`` holds log sigma and the posterior mean of previous steps, the newest first. It is
        empty at the first step. It has one entry if the previous step used no slope, in which case
        this step adds the missing part. Otherwise it has two entries.
        """
        log_sigma = math.log(sigma)
        h = log_sigma - math.log(next_sigma)
        r = math.exp(-h)
        # Integrals of exp(u - h) u^j over the step, j = 0, 1, 2.
        phi_0 = 1 - r
        phi_1 = h - phi_0
        phi_2 = h**2 - 2 * phi_1
        mean = x + sigma**2 * score(x, sigma)  # (B, D)
        if not past:
            past.append((log_sigma, mean))
            return r * x + phi_0 * mean
        # Newton's form of the polynomial through u = 0, -a, -b.
        a = past[0][0] - log_sigma
        slope = (mean - past[0][1]) / a
        if len(past) == 1:
            x = x + (a - (1 - math.exp(-a))) * slope
        step = r * x + phi_0 * mean
        if h > _LONGEST * a:
            past[:] = [(log_sigma, mean)]
            return step
        step = step + phi_1 * slope
        if len(past) == 2:
            b = past[1][0] - log_sigma
            earlier_slope = (past[0][1] - past[1][1]) / (b - a)
            step = step + (phi_2 + a * phi_1) * (slope - earlier_slope) / b
        past[:] = [(log_sigma, mean), past[0]]
        return step

    def _to_next(
        self,
        score: Score,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        step = next_sigma - sigma
        slope = -sigma * score(x, sigma)
        euler = x + step * slope
        if self.solver == "euler":
            return euler
        return x + step * (slope - next_sigma * score(euler, next_sigma)) / 2


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

    eta: PositiveFloat | Literal["auto"]

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

    def _to_next(
        self,
        score: Score,
        x: Tensor,
        sigma: Tensor,
        next_sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        eta = self._eta(next_sigma / sigma)
        variance = next_sigma**2 - ((1 - eta) * sigma) ** 2
        noise = variance.clamp(min=0).sqrt() * standard_normal(x, generator)
        return x + eta * sigma**2 * score(x, sigma) + noise
