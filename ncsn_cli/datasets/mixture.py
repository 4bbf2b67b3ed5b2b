"""Mixtures of Gaussians."""

from __future__ import annotations

import copy
import functools
import math

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, validate_call
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.expectation import (
    FisherInformation,
    ModeMoments,
    StratifiedDraws,
    fisher_by_draws,
    moments_by_draws,
    moments_from_sums,
)
from ncsn_cli.core.gaussian import standard_density
from ncsn_cli.core.settings import NUM_DRAWS, STRICT, Count, random_stream
from ncsn_cli.datasets.line import moments_along_a_line
from ncsn_cli.datasets.quadrature import MOST_GRID_TERMS, fisher_on_grid

_MOST_NODES = 4000  # max nodes of the distribution function along a direction


class GaussianMixture(Dataset):
    r"""Mixture of Gaussians, p(x) = sum_k w_k N(x; mu_k, Sigma_k).

    Perturbed by N(0, sigma^2 I) it is again a mixture, and the variances add:

        p_sigma(x) = sum_k w_k N(x; mu_k, Sigma_k + sigma^2 I)
        grad log p_sigma(x) = -sum_k r_k(x) (Sigma_k + sigma^2 I)^-1 (x - mu_k)
        r_k(x) = w_k N(x; mu_k, Sigma_k + sigma^2 I) / p_sigma(x)

    Source: Song & Ermon (2019), arXiv:1907.05600, section 3.2, in closed form. The density
    and the score are evaluated in the eigenbasis of each Sigma_k and through logsumexp and
    softmax, in the dtype of ``x``, so that they stay finite far from all modes.

    Components with the same mean form one mode, whose weight is the sum of their weights.

    Args:
        weights: w_k > 0, (K,), summing to 1.
        means: mu_k, (K, D), or a flat list for D = 1. Data units.
        stds: Standard deviations: one for all, one per component (K,), or one per component
            and axis (K, D). 0 makes a component a point. None means 1, unless there are
            ``covariances``. Data units.
        covariances: Sigma_k, (K, D, D), instead of ``stds``. Data units squared.
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.

    Raises:
        ConfigError: If the weights do not sum to 1, shapes disagree, a covariance is not symmetric
            positive semidefinite, or both ``stds`` and ``covariances`` are given.
    """

    has_cdf = True

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
            raise ConfigError("means: must be a list of numbers or a list of lists of D numbers")
        num_components, self.dim = self._means.shape
        if len(weights) != num_components:
            raise ConfigError(f"weights: got {len(weights)}, but there are {num_components} means")
        if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
            raise ConfigError(f"weights: they must sum to 1, got {sum(weights):g}")
        if stds is not None and covariances is not None:
            raise ConfigError("stds: give stds or covariances, not both; null leaves one out")
        self._rotations: Tensor | None = None  # columns are eigenvectors of Sigma_k: (K, D, D)
        if covariances is None:
            self._variances = self._diagonal(stds)  # eigenvalues of Sigma_k: (K, D)
        else:
            self._variances, self._rotations = self._eigenbasis(covariances)
        # If all Sigma_k are v I, distances suffice and no tensor is (B, K, D).
        self._is_isotropic = self._rotations is None and len(self._variances.unique()) == 1
        self._has_points = bool((self._variances == 0).any())
        self._origin = torch.zeros(self.dim, dtype=torch.float64)
        # Each mean once, in the order of the components, and the mode of each component (K,).
        rows = [tuple(mean) for mean in self._means.tolist()]
        places = {mean: i for i, mean in enumerate(dict.fromkeys(rows))}
        self.modes = torch.tensor([*places], dtype=torch.float64)
        self._mode_of = torch.tensor([places[mean] for mean in rows])
        self._set_moments()
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def _set_moments(self) -> None:
        """Set mean, weights, extent and smallest_std, which follow from the components."""
        self.mean = self._weights @ self._means
        empty = torch.zeros(len(self.modes), dtype=torch.float64)
        self.weights = empty.index_add(0, self._mode_of, self._weights)
        margin = 5 * self._variances.max().sqrt()
        margin = margin if margin > 0 else torch.ones(())  # points
        self.extent = self._means.amin(0) - margin, self._means.amax(0) + margin
        self.smallest_std = float(self._variances.min().sqrt())
        vars(self).pop("covariance", None)  # that of other coordinates

    def _diagonal(self, stds: object) -> Tensor:
        std = _rectangular(1.0 if stds is None else stds, "stds")
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
        # A singular matrix has eigenvalues as small as rounding errors: set them to 0.
        rounding = 1e-12 * scales[:, None]
        return torch.where(variances < rounding, 0.0, variances), rotations

    def centred(self) -> GaussianMixture:
        """Return a copy in coordinates around the mean, which is the ``origin`` of the copy."""
        moved = copy.copy(self)
        moved._origin = self._origin + self.mean
        moved._means, moved.modes = self._means - self.mean, self.modes - self.mean
        moved._cast = {}
        moved._set_moments()
        return moved

    @property
    def origin(self) -> Tensor:
        """The vector to add to coordinates to get data units, (D,), float64."""
        return self._origin

    @functools.cached_property
    def covariance(self) -> Tensor:  # type: ignore[override]  # on demand: D x D numbers may be many
        """Cov[x] = sum_k w_k (Sigma_k + (mu_k - mean)(mu_k - mean)^T), (D, D), float64."""
        offset = self._means - self.mean  # (K, D)
        between = torch.einsum("k,ki,kj->ij", self._weights, offset, offset)
        return self.within_covariance + between

    @property
    def within_covariance(self) -> Tensor:
        """sum_k w_k Sigma_k, (D, D), float64."""
        return torch.einsum("k,kij->ij", self._weights, self._covariances(0.0))

    @property
    def num_components(self) -> int:
        """K, the number of components."""
        return len(self._weights)

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws from p_sigma, (num, D), float32, on the generator's device.

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

    def strata(self, num: int, sigma: float, generator: torch.Generator) -> StratifiedDraws:
        """Return draws from each component at level sigma.

        Half of the ``num`` draws are shared out by weight and half evenly. Each component has at
        least two.
        """
        sizes = (num * (self._weights + 1 / self.num_components) / 2).ceil().clamp(min=2)
        k = torch.arange(self.num_components).repeat_interleave(sizes.long())  # (n,)
        z = torch.randn(
            len(k), self.dim, generator=generator, dtype=torch.float64, device=generator.device
        ).cpu()
        z = z * (self._variances + sigma**2).sqrt()[k]
        if self._rotations is not None:
            z = torch.einsum("nij,nj->ni", self._rotations[k], z)
        return StratifiedDraws(self._weights, k, self._means[k] + z)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return log p_sigma(x), (B,), in nats; ``x`` (B, D), ``sigma`` () or (B,)."""
        if not self._is_isotropic:
            return self._terms(x, sigma)[0].logsumexp(-1)
        exponents, variance = self._isotropic_exponents(x, sigma)
        return exponents.logsumexp(0) - self.dim / 2 * (2 * math.pi * variance).log()

    def posterior(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return P(mode | x) at level sigma, (B, modes), summed over each mode's components."""
        if self._is_isotropic:
            shares = self._isotropic_exponents(x, sigma)[0].softmax(0).mT  # (B, K)
        else:
            shares = self._terms(x, sigma)[0].softmax(-1)
        if len(self.modes) == self.num_components:
            return shares
        empty = shares.new_zeros(len(x), len(self.modes))
        return empty.index_add(1, self._mode_of.to(x.device), shares)

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log p_sigma(x), (B, D), units 1/length.

        ``x`` is (B, D), ``sigma`` () or (B,).
        """
        if not self._is_isotropic:
            return self._mean_pull(*self._terms(x, sigma))
        exponents, variance = self._isotropic_exponents(x, sigma)
        means = self._parameters(x)[1].mT @ exponents.softmax(0)  # (D, B)
        return ((means - x.mT) / variance).mT

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return P(X <= x) = sum_k w_k Phi((x - mu_k)/s_k), s_k^2 = Sigma_k + sigma^2; D = 1."""
        weights, standardised, _ = self._standardise(x, sigma)
        return torch.special.ndtr(standardised) @ weights

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return E[max(x - X, 0)] = sum_k w_k s_k (u Phi(u) + phi(u)), for D = 1.

        Here u = (x - mu_k)/s_k, with s_k as in ``cdf``. The result is the integral of the
        distribution function from -infinity to x, in data units.
        """
        weights, u, stds = self._standardise(x, sigma)
        return (stds * (u * torch.special.ndtr(u) + standard_density(u))) @ weights

    def projected_cdf(self, direction: Tensor, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Return nodes (G,) that resolve the law of <v, x>, and P(<v, x> <= node) (G,).

        The law is the mixture of N(<v, mu_k>, v^T (Sigma_k + sigma^2 I) v). Around each component
        the nodes lie at most a fifth of a standard deviation apart. With more than 100 components
        the result is None.
        """
        per_component = _MOST_NODES // self.num_components
        if per_component < 40:  # the nodes would lie too far apart
            return None
        means = self._means @ direction  # (K,)
        stds = (self._covariances(sigma) @ direction @ direction).clamp(min=0).sqrt()
        spread = float(means.max() - means.min() + stds.max())
        # Avoid 0/0: a component of width 0 makes the distribution function jump.
        stds = stds.clamp(min=max(1e-12 * spread, 1e-300))
        # How far the nodes reach beyond a mean, in standard deviations: 90 nodes between -8.5 and
        # 8.5, and 40 between -4 and 4, lie about a fifth of a standard deviation apart.
        edge = 8.5 if per_component > 90 else 4.0
        u = torch.linspace(-edge, edge, per_component, dtype=torch.float64)
        nodes = (means[:, None] + stds[:, None] * u).flatten().sort().values
        return nodes, torch.special.ndtr((nodes[:, None] - means) / stds) @ self._weights

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return shares and moments of the points nearest to each mode under p_sigma.

        The moments have a closed form if all centres lie on a line, as they do for D = 1 and for
        two modes. The points nearest to a centre then lie between two parallel planes, and each
        Gaussian is truncated there. Otherwise draws account for the points that leak from one mode
        to another, and the moments have standard errors.
        """
        covariances = self._covariances(sigma)  # (K, D, D)
        exact = moments_along_a_line(self._weights, self._means, covariances, self.modes)
        if exact is not None:
            return exact
        shares = self.weights
        second = torch.zeros(len(self.modes), self.dim, self.dim).double()
        second.index_add_(0, self._mode_of, self._weights[:, None, None] * covariances)
        known = moments_from_sums(self.modes, shares, torch.zeros_like(self.modes), second)
        stream = random_stream(0, "mode moments")
        return moments_by_draws(
            self.modes, self.strata(NUM_DRAWS, sigma, stream), self._mode_of, known
        )

    def fisher(self, sigma: float) -> FisherInformation:
        """Return the Fisher information E[s s^T] of p_sigma, units 1/length^2, and its error.

        For D <= 2 the trapezoid rule is used. Its step is a third of the smallest standard
        deviation, and its grid extends 8 of the largest standard deviations beyond all means. The
        relative error is below 1e-5. If the rule needs more than 3e7 terms, and for D > 2, exact
        draws are used instead. Draws estimate only the overlap of the components, so that well
        separated components, and a single component, have no error:

            E[s s^T] = sum_k w_k C_k^-1 - sum_{j<k} E[r_j r_k (g_j - g_k)(g_j - g_k)^T]

        with C_k = Sigma_k + sigma^2 I and g_k = C_k^-1 (mu_k - x). Because
        E[r_j r_k h] = w_j E_j[r_k h], with E_j the mean over component j, each pair needs draws
        from only one of its components: the component with the larger tr C_j^-1 is drawn.

        Source: E[s s^T] is minus the mean Hessian of log p_sigma, by integration by parts.
        """
        self._require_density(torch.tensor(sigma))
        if self.dim <= 2 and self.num_components > 1:
            variances = self._variances + sigma**2
            margin = 8 * float(variances.max().sqrt())
            step = float(variances.min().sqrt()) / 3
            axes = [
                (low - margin, high + margin, math.ceil((high - low + 2 * margin) / step) + 1)
                for low, high in zip(
                    self._means.amin(0).tolist(), self._means.amax(0).tolist(), strict=True
                )
            ]
            if math.prod(n for *_, n in axes) * self.num_components <= MOST_GRID_TERMS:
                return fisher_on_grid(
                    self, sigma, [torch.linspace(a, b, n, dtype=torch.float64) for a, b, n in axes]
                )
        return self._fisher_by_draws(sigma)

    def _fisher_by_draws(self, sigma: float) -> FisherInformation:
        rotations, variances = self._bases(), self._variances + sigma**2
        inverses = rotations / variances[:, None, :] @ rotations.mT  # C_k^-1: (K, D, D)
        traces = inverses.diagonal(dim1=1, dim2=2).sum(-1)  # (K,)
        stream = random_stream(0, "fisher")

        squares = (self._means[:, :, None] * self._means[:, None]).flatten(1)  # (K, D^2)

        def spread(_: Tensor, x: Tensor) -> Tensor:
            """Return the overlap term for equal C_k = v I: -Cov[mu]/v^2 under r(x), (n, D, D)."""
            shares = self._isotropic_exponents(x, sigma)[0].softmax(0).mT  # (n, K)
            mean, square = shares @ self._means, (shares @ squares).view(-1, self.dim, self.dim)
            return (mean[:, :, None] * mean[:, None] - square) / variances[0, 0] ** 2

        def overlap(j: Tensor, x: Tensor) -> Tensor:
            """Return -sum_k b_jk r_k (g_j - g_k)(g_j - g_k)^T, (n, D, D); b_jk + b_kj = 1."""
            log_terms, _ = self._terms(x, sigma)
            pulls = torch.einsum("kij,bkj->bki", inverses, self._means - x[:, None])  # g_k
            difference = pulls[torch.arange(len(j)), j][:, None] - pulls  # (n, K, D)
            larger = (1 + (traces[j][:, None] - traces).sign()) / 2  # (n, K)
            share = larger * log_terms.softmax(-1)
            return -torch.einsum("bk,bki,bkl->bil", share, difference, difference)

        equal = self._is_isotropic
        return fisher_by_draws(
            lambda num: self.strata(num, sigma, stream),
            spread if equal else overlap,
            num_terms=(
                self.num_components + self.dim**2 if equal else self.num_components * self.dim**2
            ),
            known=torch.einsum("k,kij->ij", self._weights, inverses),
        )

    def has_density(self, sigma: float) -> bool:
        """Return whether p_sigma has a density: not at sigma = 0 if a component is a point."""
        return sigma > 0 or not self._has_points

    def _require_density(self, sigma: Tensor) -> None:
        if self._has_points and bool((sigma == 0).any()):
            raise ConfigError(
                "dataset: a component is a point (standard deviation 0), so there is no density"
                " or score at sigma = 0; use a level above 0 or a wider component"
            )

    def _bases(self) -> Tensor:
        """Return the eigenvectors of each Sigma_k in columns, (K, D, D)."""
        if self._rotations is not None:
            return self._rotations
        return torch.eye(self.dim).double().expand(self.num_components, -1, -1)

    def components(self, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (K,), means (K, D) and covariances (K, D, D) of p_sigma, float64."""
        return self._weights, self._means, self._covariances(sigma)

    def _covariances(self, sigma: float) -> Tensor:
        """Return Sigma_k + sigma^2 I, (K, D, D)."""
        rotations = self._bases()
        return rotations * (self._variances + sigma**2)[:, None, :] @ rotations.mT

    def _parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return weights (K,), means (K, D), variances (K, D) and any rotations (K, D, D).

        They have the dtype and device of ``x``, and are kept in a cache.
        """
        key = (x.dtype, x.device)
        if key not in self._cast:
            parameters = [self._weights, self._means, self._variances, self._rotations]
            self._cast[key] = tuple(p.to(x) for p in parameters if p is not None)
        return self._cast[key]

    def _isotropic_exponents(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return exponents log w_k - ||x - mu_k||^2/(2 v) (K, B), and variance v () or (B,).

        Points are columns, because there are many points and few components.
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
        """Return log(w_k N_k(x)), (B, K), and the pull of each component, (B, K, D).

        The pull is (Sigma_k + sigma^2 I)^-1 (mu_k - x), in the eigenbasis of Sigma_k.
        """
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
        """Return sum_k r_k (Sigma_k + sigma^2 I)^-1 (mu_k - x), (B, D), from ``_terms``."""
        pulls = log_terms.softmax(-1)[..., None] * pulls  # (B, K, D)
        if self._rotations is None:
            return pulls.sum(-2)
        return torch.einsum("kij,bkj->bi", self._parameters(pulls)[3], pulls)

    def _standardise(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (K,), (x - mu_k)/s_k (..., K) and s_k (K,) for D = 1."""
        if self.dim != 1:
            raise ValueError(f"a distribution function needs D = 1, this mixture has {self.dim}")
        weights, means, variances, *_ = self._parameters(x)
        # Avoid 0/0: a component of width 0 makes the distribution function jump.
        stds = (variances[:, 0] + sigma**2).sqrt().clamp(min=1e-30)
        return weights, (x[..., None] - means[:, 0]) / stds, stds


def _rectangular(values: object, name: str) -> Tensor:
    """Return nested lists as a float64 tensor; raise ConfigError if rows differ in length."""
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (ValueError, TypeError):
        raise ConfigError(f"{name}: rows of unequal length") from None
