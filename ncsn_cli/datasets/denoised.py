"""The law of exact draws after an exact denoising step."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.expectation import (
    ModeMoments,
    StratifiedDraws,
    moments_by_draws,
    moments_from_sums,
)
from ncsn_cli.core.score import detached_jacobian
from ncsn_cli.core.settings import NUM_DRAWS, random_stream

_NODES = 4001  # grid points that bracket the root when d is inverted
_MOST_STEPS, _MOST_HALVINGS = 50, 20  # of Newton's method
_TOLERANCE = 1e-9  # of the inverse of d, relative to sigma and x


class Denoised(Law):
    r"""The law of the posterior mean d(x) = x + sigma^2 grad log p_sigma(x), x ~ p_sigma.

    The samples of a perfect sampler with ``denoise`` follow this law. It is neither p nor p_sigma:
    for N(0, s^2) it is N(0, s^4/(s^2 + sigma^2)). It has the mean of p, and with
    J = E[score score^T] at sigma

        Cov[d] = Cov[x] - sigma^2 I + sigma^4 J      (x ~ p)

    In 1D d increases with x, so that P(d(X) <= d(u)) = P(X <= u).

    Source: Efron (2011), doi:10.1198/jasa.2011.tm11181 (Tweedie's formula).

    Args:
        truth: The dataset.
    """

    def __init__(self, truth: Dataset) -> None:
        self._truth, self.dim, self.has_cdf = truth, truth.dim, truth.has_cdf
        self.mean, self.modes = truth.mean, truth.modes

    @property
    def origin(self) -> Tensor:
        """The vector to add to coordinates to get data units, (D,), float64."""
        return self._truth.origin

    def training_set(self, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the training set of the dataset, or another one."""
        return self._truth.training_set(generator)

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws, (num, D), float32, on the generator's device."""
        x = self._truth.sample(num, sigma=sigma, generator=generator)
        return self.denoise(x.cpu().double(), float(sigma)).to(x)

    def strata(self, num: int, sigma: float, generator: torch.Generator) -> StratifiedDraws:
        """Return draws from the dataset's parts after the denoising step."""
        draws = self._truth.strata(num, sigma, generator)
        return draws._replace(x=self.denoise(draws.x, sigma))

    def perturbed_covariance(self, sigma: float) -> Tensor:
        """Return Cov[d], (D, D), float64."""
        if sigma == 0:
            return self._truth.covariance
        narrower = sigma**2 * torch.eye(self.dim, dtype=torch.float64)
        return self._truth.covariance - narrower + sigma**4 * self._truth.fisher(sigma).matrix

    def covariance_error(self, sigma: float) -> Tensor:
        """Return the standard errors of Cov[d], (D, D); 0 where J has no error."""
        if sigma == 0:
            return super().covariance_error(sigma)
        return sigma**4 * self._truth.fisher(sigma).matrix_error

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Return shares and moments of the points nearest to each mode, from draws.

        With one mode, all points belong to it. In 1D the shares are exact.
        """
        if sigma == 0:
            return self._truth.mode_moments(sigma)
        modes = self.modes
        if len(modes) == 1:
            offset = self.mean - modes
            second = self.perturbed_covariance(sigma) + offset.T @ offset
            return moments_from_sums(modes, torch.ones(1).double(), offset, second[None])
        stream = random_stream(0, "mode moments")
        found = moments_by_draws(modes, self.strata(NUM_DRAWS, sigma, stream))
        if self.dim > 1:
            return found
        centres, order = modes[:, 0].sort()
        rises = self.cdf((centres[1:] + centres[:-1]) / 2, sigma)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        shares = torch.cat([ends[:1], rises, ends[1:]]).diff()[order.argsort()]
        return found._replace(shares=shares, errors=(torch.zeros_like(shares), *found.errors[1:]))

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return the log-density at ``x`` (B, D), (B,), in nats, for D = 1 and 2.

        With x = d(u) this is log p_sigma(u) - log det d'(u); where no u has d(u) = x, -inf. The
        slope d' is Cov[x | u]/sigma^2, which is positive.
        """
        if sigma == 0:
            return self._truth.log_prob(x)
        u = self._before(x[:, 0], sigma)[:, None] if self.dim == 1 else self._descend(x, sigma)
        excess, slope = self._excess(u, x, sigma)
        is_reached = excess.norm(dim=1) <= _TOLERANCE * (sigma + x.norm(dim=1))
        log_p = self._truth.log_prob(u, sigma) - torch.linalg.det(slope).log()
        return log_p.where(is_reached, -math.inf)

    def cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return P(d(X) <= x), for D = 1; ``x`` of any shape."""
        return self._truth.cdf(self._before(x, sigma), sigma)

    def integrated_cdf(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return E[max(x - d(X), 0)], for D = 1; ``x`` of any shape.

        With x = d(u) this is (x - u) F(u) + A(u) - sigma^2 p(u), where F, A and p are the
        dataset's ``cdf``, ``integrated_cdf`` and density at sigma.
        """
        u = self._before(x, sigma)
        area = self._truth.integrated_cdf(u, sigma)
        if sigma == 0:
            return area
        density = self._truth.log_prob(u.reshape(-1, 1), sigma).exp().view_as(u)
        return (x - u) * self._truth.cdf(u, sigma) + area - sigma**2 * density

    def projected_cdf(self, direction: Tensor, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Return nodes (G,) that resolve the law of <v, d>, and P(<v, d> <= node), for D = 1."""
        found = self._truth.projected_cdf(direction, sigma) if self.dim == 1 else None
        if found is None:
            return None
        nodes, rises = found
        return direction * self.denoise((direction * nodes)[:, None], sigma)[:, 0], rises

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Return d(x), (B, D), at ``x`` (B, D), float64."""
        if sigma == 0:
            return x
        chunk = max(1, 2_000_000 // self._truth.num_components)
        return torch.cat(
            [part + sigma**2 * self._truth.score(part, sigma) for part in x.split(chunk)]
        )

    def _before(self, x: Tensor, sigma: float) -> Tensor:
        """Return u with d(u) = x, for D = 1; ``x`` of any shape."""
        from scipy.optimize.elementwise import find_root  # here, because importing scipy is slow

        if sigma == 0:
            return x
        width = 40 * float(self._truth.perturbed_covariance(sigma)[0, 0].sqrt())
        nodes = torch.linspace(
            float(self.modes.min()) - width, float(self.modes.max()) + width, _NODES
        ).double()  # (G,)
        values = self.denoise(nodes[:, None], sigma)[:, 0]
        above = torch.searchsorted(values, x.contiguous()).clamp(1, _NODES - 1)

        def excess(u: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
            return (
                self.denoise(torch.from_numpy(u).reshape(-1, 1), sigma).numpy().reshape(u.shape)
                - x
            )

        # Beyond the nodes, take the nearest end: F is 0 or 1 there.
        inside = x.clamp(float(values[0]), float(values[-1]))
        bracket = nodes[above - 1].numpy(), nodes[above].numpy()
        return torch.from_numpy(find_root(excess, bracket, args=(inside.numpy(),)).x)

    def _excess(self, u: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return d(u) - x (B, D) and d'(u) (B, D, D)."""
        score, jacobian = detached_jacobian(
            self._truth.score, u, torch.tensor(sigma, dtype=torch.float64)
        )
        one = torch.eye(self.dim, dtype=torch.float64)
        return u + sigma**2 * score - x, one + sigma**2 * jacobian

    def _descend(self, x: Tensor, sigma: float) -> Tensor:
        """Return u with d(u) = x, (B, D), by Newton's method; another point where there is none.

        d is the gradient of the convex function ||u||^2/2 + sigma^2 log p_sigma(u). So u minimises
        that function less <x, u>, and a step is halved until the function or the excess falls.
        """

        def function(u: Tensor, x: Tensor) -> Tensor:
            convex = u.square().sum(1) / 2 + sigma**2 * self._truth.log_prob(u, sigma)
            return convex - (x * u).sum(1)

        u, is_open = x.clone(), torch.arange(len(x))
        for _ in range(_MOST_STEPS):
            here, there = u[is_open], x[is_open]
            excess, slope = self._excess(here, there, sigma)
            size = excess.norm(dim=1)
            far = size > 1e-3 * _TOLERANCE * (sigma + there.norm(dim=1))
            is_open, here, there, excess, size = (
                each[far] for each in (is_open, here, there, excess, size)
            )
            if not len(is_open):
                break
            step, _ = torch.linalg.solve_ex(slope[far], -excess)  # nan where d' is 0
            value = function(here, there)
            for _ in range(_MOST_HALVINGS):
                after = here + step
                left = (after + sigma**2 * self._truth.score(after, sigma) - there).norm(dim=1)
                worse = ~((function(after, there) < value) | (left < size))
                if not worse.any():
                    break
                step[worse] /= 2
            u[is_open] = here + step
        return u
