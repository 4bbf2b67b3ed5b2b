"""Compare a network's score with the true score: the numbers that a training run reports."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import DivergedError, counted
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.visible import (
    all_visible,
    kl_bounds,
    levels_split,
    log_failures,
    visible_errors,
)
from ncsn_cli.losses import Denoising, Explicit, Loss, Regression
from ncsn_cli.metrics import (
    NOT_RECOVERED,
    SplitError,
    compared_scores,
    divergence_of,
    in_float64,
    in_parts,
    products_at,
    recovered_density,
    relative_error,
    split_error,
)

log = logging.getLogger(__name__)

EVALUATED = ["loss", "loss_floor", "excess_loss", "score_error"]
"""The numbers that every training run reports. Smaller is better, except for the floor."""

_POINTS, _MOST_POINTS = 500_000, 1_000_000  # draws in all, for few and for many levels

_POINTS_PER_LEVEL = 10_000, 100_000  # min and max

_FEWEST_POINTS = 500  # per level, however many levels there are

_MOST_TERMS = 100_000_000  # limit of draws times components: some seconds

_MOST_INFORMATIONS = 100  # levels; with more, Fisher informations are interpolated

_FEWEST_RECOVERED, _MOST_RECOVERED = 20_000, 3_000_000  # points where a 1D score is integrated

_SECONDS_BETWEEN_LINES = 10.0  # of progress, if there is no progress bar


def unknown_numbers(loss: Loss, levels: list[float]) -> set[str]:
    """Return which of ``EVALUATED`` are null: the loss does not state them at the ``levels``."""
    floors = [loss.floor(sigma, 1, 1.0) for sigma in levels]
    lambdas = [loss.weight(sigma) for sigma in levels]
    found = {"loss_floor": floors, "excess_loss": lambdas}
    return {name for name, values in found.items() if None in values}


class _Level(NamedTuple):
    """Results for a score at one level, from fresh draws.

    Args:
        loss: The loss term of each draw (n,).
        penalty: The part of each term that is the loss's penalty (n,); None without a penalty.
        products: See ``metrics.products_at``, (4, m); m = 0 where the true score is not known.
    """

    loss: Tensor
    penalty: Tensor | None
    products: Tensor


@torch.no_grad()
def evaluate_training(
    score: Score, dataset: Dataset, sigmas: Tensor, loss: Loss, seed: int, device: torch.device
) -> dict[str, Any]:
    """Return the network's numbers for a training run's ``metrics.json``, from fresh exact draws.

    ``loss`` is the trained loss, ``loss_floor`` its value at the true score, and ``excess_loss``
    their difference, computed directly as lambda/2 E||s - grad log p_sigma||^2. The floor is None
    if the loss states none, and the excess is None if it names no lambda. All three are
    means over the levels of the loss: over the L levels, or over log sigma for
    ``loss.levels=continuous`` (``Loss.quadrature``). ``score_error`` is the squared relative error
    E||s - s*||^2/E||s*||^2, a mean over the L levels. Each number that is estimated from draws has
    a ``NAME_standard_error``. If the loss has a penalty, ``penalty`` is its part of ``loss``.

    ``visible_error`` is the part E||Pe||^2/E||s*||^2 of the score error that reaches samples
    (``metrics.split_error``), and ``invisible_error`` the rest; together they are the score error,
    found on a grid instead of from draws. For D = 1 all is visible. For D = 2 they are known at up
    to 20 of the levels, and for D > 2 they are None.

    ``kl_bound`` is 1/2 int E||s - s*||^2 d sigma^2 in nats, by the trapezoid rule over the levels:
    by no more than its ``total`` can the network's error raise the KL divergence of p_sigma_min
    from the samples of the exact reverse diffusion (Song et al. 2021, arXiv:2101.09258, theorem
    1). ``visible``, which is smaller, is the same bound with Pe for the error. For the probability
    flow and Langevin dynamics there is no such bound. None with a single level.

    Also returned, per level: E||s - s*||^2; the scale c that makes c s best; both parts of the
    error; for D = 1 the KL divergence of the density that is recovered by integrating the score;
    and ``target_variances`` of a loss that has a target. If only draws of the dataset are known,
    ``loss`` and ``penalty`` are known, and the other numbers are None.

    Raises:
        DivergedError: If one of the means is not finite.
    """
    truth, levels = dataset.truth, sigmas.tolist()
    stream = random_stream(seed, "evaluation", device)
    if not truth.is_known:
        return _evaluate_by_draws(score, truth, sigmas, loss, stream)
    nodes, weights = loss.quadrature(sigmas)
    # Evaluate the score at each level.
    found, kls, splits = _evaluate_levels(score, truth, levels, nodes, loss, stream)
    if missing := kls.count(None):
        log.info("no KL divergence at %s, because %s", counted(missing, "level"), NOT_RECOVERED)
    # Combine the levels.
    informations = dict(zip(nodes, fisher_informations(truth, nodes), strict=True))
    means = _weighted_means(loss, truth, weights, found, informations)
    products = [found[sigma].products for sigma in levels]
    divergences = [divergence_of(each) for each in products]
    errors, variances = zip(*(relative_error(each) for each in products), strict=True)
    means["score_error"] = float(np.mean(errors))
    means["score_error_standard_error"] = math.sqrt(sum(variances)) / len(levels)
    _refuse_non_finite(means)
    # Split the errors.
    if truth.dim == 1:
        splits = {s: all_visible(each) for s, each in zip(levels, divergences, strict=True)}
    log_failures(truth, splits.values())
    parts, parts_per_level = visible_errors(levels, errors, splits)
    if truth.dim == 1:  # from draws
        parts["visible_error_standard_error"] = means["score_error_standard_error"]
    low, high = min(levels), max(levels)
    squares = {sigma: each.products[0] for sigma, each in found.items() if low <= sigma <= high}
    return {
        **means,
        **parts,
        **kl_bounds(squares, splits),
        "sigmas": levels,
        "score_error_per_level": list(errors),
        **parts_per_level,
        "fisher_divergence_per_level": [each.divergence for each in divergences],
        "best_scale_per_level": [each.best_scale for each in divergences],
        **({"recovered_kl_per_level": kls} if kls else {}),
        **target_variances(loss, truth, levels, informations, stream),
    }


def _evaluate_levels(
    score: Score,
    truth: Dataset,
    levels: list[float],
    nodes: list[float],
    loss: Loss,
    stream: torch.Generator,
) -> tuple[dict[float, _Level], list[float | None], dict[float, SplitError]]:
    """Return results at each of ``levels`` and ``nodes``, and what is known of the levels alone.

    For D = 1 these are the KL divergences of the recovered densities, and for D = 2 the splits of
    the error into its visible and its invisible part.
    """
    every_level = list(dict.fromkeys([*levels, *nodes]))
    num = draws_per_level(len(every_level), truth.num_components)
    most_points = max(_FEWEST_RECOVERED, _MOST_RECOVERED // len(levels))
    found: dict[float, _Level] = {}
    kls = []
    splits: dict[float, SplitError] = {}
    to_split = levels_split(truth, levels)
    precise = in_float64(score)  # one copy for all levels
    for sigma in _with_progress(every_level):
        found[sigma] = _evaluate_level(score, truth, sigma, loss, num, stream)
        if truth.dim == 1 and len(found) <= len(levels):
            kls.append(recovered_density(precise, truth, sigma, most_points=most_points).kl)
        if sigma in to_split:
            splits[sigma] = split_error(score, truth, sigma, stream.device)
    return found, kls, splits


def _evaluate_by_draws(
    score: Score, truth: Dataset, sigmas: Tensor, loss: Loss, stream: torch.Generator
) -> dict[str, Any]:
    """Return what ``evaluate_training`` returns for a dataset of which only draws are known."""
    nodes, weights = loss.quadrature(sigmas)
    num = draws_per_level(len(nodes), truth.num_components)
    found = [
        _evaluate_level(score, truth, sigma, loss, num, stream) for sigma in _with_progress(nodes)
    ]
    means: dict[str, float] = {}
    for name in ("loss", "penalty"):
        levels = [getattr(each, name) for each in found if getattr(each, name) is not None]
        if levels:
            parts = [w * values.double().cpu() for w, values in zip(weights, levels, strict=True)]
            variance = sum(float(part.var()) / len(part) for part in parts)
            means[name] = sum(float(part.mean()) for part in parts)
            means[f"{name}_standard_error"] = math.sqrt(variance)
    _refuse_non_finite(means)
    unknown = (
        *EVALUATED[1:], "visible_error", "invisible_error", "kl_bound", "score_error_per_level",
        "visible_error_per_level", "invisible_error_per_level", "fisher_divergence_per_level",
        "best_scale_per_level",
    )  # fmt: skip
    return {**means, **dict.fromkeys(unknown), "sigmas": sigmas.tolist()}


def _refuse_non_finite(means: Mapping[str, float | None]) -> None:
    """Raise ``DivergedError`` if one of ``means`` is not finite."""
    for name, mean in means.items():
        if mean is not None and not math.isfinite(mean):
            raise DivergedError(f"{name} of the trained network is {mean}; lower optimizer.lr")


def _with_progress(levels: list[float]) -> Iterator[float]:
    """Yield the levels. Show a progress bar or, without a terminal, log a line now and then."""
    last_line = time.monotonic()
    with tqdm(levels, desc="evaluation", unit="level", disable=HIDDEN, leave=False) as bar:
        for number, sigma in enumerate(bar):
            if bar.disable and time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                log.info("evaluation: level %d of %d", number + 1, len(levels))
                last_line = time.monotonic()
            yield sigma


def draws_per_level(num_levels: int, num_components: int) -> int:
    """Return the number of draws for each level.

    The more levels, the fewer draws each level gets: the error of the means depends on all draws
    together. With many components there are fewer draws, too, to limit the time that the true
    score takes.
    """
    least, most = _POINTS_PER_LEVEL
    total = min(max(_POINTS, least * num_levels), _MOST_POINTS, _MOST_TERMS // num_components)
    return max(_FEWEST_POINTS, min(most, total // num_levels))


def fisher_informations(truth: Dataset, levels: list[float]) -> list[tuple[float, float]]:
    """Return the Fisher information I(p_sigma) and its standard error at each of the levels.

    For more than 100 levels, a cubic spline of sigma^2 I in log sigma through 100 nodes gives the
    values. On all datasets that were tried, its error is below 1e-5.
    """
    if len(levels) <= _MOST_INFORMATIONS:
        found = [truth.fisher(sigma) for sigma in levels]
        return [(float(fisher.matrix.trace()), fisher.error) for fisher in found]
    from scipy.interpolate import CubicSpline  # here: scipy is slow to import

    nodes = np.geomspace(min(levels), max(levels), _MOST_INFORMATIONS)
    values, errors = zip(*fisher_informations(truth, nodes.tolist()), strict=True)
    logs, squares = np.log(nodes), nodes**2
    spline, error = (CubicSpline(logs, squares * np.array(each)) for each in (values, errors))
    return [(float(spline(math.log(s))) / s**2, float(error(math.log(s))) / s**2) for s in levels]


def target_variances(
    loss: Loss,
    truth: Dataset,
    levels: list[float],
    known: Mapping[float, tuple[float, float]],
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Return ``target_variance_per_level``, sigma^2 E||target - grad log p_sigma||^2, no unit.

    It follows from the floor of the loss or, if the loss has none, from draws at each level.
    {} if the loss has no target. ``known`` holds the Fisher informations of some levels.
    """
    if not isinstance(loss, Regression) or any(loss.weight(s) is None for s in levels):
        return {}
    if loss.floor(levels[0], truth.dim, 1.0) is not None:
        if not known.keys() >= {*levels}:  # the loss has other levels than the schedule
            known = dict(zip(levels, fisher_informations(truth, levels), strict=True))
        found = [loss.target_variance(s, truth.dim, known[s][0]) or 0.0 for s in levels]
        return {"target_variance_per_level": found}
    num, found, here = draws_per_level(len(levels), truth.num_components), [], loss.at_given_levels
    for sigma in levels:
        x = truth.sample(num, generator=generator)
        level, terms = torch.tensor([sigma]).to(x), []
        for part in in_parts(x, truth):
            draws = here.draw(part, level, generator)
            terms.append(here.terms(draws, truth.score, part, level, truth.score))
        value = float(torch.cat(terms).cpu().double().mean())  # the loss of the true score
        found.append(2 * sigma**2 * value / (loss.weight(sigma) or 1.0))
    return {"target_variance_per_level": found}


