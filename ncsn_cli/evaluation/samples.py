"""Compare samples with the truth: compute every distance and its noise floor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.errors import UnknownTruthError
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.floors import Floor, Floors
from ncsn_cli.evaluation.verdict import word_for
from ncsn_cli.metrics import SampleMetric

log = logging.getLogger(__name__)

FloorOf = Callable[[SampleMetric, Law, float, int], Floor]
"""``floor_of(metric, truth, sigma, N)`` returns the law of the distance of N exact draws."""


def against_truth(
    samples: Tensor,
    truth: Dataset,
    sigma: float,
    metrics: Mapping[str, SampleMetric],
    floors: Floors,
    seed: int,
    denoised: Law | None = None,
) -> dict[str, Any]:
    """Return every metric of the samples (N, D) against p and against p_sigma.

    The entries are under ``clean`` and ``perturbed``; see ``evaluate_samples``. Where ``denoised``
    is given, the law of exact draws at ``sigma`` after a denoising step, it takes the place of
    p_sigma, and the entries are under ``denoised``; they are None if only draws of the truth are
    known. At sigma = 0 all of these laws are p itself.
    """
    name = "perturbed" if denoised is None else "denoised"
    laws: list[tuple[Law, float]] = [(truth, 0.0)]
    if sigma > 0 and (denoised is None or truth.is_known):
        laws.append((denoised or truth, sigma))
    floors.prepare(metrics.values(), laws, len(samples))
    clean, *others = (evaluate_samples(samples, *law, metrics, floors, seed) for law in laws)
    found = {"clean": clean, name: others[0] if others else clean if sigma == 0 else None}
    scaled = {
        metric: entry["floor_scaled_from"]
        for metric, entry in clean.items()
        if entry is not None and "floor_scaled_from" in entry
    }
    if scaled:
        words = ", ".join(f"{metric} from {num}" for metric, num in scaled.items())
        log.info("noise floors scaled from fewer exact draws, by 1/sqrt(n): %s", words)
    return found


def evaluate_samples(
    samples: Tensor,
    truth: Law,
    sigma: float,
    metrics: Mapping[str, SampleMetric],
    floor_of: FloorOf,
    seed: int,
) -> dict[str, dict[str, Any] | None]:
    """Return, for every metric, the distance from ``samples`` (N, D) to p_sigma and its floor.

    The quantiles of the noise floor show how far chance goes. ratio = value / floor is about 1 for
    a perfect sampler, and None if the distance of exact draws is 0 up to rounding. ``verdict`` is
    the word for it; see ``verdict.word_for``. A metric that needs more of the truth than is known
    is None.
    """
    found: dict[str, dict[str, Any] | None] = {}
    bar = tqdm(metrics.items(), desc="metrics", disable=HIDDEN, leave=False)
    for name, metric in bar:
        bar.set_postfix_str(name)
        try:
            entry = _against_floor(name, metric, samples, truth, sigma, floor_of, seed)
            entry["verdict"] = word_for(entry)
            details = metric.details(samples, truth, sigma)
            found[name] = entry | {k: v for k, v in details.items() if k not in entry}
        except UnknownTruthError:
            found[name] = None
    return found


def _against_floor(
    name: str,
    metric: SampleMetric,
    samples: Tensor,
    truth: Law,
    sigma: float,
    floor_of: FloorOf,
    seed: int,
) -> dict[str, Any]:
    distance = metric.distance(truth, sigma, len(samples))
    value = float(distance(samples, random_stream(seed, name)))
    floor = floor_of(metric, truth, sigma, len(samples))
    ratio = value / floor["floor"] if floor["floor"] > 1e-12 * value else None
    return {"value": value, **floor, "ratio": ratio}


@torch.no_grad()
def evaluate_trajectory(
    states: Mapping[float, Tensor],
    truth: Law,
    metrics: Mapping[str, SampleMetric],
    floors: Floors,
    seed: int,
    last: Law | None = None,
) -> dict[str, Any]:
    """Return the distance between the chains and p_sigma at every level, for every metric.

    Each metric has ``value``, ``floor`` and ``ratio``, lists over the levels. ``std`` holds the
    standard deviation of the chains, in root mean square over the axes, and the true one. The
    former is None for a single chain, which has no variance.

    ``states`` maps each level ``sigma`` to the chains (N, D) when they leave the level. ``last``
    is the law with which the chains are compared at the last level; None: p_sigma, as
    at the other levels.
    """
    levels = tqdm(states.items(), desc="distances", unit="level", disable=HIDDEN, leave=False)
    targets = dict.fromkeys(states, truth) | {[*states][-1]: last or truth}
    laws = [(law, sigma) for sigma, law in targets.items()]
    floors.prepare(metrics.values(), laws, len(next(iter(states.values()))))
    rows = [
        {
            name: _against_floor(name, metric, x, targets[s], s, floors, seed)
            for name, metric in metrics.items()
        }
        for s, x in levels
    ]
    keys = ("value", "floor", "ratio")
    return {
        "sigmas": list(states),
        "std": {
            "value": [
                float(x.double().var(0).mean().sqrt()) if len(x) > 1 else None
                for x in states.values()
            ],
            "true": [
                float(targets[s].perturbed_covariance(s).diagonal().mean().sqrt()) for s in states
            ],
        },
        **{name: {key: [row[name][key] for row in rows] for key in keys} for name in metrics},
    }
