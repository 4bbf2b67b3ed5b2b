"""A dataset of which only draws are known."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, validate_call
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, NcsnError, UnknownTruthError, one_line
from ncsn_cli.core.expectation import ModeMoments
from ncsn_cli.core.settings import NUM_DRAWS, STRICT, Count, random_stream

log = logging.getLogger(__name__)

_MOST_NUMBERS = 20_000_000  # limit for the draws behind the moments; 160 MB in float64
_TAIL = 0.001  # share of the draws beyond each side of the inner box, which pictures widen


class Sampled(Dataset):
    r"""The law p of an object's draws, of which nothing else is known.

    A draw from p_sigma is the object's draw plus sigma z, z ~ N(0, I). Mean and covariance are
    those of 200 000 draws (or fewer, if D is above 100), always the same ones, and have standard
    errors. There is neither density nor score, and nothing is known about modes: all draws count
    as one mode, at the mean.

    Args:
        source: An object with ``sample(num, *, generator)``, which returns independent draws
            (num, D), floats, and takes all random numbers from the generator, on the CPU.
        num_samples: Size of the training set; None draws fresh points for ever.
        seed: Seed of the training set.

    Raises:
        ConfigError: If the draws are anything else.
    """

    is_known = False
    smallest_std = None

    @validate_call(config=STRICT)
    def __init__(
        self, source: object, num_samples: Count | None = None, seed: NonNegativeInt = 0
    ) -> None:
        super().__init__(num_samples, seed)
        self._source: Any = source
        self._set_dim()
        self._origin = torch.zeros(self.dim, dtype=torch.float64)
        num = max(2, min(NUM_DRAWS, _MOST_NUMBERS // self.dim))
        x = self._draw(num, random_stream(0, "moments of draws")).double()
        if not bool(x.isfinite().all()):
            raise ConfigError("dataset.sample: it returned numbers that are not finite")
        # Moments, and their standard errors.
        self.mean = x.mean(0)
        squares = (x - self.mean).square()
        self.covariance = x.T.cov(correction=0).reshape(self.dim, self.dim)
        fourth = squares.T @ squares / num  # E[(x_i - m_i)^2 (x_j - m_j)^2]
        self._mean_error = (squares.mean(0) / num).sqrt()
        self._covariance_error = ((fourth - self.covariance.square()).clamp(min=0) / num).sqrt()
        # One mode, and a box that holds nearly all draws.
        self.modes, self.weights = self.mean[None], torch.ones(1, dtype=torch.float64)
        low, high = torch.from_numpy(np.quantile(x.numpy(), [_TAIL, 1 - _TAIL], axis=0))
        margin = (high - low) / 4
        margin = torch.where(margin > 0, margin, 1.0)
        self.extent = low - margin, high + margin

    def _set_dim(self) -> None:
        """Find D from two draws; warn if the draws do not follow from the generator."""
        first, again = (self._draw_anything(2, random_stream(0, "first draws")) for _ in range(2))
        self.dim = first.shape[1]
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):
            log.warning(
                "dataset.sample: a generator in the same state gave other draws, so runs of the"
                " same seed will differ; take all random numbers from the generator"
            )

    def _draw_anything(self, num: int, generator: torch.Generator) -> Tensor:
        """Return ``num`` draws of the object (num, D), of any D >= 1."""
        try:
            draws = self._source.sample(num, generator=generator)
        except Exception as error:
            if isinstance(error, NcsnError | MemoryError) or "allocate memory" in str(error):
                raise
            reason = one_line(f"{type(error).__name__}: {error}")
            raise ConfigError(
                f"dataset.sample: sample({num}, generator=...) raised {reason}"
            ) from error
        if not isinstance(draws, Tensor) or not draws.is_floating_point():
            found = draws.dtype if isinstance(draws, Tensor) else type(draws).__name__
            raise ConfigError(
                f"dataset.sample: it should return a torch tensor of floats, got {found}"
            )
        if draws.ndim != 2 or len(draws) != num or draws.shape[1] == 0:
            raise ConfigError(
                f"dataset.sample: for num = {num} it should return a tensor of shape ({num}, D),"
                f" got {tuple(draws.shape)}"
            )
        return draws.detach().cpu()

    def _draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Return ``num`` draws of the object (num, D)."""
        draws = self._draw_anything(num, generator)
        if draws.shape[1] != self.dim:
            raise ConfigError(
                f"dataset.sample: it returned draws of D = {draws.shape[1]}, after draws of D ="
                f" {self.dim}"
            )
        return draws

    def sample(
        self, num: int, *, sigma: Tensor | float = 0.0, generator: torch.Generator
    ) -> Tensor:
        """Return independent draws from p_sigma, (num, D), float32, on the generator's device.

        ``sigma`` is () or (num,).
        """
        device, stream = generator.device, generator
        if device.type != "cpu":  # the object draws on the CPU, from a seed that this one gives
            seed = torch.randint(2**62, (), generator=generator, device=device)
            stream = torch.Generator().manual_seed(int(seed))
        x = (self._draw(num, stream).double() - self._origin).float().to(device)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=device)
        return x + sigma[..., None] * torch.randn(x.shape, generator=generator, device=device)

    def centred(self) -> Sampled:
        """Return a copy in coordinates around the mean, which is the ``origin`` of the copy."""
        moved = copy.copy(self)
        moved._origin = self._origin + self.mean
        moved.mean, moved.modes = self.mean - self.mean, self.modes - self.mean
        low, high = self.extent
        moved.extent = low - self.mean, high - self.mean
        return moved

    @property
    def origin(self) -> Tensor:
        """The vector to add to coordinates to get data units, (D,), float64."""
        return self._origin

    def mean_error(self) -> Tensor:
        """Return the standard errors of ``mean``, (D,)."""
        return self._mean_error

    def covariance_error(self, sigma: float) -> Tensor:
        """Return the standard errors of Cov[x] + sigma^2 I, (D, D)."""
        return self._covariance_error

    def mode_moments(self, sigma: float) -> ModeMoments:
        """Raise ``UnknownTruthError``."""
        raise UnknownTruthError("dataset: its modes are not known, only its draws")


def gives_draws_only(made: object) -> bool:
    """Return whether ``made`` has a method ``sample``, and none about its density of its own."""

    def has(name: str) -> bool:
        inherited = getattr(type(made), name, None) is getattr(Dataset, name)
        return callable(getattr(made, name, None)) and not inherited

    about_density = ("has_density", "log_prob", "posterior", "score")
    return callable(getattr(made, "sample", None)) and not any(map(has, about_density))
