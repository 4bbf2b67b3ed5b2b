"""Functions of points for numpy and torch: what comes in decides what goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from torch import Tensor

from ncsn_cli.commands.config import reason_of
from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture

A = TypeVar("A", NDArray[np.floating[Any]], Tensor)
Function = Callable[[Tensor, Tensor], Tensor]
"""``function(x, sigma)`` of points x (B, D) and levels sigma, () or (B,)."""


def on_arrays(
    function: Function, x: A, sigma: ArrayLike | Tensor, dim: int, dtype: torch.dtype | None = None
) -> A:
    """Return ``function`` at the points ``x``, as the kind of array that ``x`` is.

    Args:
        function: A function of points (B, D), such as a score.
        x: Points (..., D), an array of numpy or a tensor of torch. For D = 1 also (N,).
        sigma: A level for all points, or one for each (...).
        dim: D.
        dtype: What ``function`` computes in; None is what ``x`` has.

    Raises:
        ConfigError: If ``x`` or ``sigma`` are no such numbers.
    """
    # Torch takes no array with negative strides; numpy makes a contiguous array of at least 1D.
    given = x if isinstance(x, Tensor) else torch.from_numpy(_reals("x", x).copy())
    if given.is_complex():
        raise ConfigError("x: its numbers are complex, not real")
    if not given.is_floating_point():
        given = given.double()
    points = given[..., None] if dim == 1 and given.ndim < 2 else given
    if points.ndim == 0 or points.shape[-1] != dim:
        raise ConfigError(
            f"x: its last axis should be D = {dim}, but its shape is {tuple(given.shape)}"
        )
    batch, flat = points.shape[:-1], points.reshape(-1, dim).to(dtype)
    sigma = sigma if isinstance(sigma, Tensor) else _reals("sigma", sigma)
    level = torch.as_tensor(sigma, dtype=flat.dtype, device=flat.device)
    if not bool((level >= 0).all()):
        raise ConfigError("sigma: it should be >= 0")
    if level.ndim:
        try:
            level = level.expand(batch).reshape(-1)
        except RuntimeError:
            raise ConfigError(
                f"sigma: give one, or one for each point; its shape is {tuple(level.shape)}, but"
                f" that of the points is {tuple(batch)}"
            ) from None
    with torch.set_grad_enabled(torch.is_grad_enabled() and given.requires_grad):
        found = function(flat, level).to(given)
    shape = given.shape if found.ndim == 2 else batch
    return found.reshape(shape) if isinstance(x, Tensor) else found.reshape(shape).numpy()


def _reals(name: str, values: ArrayLike | None) -> NDArray[Any]:
    """Return ``values`` as an array of real numbers; raise ConfigError, with ``name``, if not."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ConfigError(f"{name}: it is no array ({one_line(str(error))})") from None
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"{name}: it should hold real numbers, but its type is {array.dtype}")
    return array


class Mixture:
    """A mixture of Gaussians, p = sum_k w_k N(mu_k, Sigma_k), at every noise level sigma.

        p_sigma = p * N(0, sigma^2 I) = sum_k w_k N(mu_k, Sigma_k + sigma^2 I)

    Its functions take arrays of numpy or tensors of torch, and return the same kind.

    Args:
        weights: w_k > 0, (K,); they sum to 1.
        means: mu_k (K, D); for D = 1 also (K,).
        stds: Standard deviations: one for all components, one for each (K,), or one for each and
            each axis (K, D). 1 if neither ``stds`` nor ``covariances`` are given.
        covariances: Sigma_k (K, D, D), in place of ``stds``.
    """

    def __init__(
        self,
        weights: ArrayLike,
        means: ArrayLike,
        stds: ArrayLike | None = None,
        covariances: ArrayLike | None = None,
    ) -> None:
        given = {"weights": weights, "means": means, "stds": stds, "covariances": covariances}
        lists = {
            name: _reals(name, v).astype(float)
            for name, v in given.items()
            if v is not None or name in ("weights", "means")
        }
        if lists["means"].ndim == 1:
            lists["means"] = lists["means"][:, None]
        self.settings: dict[str, Any] = {name: array.tolist() for name, array in lists.items()}
        """The values of the option ``dataset=mixture``."""
        try:
            self._law = GaussianMixture(**self.settings)
        except ValidationError as error:
            raise ConfigError(reason_of("", error)) from None
        self.dim = self._law.dim

    def score(self, x: A, sigma: ArrayLike | Tensor = 0.0) -> A:
        """Return grad log p_sigma(x), (..., D), in 1/length, at ``x`` (..., D)."""
        return on_arrays(self._law.score, x, sigma, self.dim)

    def log_prob(self, x: A, sigma: ArrayLike | Tensor = 0.0) -> A:
        """Return log p_sigma(x), (...), in nats, at ``x`` (..., D)."""
        return on_arrays(self._law.log_prob, x, sigma, self.dim)

    def denoised(self, x: A, sigma: ArrayLike | Tensor) -> A:
        """Return the posterior mean E[x_0 | x] = x + sigma^2 grad log p_sigma(x), (..., D).

        Source: Tweedie's formula; Efron (2011), doi:10.1198/jasa.2011.tm11181.
        """
        law = self._law
        return on_arrays(lambda x, s: x + s[..., None] ** 2 * law.score(x, s), x, sigma, self.dim)

    def sample(self, num: int, seed: int = 0, sigma: float = 0.0) -> NDArray[np.float32]:
        """Return ``num`` independent draws from p_sigma, (num, D)."""
        if not isinstance(num, int | np.integer) or num < 1:
            raise ConfigError(f"num: it should be a whole number above 0, got {num!r}")
        if not sigma >= 0:
            raise ConfigError(f"sigma: it should be >= 0, got {sigma!r}")
        stream = random_stream(seed, "Mixture.sample")
        return self._law.sample(int(num), sigma=float(sigma), generator=stream).numpy()
