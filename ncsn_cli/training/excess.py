"""The excess loss along the way, from draws that are the same at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

Kept = tuple[float, Tensor, Tensor, Tensor]
"""The weight of a point's squared error, the level, points (B, D), and the true score there."""


class ExcessLoss:
    """The weighted sum of E||s - grad log p_sigma||^2 over some levels, x ~ p_sigma.

    All evaluations are at the same exact draws. These and the true scores there are kept from the
    first evaluation on, unless they are too many.

    Args:
        truth: The distribution, whose score is known.
        weights: The weight of each level.
        num: Draws per level.
        seed: Seed of the draws.
        device: The network's device.
    """

    def __init__(
        self, truth: Dataset, weights: Mapping[float, float], num: int, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._truth, self._weights, self._num = truth, weights, num
        self._seed, self._device = seed, device
        self._is_small = len(weights) * num * truth.dim <= _MOST_KEPT
        self._kept: list[Kept] | None = None

    @torch.no_grad()
    def __call__(self, score: Score) -> float:
        """Return the excess loss of ``score``, in its faster form at one level if it has one."""
        if self._kept is None and self._is_small:
            self._kept = [*self._draws()]
        excess = 0.0
        for weight, level, x, true in self._draws() if self._kept is None else self._kept:
            error = score_at(score, level)(x).cpu().double() - true
            excess += weight * float(error.square().sum())
        return excess

    def _draws(self) -> Iterator[Kept]:
        stream = random_stream(self._seed, "excess loss along the way", self._device)
        for sigma, weight in self._weights.items():
            points = self._truth.sample(self._num, sigma=sigma, generator=stream)
            for x in in_parts(points, self._truth):
                true = self._truth.score(x.cpu().double(), sigma)
                level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
                yield weight / self._num, level, x, true


def excess_loss(
    dataset: Dataset,
    sigmas: Tensor,
    loss: Loss,
    seed: int,
    device: torch.device,
    num: int | None = None,
) -> ExcessLoss | None:
    """Return what measures a score's excess loss.

    This is the mean of lambda/2 E||s - grad log p_sigma||^2 over the levels of ``loss``, which
    follow from ``sigmas`` (L,). Return None if lambda or the true score is not known. ``num`` are
    the draws per level; None chooses.
    """
    levels, means = loss.quadrature(sigmas)
    lambdas = [loss.weight(sigma) for sigma in levels]
    weights = {
        sigma: mean * each / 2
        for sigma, mean, each in zip(levels, means, lambdas, strict=True)
        if each is not None
    }
    if not dataset.truth.is_known or len(weights) < len(levels):
        return None
    most = min(_POINTS, max(_FEWEST, _MOST // len(levels)))
    return ExcessLoss(dataset.truth, weights, most if num is None else num, seed, device)
