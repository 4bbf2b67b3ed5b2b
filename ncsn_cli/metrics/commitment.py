"""Mode commitment: at which level chains settle in a mode."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_MOST_MODES = 10  # with more modes, shares and transitions are not kept
_MOST_TRANSITIONS = 100_000  # numbers (L K^2); with more, shares and transitions are not kept


def settled_from(labels: Tensor) -> Tensor:
    """Return the index (N,) of the first level from which each chain keeps its mode.

    ``labels`` (L, N) are the modes of the N chains after each level. The index is 0 for a chain
    whose mode never changes.
    """
    changed = labels[1:] != labels[:-1]  # (L - 1, N)
    level = torch.arange(1, len(labels), device=labels.device)[:, None]
    last = (changed * level).amax(0) if len(labels) > 1 else torch.zeros(labels.shape[1])
    return last.long()


def settled_point(paths: Tensor, sigmas: Tensor, data: Tensor) -> float | None:
    """Return the median level from which a chain's nearest training point stays the same.

    Return None if at least half of the chains still change theirs at the last level.

    Args:
        paths: Chains over time (frames, chains, D).
        sigmas: The level of each frame (frames,).
        data: The training points (N, D).
    """
    from scipy.spatial import cKDTree  # here: scipy is slow to import

    _, nearest = cKDTree(data.double().numpy()).query(paths.double().numpy())  # (frames, chains)
    level = float(sigmas[settled_from(torch.from_numpy(nearest))].median())
    return level if level > float(sigmas[-1]) else None


def count_commitment(labels: Tensor, num_modes: int) -> dict[str, Tensor]:
    """Return counts of chains, from ``labels`` (L, N), their modes after each level.

    ``committed`` (L,): chains that never change mode after the level. With few modes and levels
    also ``in_mode`` (L, K): chains in each mode, and ``moved`` (L - 1, K, K): chains in mode a
    after level i that are in mode b after level i + 1. The counts of disjoint sets of chains can
    be summed.
    """
    levels = torch.arange(len(labels), device=labels.device)[:, None]
    counts = {"committed": (settled_from(labels) <= levels).sum(1)}
    if num_modes > _MOST_MODES or len(labels) * num_modes**2 > _MOST_TRANSITIONS:
        return counts
    pairs = [
        torch.bincount(before.long() * num_modes + after, minlength=num_modes**2)
        for before, after in pairwise(labels)
    ]
    empty = torch.empty(0, num_modes**2, dtype=torch.long)
    return counts | {
        "in_mode": torch.stack([row.long().bincount(minlength=num_modes) for row in labels]),
        "moved": (torch.stack(pairs) if pairs else empty).reshape(-1, num_modes, num_modes),
    }


def mode_commitment(counts: dict[str, Tensor]) -> dict[str, Any]:
    """Return shares of chains, from the ``counts`` of ``count_commitment``.

    ``committed`` (L,): the share of chains that never change mode after the level. If ``counts``
    has them, also ``shares`` (L, K) of chains in each mode, and ``transitions`` (L - 1, K, K): of
    the chains in mode a after level i, the share that is in mode b after level i + 1. A row of
    ``transitions`` is None if no chain is in mode a.
    """
    num = int(counts["committed"][-1])
    shares = {"committed": (counts["committed"].double() / num).tolist()}
    if "moved" not in counts:
        return shares
    return shares | {
        "shares": (counts["in_mode"].double() / num).tolist(),
        "transitions": [
            [
                (row / total).tolist() if total > 0 else None
                for row, total in zip(pair, totals, strict=True)
            ]
            for pair, totals in zip(counts["moved"], counts["in_mode"][:-1], strict=True)
        ],
    }
