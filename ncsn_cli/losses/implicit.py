"""Losses that need no score to compare with, but a derivative of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.score import Score, derivative_along, score_and_jacobian
from ncsn_cli.core.settings import STRICT
from ncsn_cli.losses.base import Loss, Perturbed, Weighted, normal


@dataclass(frozen=True, config=STRICT)
class Implicit(Weighted):
    """Implicit score matching: lambda E[||s||^2/2 + tr(grad s)], with the exact trace for any D.

    Its floor is -lambda/2 I(p_sigma). Source: Hyvarinen (2005), JMLR 6:695-709, eq. 4.
    """

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda (||s||^2/2 + tr(grad s)), (P,)."""
        x, sigma, *_ = perturbed
        s, jacobian = score_and_jacobian(score, x, sigma)
        diagonal = jacobian.diagonal(dim1=1, dim2=2)  # (P, D)
        return self.weights(sigma) * (s.square().sum(-1) / 2 + self._divergence(diagonal))

    def _divergence(self, diagonal: Tensor) -> Tensor:
        """Return the trace (P,) from the diagonal (P, D) of the Jacobian."""
        return diagonal.sum(-1)

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return -lambda/2 I(p_sigma)."""
        return -self._lambda(sigma) / 2 * fisher_information


@dataclass(frozen=True, config=STRICT)
class ImplicitRegularized(Implicit):
    """Implicit score matching with a penalty on curvature.

        lambda E[||s||^2/2 + tr(grad s) + regularization sum_i (d_i s_i)^2]

    The penalty is the sum of squares, not the square of the trace. The minimiser of this loss is
    not the score. Floor and excess are those of the part without penalty.

    Source: Kingma & LeCun (2010), "Regularized estimation of image statistics by score matching".

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
        regularization: >= 0, data units squared.
    """

    regularization: NonNegativeFloat = 0.1

    def _divergence(self, diagonal: Tensor) -> Tensor:
        return diagonal.sum(-1) + self.regularization * diagonal.square().sum(-1)

    @property
    def without_penalty(self) -> Loss:
        """The implicit loss alone."""
        return replace(self, regularization=0.0)


@dataclass(frozen=True, config=STRICT)
class Sliced(Weighted):
    """Sliced score matching: the trace from one random direction v per point, E[v v^T] = I.

        lambda E[||s||^2/2 + v^T (grad s) v],   or with (v^T s)^2/2 for the first term

    Its floor is -lambda/2 I(p_sigma). (A unit-norm v would learn score/D.)

    Source: Song et al. (2019), arXiv:1905.07088, eq. 7 (plain) and 8 (variance-reduced).

    Args:
        levels: See ``Loss``, also for ``log_mean`` and ``log_std``.
        weight_power: See ``Loss``.
        directions: ``gaussian``: v ~ N(0, I); ``rademacher``: +1 or -1 in each coordinate.
        variance_reduced: Whether the first term is replaced by its exact mean ||s||^2/2.
    """

    directions: Literal["gaussian", "rademacher"] = "rademacher"
    variance_reduced: bool = True

    def term(self, score: Score, perturbed: Perturbed) -> Tensor:
        """Return lambda (||s||^2/2 + v^T (grad s) v), (P,)."""
        x, sigma, _, v, _ = perturbed
        s, along = derivative_along(v, score, x, sigma)
        square = s.square().sum(-1) if self.variance_reduced else (v * s).sum(-1).square()
        return self.weights(sigma) * (square / 2 + (v * along).sum(-1))

    def _directions(self, z: Tensor, generator: torch.Generator) -> Tensor:
        v = normal((z.numel() // z.shape[-1], z.shape[-1]), z, generator)
        return v if self.directions == "gaussian" else torch.where(v < 0, -1.0, 1.0)

    weight = Weighted.weight

    def floor(self, sigma: float, dim: int, fisher_information: float) -> float:
        """Return -lambda/2 I(p_sigma)."""
        return -self._lambda(sigma) / 2 * fisher_information
