"""Samplers: chains that move points towards p_sigma by a score alone, and where they start.

Every Langevin step here is written

    x  <-  x + tau * score(x, sigma) + sqrt(2 tau) z,      z ~ N(0, I),

as in Song & Ermon (2020). The 2019 paper writes x + (eps/2) score + sqrt(eps) z: eps = 2 tau.
What decides stability is eta = tau / sigma^2: on N(0, sigma^2) a chain is stable for eta < 2 and
its stationary variance is sigma^2 / (1 - eta/2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from scipy.optimize import minimize_scalar
from torch import Tensor

from ncsn_cli.scores import STRICT, ConfigError, Dataset, Score

__all__ = [
    "AnnealedLangevin",
    "ConstantStepLangevin",
    "Data",
    "Langevin",
    "Normal",
    "Prior",
    "Uniform",
]


class Sampler(ABC):
    """A Markov chain through noise levels; the base class owns the loop."""

    @abstractmethod
    def levels(self, sigmas: Tensor) -> list[tuple[float, float, int]]:
        """The plan: (sigma, tau, steps) of each level visited, from the schedule's ``sigmas``."""

    @property
    def final_denoising(self) -> bool:
        """Whether the chain ends with x + sigma^2 score, which is no random step."""
        return False

    def num_steps(self, sigmas: Tensor) -> int:
        """Number of states that ``chain`` yields, each after one evaluation of the score."""
        return sum(steps for _, _, steps in self.levels(sigmas)) + self.final_denoising

    def chain(
        self, score: Score, x: Tensor, sigmas: Tensor, *, generator: torch.Generator
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (level, x) after every step, from initial points ``x`` (B, D).

        ``sigmas`` (L,) descend; ``level`` counts the rows of ``levels(sigmas)``.
        """
        plan = self.levels(sigmas)
        for level, (sigma, tau, steps) in enumerate(plan):
            noise_level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
            for _ in range(steps):
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + tau * score(x, noise_level) + math.sqrt(2 * tau) * z
                yield level, x
        if self.final_denoising:
            yield level, x + sigma**2 * score(x, noise_level)

    def __call__(
        self, score: Score, x: Tensor, sigmas: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Samples (B, D): the last state of ``chain``."""
        for _, state in self.chain(score, x, sigmas, generator=generator):
            x = state
        return x


@dataclass(frozen=True, config=STRICT)
class Langevin(Sampler):
    """Unadjusted Langevin dynamics at the last, smallest level: no annealing.

    Source: Song & Ermon (2019), arXiv:1907.05600, eq. 4, where eps = 2 step_size.

    Args:
        step_size: tau > 0, data units squared.
        steps: Number of steps.
    """

    step_size: PositiveFloat
    steps: PositiveInt

    def levels(self, sigmas: Tensor) -> list[tuple[float, float, int]]:
        """One level: (sigma_L, tau, steps)."""
        return [(float(sigmas[-1]), self.step_size, self.steps)]


@dataclass(frozen=True, config=STRICT)
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics, with tau_i = step_size (sigma_i / sigma_min)^2.

    eta_i = tau_i / sigma_i^2 is then the same at every level.

    Source: Song & Ermon (2020), arXiv:2006.09011, Algorithm 1. (In the 2019 paper's Algorithm 1
    eps = 2 step_size.)

    Args:
        step_size: tau at the smallest level, > 0, data units squared; ``auto`` is Technique 4 of
            the 2020 paper, see ``technique_4``.
        steps_per_level: T >= 1.
        denoise: Whether to end with the posterior mean x + sigma_min^2 score (Tweedie).
    """

    step_size: PositiveFloat | Literal["auto"]
    steps_per_level: PositiveInt
    denoise: bool

    @property
    def final_denoising(self) -> bool:
        """Whether ``denoise`` is set."""
        return self.denoise

    def levels(self, sigmas: Tensor) -> list[tuple[float, float, int]]:
        """(sigma_i, tau_i, T) for every level."""
        sigma_min = float(sigmas[-1])
        if sigma_min == 0:
            raise ConfigError(
                "schedule: sampler=annealed_langevin needs every sigma above 0, as in"
                " schedule=geometric"
            )
        step_size = self.step_size
        if step_size == "auto":
            step_size = technique_4(sigmas, self.steps_per_level)
        return [
            (sigma, step_size * (sigma / sigma_min) ** 2, self.steps_per_level)
            for sigma in sigmas.tolist()
        ]


@dataclass(frozen=True, config=STRICT)
class ConstantStepLangevin(Sampler):
    """Langevin dynamics through all levels with one tau for all of them.

    Source: rmsrosa, Random notes, "Multiple denoising score matching". eta_i = tau/sigma_i^2
    grows as the levels fall, and early levels move little for their width.

    Args:
        step_size: tau > 0, data units squared.
        steps_per_level: T >= 1.
    """

    step_size: PositiveFloat
    steps_per_level: PositiveInt

    def levels(self, sigmas: Tensor) -> list[tuple[float, float, int]]:
        """(sigma_i, tau, T) for every level."""
        return [(sigma, self.step_size, self.steps_per_level) for sigma in sigmas.tolist()]


def technique_4(sigmas: Tensor, steps_per_level: int) -> float:
    """The step size that best keeps the variance of annealed Langevin dynamics.

    On a point mass a chain that enters the last level with variance sigma_{L-1}^2 leaves it with
    f(tau) sigma_L^2, where

        f(tau) = (1 - eta)^(2T) (gamma^2 - v) + v,   v = 1/(1 - eta/2),   eta = tau/sigma_L^2,

    and gamma = sigma_{L-1}/sigma_L; the tau with f nearest 1 is returned, in data units squared.
    (f > 1 throughout, so this is its minimum.)

    Source: Song & Ermon (2020), arXiv:2006.09011, section 3.4, Technique 4: their epsilon is tau.

    Raises:
        ConfigError: If there is one level only.
    """
    if len(sigmas) < 2:
        raise ConfigError("sampler.step_size: auto needs at least two noise levels; give a number")
    gamma, sigma_min = float(sigmas[-2] / sigmas[-1]), float(sigmas[-1])

    def variance_ratio(log_eta: float) -> float:
        eta = math.exp(log_eta)
        stationary = 1 / (1 - eta / 2)
        return (1 - eta) ** (2 * steps_per_level) * (gamma**2 - stationary) + stationary

    best = minimize_scalar(
        variance_ratio, bounds=(math.log(1e-9), 0.0), method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(best.x) * sigma_min**2


class Init(ABC):
    """Where chains start."""

    @abstractmethod
    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Initial points (num, D), float32, on the generator's device."""


@dataclass(frozen=True, config=STRICT)
class Normal(Init):
    """N(0, std^2 I).

    Args:
        std: > 0, data units.
    """

    std: PositiveFloat

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Initial points (num, D), float32, on the generator's device."""
        z = torch.randn(num, truth.dim, generator=generator, device=generator.device)
        return self.std * z


@dataclass(frozen=True, config=STRICT)
class Uniform(Init):
    """Uniform on the cube [low, high]^D.

    Args:
        low: Lower bound, data units.
        high: Upper bound, above ``low``.
    """

    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Initial points (num, D), float32, on the generator's device."""
        u = torch.rand(num, truth.dim, generator=generator, device=generator.device)
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, config=STRICT)
class Prior(Init):
    """The Gaussian N(E[x], Cov[x] + sigma_max^2 I) with the moments of p_sigma_max itself.

    A zero-mean prior, as usual for the variance-exploding process, biases the mode weights
    unless sigma_max is far larger than the data.
    """

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Initial points (num, D), float32, on the generator's device."""
        z = torch.randn(num, truth.dim, generator=generator, device=generator.device)
        covariance = truth.covariance + sigma_max**2 * torch.eye(truth.dim).double()
        variances, rotation = torch.linalg.eigh(covariance)
        root = rotation * variances.clamp(min=0).sqrt()  # root root^T = covariance
        return truth.mean.to(z) + z @ root.T.to(z)


@dataclass(frozen=True, config=STRICT)
class Data(Init):
    """Exact draws from p_sigma, the ideal start.

    Args:
        sigma: >= 0, data units; null takes the schedule's sigma_max.
    """

    sigma: Annotated[float, Field(ge=0)] | None

    def __call__(
        self, num: int, truth: Dataset, sigma_max: float, generator: torch.Generator
    ) -> Tensor:
        """Initial points (num, D), float32, on the generator's device."""
        sigma = sigma_max if self.sigma is None else self.sigma
        return truth.sample(num, sigma=sigma, generator=generator)
