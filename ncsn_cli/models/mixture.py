"""A mixture of Gaussians as a score network."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, validate_call
from torch import Tensor, nn

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.models.one_level import Network


class MixtureScore(Network):
    r"""The score of a mixture of Gaussians, whose parameters can each be learned or fixed.

        s(x, sigma) = sum_k r_k(x) (mu_k - x)/(s_k^2 + sigma^2)
        r_k(x) = w_k N(x; mu_k, (s_k^2 + sigma^2) I)/sum_j w_j N(x; mu_j, (s_j^2 + sigma^2) I)

    The parameters that training changes are log w_k (up to a constant), mu_k and log s_k. If the
    data are such a mixture, score matching is then the estimation of a few numbers, whose variance
    has a closed form (Koehler, Heckett & Risteski 2022, arXiv:2210.00726).

    Args:
        dim: D, taken from the dataset.
        weights: Initial w_k > 0, (K,). They are divided by their sum.
        means: Initial mu_k, (K, D), data units. None takes the first K training points.
        stds: Initial s_k > 0, one for all or one per component (K,), data units.
        learn_weights: Whether the weights are learned.
        learn_means: Whether the means are learned.
        learn_stds: Whether the standard deviations are learned.
    """

    means: Tensor

    @validate_call(config=STRICT)
    def __init__(
        self,
        dim: Count,
        weights: list[PositiveFloat] = [0.5, 0.5],  # noqa: B006
        means: list[list[float]] | None = None,
        stds: PositiveFloat | list[PositiveFloat] = 1.0,
        learn_weights: bool = True,
        learn_means: bool = True,
        learn_stds: bool = True,
    ) -> None:
        super().__init__()
        num = len(weights)
        if means is not None and (len(means) != num or len({*map(len, means)}) > 1):
            raise ConfigError(f"means: give {num}, one per weight, each with D coordinates")
        if isinstance(stds, list) and len(stds) != num:
            raise ConfigError(f"stds: got {len(stds)}, but there are {num} weights")
        if not (learn_weights or learn_means or learn_stds):
            raise ConfigError("learn_weights: nothing is left to learn; learn means or stds")
        self.is_automatic = means is None
        start = torch.zeros(num, dim) if means is None else torch.tensor(means)
        self.log_weights = nn.Parameter(torch.tensor(weights).log(), learn_weights)  # (K,)
        self.means = nn.Parameter(start, learn_means)  # (K, D)
        self.log_stds = nn.Parameter(torch.tensor(stds).log().expand(num).clone(), learn_stds)

    def adapt_to(self, data: Tensor) -> None:
        """Set the means to the first points of ``data`` (N, D), if none were given.

        Raises:
            ConfigError: If there are too few points, or the means have another dimension.
        """
        if self.means.shape[1] != data.shape[1]:
            raise ConfigError(f"model.means: each needs {data.shape[1]} coordinates, as the data")
        if not self.is_automatic:
            return
        if len(data) < len(self.means):
            raise ConfigError("model.means: give them; there are fewer training points")
        with torch.no_grad():
            self.means.copy_(data[: len(self.means)])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (B, D), units 1/length, at ``x`` (B, D) and ``sigma`` () or (B,)."""
        variances = (2 * self.log_stds).exp() + sigma.to(x).reshape(-1, 1) ** 2  # (1 or B, K)
        offset = self.means - x[:, None]  # (B, K, D)
        log_terms = (
            self.log_weights
            - x.shape[-1] / 2 * variances.log()
            - offset.square().sum(-1) / (2 * variances)
        )  # (B, K)
        return ((log_terms.softmax(-1) / variances)[..., None] * offset).sum(1)

    def estimates(self) -> dict[str, list[float] | list[list[float]]]:
        """Return the present weights (K,), means (K, D) and standard deviations (K,)."""
        return {
            "weights": self.log_weights.softmax(0).tolist(),
            "means": self.means.tolist(),
            "stds": self.log_stds.exp().tolist(),
        }
