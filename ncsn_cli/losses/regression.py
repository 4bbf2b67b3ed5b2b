"""Losses that compare the score with a target at each point; the target's mean is the score."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Literal, Self

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, UnknownTruthError
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.losses.base import Draws, Perturbed, Weighted, normal


class Regression(Weighted):
    """Squares of the distance to a target: lambda/2 E||s - target||^2, E[target | x] = score.

    The floor of such a loss is lambda/2 times the variance of its target,
    E||target - grad log p_sigma||^2. The smaller the variance, the fewer steps a training needs.
    """

    @abstractmethod
    def target(self, perturbed: Perturbed) -> Tensor:
        """Return the target of each perturbed point, (P, D), units 1/length."""

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda/2 ||s - target||^2, (P,)."""
        error = score(perturbed.x, perturbed.sigma) - self.target(perturbed)
        return self.weights(perturbed.sigma) * error.square().sum(-1) / 2

    def target_variance(self, sigma: float, dim: int, fisher_information: float) -> float | None:
        """Return sigma^2 E||target - grad log p_sigma||^2, without a unit, from D and I(p_sigma).

        Return None if the floor is not known.
        """
        lowest, weight = self.floor(sigma, dim, fisher_information), self.weight(sigma)
        return None if lowest is None or weight is None else 2 * sigma**2 * lowest / weight


@dataclass(frozen=True, config=STRICT)
class Denoising(Regression):
    r"""Denoising score matching at every noise level.

        1/L sum_i lambda(sigma_i)/2 E || s(x + sigma_i z, sigma_i) + z/sigma_i ||^2,   z ~ N(0, I)

    summed over dimensions. Its floor is lambda/2 (D/sigma^2 - I(p_sigma)), which is not 0: no
    network, however good, reaches 0.

    Source: Vincent (2011), doi:10.1162/NECO_a_00142, eq. 9; Song & Ermon (2019),
    arXiv:1907.05600, eq. 5 and 6 (weight_power = 2).

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
        noise: ``fresh`` draws z at every step; ``fixed`` draws z once for each training point and
            level.
    """

    noise: Literal["fresh", "fixed"] = "fresh"

    def target(self, perturbed: Perturbed) -> Tensor:
        """Return -z/sigma, (P, D)."""
        return -perturbed.z / perturbed.sigma[:, None]

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda/2 ||s + z/sigma||^2, (P,)."""
        x, sigma, z, *_ = perturbed
        residual = sigma[:, None] * score(x, sigma) + z  # sigma (s + z/sigma)
        return sigma ** (self.weight_power - 2) * residual.square().sum(-1) / 2

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return lambda/2 (D/sigma^2 - I(p_sigma))."""
        return self._lambda(sigma) / 2 * (dim / sigma**2 - fisher_information)

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at sigma = 0, where there is no noise to remove.

        Raise it also for fixed noise at continuous or lognormal levels.
        """
        super().check(sigmas)
        if bool((sigmas == 0).any()):
            raise ConfigError("schedule: loss=denoising needs every sigma above 0")
        if self.noise == "fixed" and self.levels not in ("all", "random"):
            raise ConfigError("loss.noise: fixed needs loss.levels=all or random")

    def fixed_noise(self, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return noise (N, L, D) drawn once if ``noise`` is ``fixed``, otherwise None."""
        if self.noise == "fresh":
            return None
        return normal((len(x), len(sigmas), x.shape[-1]), x, generator)


@dataclass(frozen=True, config=STRICT)
class Explicit(Regression):
    """Explicit score matching: lambda/2 E||s - grad log p_sigma||^2, from the exact score.

    Its floor is 0. Source: Hyvarinen (2005), JMLR 6:695-709, eq. 2.
    """

    def target(self, perturbed: Perturbed) -> Tensor:
        """Return grad log p_sigma, (P, D)."""
        assert perturbed.true_score is not None
        return perturbed.true_score(perturbed.x, perturbed.sigma)

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return 0."""
        return 0.0


class _OfData(Regression):
    """A loss whose target depends on the data themselves, not on the perturbed points alone."""

    def draw(
        self, x: Tensor, sigmas: Tensor, generator: torch.Generator, noise: Tensor | None = None
    ) -> Draws:
        """Draw all random numbers, with the data as v."""
        return super().draw(x, sigmas, generator, noise)._replace(v=x)


class _OfCleanData(_OfData):
    """A loss whose target holds the clean score grad log p(data), so that p has to have one.

    ``for_dataset`` finds I(p) = E||grad log p||^2, on which the floor depends.
    """

    _known: float | None = None

    def for_dataset(self, dataset: Dataset) -> Self:
        """Return this loss for ``dataset``, whose I(p) it then knows.

        Raises:
            ConfigError: If p has no score: only draws are known, or it has points or jumps.
        """
        try:
            information = dataset.fisher_information(0.0)
        except UnknownTruthError:
            reason = "of this dataset only draws are known"
        except ConfigError as error:
            reason = str(error).removeprefix("dataset: ").partition(";")[0]
        else:
            fitted = copy.copy(self)
            object.__setattr__(fitted, "_known", information)
            return fitted
        raise ConfigError(
            "loss: its target is the score of the clean data, and there is none here; choose"
            f" another loss, such as loss=denoising ({reason})"
        )

    @property
    def _information(self) -> float:
        """I(p), units 1/length^2."""
        if self._known is None:
            raise ConfigError("loss: it has to know I(p); take what loss.for_dataset returns")
        return self._known

    def _clean_score(self, perturbed: Perturbed) -> Tensor:
        """Return grad log p at the data point of each perturbed point, (P, D)."""
        assert perturbed.true_score is not None
        data = perturbed.v
        clean = perturbed.true_score(data, data.new_zeros(()))  # (B, D)
        return clean.repeat_interleave(len(perturbed.x) // len(data), 0)


@dataclass(frozen=True, config=STRICT)
class TargetScore(_OfCleanData):
    """Target score matching: the score of the clean data is the target at the noisy points.

        lambda/2 E||s(x + sigma z, sigma) - grad log p(x)||^2,   x ~ p

    Since E[grad log p(x) | x + sigma z] = grad log p_sigma, the true score minimises it. The
    floor is lambda/2 (I(p) - I(p_sigma)): small where sigma is small, as that of denoising is not,
    and large where sigma is large. It holds for fresh data. With a training set of n points, the
    network learns the mean of their clean scores under the posterior of the n points.

    Source: De Bortoli et al. (2024), arXiv:2402.08667, "Target score matching".

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
    """

    def target(self, perturbed: Perturbed) -> Tensor:
        """Return grad log p(data), (P, D)."""
        return self._clean_score(perturbed)

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return lambda/2 (I(p) - I(p_sigma))."""
        return self._lambda(sigma) / 2 * (self._information - fisher_information)


