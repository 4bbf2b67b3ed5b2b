"""What a distance from samples, or a number about a score, is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.score import Score

Distance = Callable[[Tensor, torch.Generator], float]
"""``distance(samples, generator)``: how far samples (N, D) are from p_sigma; exact draws that they
are compared with come from the generator."""


class SampleMetric(ABC):
    """A distance from samples to p_sigma. Not 0 even for exact draws: it has a noise floor."""

    is_cheap: ClassVar[bool] = False
    """Whether a thousand distances from 10 000 samples take seconds."""

    @abstractmethod
    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """How far ``num`` samples are from p_sigma.

        What depends on the truth alone is computed here, once, and is the same at every call.
        """

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """What is worth knowing beside the distance."""
        return {}

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return the mean distance of ``num`` exact draws, None where no formula gives it."""
        return None


class ScoreMetric(ABC):
    """A number about a score, whatever sampler uses it."""

    @abstractmethod
    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """Its ``value`` and what is worth knowing beside it, at the levels ``sigmas`` (L,)."""

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` at levels where it is not defined."""
        return
