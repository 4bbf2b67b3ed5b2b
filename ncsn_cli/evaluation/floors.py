"""Noise floors: how far exact draws are from the truth, for each metric."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.errors import UnknownTruthError
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import SampleMetric
from ncsn_cli.runs.files import read_json, to_json, write_atomic
from ncsn_cli.runs.workers import CORES, run_in_processes

log = logging.getLogger(__name__)

SETS = 200
"""Number of sets of exact draws behind a noise floor, unless the distances are cheap."""

_MOST_SETS, _MOST_NUMBERS = 1000, 5 * 10**6  # if they are cheap; together less than a second

_FIRST = 3  # sets whose distances identify a floor in the cache

Floor = dict[str, Any]
"""``floor``, the mean distance of exact draws, and ``floor_quantiles``, at .5 and 99.5 %; also
``floor_standard_error`` if the mean is estimated."""


SHIPPED = Path(__file__).with_name("floors.json")
"""The file of the floors that come with the package."""

_kept: dict[str, Floor] = {}  # by digest; where there is no folder


class Floors:
    """Find noise floors, those that are asked for in advance in parallel. A call is a ``FloorOf``.

    Args:
        cache: See ``noise_floor``.
        workers: Max number of processes.
    """

    def __init__(self, cache: Path | None = None, workers: int = CORES) -> None:
        self._cache, self._workers = cache, workers
        self._found: dict[tuple[int, int, float, int], _Draws] = {}

    def prepare(
        self, metrics: Iterable[SampleMetric], laws: Iterable[tuple[Law, float]], num: int
    ) -> None:
        """Find the floors of ``num`` points for each metric and each law p_sigma, (p, sigma).

        Metrics that need more of the truth than is known are left out.
        """
        begun: dict[tuple[int, int, float, int], _Draws] = {}
        for metric, (truth, sigma) in itertools.product(list(metrics), laws):
            key = id(metric), id(truth), sigma, num
            if key not in self._found:
                with suppress(UnknownTruthError):
                    begun[key] = _Draws(metric, truth, sigma, min(num, metric.floor_draws))
        _complete(list(begun.values()), self._cache, self._workers)
        self._found |= begun  # they keep metrics and laws alive: a free id would be given anew

    def __call__(self, metric: SampleMetric, truth: Law, sigma: float, num: int) -> Floor:
        """Return a noise floor; see ``noise_floor``."""
        draws = self._found.get((id(metric), id(truth), sigma, num))
        if draws is None:
            return noise_floor(metric, truth, sigma, num, self._cache)
        return draws.scaled_to(num)


def noise_floor(
    metric: SampleMetric, truth: Law, sigma: float, num: int, cache: Path | None = None
) -> Floor:
    """Return mean and quantiles of the distance between ``num`` exact draws and p_sigma.

    The mean is exact if the metric has a formula. Otherwise the mean, and always the quantiles,
    are estimated from 200 sets of draws, or from up to 1000 if the distances are cheap. Every call
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

    Raises:
        UnknownTruthError: If the metric needs more of the truth than is known.
    """
    draws = _Draws(metric, truth, sigma, min(num, metric.floor_draws))
    _complete([draws], cache, 1)
    return draws.scaled_to(num)


class _Draws:
    """The distances of sets of exact draws, of which the first are computed at once.

    Args:
        metric: The metric.
        truth: The law.
        sigma: The level of p_sigma.
        num: Number of draws in a set.
    """

    floor: Floor

    def __init__(self, metric: SampleMetric, truth: Law, sigma: float, num: int) -> None:
        self.metric, self.truth, self.sigma, self.num = metric, truth, sigma, num
        affordable = min(_MOST_SETS, _MOST_NUMBERS // (num * truth.dim))
        self.sets = max(SETS, affordable) if metric.is_cheap else SETS
        self._distance = metric.floor_distance(truth, sigma, num)
        self._stream = random_stream(0, "noise floor")
        self.values = list(self.more(_FIRST))
        first = [f"{value:.6g}" for value in self.values]  # processors differ in the last bits
        inputs = repr((metric, type(truth).__name__, sigma, num, self.sets, "weibull", first))
        self.file_name = f"{hashlib.sha256(inputs.encode()).hexdigest()}.json"

    def more(self, sets: int) -> Iterator[float]:
        """Yield the distances of the next sets."""
        for _ in range(sets):
            x = self.truth.sample(self.num, sigma=self.sigma, generator=self._stream)
            yield float(self._distance(x, self._stream))

    def scaled_to(self, num: int) -> Floor:
        """Return the floor of ``num`` points, which are at least as many as are drawn."""
        metric, truth, found = self.metric, self.truth, self.floor
        compared, of_draws = (metric.num_points(n, truth.dim) for n in (num, self.num))
        if compared <= of_draws:
            return found
        scale, exact = math.sqrt(of_draws / compared), metric.exact_floor(truth, self.sigma, num)
        scaled: Floor = {"floor": scale * found["floor"] if exact is None else exact}
        if exact is None:
            scaled["floor_standard_error"] = scale * found["floor_standard_error"]
        quantiles = [scale * quantile for quantile in found["floor_quantiles"]]
        return scaled | {"floor_quantiles": quantiles, "floor_scaled_from": of_draws}

    def to_floor(self) -> Floor:
        """Return the floor that the distances of all sets give."""
        exact = self.metric.exact_floor(self.truth, self.sigma, self.num)
        found: Floor = {"floor": float(np.mean(self.values)) if exact is None else exact}
        if exact is None:
            error = np.std(self.values, ddof=1) / np.sqrt(self.sets)
            found["floor_standard_error"] = float(error)
        quantiles = np.quantile(self.values, [0.005, 0.995], method="weibull")
        return found | {"floor_quantiles": quantiles.tolist()}


def _complete(all_draws: Sequence[_Draws], cache: Path | None, workers: int) -> None:
    """Set the ``floor`` of each; store those that were not known as soon as they are found."""
    missing: dict[str, _Draws] = {}
    for draws in all_draws:
        if (known := _known(draws.file_name, cache)) is None:
            missing[draws.file_name] = draws
        else:
            draws.floor = known
    if not missing:
        return
    if torch.cuda.is_initialized():  # a user's metric may use the device, which no fork can
        workers = 1
    ordered = sorted(missing.values(), key=lambda each: each.metric.is_cheap)  # the longest first
    tasks = [draws.more(draws.sets - _FIRST) for draws in ordered]
    total = sum(draws.sets - _FIRST for draws in ordered)
    with (
        tqdm(total=total, desc="noise floors", disable=HIDDEN, leave=False) as bar,
        closing(run_in_processes(tasks, workers)) as all_news,
    ):
        for news in all_news:
            for number, value in news:
                draws = ordered[number]
                draws.values.append(value)
                if len(draws.values) == draws.sets:
                    draws.floor = draws.to_floor()
                    _store(draws, cache)
                bar.update()
    for draws in all_draws:
        if draws.file_name in missing:  # there may be two of the same law
            draws.floor = missing[draws.file_name].floor


def _store(draws: _Draws, cache: Path | None) -> None:
    """Keep the floor for other runs, or in memory if there is no folder."""
    if cache is None:
        _kept[draws.file_name] = draws.floor
        return
    what = {
        "metric": repr(draws.metric), "sigma": draws.sigma, "num_samples": draws.num,
        "sets": draws.sets,
    }  # fmt: skip
    path = cache / draws.file_name
    try:
        write_atomic(path, to_json(what | draws.floor))
    except OSError as error:
        log.warning("%s: cannot store this noise floor for other runs (%s)", path, error)


def _known(name: str, cache: Path | None) -> Floor | None:
    """Return the floor by its file's name; None if it is not known yet."""
    if cache is None and name in _kept:
        return _kept[name]
    return shipped().get(name) or (None if cache is None else _read(cache / name))


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
