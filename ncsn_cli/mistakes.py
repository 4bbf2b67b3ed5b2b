"""Known bugs of other programs, each in a class that differs from the correct one only by its bug.

They are here on purpose: ``experiment=bug_...`` runs them. The README says where each was seen and
which number exposes it. Do not use them for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.losses import Denoising, Implicit, Perturbed
from ncsn_cli.samplers import AnnealedLangevin, Level, Step

__all__ = [
    "LevelsReversed",
    "LinearSteps",
    "NoiseNotAnnealed",
    "SigmaReplaced",
    "SignFlipped",
    "TraceOverDim",
]


@dataclass(frozen=True, config=STRICT)
class NoiseNotAnnealed(AnnealedLangevin):
    """x + tau_i score + sqrt(2 tau_L) z: the drift grows with the level, the noise does not.

    At the first levels, chains then climb the density almost without noise. All of them end in
    the mode with the highest density.
    """

    step_size: PositiveFloat = 0.01

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield x after each step; the score is scaled up where the noise is not."""

        def drift(x: Tensor, sigma: Tensor) -> Tensor:
            return step.tau / self.step_size * step.score(x, sigma)

        return super().langevin(replace(step, score=drift, tau=self.step_size), x)


@dataclass(frozen=True, config=STRICT)
class LinearSteps(AnnealedLangevin):
    """tau_i = step_size sigma_i/sigma_min, without the square: early levels hardly move."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, tau_i, T) for every level."""
        levels = super().levels(sigmas)
        return [level._replace(tau=level.tau * levels[-1].sigma / level.sigma) for level in levels]


@dataclass(frozen=True, config=STRICT)
class LevelsReversed(AnnealedLangevin):
    """Levels go from sigma_min up to sigma_max, so chains end as wide as the widest level."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return (sigma_i, tau_i, T) for every level, ascending."""
        return super().levels(sigmas)[::-1]


class SigmaReplaced(GaussianMixture):
    """A mixture whose score takes sigma as the modes' whole width, instead of adding variances."""

    @property
    def truth(self) -> GaussianMixture:
        """The same mixture with its correct score."""
        return GaussianMixture(
            self._weights.tolist(),
            self._means.tolist(),
            covariances=self._covariances(0.0).tolist(),
            num_samples=self.num_samples,
            seed=self.seed,
        )

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log of sum_k w_k N(x; mu_k, sigma^2 I), (B, D)."""
        points = GaussianMixture(self.weights.tolist(), self.modes.tolist(), stds=0.0)
        return points.score(x, sigma)


@dataclass(frozen=True, config=STRICT)
class SignFlipped(Denoising):
    """||s - z/sigma||^2 instead of ||s + z/sigma||^2: the network learns -grad log p_sigma."""

    floor, weight = Denoising.floor, Denoising.weight  # those of the loss that was meant

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda/2 ||s - z/sigma||^2, (P,)."""
        return super().term(score, perturbed._replace(z=-perturbed.z))


@dataclass(frozen=True, config=STRICT)
class TraceOverDim(Implicit):
    """||s||^2/2 + tr(grad s)/D: the network learns the score divided by D."""

    def _divergence(self, diagonal: Tensor) -> Tensor:
        return super()._divergence(diagonal) / diagonal.shape[-1]
