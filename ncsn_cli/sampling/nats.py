"""The parts of a sampler's error in nats, from laws on grids: without sampling noise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.datasets import Denoised
from ncsn_cli.inits import Data, StartLaw
from ncsn_cli.samplers import LogProb
from ncsn_cli.sampling.grid_law import Distances, LogDensity, distances, law_at
from ncsn_cli.sampling.law import divergence, law_of_chain
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.sampling.transition import NoLaw

_POINTS = {1: 20_001, 2: 401}  # of the grid for the smallest level, per axis, by D


def split_nats(
    setup: Setup, exact: tuple[Score, LogProb], start: StartLaw | None, *, is_exact: bool
) -> dict[str, Any]:
    """Return KL(p || q) in nats, for the law q of the run's samples, as parts; see ``Budget``.

    Where p has no density, p_sigma_min takes its place (the law of denoised draws, if the sampler
    denoises), and the smallest level has no part. An ``error`` is that of the grids. The total
    variation 1/2 integral of |p - q| says how often the best classifier is right that is shown a
    point of p or of q: 1/2 + TV/2. Where a law is not known, ``reason`` says why. The parts that
    come after it are missing then, and ``value`` is None.

    Args:
        setup: The run; its score and log-density take float64.
        exact: The exact score and log-density.
        start: The law of the run's initial points; None if it is not known.
        is_exact: Whether the run's score is the exact one.
    """
    truth = setup.truth
    has_density = truth.has_density(0.0)
    known: dict[str, tuple[float, float]] = {}
    found: dict[str, Any] = {
        "target": "p" if has_density else "p at the smallest level", "value": None, "reason": "",
    }  # fmt: skip
    try:
        for part, kl, error, tv, tv_error in _laws(setup, exact, start, is_exact=is_exact):
            known[part] = kl, error
            last = {
                "value": kl, "error": error,
                "total_variation": tv, "total_variation_error": tv_error,
                "best_classifier_accuracy": (1 + tv) / 2,
            }  # fmt: skip
        found |= last
    except NoLaw as reason:
        found["reason"] = str(reason)
    parts, before = {}, (0.0, 0.0)
    for part, (kl, error) in known.items():
        parts[part] = {"value": kl - before[0], "error": error + before[1]}
        before = kl, error
    return {**found, "parts": parts}


def _laws(
    setup: Setup, exact: tuple[Score, LogProb], start: StartLaw | None, *, is_exact: bool
) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield the part that each hybrid adds, its KL and TV, and the errors of each.

    Raises:
        NoLaw: If the next law is not known.
    """
    truth, sampler, plan = setup.truth, setup.sampler, setup.plan
    if truth.dim not in _POINTS:
        raise NoLaw("laws are computed for D = 1 and 2")
    perfect = Denoised(truth) if sampler.denoise else truth
    log_p: LogDensity = partial(perfect.log_prob, sigma=plan[-1].sigma)
    if truth.has_density(0.0):
        fine, coarse = _on_grids(truth, log_p)
        changes = abs(fine.kl - coarse.kl), abs(fine.tv - coarse.tv)
        yield "smallest_level", fine.kl, changes[0], fine.tv, changes[1]
        log_p = truth.log_prob
    ideal = Data(sigma=plan[0].sigma).law(truth, plan[0].sigma)
    chains: list[tuple[str, tuple[Score, LogProb | None], StartLaw | None]] = [
        ("steps", exact, ideal),
        ("start", exact, start),
    ]
    if not is_exact:
        chains.append(("network", (setup.score, setup.log_prob), start))
    for part, (score, log_prob), law in chains:
        chain = law_of_chain(sampler, plan, score, law, truth, log_prob)
        each = divergence(chain, log_p)
        if each.kl is None or each.kl_error is None or each.tv is None or each.tv_error is None:
            raise NoLaw(each.reason)
        yield part, each.kl, each.kl_error, each.tv, each.tv_error


def _on_grids(truth: Dataset, log_q: LogDensity) -> list[Distances]:
    """Return the distances from p to q on a grid, and on one whose step is twice as long.

    By the trapezoid rule, which for a Gaussian of standard deviation s and the step h <= s errs by
    3e-9 at most.

    Raises:
        NoLaw: If p is too narrow for a grid.
    """
    num, (low, high) = _POINTS[truth.dim], truth.extent
    steps = (high - low) / (num - 1)
    if float(steps.max()) > (truth.smallest_std or 0.0) / 2:
        raise NoLaw("p is too narrow for a grid")
    found = []
    for factor in (1, 2):
        axes = [
            torch.linspace(a, b, (num - 1) // factor + 1, dtype=torch.float64)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]
        x = torch.cartesian_prod(*axes).reshape(-1, truth.dim)  # (G, D)
        volume = float((factor * steps).prod())
        found.append(distances(law_at(x, log_q(x), x.new_full((len(x),), volume)), truth.log_prob))
    return found
