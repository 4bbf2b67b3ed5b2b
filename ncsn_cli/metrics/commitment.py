"""When chains decide for a mode."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_MOST_MODES = 10  # for which shares and transitions are kept
_MOST_TRANSITIONS = 100_000  # for which they are kept


def settled_from(labels: Tensor) -> Tensor:
    """The first level (N,), as an index, from which each chain keeps its mode, from ``labels``.

    ``labels`` (L, N): the mode of each chain after each level; 0 where it never changes.
    """
    changed = labels[1:] != labels[:-1]  # (L - 1, N)
    level = torch.arange(1, len(labels), device=labels.device)[:, None]
    last = (changed * level).amax(0) if len(labels) > 1 else torch.zeros(labels.shape[1])
    return last.long()


def count_commitment(labels: Tensor, num_modes: int) -> dict[str, Tensor]:
    """Counts, which add up over sets of chains, from the mode of each after each level (L, N).

    ``committed`` (L,): chains that never change mode after the level. For few modes and levels
    also ``in_mode`` (L, K): chains in each, and ``moved`` (L - 1, K, K): chains in mode a after
    level i that are in mode b after level i + 1.
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
    """At which level chains settle, from what ``count_commitment`` counted.

    ``committed`` (L): the share of chains that never change mode after the level. Where counted,
    also ``shares`` (L, K) of chains in each, and ``transitions`` (L - 1, K, K): the share of the
    chains in mode a after level i that are in mode b after level i + 1; None where there is none.
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
