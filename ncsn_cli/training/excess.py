"""The excess loss along the way, from draws that are the same at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score, score_at
from ncsn_cli.core.settings import random_stream
from ncsn_cli.losses import Loss
from ncsn_cli.metrics import in_parts

_POINTS = 1000  # draws per level
# At least 50 draws per level, and otherwise at most 200 000 over all levels.
_FEWEST, _MOST = 50, 200_000
_MOST_KEPT = 4_000_000  # coordinates: 50 MB with the true scores there


class ExcessLoss:
    """The mean of lambda/2 E||s - grad log p_sigma||^2 over the levels of a loss.

    The means are over exact draws x ~ p_sigma, the same for every score s. The draws and the true
    scores there are kept from the first evaluation on, unless they are too many.

    Args:
        truth: The distribution, whose score is known.
        sigmas: Noise levels (L,), descending.
        loss: The loss, which names the levels and their lambdas.
        seed: Seed of the draws.
        device: The network's device.
        num: Draws per level; None chooses.
    """

    def __init__(
        self, truth: Dataset, sigmas: Tensor, loss: Loss, seed: int, device: torch.device,
        num: int | None = None,
    ) -> None:  # fmt: skip
        self._truth, self._seed, self._device = truth, seed, device
        self._levels, weights = loss.quadrature(sigmas)
        most = max(_FEWEST, _MOST // len(self._levels))
        self._num = min(_POINTS, most) if num is None else num
        lambdas = [loss.weight(sigma) or 0.0 for sigma in self._levels]
        pairs = zip(weights, lambdas, strict=True)
        self._scales = [weight * each / (2 * self._num) for weight, each in pairs]
        self._kept: list[tuple[float, Tensor, Tensor, Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, score: Score) -> float:
        """Return the excess loss of ``score``."""
        is_small = len(self._levels) * self._num * self._truth.dim <= _MOST_KEPT
        if self._kept is None and is_small:
            self._kept = [*self._draws()]
        excess = 0.0
        for scale, level, x, true in self._kept or self._draws():
            error = score_at(score, level)(x).cpu().double() - true
            excess += scale * float(error.square().sum())
        return excess

    def _draws(self) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
        """Yield points of each level (B, D) with their weight, the level and the true score."""
        stream = random_stream(self._seed, "excess loss along the way", self._device)
        for scale, sigma in zip(self._scales, self._levels, strict=True):
            points = self._truth.sample(self._num, sigma=sigma, generator=stream)
            for x in in_parts(points, self._truth):
                true = self._truth.score(x.cpu().double(), sigma)
                yield scale, torch.tensor(sigma, dtype=x.dtype, device=x.device), x, true


def excess_loss(
    dataset: Dataset, sigmas: Tensor, loss: Loss, seed: int, device: torch.device
) -> ExcessLoss | None:
    """Return what measures the excess loss; None if lambda or the true score is not known."""
    if not dataset.truth.is_known:
        return None
    if any(loss.weight(sigma) is None for sigma in loss.quadrature(sigmas)[0]):
        return None
    return ExcessLoss(dataset.truth, sigmas, loss, seed, device)
