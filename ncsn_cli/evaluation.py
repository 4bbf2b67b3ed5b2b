"""A score, or samples, held against the truth: the numbers and the arrays that runs report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.errors import DivergedError
from ncsn_cli.floors import Floor
from ncsn_cli.losses import Denoising, Explicit, Loss
from ncsn_cli.metrics import (
    FisherDivergence,
    SampleMetric,
    divergence_of,
    fisher_divergence,
    in_parts,
    log_likelihood,
    prior_log_prob,
    recovered_density,
    relative_curl,
)
from ncsn_cli.scene import Scene
from ncsn_cli.scores import Dataset, Score, random_stream
from ncsn_cli.views import Grid, Projection, grid_of, levels_shown

log = logging.getLogger(__name__)

FloorOf = Callable[[SampleMetric, Dataset, float, int], Floor]
"""``floor_of(metric, truth, sigma, N)``: the law of the distance of N exact draws."""

EVALUATED = ["loss", "loss_floor", "excess_loss", "score_error"]
"""Numbers of every training, the smaller the better but for the floor."""

_POINTS = 500_000  # over all levels
_POINTS_PER_LEVEL = 10_000, 100_000  # at least and at most
_POINTS_FOR_CURL = 10_000
_FLOW_STEPS = 50  # an error of .002 nats in root mean square on grid_2d, less on the others


@torch.no_grad()
def excess_loss(
    score: Score,
    truth: Dataset,
    sigmas: Tensor,
    loss: Loss,
    num: int,
    generator: torch.Generator,
) -> float:
    """Mean over levels of lambda/2 E||s - grad log p_sigma||^2, from ``num`` draws a level."""
    levels = sigmas.tolist()
    divergences = [fisher_divergence(score, truth, s, num, generator).divergence for s in levels]
    return float(
        np.mean([loss.weight(s) / 2 * d for s, d in zip(levels, divergences, strict=True)])
    )


@torch.no_grad()
def evaluate_training(
    score: Score, dataset: Dataset, sigmas: Tensor, loss: Loss, seed: int, device: torch.device
) -> dict[str, Any]:
    """What ``metrics.json`` of a training run says of the network, from fresh exact draws.

    ``loss`` is the trained loss, ``loss_floor`` its value at the true score, ``excess_loss``
    their difference computed directly as lambda/2 E||s - grad log p_sigma||^2, ``score_error``
    the squared relative error E||s - s*||^2/E||s*||^2; means over the L levels, each
    with 500 000/L draws, but 10 000 to 100 000, the same for loss and errors where the loss needs
    no derivative. A loss with a penalty reports it as ``penalty``, part of ``loss``. Per level
    also E||s - s*||^2, the scale c that makes c s best, the relative curl for D = 2, and for
    D = 1 the KL divergence of the density that integrating the score recovers.
    """
    least, most = _POINTS_PER_LEVEL
    num = min(most, max(least, _POINTS // len(sigmas)))
    losses, penalties, floors, excesses = [], [], [], []
    divergences, errors, scales, curls, kls = [], [], [], [], []
    stream = random_stream(seed, "evaluation", device)
    for sigma in tqdm(sigmas.tolist(), desc="evaluation", unit="level", disable=None, leave=False):
        value, penalty, found = _at_level(score, dataset, sigma, loss, num, stream)
        losses.append(value)
        if penalty is not None:
            penalties.append(penalty)
        floors.append(loss.floor(sigma, dataset.dim, dataset.fisher_information(sigma)))
        excesses.append(loss.weight(sigma) / 2 * found.divergence)
        divergences.append(found.divergence)
        errors.append(found.relative)
        scales.append(found.best_scale)
        if dataset.dim == 2:
            curls.append(relative_curl(score, dataset, sigma, _POINTS_FOR_CURL, stream))
        if dataset.dim == 1:
            kls.append(recovered_density(score, dataset, torch.tensor(sigma, device=device)).kl)
    means = {
        "loss": float(np.mean(losses)),
        **({"penalty": float(np.mean(penalties))} if penalties else {}),
        "loss_floor": float(np.mean(floors)),
        "excess_loss": float(np.mean(excesses)),
        "score_error": float(np.mean(errors)),
    }
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise DivergedError(f"{name} of the trained network is {mean}; lower optimizer.lr")
    return {
        **means,
        "sigmas": sigmas.tolist(),
        "score_error_per_level": errors,
        "fisher_divergence_per_level": divergences,
        "best_scale_per_level": scales,
        **({"curl_per_level": curls} if curls else {}),
        **({"recovered_kl_per_level": kls} if kls else {}),
    }


def _at_level(
    score: Score,
    dataset: Dataset,
    sigma: float,
    loss: Loss,
    num: int,
    stream: torch.Generator,
) -> tuple[float, float | None, FisherDivergence]:
    """The loss, its penalty if it has one, and how the score differs from the true one."""
    x = dataset.sample(num, generator=stream)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    # These two evaluate the score at draws of p_sigma and nowhere else, and do not differentiate.
    is_shared = type(loss) in (Denoising, Explicit)
    seen: list[tuple[Tensor, Tensor]] = []

    def shared(points: Tensor, _: Tensor) -> Tensor:
        seen.append((points, score(points, level)))  # it need not embed one level for every point
        return seen[-1][1]

    def total(loss: Loss, part: Tensor) -> float:
        function = shared if is_shared else score
        mean = loss(function, part, level[None], generator=stream, true_score=dataset.score)
        return float(mean) * len(part)

    value = plain = 0.0
    for part in in_parts(x, dataset):
        state = stream.get_state()
        value += total(loss, part) / len(x)
        if loss.without_penalty is not loss:
            stream.set_state(state)  # the same draws
            plain += total(loss.without_penalty, part) / len(x)
    penalty = None if loss.without_penalty is loss else value - plain
    if is_shared:
        points, learned = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return value, penalty, divergence_of(learned, points, dataset, level)
    return value, penalty, fisher_divergence(score, dataset, sigma, num, stream)


def evaluate_samples(
    samples: Tensor,
    truth: Dataset,
    sigma: float,
    metrics: Mapping[str, SampleMetric],
    floor_of: FloorOf,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Every metric's distance from ``samples`` (N, D) to p_sigma, beside its noise floor.

    The floor's quantiles show how far chance goes; ratio = value / floor is 1 for a perfect
    sampler, and None where exact draws have no distance but rounding.
    """
    return {
        name: {
            **_against_floor(name, metric, samples, truth, sigma, floor_of, seed),
            **metric.details(samples, truth, sigma),
        }
        for name, metric in metrics.items()
    }


