"""The score, one kind of callable for truth and network, and its derivatives.

Shapes: B points, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(x, sigma)``: grad_x log p_sigma(x), units 1/length; x (B, D), sigma () or (B,).

The exact mixture and the network share this type, so each sampler, metric and plot takes either.
"""


def at_level(score: Score, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x (B, D) -> ``score(x, sigma)`` for one sigma ().

    An evaluation may overwrite the result of the one before. If gradients are off and the score
    has a method ``at_level(sigma)`` of its own, the function comes from that method.
    """
    for kind in () if torch.is_grad_enabled() else type(score).__mro__:
        if "at_level" in vars(kind):
            quick: Callable[[Tensor], Tensor] = vars(kind)["at_level"](score, sigma)
            return quick
        if "forward" in vars(kind):  # an inherited ``at_level`` ignores this ``forward``
            break
    return lambda x: score(x, sigma)


def derivative_along(v: Tensor, score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and (grad s) v, both (B, D), by one forward differentiation.

    ``v`` and ``x`` are (B, D).
    """
    result: Any = torch.func.jvp(lambda points: score(points, sigma), (x,), (v,))
    return result[0], result[1]


def score_and_jacobian(score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return s (B, D) and d_j s_i (B, i, j), by forward differentiation along each axis."""
    columns = []
    for axis in range(x.shape[-1]):
        tangent = torch.zeros_like(x)
        tangent[:, axis] = 1
        s, along = derivative_along(tangent, score, x, sigma)
        columns.append(along)
    return s, torch.stack(columns, dim=-1)


def detached_jacobian(score: Score, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return s (B, D) and d_j s_i (B, i, j), both detached: they cannot be differentiated again.

    This takes D backward differentiations. For networks they need a third of the time of forward
    ones.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, sigma)
        rows = [
            torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)[0]
            for value in s.sum(0)  # (D,): each point's score depends on that point alone
        ]
    return s.detach(), torch.stack(rows, dim=1)
