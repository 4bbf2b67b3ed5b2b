"""How far a network is from the true score and from that of its training set, along the way."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import counted
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.metrics import in_parts
from ncsn_cli.training.history import MEMORISING, Row

log = logging.getLogger(__name__)

_POINTS = 4000  # in all, at each evaluation; a network needs milliseconds for them
_FEWEST, _MOST = 20, 1000  # points per level
_MOST_TERMS = 20_000_000  # points times training points, once: a second
_TWICE = 2.0  # of the least distance: generalisation has begun


class Memorising:
    """Distances of a score from the true one s* and from the empirical one, always at the same x.

    The empirical score is that of the training set smoothed by sigma,

        s_n(x, sigma) = sum_k r_k(x) (x_k - x)/sigma^2,   r_k ~ N(x; x_k, sigma^2 I)

    which the denoising loss on n points has as its minimiser. Each distance is a mean over the
    levels of sigma^2 E||s - ...||^2, without a unit.

    Args:
        dataset: The dataset, with a training set.
        sigmas: Noise levels (L,), all above 0.
        num: Points per level.
        seed: Seed of the run.
        device: The network's device.
    """

    def __init__(
        self, dataset: Dataset, data: Tensor, sigmas: Tensor, num: int, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._truth, stream = dataset.truth, random_stream(seed, "memorising")
        empirical = GaussianMixture([1 / len(data)] * len(data), data.tolist(), stds=0.0)
        points: list[Tensor] = []
        truths: list[Tensor] = []
        scores: list[Tensor] = []
        for sigma in sigmas.tolist():
            fresh = self._truth.sample(num, sigma=sigma, generator=stream).double()
            rows = torch.randint(len(data), (num,), generator=stream)
            z = torch.randn(num, data.shape[1], generator=stream).double()
            seen = data[rows].double() + sigma * z
            points += [fresh, seen]
            truths += [self._truth.score(fresh, sigma), self._truth.score(seen, sigma)]
            scores.append(empirical.score(seen, sigma))
        # A network is evaluated once for all levels: one by one, the calls take longest.
        self._points = torch.cat(points).float().to(device)  # (2 L n, D)
        self._sigmas = sigmas.repeat_interleave(2 * num).float().to(device)  # (2 L n,)
        self._truths, self._scores = torch.stack(truths), torch.stack(scores)  # (2 L, n, D)
        self._scale = sigmas.double().cpu()[:, None, None] ** 2 / (len(sigmas) * num)

    @torch.no_grad()
    def distances(self, score: Score) -> dict[str, float]:
        """Return the columns of ``history.csv`` for ``score``.

        ``true_distance`` is that from s* at fresh draws of p_sigma. The other two are distances
        from s* and from the empirical score at training points with fresh noise.
        """
        parts = (in_parts(each, self._truth) for each in (self._points, self._sigmas))
        values = [score(x, sigma).cpu().double() for x, sigma in zip(*parts, strict=True)]
        learned = torch.cat(values).view_as(self._truths)
        off, at_seen = learned - self._truths, learned[1::2]
        errors = off[::2], off[1::2], at_seen - self._scores  # each (L, n, D)
        found = [float((self._scale * error.square()).sum()) for error in errors]
        return dict(zip(MEMORISING, found, strict=True))


def memorising(
    dataset: Dataset, sigmas: Tensor, seed: int, device: torch.device
) -> Memorising | None:
    """Return what measures the distances; None if they are not known, or cost too much.

    They are known for a training set of a law whose score is known, at levels above 0. If they
    cost too much, the log says so.
    """
    data = dataset.training_set()
    if data is None or not dataset.truth.is_known or float(sigmas[-1]) <= 0:
        return None
    num = min(_MOST, _POINTS // len(sigmas), _MOST_TERMS // (len(data) * len(sigmas)))
    if num < _FEWEST:
        log.info(
            "not measured: distances from the empirical score, which cost too much for %d points"
            " at %s", len(data), counted(len(sigmas), "level"),
        )  # fmt: skip
        return None
    return Memorising(dataset, data, sigmas, num, seed, device)


def times(history: list[Row]) -> dict[str, Any]:
    """Return the steps at which generalising and memorising begin; {} if they are not known.

    They are not known if some evaluation did not measure the distances, such as those of a run
    that an earlier version started.

    ``tau_gen`` is the first step whose ``true_distance`` is below twice its minimum. ``tau_mem``
    is the first step at which the network is nearer to the empirical score than to the true one,
    at its training points with fresh noise; None if there is no such step.

    Source: Bonnaire et al. (2025), arXiv:2505.17638: tau_gen does not depend on the number n of
    training points, and tau_mem is proportional to n.
    """
    rows = [row for row in history if row.get("true_distance") is not None]
    evaluated = [row for row in history if row.get("excess_loss") is not None]
    if not rows or any(row.get("true_distance") is None for row in evaluated):
        return {}
    least = min(row["true_distance"] or math.inf for row in rows)

    def first(rows: list[Row]) -> int | None:
        return int(rows[0]["step"] or 0) if rows else None

    def gap(row: Row) -> float:
        return (row["empirical_distance_seen"] or 0.0) - (row["true_distance_seen"] or 0.0)

    return {
        "tau_gen": first([row for row in rows if (row["true_distance"] or 0.0) < _TWICE * least]),
        "tau_mem": first([row for row in rows if gap(row) < 0]),
    }
