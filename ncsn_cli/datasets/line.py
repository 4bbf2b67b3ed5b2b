"""Moments of a mixture of Gaussians whose modes lie on a line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncsn_cli.core.expectation import ModeMoments, moments_from_sums
from ncsn_cli.core.gaussian import standard_density


def moments_along_a_line(
    weights: Tensor, means: Tensor, covariances: Tensor, modes: Tensor
) -> ModeMoments | None:
    """Return shares and moments of the points nearest to each mode.

    Return None if the modes lie on no line.

    The points nearest to a centre lie between two parallel planes, which bound z = <v, x - mu>/s
    alone, with v the direction of the line and s^2 = v^T C v. With g = C v/s, x ~ N(mu, C) is
    mu + g z + a rest that does not depend on z.

    Args:
        weights: w_k (K,), float64, like all others.
        means: mu_k (K, D).
        covariances: C_k (K, D, D).
        modes: Centres (M, D).
    """
    direction, along = _line_through(modes)
    if along is None:
        return None
    # Integrals over z between the planes, for each component.
    low, high = _planes_around(along)
    slopes = covariances @ direction  # C v: (K, D)
    stds = (slopes @ direction).clamp(min=1e-300).sqrt()
    offset = (means - modes[0]) @ direction  # (K,)
    mass, first, second = _truncated_moments((low - offset) / stds, (high - offset) / stds)
    # Moments of x from these integrals.
    g = slopes / stds[:, None]  # (K, D)
    y = means - modes[:, None]  # (M, K, D)
    outer = g[:, :, None] * g[:, None]  # (K, D, D)
    cross = y[..., None] * g[:, None] + g[:, :, None] * y[:, :, None]
    squares = (
        mass[..., None, None] * (y[..., None] * y[:, :, None] + covariances - outer)
        + first[..., None, None] * cross
        + second[..., None, None] * outer
    )  # E_k[1 (x - centre)(x - centre)^T]
    lines = mass[..., None] * y + first[..., None] * g
    return moments_from_sums(
        modes,
        mass @ weights,
        torch.einsum("k,mki->mi", weights, lines),
        torch.einsum("k,mkij->mij", weights, squares),
    )


def _line_through(modes: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a direction v (D,), and the places (M,) of the modes along v.

    The places are None if no line holds all modes.
    """
    line = modes - modes[0]
    scale = line.norm(dim=1).max()
    direction = (
        line[int(line.norm(dim=1).argmax())] / scale
        if scale > 0
        else line.new_ones(modes.shape[1]) / math.sqrt(modes.shape[1])
    )
    along = line @ direction  # (M,)
    is_line = float((line - along[:, None] * direction).norm(dim=1).max()) <= 1e-12 * float(scale)
    return direction, along if is_line else None


def _planes_around(along: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the two planes around each mode cross the line, each (M, 1)."""
    order = along.argsort()
    middles = (along[order][1:] + along[order][:-1]) / 2
    ends = torch.tensor([math.inf], dtype=torch.float64)
    low, high = torch.cat([-ends, middles]), torch.cat([middles, ends])  # modes in order
    back = order.argsort()
    return low[back, None], high[back, None]


def _truncated_moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integrals of 1, z and z^2 over N(0, 1) from ``a`` to ``b``."""
    mass = torch.where(
        a > 0,  # take the smaller tail, which has the smaller rounding error
        torch.special.ndtr(-a) - torch.special.ndtr(-b),
        torch.special.ndtr(b) - torch.special.ndtr(a),
    )
    first = standard_density(a) - standard_density(b)
    low = a.nan_to_num(posinf=0, neginf=0) * standard_density(a)
    high = b.nan_to_num(posinf=0, neginf=0) * standard_density(b)
    return mass, first, mass + low - high
