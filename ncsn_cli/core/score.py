"""The score, one kind of callable for truth and network, and its derivatives.

Shapes: B points, D dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(x, sigma)``: grad_x log p_sigma(x), units 1/length; x (B, D), sigma () or (B,).

The exact mixture and the network share this type, so each sampler, metric and plot takes either.
"""


class ScoreAtSigma(ABC):
    """A score at one noise level. Its faster forms have no gradients."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return grad_x log p_sigma(x), (B, D), at ``x`` (B, D); units 1/length.

        The next evaluation may overwrite this result.
        """

    def steps(self, x: Tensor, z: Tensor, tau: Tensor) -> Iterator[Tensor]:
        """Yield x (B, D) after each Langevin step x + tau score(x) + sqrt(2 tau) z.

        ``z`` (T, B, D) holds the noise of T steps; ``tau`` () is their size.
        """
        for noise in (z * (2 * tau).sqrt()).unbind():
            x = torch.addcmul(x, self(x), tau).add_(noise)
            yield x


class FunctionAtSigma(ScoreAtSigma):
    """The score at one noise level that a function x (B, D) -> (B, D) computes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self._function(x)


class MultilevelScore(ABC):
    """A ``Score`` that has a faster form at one noise level, ``at(sigma)``."""

    @abstractmethod
    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return this score at ``sigma`` (), with the present weights."""


def score_at(score: Score, sigma: Tensor) -> ScoreAtSigma:
    """Return ``score`` at one sigma ().

    The result can be differentiated if gradients are on. If they are off, it is the faster form
    of a ``MultilevelScore``.
    """
    if isinstance(score, MultilevelScore) and not torch.is_grad_enabled():
        return score.at(sigma)
    return FunctionAtSigma(lambda x: score(x, sigma))


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
