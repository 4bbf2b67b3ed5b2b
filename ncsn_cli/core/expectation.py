"""Expectations and their standard errors, from exact draws of the parts of a law."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_DRAWS_PER_ROUND, _MOST_DRAWS = 100_000, 10_000_000
_TERMS_PER_ROUND, _MOST_TERMS = 5_000_000, 40_000_000  # draws times terms: some seconds at most
_TERMS_AT_ONCE = 2_000_000  # a float64 array of this size takes 16 MB
_TARGET = 5e-4  # stop drawing at this relative error of the Fisher information


class StratifiedDraws(NamedTuple):
    """Draws from the parts of a law, at least two from each part.

    Args:
        weights: The probability of each part (S,).
        part: The part that each draw comes from (n,).
        x: The draws (n, D), float64.
    """

    weights: Tensor
    part: Tensor
    x: Tensor


class Estimate(NamedTuple):
    """Numbers (M,) and their standard errors (M,)."""

    value: Tensor
    error: Tensor


def mean_over_draws(
    draw: Callable[[int], StratifiedDraws],
    function: Callable[[Tensor, Tensor], Tensor],
    num_terms: int,
    is_enough: Callable[[Estimate], bool],
) -> Estimate:
    """Return E f(x), estimated from draws of each part k of a law, which has probability w_k.

        E f = sum_k w_k E_k f,   standard error^2 = sum_k w_k^2 Var_k f/n_k

    Rounds of draws are added until ``is_enough`` is true. The limit is 10^7 draws, or fewer where
    ``function`` computes many numbers.

    Args:
        draw: ``draw(num)`` returns new draws at each call, ``num`` of them or a few more.
        function: ``function(part, x)`` returns f (n, M) at draws x (n, D) of the parts (n,).
        num_terms: Numbers that ``function`` computes per point. The number of draws is limited
            accordingly, so that memory and time stay bounded.
        is_enough: Returns whether the errors are small enough.
    """
    chunk = max(1, _TERMS_AT_ONCE // num_terms)
    num = min(_DRAWS_PER_ROUND, max(1000, _TERMS_PER_ROUND // num_terms))
    rounds = min(_MOST_DRAWS, _MOST_TERMS // num_terms) // num
    total = variance = torch.zeros(())
    for made in range(1, max(1, rounds) + 1):
        weights, part, x = draw(num)
        values = torch.cat(list(map(function, part.split(chunk), x.split(chunk))))  # (n, M)
        sizes = part.bincount(minlength=len(weights))[:, None]  # (S, 1)
        nothing = values.new_zeros(len(weights), values.shape[1])
        means = nothing.index_add(0, part, values) / sizes  # (S, M)
        squares = nothing.index_add(0, part, (values - means[part]) ** 2)
        total = total + weights @ means
        variance = variance + weights**2 @ (squares / (sizes * (sizes - 1)))
        found = Estimate(total / made, variance.sqrt() / made)
        if is_enough(found):
            break
    return found


class FisherInformation(NamedTuple):
    """E[s s^T] of the score s = grad log p_sigma, units 1/length^2.

    Args:
        matrix: (D, D), float64; its trace is I(p_sigma).
        error: Standard error of the trace; 0 where no draws were used.
        matrix_error: Standard error of each entry (D, D).
    """

    matrix: Tensor
    error: float
    matrix_error: Tensor


def fisher_by_draws(
    draw: Callable[[int], StratifiedDraws],
    function: Callable[[Tensor, Tensor], Tensor],
    num_terms: int,
    known: Tensor,
) -> FisherInformation:
    """Return the Fisher information ``known`` (D, D) plus E f(x), where f is (n, D, D).

    Draws are added until the standard error of the trace is at most 5e-4 of the trace; see
    ``mean_over_draws``.
    """

    def with_trace(part: Tensor, x: Tensor) -> Tensor:
        matrices = function(part, x)  # (n, D, D)
        trace = matrices.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True)
        return torch.cat([matrices.flatten(1), trace], dim=1)

    def is_enough(found: Estimate) -> bool:
        return bool(found.error[-1] <= _TARGET * (known.trace() + found.value[-1]).abs())

    value, error = mean_over_draws(draw, with_trace, num_terms, is_enough)
    return FisherInformation(
        known + value[:-1].view_as(known), float(error[-1]), error[:-1].view_as(known)
    )


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ||x_i - y_j||, (n, m), of points x (n, D) and y (m, D), float64.

    Coordinates are subtracted before they are squared. Torch's default for many points is
    |x|^2 - 2 <x, y> + |y|^2, where rounding hides the distance of close points far from 0.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """Return, for each of the points (B, D), the row of ``centres`` (K, D) that is nearest, (B,).

    The distances are computed on the CPU, in float64.
    """
    parts = x.cpu().double().split(max(1, _TERMS_AT_ONCE // len(centres)))
    return torch.cat([distances(part, centres).argmin(-1) for part in parts])


class ModeMoments(NamedTuple):
    """Moments of the points of a law that are nearest to each mode's centre.

    Args:
        shares: Probability of these points (K,).
        means: Mean of these points (K, D); nan where there are none.
        covariances: Covariance of these points (K, D, D).
        errors: Standard errors of the three; 0 where a closed form gives the number.
    """

    shares: Tensor
    means: Tensor
    covariances: Tensor
    errors: tuple[Tensor, Tensor, Tensor]


def moments_from_sums(modes: Tensor, share: Tensor, first: Tensor, second: Tensor) -> ModeMoments:
    """Return the moments, with errors 0, from E[1_k], E[1_k y] and E[1_k y y^T], y = x - centre.

    Shapes (K,), (K, D) and (K, D, D); 1_k is 1 where x is nearest to the k-th of ``modes`` (K, D).
    """
    offset = first / share[:, None]  # nan where there is no point
    covariances = second / share[:, None, None] - offset[:, :, None] * offset[:, None]
    zeros = (torch.zeros_like(share), torch.zeros_like(first), torch.zeros_like(second))
    return ModeMoments(share, modes + offset, covariances, zeros)


def moments_by_draws(
    modes: Tensor,
    draws: StratifiedDraws,
    own: Tensor | None = None,
    known: ModeMoments | None = None,
) -> ModeMoments:
    """Return shares and moments of the points nearest to each of ``modes`` (K, D), with errors.

    Where the moments of each part are known, only draws that crossed into another mode's region
    are counted. Such a draw is subtracted from its part's own mode and added to the other, so that
    well separated modes have no error. Errors are of first order (delta method).

    Args:
        modes: Centres, float64.
        draws: Draws from each part of the law.
        own: The mode that each part belongs to (S,); None if nothing is known about the parts.
        known: Each mode's moments if no draw left its mode.
    """
    num, dim = modes.shape
    sizes = draws.part.bincount(minlength=len(draws.weights))  # (S,)
    part, x, cell = draws.part, draws.x, nearest_centre(draws.x, modes)
    weight = (draws.weights / sizes)[part]  # of each draw (n,)
    if own is not None:
        is_moved = cell != own[part]
        part, x, cell, weight = part[is_moved], x[is_moved], cell[is_moved], weight[is_moved]
        cell = torch.cat([cell, own[part]])
        part, x, weight = part.repeat(2), x.repeat(2, 1), torch.cat([weight, -weight])
    y = x - modes[cell]  # (n, D)
    share = torch.zeros(num, dtype=torch.float64)
    first = torch.zeros(num, dim, dtype=torch.float64)
    second = torch.zeros(num, dim, dim, dtype=torch.float64)
    if known is not None:
        offset = known.means - modes
        share += known.shares
        first += known.shares[:, None] * offset
        second += known.shares[:, None, None] * (
            known.covariances + offset[:, :, None] * offset[:, None]
        )
    share.index_add_(0, cell, weight)
    first.index_add_(0, cell, weight[:, None] * y)
    second.index_add_(0, cell, weight[:, None, None] * y[:, :, None] * y[:, None])
    found = moments_from_sums(modes, share, first, second)
    residual = x - found.means[cell]
    terms = torch.cat(
        [
            weight[:, None],
            (weight / share[cell])[:, None] * residual,
            (weight / share[cell])[:, None]
            * (residual[:, :, None] * residual[:, None] - found.covariances[cell]).flatten(1),
        ],
        dim=1,
    )  # first-order contribution of each draw, (n, 1 + D + D^2)
    group, place = torch.unique(part * num + cell, return_inverse=True)
    sums, squares = (
        torch.zeros(len(group), terms.shape[1], dtype=torch.float64).index_add_(0, place, values)
        for values in (terms, terms**2)
    )
    variance = squares - sums**2 / sizes[group // num, None]
    error = torch.zeros(num, terms.shape[1], dtype=torch.float64)
    error = error.index_add_(0, group % num, variance.clamp(min=0)).sqrt()
    errors = error[:, 0], error[:, 1 : 1 + dim], error[:, 1 + dim :].view_as(second)
    return found._replace(errors=errors)
