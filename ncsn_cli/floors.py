"""Noise floors: how far exact draws are from the truth, by each metric."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ncsn_cli.metrics import SampleMetric
from ncsn_cli.runs import to_json, write_atomic
from ncsn_cli.scores import Dataset, random_stream

log = logging.getLogger(__name__)

REPEATS = 200
"""Sets of exact draws behind each noise floor."""

Floor = dict[str, Any]
"""``floor``, the mean distance of exact draws, and ``floor_quantiles``, .5 and 99.5 %."""


def noise_floor(metric: SampleMetric, truth: Dataset, sigma: float, num: int) -> Floor:
    """The law of the distance between ``num`` exact draws and p_sigma, from 200 sets of them.

    It depends on these inputs alone: the draws are the same at every call.
    """
    distance = metric.distance(truth, sigma, num)
    stream = random_stream(0, "noise floor")
    repeats = tqdm(range(REPEATS), desc="noise floor", disable=None, leave=False)
    draws = [distance(truth.sample(num, sigma=sigma, generator=stream), stream) for _ in repeats]
    return {
        "floor": float(np.mean(draws)),
        "floor_quantiles": np.quantile(draws, [0.005, 0.995]).tolist(),
    }


@dataclass(frozen=True)
class FloorCache:
    """Noise floors kept in a folder from run to run, one JSON file each.

    Args:
        folder: The folder.
        dataset: Settings of the truth.
        metrics: Settings of each metric, by name.
    """

    folder: Path
    dataset: dict[str, Any]
    metrics: dict[str, dict[str, Any]]

    def __call__(
        self, name: str, metric: SampleMetric, truth: Dataset, sigma: float, num: int
    ) -> Floor:
        """The noise floor of the metric ``name``: read, or found and kept."""
        law = {k: v for k, v in self.dataset.items() if k not in ("num_samples", "seed")}
        inputs = {
            "dataset": law,
            "metric": self.metrics[name],
            "sigma": sigma,
            "num_samples": num,
            "repeats": REPEATS,
            "code": _digest(*sorted(_sources(type(metric)) | _sources(type(truth)))),
        }
        path = self.folder / f"{_digest(json.dumps(inputs, sort_keys=True))}.json"
        try:
            kept = json.loads(path.read_text())["result"]
            return {name: kept[name] for name in ("floor", "floor_quantiles")}
        except (OSError, ValueError, LookupError, TypeError):
            found = noise_floor(metric, truth, sigma, num)
        try:
            write_atomic(path, to_json({"inputs": inputs, "result": found}))
        except OSError as error:
            log.warning("%s: this noise floor is not kept for other runs (%s)", path, error)
        return found


def _sources(kind: type) -> set[str]:
    """The text of every module in which ``kind`` and its base classes are written."""
    modules = (inspect.getmodule(base) for base in kind.__mro__ if base is not object)
    return {inspect.getsource(module) for module in modules if module is not None}


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
