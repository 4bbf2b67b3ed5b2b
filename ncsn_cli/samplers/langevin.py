"""Langevin dynamics: at one level, annealed, or with a Metropolis test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.samplers.base import Configured, Level, Step


@dataclass(frozen=True, config=STRICT)
class Langevin(Configured):
    """Unadjusted Langevin dynamics at the last, smallest level: no annealing.

    Source: Song & Ermon (2019), arXiv:1907.05600, eq. 4, where eps = 2 step_size.

    Args:
        denoise: See ``Sampler``.
        step_size: tau > 0, data units squared.
        steps: Number of steps.
    """

    step_size: PositiveFloat = 0.01
    steps: Count = 1000

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return the only level: (sigma_L, tau, steps)."""
        return [Level(float(sigmas[-1]), self.step_size, self.steps)]


@dataclass(frozen=True, config=STRICT)
class AnnealedLangevin(Configured):
    """Annealed Langevin dynamics, with tau_i = step_size (sigma_i / sigma_min)^2.

    eta_i = tau_i / sigma_i^2 is then the same at every level.

    Source: Song & Ermon (2020), arXiv:2006.09011, Algorithm 1. (In the 2019 paper's Algorithm 1
    eps = 2 step_size.)

    Args:
        denoise: See ``Sampler``.
        step_size: tau at the smallest level, > 0, data units squared; ``auto`` is Technique 4 of
            Song & Ermon (2020).
        steps_per_level: T >= 1.
    """

    step_size: PositiveFloat | Literal["auto"] = "auto"
    steps_per_level: Count = 100

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, tau_i, T) for every level."""
        sigma_min = float(sigmas[-1])
        if sigma_min == 0:
            raise ConfigError(
                "schedule: annealing needs every sigma above 0, as in schedule=geometric"
            )
        step_size = self.step_size
        if step_size == "auto":
            step_size = technique_4(sigmas, self.steps_per_level)
        return [
            Level(sigma, step_size * (sigma / sigma_min) ** 2, self.steps_per_level)
            for sigma in sigmas.tolist()
        ]


@dataclass(frozen=True, config=STRICT)
class AnnealedMALA(AnnealedLangevin):
    """Annealed Langevin dynamics with a Metropolis test, which leaves every p_sigma_i invariant.

    The Langevin step x -> y is accepted with probability

        min(1, p_sigma(y) q(x | y) / (p_sigma(x) q(y | x)))

    where q(y | x) is the density at y of N(x + tau score(x), 2 tau I). So the step size costs
    acceptance, not accuracy. The sampler needs log p_sigma up to a constant, either exact or as
    minus the energy of an ``EnergyMLP``.

    Source: Roberts & Tweedie (1996), doi:10.2307/3318418, section 1.4.2 (one level).

    Args:
        denoise: See ``Sampler``.
        step_size: See ``AnnealedLangevin``.
        steps_per_level: T >= 1.
    """

    step_size: PositiveFloat | Literal["auto"] = 0.005

    needs_log_prob: ClassVar[bool] = True

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield x and the share of accepted proposals after each Langevin step at one level."""
        here = Place.at(x, step)
        for _ in range(step.num):
            z = step.noise_like(x)
            there = Place.at(here.proposal(z, step.tau), step)
            log_ratio = here.log_ratio(there, z, step.tau)  # (B,)
            u = torch.empty_like(log_ratio).uniform_(generator=step.generator)
            accepted = u.log() < log_ratio
            here = Place(
                torch.where(accepted[:, None], there.x, here.x),
                torch.where(accepted[:, None], there.drift, here.drift),
                torch.where(accepted, there.log_density, here.log_density),
            )
            yield here.x, float(accepted.double().mean())


class Place(NamedTuple):
    """Points, and what the Metropolis test needs to know there.

    Args:
        x: The points (B, D).
        drift: tau score(x), (B, D).
        log_density: log p_sigma(x) up to a constant (B,).
    """

    x: Tensor
    drift: Tensor
    log_density: Tensor

    @classmethod
    def at(cls, x: Tensor, step: Step) -> Place:
        """Return the place of the points ``x`` (B, D)."""
        assert step.log_prob is not None
        return cls(x, step.tau * step.score(x, step.sigma), step.log_prob(x, step.sigma))

    def proposal(self, z: Tensor, tau: float) -> Tensor:
        """Return y = x + drift + sqrt(2 tau) z, (B, D), from noise ``z`` (B, D)."""
        return self.x + self.drift + math.sqrt(2 * tau) * z

    def log_ratio(self, there: Place, z: Tensor, tau: float) -> Tensor:
        """Return log p_sigma(y) q(x | y) - log p_sigma(x) q(y | x), (B,), in nats.

        y are the points of ``there``, proposed from here by the noise ``z`` (B, D).
        """
        log_forward = -z.square().sum(-1) / 2  # log q(y | x), without its constant
        log_back = -(self.x - there.x - there.drift).square().sum(-1) / (4 * tau)
        return there.log_density + log_back - self.log_density - log_forward


@dataclass(frozen=True, config=STRICT)
class ConstantStepLangevin(Configured):
    """Langevin dynamics through all levels with one tau for all of them.

    Source: rmsrosa, Random notes, "Multiple denoising score matching". eta_i = tau/sigma_i^2
    grows as the levels fall, and x moves little at the early levels compared with their width.

    Args:
        denoise: See ``Sampler``.
        step_size: tau > 0, data units squared.
        steps_per_level: T >= 1.
    """

    step_size: PositiveFloat = 0.0125
    steps_per_level: Count = 50

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, tau, T) for every level."""
        return [Level(sigma, self.step_size, self.steps_per_level) for sigma in sigmas.tolist()]


def technique_4(sigmas: Tensor, steps_per_level: int) -> float:
    """Return the step size that ends the last level nearest to sigma_L, after an exact start.

    On a point mass a chain that enters the last level with variance sigma_{L-1}^2 leaves it with
    f(tau) sigma_L^2, where

        f(tau) = (1 - eta)^(2T) (gamma^2 - v) + v,   v = 1/(1 - eta/2),   eta = tau/sigma_L^2,

    and gamma = sigma_{L-1}/sigma_L. The tau with f nearest 1 is returned, in data units squared.
    (f > 1 throughout, so this tau minimises f.) Real chains enter the last level wider than that,
    because f > 1 at every level. If T is small, a longer step ends them nearer to sigma_L. For
    T = 1, sigma from 50 to .01 and L = 232, they end at 1.414 sigma_L with the returned tau, and
    at 1.125 sigma_L with tau = 2.67e-5.

    Source: Song & Ermon (2020), arXiv:2006.09011, section 3.4, Technique 4: their epsilon is tau.

    Raises:
        ConfigError: If there is only one level.
    """
    if len(sigmas) < 2:
        raise ConfigError("sampler.step_size: auto needs at least two noise levels; give a number")
    gamma, sigma_min = float(sigmas[-2] / sigmas[-1]), float(sigmas[-1])

    low, high = math.log(1e-9), 0.0
    for _ in range(5):  # keep the neighbours of the best of 1001, to 1e-9 at last
        log_etas = torch.linspace(low, high, 1001, dtype=torch.float64)
        etas = log_etas.exp()
        stationary = 1 / (1 - etas / 2)
        ratios = (1 - etas) ** (2 * steps_per_level) * (gamma**2 - stationary) + stationary
        best = int(ratios.argmin())
        low, high = float(log_etas[max(best - 1, 0)]), float(log_etas[min(best + 1, 1000)])
    return float(etas[best]) * sigma_min**2
