"""Mixtures of Gaussians."""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, validate_call
from torch import Tensor

from ncsn_cli.datasets.quadrature import fisher_information
from ncsn_cli.errors import ConfigError
from ncsn_cli.scores import STRICT, Count, Dataset


class GaussianMixture(Dataset):
    r"""Mixture of Gaussians, p(x) = sum_k w_k N(x; mu_k, Sigma_k).

    Perturbed by N(0, sigma^2 I) it is again a mixture, and the variances add:

        p_sigma(x) = sum_k w_k N(x; mu_k, Sigma_k + sigma^2 I)
        grad log p_sigma(x) = -sum_k r_k(x) (Sigma_k + sigma^2 I)^-1 (x - mu_k)
        r_k(x) = w_k N(x; mu_k, Sigma_k + sigma^2 I) / p_sigma(x)

    Source: Song & Ermon (2019), arXiv:1907.05600, section 3.2, in closed form. Evaluated in the
    eigenbasis of each Sigma_k and through logsumexp and softmax, so it stays finite far from
    all modes; in the dtype of ``x``.

    Args:
        weights: w_k > 0, (K,), summing to 1.
        means: mu_k, (K, D); a flat list stands for D = 1. Data units.
        stds: Standard deviations: one for all, one a component (K,), or one a component and
            axis (K, D). 0 makes a component a point. Data units.
        covariances: Sigma_k, (K, D, D), instead of ``stds``. Data units squared.
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.

    Raises:
        ConfigError: If the weights do not sum to 1, shapes disagree, or a covariance is not
            symmetric positive semidefinite.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        weights: list[PositiveFloat],
        means: list[float] | list[list[float]],
        stds: NonNegativeFloat
        | list[NonNegativeFloat]
        | list[list[NonNegativeFloat]]
        | None = None,
        covariances: list[list[list[float]]] | None = None,
        num_samples: Count | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(num_samples, seed)
        self._weights = torch.tensor(weights, dtype=torch.float64)  # (K,)
        self._means = _rectangular(means, "means")
        if self._means.ndim == 1:
            self._means = self._means[:, None]  # (K, D)
        if self._means.ndim != 2 or self._means.shape[1] == 0:
            raise ConfigError("means: a list of numbers, or of lists of D numbers, is needed")
        num_components, self.dim = self._means.shape
        if len(weights) != num_components:
            raise ConfigError(f"weights: {len(weights)} of them, but {num_components} means")
        if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
            raise ConfigError(f"weights: they must sum to 1, got {sum(weights):g}")
        if (stds is None) == (covariances is None):
            raise ConfigError("stds: give exactly one of stds and covariances")
        self._rotations: Tensor | None = None  # columns are eigenvectors of Sigma_k: (K, D, D)
        if covariances is None:
            self._variances = self._diagonal(stds)  # eigenvalues of Sigma_k: (K, D)
        else:
            self._variances, self._rotations = self._eigenbasis(covariances)
        # All Sigma_k are v I: distances suffice, and no tensor is (B, K, D).
        self._is_isotropic = self._rotations is None and len(self._variances.unique()) == 1
        self._has_points = bool((self._variances == 0).any())
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def _diagonal(self, stds: object) -> Tensor:
        std = _rectangular(stds, "stds")
        if std.ndim == 1:
            std = std[:, None]
        try:
            return std.square().expand(self._means.shape).clone()
        except RuntimeError:
            raise ConfigError(
                f"stds: shape {tuple(std.shape)} does not fit means {tuple(self._means.shape)}"
            ) from None

    def _eigenbasis(self, covariances: object) -> tuple[Tensor, Tensor]:
        matrices = _rectangular(covariances, "covariances")
        expected = (*self._means.shape, self.dim)
        if tuple(matrices.shape) != expected:
            raise ConfigError(f"covariances: shape {tuple(matrices.shape)}, expected {expected}")
        variances, rotations = torch.linalg.eigh(matrices)
        scales = matrices.abs().amax((1, 2))  # (K,)
        for k, scale in enumerate(scales.tolist()):
            if float((matrices[k] - matrices[k].T).abs().max()) > 1e-9 * scale:
                raise ConfigError(f"covariances.{k}: not symmetric")
            smallest = float(variances[k].min())
            if smallest < -1e-9 * scale:
                raise ConfigError(
                    f"covariances.{k}: not positive semidefinite, smallest eigenvalue {smallest:g}"
                )
        # A singular matrix has eigenvalues of rounding's size: they are 0.
        rounding = 1e-12 * scales[:, None]
        return torch.where(variances < rounding, 0.0, variances), rotations

    @property
    def mean(self) -> Tensor:
        """E[x] = sum_k w_k mu_k, (D,), float64."""
        return self._weights @ self._means

    @property
    def covariance(self) -> Tensor:
        """Cov[x] = sum_k w_k (Sigma_k + (mu_k - mean)(mu_k - mean)^T), (D, D), float64."""
        rotations = torch.eye(self.dim).double() if self._rotations is None else self._rotations
        within = rotations * self._variances[:, None, :] @ rotations.mT  # Sigma_k: (K, D, D)
        offset = self._means - self.mean  # (K, D)
        return torch.einsum("k,kij->ij", self._weights, within) + torch.einsum(
            "k,ki,kj->ij", self._weights, offset, offset
        )

    @property
    def weights(self) -> Tensor:
        """w_k, (K,), float64."""
        return self._weights

    @property
    def modes(self) -> Tensor:
        """Centres of the components, (K, D), float64."""
        return self._means

    @property
    def extent(self) -> tuple[Tensor, Tensor]:
        """The box that pictures show, lower and upper corner (D,): all means, 5 std around."""
        margin = 5 * self._variances.max().sqrt()
        if margin == 0:
            margin = torch.tensor(1.0)
        return self._means.amin(0) - margin, self._means.amax(0) + margin

    @property
    def smallest_std(self) -> float:
        """Square root of the smallest eigenvalue of all Sigma_k, data units; 0 for a point."""
        return float(self._variances.min().sqrt())

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Independent draws from p_sigma, (num, D), float32, on the generator's device.

        ``sigma`` is () or (num,).
        """
        z = torch.randn(num, self.dim, generator=generator, device=generator.device)
        weights, means, variances, *rotations = self._parameters(z)
        k = torch.multinomial(weights, num, replacement=True, generator=generator)  # (num,)
        sigma = torch.as_tensor(sigma, dtype=z.dtype, device=z.device)
        z = z * (variances[k] + sigma[..., None] ** 2).sqrt()
        if rotations:
            z = torch.einsum("bij,bj->bi", rotations[0][k], z)
        return means[k] + z

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        if not self._is_isotropic:
            return self._terms(x, sigma)[0].logsumexp(-1)
        exponents, variance = self._isotropic_exponents(x, sigma)
        return exponents.logsumexp(0) - self.dim / 2 * (2 * math.pi * variance).log()

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Responsibilities r_k(x) = P(component k | x) at level sigma, (B, K)."""
        if not self._is_isotropic:
            return self._terms(x, sigma)[0].softmax(-1)
        return self._isotropic_exponents(x, sigma)[0].softmax(0).mT

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Grad log p_sigma(x), (B, D), units 1/length; ``x`` (B, D), ``sigma`` () or (B,)."""
        if not self._is_isotropic:
            return self._mean_pull(*self._terms(x, sigma))
        exponents, variance = self._isotropic_exponents(x, sigma)
        means = self._parameters(x)[1].mT @ exponents.softmax(0)  # (D, B)
        return ((means - x.mT) / variance).mT

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """P(X <= x) = sum_k w_k Phi((x - mu_k)/s_k), s_k^2 = Sigma_k + sigma^2; D = 1."""
        weights, standardised, _ = self._standardise(x, sigma)
        return torch.special.ndtr(standardised) @ weights

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """E[max(x - X, 0)] = sum_k w_k s_k (u Phi(u) + phi(u)), u = (x - mu_k)/s_k; D = 1.

        This is the integral of the distribution function from -infinity to x; data units.
        """
        weights, u, stds = self._standardise(x, sigma)
        density = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        return (stds * (u * torch.special.ndtr(u) + density)) @ weights

    def fisher_information(self, sigma: float) -> float:
        """I(p_sigma) = E ||grad log p_sigma||^2, units 1/length^2.

        By the trapezoid rule: step a third of the narrowest standard deviation, 7 of the widest
        around all means; relative error below 1e-5 for D <= 2. For D > 2, or where that takes
        over 3e7 terms, the mean over 200 000 exact draws, relative standard error about 1/450.
        """
        self._require_density(torch.tensor(sigma))
        variances = self._variances + sigma**2
        margin = 7 * variances.max().sqrt()
        low, high = self._means.amin(0) - margin, self._means.amax(0) + margin
        return fisher_information(self, sigma, low, high, float(variances.min().sqrt()) / 3)

    def has_density(self, sigma: float) -> bool:
        """Whether p_sigma has one: not at sigma = 0 where a component is a point."""
        return sigma > 0 or not self._has_points

    def _require_density(self, sigma: Tensor) -> None:
        if self._has_points and bool((sigma == 0).any()):
            raise ConfigError(
                "dataset: a component is a point (standard deviation 0), so there is no density"
                " or score at sigma = 0; use a level above 0 or a wider component"
            )

    def _parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        """Weights (K,), means (K, D), variances (K, D), maybe rotations (K, D, D), like ``x``."""
        key = (x.dtype, x.device)
        if key not in self._cast:
            parameters = [self._weights, self._means, self._variances, self._rotations]
            self._cast[key] = tuple(p.to(x) for p in parameters if p is not None)
        return self._cast[key]

    def _isotropic_exponents(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Exponents log w_k - ||x - mu_k||^2/(2 v) (K, B); variance v () or (B,).

        Points stand in columns: there are many of them and few components.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        self._require_density(sigma)
        weights, means, variances = self._parameters(x)
        variance = variances[0, 0] + sigma**2
        # torch.cdist has no forward-mode derivative.
        square = (x[:, 0] - means[:, :1]).square()
        for i in range(1, self.dim):
            square = square + (x[:, i] - means[:, i, None]).square()
        return weights.log()[:, None] - square / (2 * variance), variance

    def _terms(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """log(w_k N_k(x)), (B, K), and (Sigma_k + sigma^2 I)^-1 (mu_k - x), rotated, (B, K, D)."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        self._require_density(sigma)
        weights, means, variances, *rotations = self._parameters(x)
        variances = variances + sigma[..., None, None] ** 2  # (K, D) or (B, K, D)
        offset = means - x[:, None]  # (B, K, D)
        if rotations:
            offset = torch.einsum("bki,kij->bkj", offset, rotations[0])
        pulls = offset / variances
        log_normaliser = (variances.log() + math.log(2 * math.pi)).sum(-1)  # (K,) or (B, K)
        return weights.log() - ((offset * pulls).sum(-1) + log_normaliser) / 2, pulls

    def _mean_pull(self, log_terms: Tensor, pulls: Tensor) -> Tensor:
        """sum_k r_k (Sigma_k + sigma^2 I)^-1 (mu_k - x), (B, D), from ``_terms``."""
        pulls = log_terms.softmax(-1)[..., None] * pulls  # (B, K, D)
        if self._rotations is None:
            return pulls.sum(-2)
        return torch.einsum("kij,bkj->bi", self._parameters(pulls)[3], pulls)

    def _standardise(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (K,), (x - mu_k)/s_k (..., K) and s_k (K,) for D = 1."""
        if self.dim != 1:
            raise ValueError(f"a distribution function needs D = 1, this mixture has {self.dim}")
        weights, means, variances, *_ = self._parameters(x)
        stds = (variances[:, 0] + sigma**2).sqrt().clamp(min=1e-30)  # a point: a step of F
        return weights, (x[..., None] - means[:, 0]) / stds, stds


def _rectangular(values: object, name: str) -> Tensor:
    """Nested lists as a float64 tensor; the rows must be of one length."""
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (ValueError, TypeError):
        raise ConfigError(f"{name}: rows of unequal length") from None