def _weighted_means(
    loss: Loss,
    truth: Dataset,
    weights: list[float],
    found_at: Mapping[float, _Level],
    informations: Mapping[float, tuple[float, float]],
) -> dict[str, float | None]:
    """Return mean loss, penalty, floor and excess, with errors, over ``informations``' levels.

    ``informations`` are Fisher informations and their errors. A floor or an excess that the loss
    does not state is None.
    """
    means: dict[str, float] = {}
    variances: dict[str, float] = {}

    def add(name: str, scale: float, values: Tensor) -> None:
        values = scale * values.double().cpu()
        means[name] = means.get(name, 0.0) + float(values.mean())
        variances[name] = variances.get(name, 0.0) + float(values.var()) / len(values)

    unknown = unknown_numbers(loss, [*informations])
    floor = floor_error = 0.0
    parts = zip(informations.items(), weights, strict=True)
    for (sigma, (information, error)), weight in parts:
        level = found_at[sigma]
        add("loss", weight, level.loss)
        if level.penalty is not None:
            add("penalty", weight, level.penalty)
        if "excess_loss" not in unknown:
            add("excess_loss", weight * (loss.weight(sigma) or 0.0) / 2, level.products[0])
        if "loss_floor" not in unknown:
            # The informations of all levels come from the same random numbers: errors add up.
            lowest, higher = (
                loss.floor(sigma, truth.dim, value) or 0.0
                for value in (information, information + error)
            )
            floor += weight * lowest
            floor_error += weight * abs(higher - lowest)
    found: dict[str, float | None] = {}
    for name, mean in means.items():
        found |= {name: mean, f"{name}_standard_error": math.sqrt(variances[name])}
        if name == "loss":
            found["loss_floor"] = None if "loss_floor" in unknown else floor
            found |= {"loss_floor_standard_error": floor_error} if floor_error > 0 else {}
    return found if "excess_loss" in found else found | {"excess_loss": None}


