"""Noise floors: how far exact draws are from the truth, by each metric."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ncsn_cli.files import read_json, to_json, write_atomic
from ncsn_cli.metrics import SampleMetric
from ncsn_cli.scores import Dataset, random_stream

log = logging.getLogger(__name__)

REPEATS = 200
"""Sets of exact draws behind each noise floor."""

_FIRST = 3  # repeats by which a floor is known again

Floor = dict[str, Any]
"""``floor``, the mean distance of exact draws, and ``floor_quantiles``, .5 and 99.5 %."""


def noise_floor(
    metric: SampleMetric, truth: Dataset, sigma: float, num: int, cache: Path | None = None
) -> Floor:
    """The law of the distance between ``num`` exact draws and p_sigma, from 200 sets of them.

    It depends on these inputs alone: every call draws the same sets. With a folder ``cache`` it is
    kept there from run to run, under a digest of the first distances: whatever changes the law or
    the metric, code included, changes these.
    """
    distance = metric.distance(truth, sigma, num)
    stream = random_stream(0, "noise floor")

    def repeat() -> float:
        return distance(truth.sample(num, sigma=sigma, generator=stream), stream)

    values = [repeat() for _ in range(_FIRST)]
    inputs = repr((metric, sigma, num, REPEATS, values))
    name = f"{hashlib.sha256(inputs.encode()).hexdigest()}.json"
    path = None if cache is None else cache / name
    if path is not None and (kept := _read(path)) is not None:
        return kept
    repeats = range(REPEATS - _FIRST)
    values += [repeat() for _ in tqdm(repeats, desc="noise floor", disable=None, leave=False)]
    found: Floor = {
        "floor": float(np.mean(values)),
        "floor_quantiles": np.quantile(values, [0.005, 0.995]).tolist(),
    }
    if path is not None:
        what = {"metric": repr(metric), "sigma": sigma, "num_samples": num, "repeats": REPEATS}
        try:
            write_atomic(path, to_json(what | found))
        except OSError as error:
            log.warning("%s: this noise floor is not kept for other runs (%s)", path, error)
    return found


def _read(path: Path) -> Floor | None:
    """A floor that was kept; None if it is not there or damaged."""
    match read_json(path):
        case {"floor": float(floor), "floor_quantiles": [float(low), float(high)]}:
            return {"floor": floor, "floor_quantiles": [low, high]}
    return None
