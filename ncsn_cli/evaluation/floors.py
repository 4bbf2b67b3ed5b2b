"""Noise floors: how far exact draws are from the truth, for each metric."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import SampleMetric
from ncsn_cli.runs.files import read_json, to_json, write_atomic

log = logging.getLogger(__name__)

SETS = 200
"""Number of sets of exact draws behind a noise floor, unless the distances are cheap."""

_CHEAP_SETS, _MOST_CHEAP_DRAWS = 1000, 20_000  # together a few seconds

_FIRST = 3  # sets whose distances identify a floor in the cache

Floor = dict[str, Any]
"""``floor``, the mean distance of exact draws, and ``floor_quantiles``, at .5 and 99.5 %; also
``floor_standard_error`` if the mean is estimated."""


SHIPPED = Path(__file__).with_name("floors.json")
"""The file of the floors that come with the package."""

_kept: dict[str, Floor] = {}  # by digest; where there is no folder


def noise_floor(
    metric: SampleMetric, truth: Law, sigma: float, num: int, cache: Path | None = None
) -> Floor:
    """Return mean and quantiles of the distance between ``num`` exact draws and p_sigma.

    The mean is exact if the metric has a formula. Otherwise the mean, and always the quantiles,
    are estimated from 200 sets of draws, or from 1000 sets if the distances are cheap. Every call
    draws the same sets. The quantiles are Weibull's: on average, 99 % of other draws lie between
    them. (Quantiles that interpolate between the sets enclose only 98 %.)

    To save time, more points than the metric's ``floor_draws`` are not drawn. The distance of n
    points falls as 1/sqrt(n), and the law of sqrt(n) times the distance hardly depends on n. So
    for n points, what no formula gives is that of n0 = ``floor_draws`` points times sqrt(n0/n),
    and ``floor_scaled_from`` = n0 says so.

    The floor is stored in the folder ``cache``, which runs share, or in memory if none is given.
    The file's name is a digest that includes the first distances: any change of the law or of the
    metric, code included, changes these distances. The floors of the presets, for their default
    numbers, come with the package (``shipped``).
    """
    drawn = min(num, metric.floor_draws)
    found = _by_draws(metric, truth, sigma, drawn, cache)
    compared, of_draws = (metric.num_points(n, truth.dim) for n in (num, drawn))
    if compared <= of_draws:
        return found
    scale, exact = math.sqrt(of_draws / compared), metric.exact_floor(truth, sigma, num)
    scaled: Floor = {"floor": scale * found["floor"] if exact is None else exact}
    if exact is None:
        scaled["floor_standard_error"] = scale * found["floor_standard_error"]
    quantiles = [scale * quantile for quantile in found["floor_quantiles"]]
    return scaled | {"floor_quantiles": quantiles, "floor_scaled_from": of_draws}


def _by_draws(
    metric: SampleMetric, truth: Law, sigma: float, num: int, cache: Path | None
) -> Floor:
    """Return the floor of ``num`` draws; see ``noise_floor``."""
    distance = metric.distance(truth, sigma, num)
    stream = random_stream(0, "noise floor")
    sets = _CHEAP_SETS if metric.is_cheap and num <= _MOST_CHEAP_DRAWS else SETS

    def repeat() -> float:
        return float(distance(truth.sample(num, sigma=sigma, generator=stream), stream))

    values = [repeat() for _ in range(_FIRST)]
    first = [f"{value:.6g}" for value in values]  # processors differ in the last bits
    inputs = repr((metric, type(truth).__name__, sigma, num, sets, "weibull", first))
    name = f"{hashlib.sha256(inputs.encode()).hexdigest()}.json"
    path = None if cache is None else cache / name
    if path is None and name in _kept:
        return _kept[name]
    if name in shipped():
        return shipped()[name]
    if path is not None and (kept := _read(path)) is not None:
        return kept
    repeats = range(sets - _FIRST)
    values += [repeat() for _ in tqdm(repeats, desc="noise floor", disable=HIDDEN, leave=False)]
    exact = metric.exact_floor(truth, sigma, num)
    found: Floor = {"floor": float(np.mean(values)) if exact is None else exact}
    if exact is None:
        found["floor_standard_error"] = float(np.std(values, ddof=1) / np.sqrt(sets))
    found["floor_quantiles"] = np.quantile(values, [0.005, 0.995], method="weibull").tolist()
    if path is None:
        _kept[name] = found
    else:
        what = {"metric": repr(metric), "sigma": sigma, "num_samples": num, "sets": sets}
        try:
            write_atomic(path, to_json(what | found))
        except OSError as error:
            log.warning("%s: cannot store this noise floor for other runs (%s)", path, error)
    return found


@functools.cache
def shipped() -> dict[str, Floor]:
    """Return the floors that come with the package, by file name: ``benchmarks/floors.py``."""
    return read_json(SHIPPED)


def _read(path: Path) -> Floor | None:
    """Return the floor stored at ``path``; None if the file is missing or damaged."""
    match read_json(path):
        case {"floor": float(floor), "floor_quantiles": [float(low), float(high)], **rest}:
            error = rest.get("floor_standard_error")
            known = {"floor_standard_error": error} if isinstance(error, float) else {}
            return {"floor": floor, **known, "floor_quantiles": [low, high]}
    return None