def _independent(loss: Loss, terms: Tensor) -> Tensor:
    """Return ``terms`` (P,), or their means over neighbours that share their random numbers."""
    num = loss.dependent_terms
    return terms if num == 1 else torch.stack([part.mean() for part in terms.split(num)])


def _evaluate_level(
    score: Score, truth: Dataset, sigma: float, loss: Loss, num: int, stream: torch.Generator
) -> _Level:
    """Return the loss terms and the products of the score at ``num`` draws of one level."""
    loss = loss.at_given_levels
    x = truth.sample(num, generator=stream)
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
    # These two losses evaluate the score only at draws of p_sigma, and do not differentiate it:
    # ``products_at`` reuses the values of the score.
    is_shared = type(loss) in (Denoising, Explicit)
    seen: list[tuple[Tensor, Tensor]] = []

    def shared(points: Tensor, _: Tensor) -> Tensor:
        seen.append((points, score(points, level)))  # one level: embedded once, not per point
        return seen[-1][1]

    terms, penalties = [], []
    for part in in_parts(x, truth):
        draws = loss.draw(part, level[None], stream)
        given = (shared if is_shared else score, part, level[None], truth.score)
        terms.append(_independent(loss, loss.terms(draws, *given)))
        if loss.without_penalty is not loss:
            penalties.append(terms[-1] - loss.without_penalty.terms(draws, *given))
    if not truth.is_known:
        products = torch.empty(4, 0)
    elif is_shared:
        points, learned = (torch.cat(parts) for parts in zip(*seen, strict=True))
        products = products_at(learned, points, truth, sigma)
    else:
        products = compared_scores(score, truth, sigma, num, stream)
    return _Level(torch.cat(terms), torch.cat(penalties) if penalties else None, products)
