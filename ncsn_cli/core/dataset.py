"""Distributions to learn: known exactly at every noise level, or by their draws alone.

Shapes: B points, D dimensions, K modes or mixture components.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ncsn_cli.core.errors import UnknownTruthError
from ncsn_cli.core.expectation import (
    FisherInformation,
    ModeMoments,
    StratifiedDraws,
    fisher_by_draws,
    moments_by_draws,
    nearest_centre,
)
from ncsn_cli.core.settings import NUM_DRAWS, random_stream


class Law(ABC):
    """A distribution for every level sigma, against which samples are measured.

    Every ``Dataset`` is a law. So is the distribution of its draws after a denoising step.
    Moments are float64. A law may keep them as attributes or compute them as properties.

    Attributes:
        is_known: Whether density, score and modes are known. If not, only draws are: what needs
            more raises ``UnknownTruthError``.
        has_cdf: Whether there are ``cdf`` and ``integrated_cdf``, for D = 1. If not, samples are
            compared with draws.
        dim: D.
        mean: E[x], (D,), at every level.
        modes: Centres of the modes, (K, D).
        origin: Offset to add to this law's coordinates to get data units, (D,). It is 0, except
            for the distribution that ``Dataset.centred`` returns.
    """

    is_known: bool = True
    has_cdf: bool = False
    dim: int
    mean: Tensor
    modes: Tensor

    @property
    def origin(self) -> Tensor:
        """Return 0 (D,), the origin of a law that was not moved."""
        return torch.zeros(self.dim, dtype=torch.float64)

    @abstractmethod
    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws at level sigma, (num, D), float32.

        They are on the generator's device.
        """

    @abstractmethod
    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Return Cov[x] at level sigma, (D, D)."""

    def training_set(self, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the training set (N, D) on the CPU; None if there is none.

        With a generator, draw another one of the same size.
        """
        return None

    def mean_error(self) -> Tensor:
        """Return the standard errors of ``mean``, (D,)."""
        return torch.zeros(self.dim, dtype=torch.float64)

    def covariance_error(self, sigma: float) -> Tensor:
        """Return the standard errors of ``perturbed_covariance``, (D, D)."""
        return torch.zeros(self.dim, self.dim, dtype=torch.float64)

    @abstractmethod
    def strata(self, num: int, sigma: float, generator: torch.Generator) -> StratifiedDraws:
        """Return draws from each part of the law, in total ``num`` or a few more."""

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return shares and moments of the points nearest to each mode at level sigma."""
        stream = random_stream(0, "mode moments")
        return moments_by_draws(self.modes, self.strata(NUM_DRAWS, sigma, stream))

    def nearest_mode(self, x: Tensor) -> Tensor:
        """Return, for each of the points (B, D), the mode whose centre is nearest, (B,)."""
        return nearest_centre(x, self.modes)

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return P(X <= x) at level sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return E[max(x - X, 0)] at level sigma, for D = 1; ``x`` of any shape."""
        raise NotImplementedError

    def projected_cdf(self, direction: Tensor, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Return nodes (G,) that resolve the law of <v, x>, and P(<v, x> <= node) (G,).

        Return None where this law has no closed form. ``direction`` is v (D,), float64.
        """
        return None


class Dataset(Law):
    """A distribution p on R^D, with every p_sigma = p * N(0, sigma^2 I).

    A class of your own writes ``sample(num, *, generator)`` alone if nothing but draws of p is
    known: ``datasets.Sampled`` then gets the rest from draws. If p is known exactly at every
    level, it writes ``has_density``, ``log_prob``, ``score``, ``posterior``, a ``sample`` that
    takes ``sigma`` too, and the attributes below.

    Functions of points return the points' dtype. All other results are float64, except the draws
    of ``sample``, which are float32. A subclass of a finished dataset changes its attributes after
    ``super().__init__()``.

    Attributes:
        covariance: Cov[x], (D, D).
        weights: Weights of the K modes, (K,).
        extent: The box that pictures show: lower and upper corner, both (D,).
        smallest_std: Standard deviation of the narrowest component along its narrowest axis, data
            units; 0 for a point, None if it is not known.

    Args:
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.
    """

    covariance: Tensor
    weights: Tensor
    extent: tuple[Tensor, Tensor]
    smallest_std: float | None
    num_samples: int | None = None
    seed: int = 0

    def __init__(self, num_samples: int | None = None, seed: int = 0) -> None:
        self.num_samples = num_samples
        self.seed = seed

    @property
    def truth(self) -> Dataset:
        """The distribution against which numbers are measured.

        It is the dataset itself, except where ``score`` is wrong on purpose.
        """
        return self

    def centred(self) -> Dataset:
        """Return this distribution in coordinates around its mean, with the mean as ``origin``.

        In these coordinates float32 resolves the data, however far from 0 they are. A subclass
        that cannot be moved returns itself.
        """
        return self

    @property
    def within_covariance(self) -> Tensor | None:
        """Mean covariance of the components, (D, D); None if the law has no components."""
        return None

    @property
    def num_components(self) -> int:
        """Number of terms of the density, which decides memory and time."""
        return len(self.weights)

    def has_density(self, sigma: float) -> bool:
        """Return whether p_sigma has a density, and therefore a score."""
        return False

    def strata(self, num: int, sigma: float, generator: torch.Generator) -> StratifiedDraws:
        """Return ``num`` draws from p_sigma as one part, whose probability is 1."""
        x = self.sample(num, sigma=sigma, generator=generator).double()
        return StratifiedDraws(
            x.new_ones(1), torch.zeros(num, dtype=torch.int64, device=x.device), x
        )

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        raise UnknownTruthError("dataset: its density is not known, only its draws")

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log p_sigma(x), (B, D), units 1/length.

        ``x`` (B, D), ``sigma`` () or (B,).
        """
        raise UnknownTruthError("dataset: its score is not known, only its draws")

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return P(mode | x) at level sigma, (B, K)."""
        raise UnknownTruthError("dataset: its modes are not known, only its draws")

    def fisher(self, sigma: float) -> FisherInformation:
        """Return the Fisher information E[s s^T] of p_sigma and its standard error.

        It is estimated from draws, unless a subclass has a better way.
        """
        stream = random_stream(0, "fisher")

        def squares(_: Tensor, x: Tensor) -> Tensor:
            score = self.score(x, sigma)
            return score[:, :, None] * score[:, None]  # (n, D, D)

        return fisher_by_draws(
            lambda num: self.strata(num, sigma, stream),
            squares,
            num_terms=self.num_components * self.dim**2,
            known=torch.zeros(self.dim, self.dim, dtype=torch.float64),
        )

    def fisher_information(self, sigma: float) -> float:
        """Return I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2."""
        return float(self.fisher(sigma).matrix.trace())

    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Return Cov[x] + sigma^2 I, the covariance of p_sigma, (D, D), float64."""
        return self.covariance + sigma**2 * torch.eye(self.dim).double()

    def training_set(self, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the training set, ``num_samples`` points (N, D) on the CPU; None if endless.

        With a generator, draw another one of the same size.
        """
        if self.num_samples is None:
            return None
        stream = generator or random_stream(self.seed, "training set")
        return self.sample(self.num_samples, generator=stream)