def _against_floor(
    name: str,
    metric: SampleMetric,
    samples: Tensor,
    truth: Dataset,
    sigma: float,
    floor_of: FloorOf,
    seed: int,
) -> dict[str, Any]:
    distance = metric.distance(truth, sigma, len(samples))
    value = distance(samples, random_stream(seed, f"{name} at {sigma}"))
    floor = floor_of(metric, truth, sigma, len(samples))
    ratio = value / floor["floor"] if floor["floor"] > 1e-12 * value else None
    return {"value": value, **floor, "ratio": ratio}


@torch.no_grad()
def evaluate_trajectory(
    states: Mapping[float, Tensor],
    truth: Dataset,
    metrics: Mapping[str, SampleMetric],
    floor_of: FloorOf,
    seed: int,
) -> dict[str, Any]:
    """Every metric's ``value``, ``floor`` and ``ratio`` between the chains and p_sigma, by level.

    Also their standard deviation, in root mean square over the axes, and the true one.
    ``states``: by level ``sigma``, the chains (N, D) when they leave it.
    """
    levels = tqdm(states.items(), desc="distances", unit="level", disable=None, leave=False)
    rows = [
        {
            name: _against_floor(name, metric, x, truth, s, floor_of, seed)
            for name, metric in metrics.items()
        }
        for s, x in levels
    ]
    keys = ("value", "floor", "ratio")
    return {
        "sigmas": list(states),
        "std": {
            "value": [float(x.double().var(0).mean().sqrt()) for x in states.values()],
            "true": [
                float(truth.perturbed_covariance(s).diagonal().mean().sqrt()) for s in states
            ],
        },
        **{name: {key: [row[name][key] for row in rows] for key in keys} for name in metrics},
    }


