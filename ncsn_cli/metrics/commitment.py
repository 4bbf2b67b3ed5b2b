"""When chains decide for a mode."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_MOST_MODES = 10  # for which shares and transitions are kept


def settled_from(labels: Tensor) -> Tensor:
    """The first level (N,), as an index, from which each chain keeps its mode, from ``labels``.

    ``labels`` (L, N): the mode of each chain after each level; 0 where it never changes.
    """
    changed = labels[1:] != labels[:-1]  # (L - 1, N)
    level = torch.arange(1, len(labels), device=labels.device)[:, None]
    last = (changed * level).amax(0) if len(labels) > 1 else torch.zeros(labels.shape[1])
    return last.long()


def mode_commitment(labels: Tensor, num_modes: int) -> dict[str, Any]:
    """At which level chains settle, from the mode of each chain after each level (L, N).

    ``committed`` (L): the share of chains that never change mode after the level. For few modes
    also ``shares`` (L, K) of chains in each, and ``transitions`` (L - 1, K, K): the share of the
    chains in mode a after level i that are in mode b after level i + 1; None where there is none.
    """
    levels = torch.arange(len(labels), device=labels.device)[:, None]
    committed = (settled_from(labels) <= levels).double().mean(1).tolist()
    if num_modes > _MOST_MODES:
        return {"committed": committed}
    pairs = [
        torch.bincount(before.long() * num_modes + after, minlength=num_modes**2)
        for before, after in pairwise(labels)
    ]
    counts = torch.stack([row.long().bincount(minlength=num_modes) for row in labels])  # (L, K)
    return {
        "committed": committed,
        "shares": (counts.double() / labels.shape[1]).tolist(),
        "transitions": [
            [
                (row / total).tolist() if total > 0 else None
                for row, total in zip(pair.reshape(num_modes, num_modes), totals, strict=True)
            ]
            for pair, totals in zip(pairs, counts[:-1], strict=True)
        ],
    }