@dataclass(frozen=True, config=STRICT)
class ControlVariate(_OfCleanData):
    """The best mix of the targets of denoising and of target score matching, level by level.

        lambda/2 E||s(x + sigma z, sigma) - alpha grad log p(x) + (1 - alpha) z/sigma||^2
        alpha = (D/sigma^2)/(I(p) + D/sigma^2)

    Both targets have the score as their mean, and they are uncorrelated. So the variance of a mix
    is least for weights in the ratio of D/sigma^2 = E||z/sigma||^2 and I(p) = E||grad log p||^2.
    The floor is lambda/2 (1/(1/I(p) + sigma^2/D) - I(p_sigma)), less than that of either target.
    It holds for fresh data.

    Source: arXiv:2512.20003 (control variates for score matching).

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
    """

    def target(self, perturbed: Perturbed) -> Tensor:
        """Return alpha grad log p(data) - (1 - alpha) z/sigma, (P, D)."""
        sigma, dim = perturbed.sigma[:, None], perturbed.x.shape[-1]
        alpha = dim / (self._information * sigma**2 + dim)
        mix = self._information * sigma / (self._information * sigma**2 + dim)  # (1 - alpha)/sigma
        return alpha * self._clean_score(perturbed) - mix * perturbed.z

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return lambda/2 (1/(1/I(p) + sigma^2/D) - I(p_sigma))."""
        least = 1 / (1 / self._information + sigma**2 / dim)
        return self._lambda(sigma) / 2 * (least - fisher_information)


@dataclass(frozen=True, config=STRICT)
class StableTarget(_OfData):
    """Stable target: the mean of the denoising targets of a reference batch x_1, ..., x_n.

        lambda/2 E||s(x, sigma) - sum_k r_k(x) (x_k - x)/sigma^2||^2,
        r_k(x) = N(x; x_k, sigma^2 I)/sum_j N(x; x_j, sigma^2 I),   x = x_i + sigma z, 1 <= i <= n

    The target is the score of the reference batch smoothed by sigma. Given the batch and x, r_k is
    the probability that x_k is the point to which the noise was added. So the target is the mean
    of denoising's target given both, its mean given x is the score for every n, and its variance
    is smaller. (The paper calls it biased. It is if the reference batch lacks the point itself.)
    The variance has no closed form, and so there is no floor. Here the training batch itself is
    the reference batch, or it is divided into reference batches.

    Source: Xu, Tong & Jaakkola (2023), arXiv:2302.00670, "Stable target field", eq. 8.

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
        reference: n, the number of points in a reference batch. A smaller batch is one.
    """

    reference: Count = 128

    def target(self, perturbed: Perturbed) -> Tensor:
        """Return sum_k r_k (x_k - x)/sigma^2, (P, D)."""
        x, sigma, data = perturbed.x, perturbed.sigma[:, None], perturbed.v
        num, copies, targets = self.reference, len(x) // len(data), []
        for first in range(0, len(data), num):
            start = max(0, min(first, len(data) - num))  # the last batch reaches back to be full
            batch = data[start : start + num]  # (n, D)
            here = slice(first * copies, (first + num) * copies)
            square = (x[here, None] - batch).square().sum(-1)  # (m, n)
            shares = (-square / (2 * sigma[here] ** 2)).softmax(-1)
            targets.append((shares @ batch - x[here]) / sigma[here] ** 2)
        return torch.cat(targets)

    weight = Weighted.weight

    @property
    def dependent_terms(self) -> int:
        """The number of points in a reference batch."""
        return self.reference

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at sigma = 0, where there is no noise to remove."""
        super().check(sigmas)
        if bool((sigmas == 0).any()):
            raise ConfigError("schedule: loss=stable_target needs every sigma above 0")