@torch.no_grad()
def evaluate_log_density(
    score: Score, truth: Dataset, sigmas: Tensor, device: torch.device
) -> tuple[dict[str, float | None], dict[str, NDArray[np.float64]]]:
    """The density that ``score`` implies at the last of ``sigmas`` (L,), on the pictures' grid.

    Log q by the probability flow from the Gaussian of ``init=prior``, beside the true log p_sigma.
    Returns numbers (the ``mass`` of q on the grid and the true one; ``kl``, the integral of
    p log(p/q) over the grid, nats, None where the grid is too coarse for p; for D = 1
    ``recovered_kl``, of the density recovered by integrating the score) and arrays (axes,
    ``log_density``, ``true_log_density``, each (G,)).
    """
    sigma_max, sigma_min = float(sigmas[0]), float(sigmas[-1])
    axes, points = grid_of(truth)
    log_q = log_likelihood(
        score,
        points.float().to(device),
        sigma_min,
        sigma_max,
        prior_log_prob(truth, sigma_max),
        _FLOW_STEPS,
    )
    log_q, log_p = log_q.cpu().double(), truth.log_prob(points, sigma_min)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    true_mass = float(log_p.exp().sum() * cell)
    kl: float | None = float((log_p.exp() * (log_p - log_q)).sum() * cell)
    if abs(true_mass - 1) > 0.01:
        log.warning(
            "log_density: the true density is narrower than the grid's cells; no KL divergence"
        )
        kl = None
    numbers = {
        "sigma": sigma_min,
        "mass": float(log_q.exp().sum() * cell),
        "true_mass": true_mass,
        "kl": kl,
    }
    if truth.dim == 1:
        level = torch.tensor(sigma_min, device=device)
        numbers["recovered_kl"] = recovered_density(score, truth, level).kl
    arrays = {f"x{i}": axis.numpy() for i, axis in enumerate(axes, start=1)}
    return numbers, {
        **arrays,
        "log_density": log_q.numpy(),
        "true_log_density": log_p.numpy(),
    }


@torch.no_grad()
def compose_scene(
    dataset: Dataset,
    sigmas: Tensor,
    device: torch.device,
    *,
    score: Score | None = None,
    path_sigmas: NDArray[np.float64] | None = None,
    **arrays: Any,  # noqa: ANN401
) -> Scene:
    """Evaluate the truth, and the ``score`` learned on ``device``, where pictures show them.

    ``path_sigmas`` (frames,) are the levels of chains over time; the other ``arrays`` go into
    the ``Scene`` as they are, but for D > 2 points are projected.
    """
    shown = levels_shown(dataset.dim, sigmas)
    levels = shown.tolist()
    view: Grid | Projection = Grid(dataset) if dataset.dim <= 2 else Projection(dataset)
    points = [view.points(s) for s in levels]  # where scores are shown

    def learned(score: Score, x: Tensor, sigma: float) -> Tensor:
        return score(x.float().to(device), torch.tensor(sigma, device=device)).cpu()

    if dataset.dim == 1 and score is not None:
        found = [recovered_density(score, dataset, torch.tensor(s, device=device)) for s in levels]
        arrays["recovered"] = np.stack(
            [np.interp(view.axes[0], each.x, each.log_prob.exp()) for each in found]
        )
        arrays["recovered_kl"] = np.array([each.kl for each in found], dtype=float)
    if isinstance(view, Projection):
        arrays["places"] = np.stack([view.project(x) for x in points])
        for name in ("data", "samples", "exact", "paths"):
            if arrays.get(name) is not None:
                arrays[name] = view.project(arrays[name])
    pairs = list(zip(points, levels, strict=True))
    by_level = {} if path_sigmas is None else {s: view.density(s) for s in set(path_sigmas)}
    return Scene(
        dim=dataset.dim,
        axes=view.axes,
        modes=dataset.modes.numpy(),
        sigmas=shown.numpy(),
        clean_density=view.density(0.0) if dataset.has_density(0.0) else None,
        densities=np.stack([view.density(s) for s in levels]),
        true_scores=np.stack([view.project(dataset.score(x, s)) for x, s in pairs]),
        scores=None
        if score is None
        else np.stack([view.project(learned(score, x, s)) for x, s in pairs]),
        path_sigmas=path_sigmas,
        path_densities=None
        if path_sigmas is None
        else np.stack([by_level[s] for s in path_sigmas]),
        **arrays,
    )
