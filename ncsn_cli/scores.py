"""What every module shares: the score's interface, strict settings, random streams, errors.

Shapes: B points, D dimensions, K mixture components, L noise levels.
"""

from __future__ import annotations

import hashlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(x, sigma)``: grad_x log p_sigma(x), units 1/length; x (B, D), sigma () or (B,).

The exact mixture and the network share it, so each sampler, metric and plot takes either.
"""


def derivative_along(v: Tensor, score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """S and (grad s) v, both (B, D), in one forward differentiation; ``v`` and ``x`` (B, D)."""
    result: Any = torch.func.jvp(lambda points: score(points, sigma), (x,), (v,))
    return result[0], result[1]


def score_and_jacobian(score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """S (B, D) and d_j s_i (B, i, j), by forward differentiation along each axis."""
    columns = []
    for axis in range(x.shape[-1]):
        tangent = torch.zeros_like(x)
        tangent[:, axis] = 1
        s, along = derivative_along(tangent, score, x, sigma)
        columns.append(along)
    return s, torch.stack(columns, dim=-1)


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Pydantic's rules for every constructor; by default it accepts unknown keys, nan and True."""


def random_stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for ``seed`` and ``name``; those of different names are independent."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


class Dataset(ABC):
    """A distribution p on R^D known exactly, with every p_sigma = p * N(0, sigma^2 I).

    Moments and densities are float64 or, where points are given, like the points.

    Args:
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    dim: int

    def __init__(self, num_samples: int | None, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x], (D,)."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[x], (D, D)."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Weights of the K modes, (K,)."""

    @property
    @abstractmethod
    def modes(self) -> Tensor:
        """Centres of the modes, (K, D)."""

    @property
    @abstractmethod
    def extent(self) -> tuple[Tensor, Tensor]:
        """The box that pictures show: lower and upper corner, (D,)."""

    @property
    @abstractmethod
    def smallest_std(self) -> float:
        """Standard deviation of the narrowest component along its narrowest axis, data units.

        0 for a point.
        """

    @abstractmethod
    def has_density(self, sigma: float) -> bool:
        """Whether p_sigma has one, and so a score."""

    @abstractmethod
    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Independent draws from p_sigma, (num, D), float32, on the generator's device."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Grad log p_sigma(x), (B, D), units 1/length; ``x`` (B, D), ``sigma`` () or (B,)."""

    @abstractmethod
    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """P(mode | x) at level sigma, (B, K)."""

    @abstractmethod
    def fisher_information(self, sigma: float) -> float:
        """I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2."""

    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Cov[x] + sigma^2 I under p_sigma, (D, D), float64."""
        return self.covariance + sigma**2 * torch.eye(self.dim).double()

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """P(X <= x) under p_sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """E[max(x - X, 0)] under p_sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def training_set(self) -> Tensor | None:
        """The ``num_samples`` points (N, D) of the training set on the CPU; None if endless."""
        if self.num_samples is None:
            return None
        return self.sample(self.num_samples, generator=random_stream(self.seed, "training set"))


class NcsnError(Exception):
    """An error that a user can mend; ``exit_code`` is the command's."""

    exit_code = 1


class ConfigError(NcsnError):
    """A wrong value in the configuration."""

    exit_code = 2


class DivergedError(NcsnError):
    """A number that should be finite is not."""

    exit_code = 3


class BadCheckpointError(NcsnError):
    """A file that is no checkpoint of this package, or a damaged one."""

    exit_code = 65


class MissingInputError(NcsnError):
    """An input file or folder that is not there."""

    exit_code = 66


class OutputExistsError(NcsnError):
    """The output folder holds another run, which is never overwritten."""

    exit_code = 73


class InterruptedRun(KeyboardInterrupt):
    """A signal ended the run; ``exit_code`` is 128 + its number, 85 for SIGUSR1 (start me again).

    Not an ``Exception``, so that a sweep stops too instead of going on with its next job.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 85 if signal_number == signal.SIGUSR1 else 128 + signal_number


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The arrays that pictures show, all on one grid of G points, at M of the levels.

    Args:
        dim: D.
        axes: The grid's axes, one of length G for D = 1, two for D = 2 (then G is their product,
            the second axis the faster).
        modes: Centres of the modes (K, D).
        sigmas: The levels shown (M,), descending.
        clean_density: p on the grid (G,); None where it does not exist.
        densities: p_sigma on the grid (M, G).
        true_scores: grad log p_sigma on the grid (M, G, D).
        scores: The learned score on the grid (M, G, D); None where there is none.
        score_name: What to call it.
        data: Training points (N, D) or, if endless, as many draws; None in sampling.
        history: Columns of ``history.csv`` by name; None in sampling.
        loss_floor: The loss of the true score.
        samples: Samples (N, D); None in training.
        exact: As many exact draws from p_sigma_min (N, D).
        paths: Chains over time (frames, chains, D), the first frame their start.
        level_sigmas: The levels that the sampler visited (V,).
        committed: Share of chains that never change mode after each of them (V,).
        mode_shares: Share of chains in each mode after each of them (V, K); empty for many modes.
        path_steps: The step of each frame (frames,).
        path_sigmas: The level of each frame (frames,).
        path_densities: p_sigma on the grid for each frame (frames, G).
    """

    dim: int
    axes: tuple[NDArray[np.float64], ...]
    modes: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    clean_density: NDArray[np.float64] | None
    densities: NDArray[np.float64]
    true_scores: NDArray[np.float64]
    scores: NDArray[np.float64] | None = None
    score_name: str = "learned"
    data: NDArray[np.float32] | None = None
    history: dict[str, NDArray[np.float64]] | None = None
    loss_floor: float | None = None
    samples: NDArray[np.float32] | None = None
    exact: NDArray[np.float32] | None = None
    paths: NDArray[np.float32] | None = None
    level_sigmas: NDArray[np.float64] | None = None
    committed: NDArray[np.float64] | None = None
    mode_shares: NDArray[np.float64] | None = None
    path_steps: NDArray[np.int64] | None = None
    path_sigmas: NDArray[np.float64] | None = None
    path_densities: NDArray[np.float64] | None = None
