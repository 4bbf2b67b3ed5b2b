"""The training points that each step takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ncsn_cli.core.settings import random_stream

_ROWS_AT_ONCE = 2**14


class Batches:
    """The rows of a training set for every step, in an order that is new in each epoch.

    The order in epoch e is a function of the seed and e, so that a resumed training needs no more
    than its step. Epochs follow each other without a gap, so all batches have the same size: a
    batch may hold the last points of one epoch and the first points of the next.

    Args:
        num: N, the number of training points.
        size: B, the number of points per step, < N.
        seed: Seed of the run.
        device: Where the training set is.
    """

    def __init__(self, num: int, size: int, seed: int, device: torch.device) -> None:
        self._num, self._size, self._seed, self._device = num, size, seed, device
        self._orders: dict[int, Tensor] = {}
        self._steps, self._rows = range(0), torch.empty(0, size, dtype=torch.long)

    def rows(self, steps: range) -> Tensor:
        """Return the rows for each of the steps, (steps, B).

        Those of later steps are found with them: a search for each step would take a tenth of a
        small network's step.
        """
        if steps.start not in self._steps or steps[-1] not in self._steps:
            last = max(steps.stop, steps.start + _ROWS_AT_ONCE // self._size)
            self._steps = range(steps.start, last)
            self._rows = self._find(self._steps)
        first = steps.start - self._steps.start
        return self._rows[first : first + len(steps)]

    def _find(self, steps: range) -> Tensor:
        num, first, end = self._num, steps.start * self._size, steps.stop * self._size
        epochs = range(first // num, (end - 1) // num + 1)
        orders = {epoch: self._order(epoch) for epoch in epochs}
        self._orders = {epochs[-1]: orders[epochs[-1]]}  # later steps begin in this epoch
        parts = [
            order[max(0, first - epoch * num) : end - epoch * num]
            for epoch, order in orders.items()
        ]
        return torch.cat(parts).view(len(steps), self._size).to(self._device)

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of the training set in the epoch's order, (N,)."""
        if epoch in self._orders:
            return self._orders[epoch]
        stream = random_stream(self._seed, f"epoch {epoch}")
        return torch.randperm(self._num, generator=stream)
