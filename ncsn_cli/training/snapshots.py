"""States of the score during training, on the grid of the pictures, for animations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import BadCheckpointError
from ncsn_cli.core.scene import ARROWS
from ncsn_cli.core.score import Score
from ncsn_cli.evaluation.grid import grid_of, levels_shown
from ncsn_cli.metrics import recovered_density
from ncsn_cli.runs.files import read_npz

_MOST_POINTS = 20_000  # limit for recovering a density, because training waits


class Snapshots:
    """The learned score at some steps of its training, including the first and the last.

    Snapshots are due at the steps ``steps`` (i/num)^2, i = 0, ..., num, as far as the training
    comes. They are denser at the beginning, because most is learned early.

    Args:
        num: Number of snapshots after the first.
        steps: Number of steps of the training.
        dataset: The distribution to learn.
        sigmas: Noise levels (L,), descending.
        device: Where the score is computed.
    """

    def __init__(
        self, num: int, steps: int, dataset: Dataset, sigmas: Tensor, device: torch.device
    ) -> None:
        self.due = {round(steps * (i / num) ** 2) for i in range(num + 1)}
        self._dataset = dataset
        self._sigmas = levels_shown(dataset.dim, sigmas).float().to(device)  # (M,)
        axes, self._points = grid_of(dataset)
        if dataset.dim == 2:
            self._points = torch.cartesian_prod(*(axis[ARROWS] for axis in axes))
        self._recovers = dataset.dim == 1 and dataset.is_known
        self._taken: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        """Return how many snapshots have been taken."""
        return len(self._taken)

    @torch.no_grad()
    def take(self, step: int, score: Score) -> None:
        """Keep ``score`` as it is after ``step`` steps."""
        x = self._points.float().to(self._sigmas.device)
        scores = torch.stack([score(x, sigma) for sigma in self._sigmas])
        entry: dict[str, Any] = {"scores": scores.cpu().numpy()}
        if self._recovers:
            sigma = float(self._sigmas[-1])
            found = recovered_density(score, self._dataset, sigma, _MOST_POINTS)
            density = np.interp(self._points[:, 0], found.x, found.log_prob.exp())
            kl = np.float64(np.nan if found.kl is None else found.kl)
            entry |= {"recovered": density.astype(np.float32), "kl": kl}
        self._taken[step] = entry

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the F snapshots as arrays, by name.

        ``steps`` (F,), and ``scores``: (F, M, A, D) at the arrows for D = 2, and (F, M, G, 1) for
        D = 1. For D = 1, if the true score is known, also ``recovered`` (F, G), the density
        recovered at the smallest level, and ``kl`` = KL(p_sigma || recovered) in nats, (F,).
        """
        steps = sorted(self._taken)
        names = self._taken[steps[0]] if steps else ()
        stacked = {name: np.stack([self._taken[step][name] for step in steps]) for name in names}
        return {"steps": np.array(steps), **stacked}

    def restore(self, path: Path, step: int) -> None:
        """Take the snapshots up to ``step`` from a file that holds what ``arrays`` returned.

        Raises:
            BadCheckpointError: If the file holds anything else.
        """
        arrays = read_npz(path)
        steps = arrays.pop("steps", np.zeros(1))
        shape = (len(self._sigmas), *self._points.shape)
        shapes = {"scores": shape}
        if self._recovers:
            shapes |= {"recovered": shape[1:2], "kl": ()}
        fit = {name: (steps.size, *shape) for name, shape in shapes.items()}
        if (
            steps.dtype.kind != "i"
            or steps.ndim != 1
            or {name: values.shape for name, values in arrays.items()} != fit
            or any(values.dtype.kind != "f" for values in arrays.values())
        ):
            raise BadCheckpointError(
                f"{path}: not the snapshots of this run; remove the file to resume without it"
            )
        for i, kept in enumerate(steps.tolist()):
            if kept <= step:
                self._taken[kept] = {name: values[i] for name, values in arrays.items()}
