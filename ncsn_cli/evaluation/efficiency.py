"""How many data score matching needs for the weights of a mixture, beside maximum likelihood."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.datasets import GaussianMixture

_REACH = 8.5  # standard deviations that the grid extends beyond all means, for data and noise each
_NODES_PER_STD = 4, 16  # at least and at most
_MOST_TERMS = 1_000_000  # grid nodes times components: half a second
_MOST_COMPONENTS = 30
_COUNTLESS = 1e300  # stands for infinitely many data, which JSON cannot hold
_SINGULAR = 1e-12  # relative: eigenvalues that are rounding
_ALIKE = 1e-9  # relative: smaller spreads of means, and differences of widths, are rounding


def data_needed(law: GaussianMixture, sigma: float) -> float | None:
    r"""Return n_score/n_likelihood: how many times the data score matching at ``sigma`` needs.

    Estimated are the weights w_1, ..., w_(K-1); means and widths are known. Both estimators have
    an error of covariance V/n for n points: V = J^-1 for maximum likelihood, and for score
    matching with the noise averaged (infinitely many draws for each point) the sandwich formula

        V = A^-1 B A^-1,   A = E_sigma[grad u (grad u)^T],   B = E_0[psi psi^T],   J = E_0[u u^T]
        u_k = d log p_sigma/d w_k,   psi_k = E_z[(s . grad u_k + lap u_k)(x + sigma z)]

    with s = grad log p_sigma and psi the derivative of the implicit loss by w. The result is the
    ratio of the variances in the direction in which it is largest, the largest eigenvalue of V J.
    It is found by the trapezoid rule on a grid, for D <= 2. If all components are round and
    equally wide, only the space that their means span matters, which may have fewer dimensions.

    Source: Koehler, Heckett & Risteski (2022), arXiv:2210.00726, section 3 (sigma = 0).

    Returns:
        The ratio, at least 1 and at most 1e300; None if the law has one or too many components,
        equal ones, points, or too many dimensions.
    """
    num = law.num_components
    if not (2 <= num <= _MOST_COMPONENTS and law.has_density(0.0)):
        return None
    law = _in_the_span_of_the_means(law)
    if law.dim > 2:
        return None
    axes = _axes(law, sigma)
    if math.prod(map(len, axes)) * num > _MOST_TERMS:
        return None
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (..., D)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    clean, _, _ = _derivatives(law, grid, 0.0)
    _, slopes, psi = _derivatives(law, grid, sigma)
    points = grid.flatten(0, -2)
    p = (law.log_prob(points).exp() * cell).numpy()  # (G,)
    p_sigma = (law.log_prob(points, sigma).exp() * cell).numpy()
    if sigma > 0:
        psi = _smoothed(psi, sigma, axes)
    likelihood = np.einsum("gk,gl,g->kl", clean, clean, p)
    curvature = np.einsum("gki,gli,g->kl", slopes, slopes, p_sigma)
    spread = np.einsum("gk,gl,g->kl", psi, psi, p)
    values, vectors = np.linalg.eigh(likelihood)
    if values[0] <= _SINGULAR * values[-1]:  # equal components: only the sum of weights is known
        return None
    root = vectors * np.sqrt(values)  # J^(1/2)
    with np.errstate(all="ignore"):
        try:
            half = np.linalg.solve(curvature, root)
            ratio = float(np.linalg.eigvalsh(half.T @ spread @ half)[-1])
        except np.linalg.LinAlgError:  # between the modes p_sigma is 0 to the last float
            ratio = math.inf
    return ratio if ratio < _COUNTLESS else _COUNTLESS


def _in_the_span_of_the_means(law: GaussianMixture) -> GaussianMixture:
    """Return the law of the coordinates in which components differ, if all are alike and round."""
    weights, means, covariances = law.components(0.0)
    variance = float(covariances[0, 0, 0])
    round_one = variance * torch.eye(law.dim, dtype=torch.float64)
    if float((covariances - round_one).abs().max()) > _ALIKE * variance:
        return law
    centred = means - means.mean(0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = axes[lengths > _ALIKE * lengths[0]]  # (r, D)
    if not 0 < len(kept) < law.dim:
        return law
    return GaussianMixture(weights.tolist(), (centred @ kept.T).tolist(), math.sqrt(variance))


def _axes(law: GaussianMixture, sigma: float) -> list[Tensor]:
    """Return the nodes of each axis.

    Where two components of width s and distance d meet, their shares change over s^2/d.
    """
    _, means, covariances = law.components(0.0)
    variances = torch.linalg.eigvalsh(covariances)
    narrowest, widest = float(variances.min().sqrt()), float(variances.max().sqrt())
    apart = float(torch.pdist(means).max()) if len(means) > 1 else 0.0
    least, most = _NODES_PER_STD
    step = narrowest / min(max(least, apart / narrowest), most)
    if sigma > 0:
        step = min(step, sigma / 2)  # resolves the kernel of the noise, too
    margin = _REACH * (widest + sigma)
    ends = zip((means.amin(0) - margin).tolist(), (means.amax(0) + margin).tolist(), strict=True)
    return [torch.arange(low, high + step, step, dtype=torch.float64) for low, high in ends]


def _derivatives(
    law: GaussianMixture, grid: Tensor, sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return u (G, K - 1), grad u (G, K - 1, D) and s . grad u + lap u (G, K - 1).

    With a_k = N_k/p, g_k = grad log N_k and C_k the covariances,

        u_k = a_k - a_K,   grad a_k = a_k (g_k - s)
        s . grad a_k + lap a_k = a_k (g_k . (g_k - s) - tr C_k^-1 - div s)
    """
    weights, means, covariances = law.components(sigma)
    x = grid.flatten(0, -2)  # (G, D)
    inverses = torch.linalg.inv(covariances)
    pulls = torch.einsum("kij,gkj->gki", inverses, means - x[:, None])  # g_k: (G, K, D)
    log_terms = (
        weights.log()
        - torch.linalg.slogdet(covariances)[1] / 2
        + ((x[:, None] - means) * pulls).sum(-1) / 2
    )
    shares = log_terms.softmax(-1)  # (G, K)
    score = torch.einsum("gk,gki->gi", shares, pulls)
    traces = inverses.diagonal(dim1=1, dim2=2).sum(-1)
    squares = pulls.square().sum(-1)  # (G, K)
    divergence = (shares * (squares - traces)).sum(-1) - score.square().sum(-1)  # (G,)
    a = shares / weights
    slope = a[..., None] * (pulls - score[:, None])
    psi = a * (squares - torch.einsum("gki,gi->gk", pulls, score) - traces - divergence[:, None])
    u, slopes, psi = (each[:, :-1] - each[:, -1:] for each in (a, slope, psi))
    return u.numpy(), slopes.numpy(), psi.numpy()


def _smoothed(
    values: NDArray[np.float64], sigma: float, axes: list[Tensor]
) -> NDArray[np.float64]:
    """Return E_z[values(x + sigma z)] at each grid node, (G, M)."""
    from scipy.ndimage import gaussian_filter  # here: scipy is slow to import

    shape = [*map(len, axes), values.shape[1]]
    widths = [sigma / float(axis[1] - axis[0]) for axis in axes]
    smooth = gaussian_filter(
        values.reshape(shape), [*widths, 0.0], mode="nearest", truncate=_REACH
    )
    return np.asarray(smooth).reshape(values.shape)
