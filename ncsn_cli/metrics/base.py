"""Base classes of the metrics: distances of samples from the truth, and numbers about a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream

Distance = Callable[[Tensor, torch.Generator], float]
"""``distance(samples, generator)``: how far samples (N, D) are from p_sigma. The generator makes
the exact draws with which the samples are compared."""


class SampleMetric(ABC):
    """A distance from samples to p_sigma.

    Even for exact draws it is above 0: the noise floor, which ``evaluation/floors.py`` computes.

    To write your own, implement ``distance``. If you know the mean distance of exact draws, return
    it from ``exact_floor``; otherwise it is estimated. ``details`` may add to what is reported.
    """

    def __repr__(self) -> str:
        """Return the name and the attributes, by which noise floors are kept between runs."""
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({values})"

    is_cheap: ClassVar[bool] = False
    """Whether a thousand distances of ``floor_draws`` points take only seconds."""

    floor_draws: ClassVar[int] = 100_000
    """The largest number of points that are compared when the noise floor is estimated.

    For more points, what no formula gives of the floor is that of ``floor_draws`` points, n0,
    times sqrt(n0/n). Choose so many that, from there on, the law of sqrt(n) times the distance
    changes by less than the error of its estimate.
    """

    @abstractmethod
    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes how far ``num`` samples are from p_sigma.

        Everything that depends only on the truth is computed here, once. It is the same for every
        set of samples.
        """

    def floor_distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return ``distance`` for sets of exact draws, from which the noise floor is estimated.

        It differs from ``distance`` if that depends on something else that was drawn.
        """
        return self.distance(truth, sigma, num)

    def num_points(self, num: int, dim: int) -> int:
        """Return how many of ``num`` samples in D = ``dim`` are compared: all, by default."""
        return num

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return further results to report beside the distance."""
        return {}

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return the mean distance of ``num`` exact draws; None if no formula gives it."""
        return None


def random_subset(samples: Tensor, num: int) -> Tensor:
    """Return ``num`` of the samples (N, D), or all of them if N is not larger.

    They are chosen at random, because the samples of others may be sorted. The choice depends on N
    alone.
    """
    if len(samples) <= num:
        return samples
    return samples[torch.randperm(len(samples), generator=random_stream(0, "subset"))[:num]]


class ScoreMetric(ABC):
    """A number about a score. It does not depend on the sampler that uses the score.

    To write your own, implement ``__call__``.
    """

    @abstractmethod
    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """Return the metric's ``value``, and further results, at the levels ``sigmas`` (L,)."""

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` if the metric is not defined at the levels ``sigmas`` (L,)."""
        return
