"""The share of samples that are copies of training points."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.settings import STRICT
from ncsn_cli.metrics.base import Distance, SampleMetric, random_subset

_MOST_SAMPLES = 10_000  # are compared; the share's standard error is then below .5 %
_CLOSER = 1 / 3  # as far as the second nearest training point


@dataclass(frozen=True, config=STRICT)
class Memorisation(SampleMetric):
    """The share of samples whose nearest training point is less than a third as far as the second.

    In many dimensions exact draws have a share of 0. In few dimensions they do not: where the
    training points lie evenly, the ratio of both distances is below c with probability c^D, 1/3 in
    1D and 1/9 in 2D. So the noise floor is this share for exact draws, each set beside another
    training set of the same size, which scatters more than the draws alone. For endless data the
    share is 0.

    Source: Yoon et al. (2023), "Diffusion probabilistic models generalize when they fail to
    memorize", for the criterion of a third.
    """

    floor_draws: ClassVar[int] = _MOST_SAMPLES

    def distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes the share among ``num`` samples."""
        data = truth.training_set()
        return lambda samples, generator: _share(samples, data)

    def floor_distance(self, truth: Law, sigma: float, num: int) -> Distance:
        """Return the function that computes the share, each time beside another training set."""
        return lambda samples, generator: _share(samples, truth.training_set(generator))

    def details(self, samples: Tensor, truth: Law, sigma: float) -> dict[str, Any]:
        """Return the number of copies among the samples that are compared."""
        compared = self.num_points(len(samples), truth.dim)
        return {"copies": round(_share(samples, truth.training_set()) * compared)}

    def num_points(self, num: int, dim: int) -> int:
        """Return how many of ``num`` samples are compared: at most 10 000."""
        return min(num, _MOST_SAMPLES)

    def exact_floor(self, truth: Law, sigma: float, num: int) -> float | None:
        """Return 0 for endless data, otherwise None."""
        return 0.0 if truth.training_set() is None else None


def _share(samples: Tensor, data: Tensor | None) -> float:
    """Return the share for ``samples`` (N, D) beside the training points ``data`` (n, D)."""
    if data is None or len(data) < 2:
        return 0.0
    from scipy.spatial import cKDTree  # here: scipy is slow to import

    some = random_subset(samples, _MOST_SAMPLES).cpu().double().numpy()
    nearest = torch.as_tensor(cKDTree(data.cpu().double().numpy()).query(some, k=2)[0])  # (N, 2)
    return float((nearest[:, 0] < _CLOSER * nearest[:, 1]).double().mean())
