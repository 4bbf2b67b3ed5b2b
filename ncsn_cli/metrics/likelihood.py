"""The density that a score implies through its probability flow, and its divergence from p."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.errors import ConfigError
from ncsn_cli.metrics.base import ScoreMetric
from ncsn_cli.scores import STRICT, Count, Dataset, Score, score_and_jacobian

_MOST_POINTS = 1_000_000


def log_likelihood(
    score: Score,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    terminal_log_prob: Callable[[Tensor], Tensor],
    num_steps: int,
) -> Tensor:
    """Log-density at ``x`` (B, D) of what the probability flow makes of its terminal law, (B,).

        dx/dsigma = -sigma s(x, sigma),   d log q/dsigma = sigma tr(grad s),

        log q(x) = log q_max(x(sigma_max)) - integral of sigma tr(grad s(x(sigma), sigma)) dsigma

    from sigma_min, where x(sigma_min) = x, to sigma_max. Solved in log sigma by the classical
    Runge-Kutta method, order 4; the trace is exact, by D forward differentiations.

    Source: Chen et al. (2018), arXiv:1806.07366, theorem 1; Song et al. (2021), arXiv:2011.13456,
    eq. 39.

    Args:
        score: s(x, sigma).
        x: Points.
        sigma_min: Level at which ``x`` is to be distributed, > 0.
        sigma_max: Level of the terminal law.
        terminal_log_prob: log q_max, from (B, D) to (B,).
        num_steps: Steps, of four evaluations of the score and its trace each.
    """
    log_sigmas = torch.linspace(
        math.log(sigma_min), math.log(sigma_max), num_steps + 1, dtype=torch.float64
    )
    h = float(log_sigmas[1] - log_sigmas[0])

    def slope(x: Tensor, log_sigma: float) -> tuple[Tensor, Tensor]:
        """d/dlog sigma of x (B, D) and of the integral (B,)."""
        sigma = torch.tensor(math.exp(log_sigma), dtype=x.dtype, device=x.device)
        s, jacobian = score_and_jacobian(score, x, sigma)
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(-1)  # (B,)
        return -(sigma**2) * s, sigma**2 * trace

    integral = torch.zeros_like(x[:, 0])
    for start in tqdm(log_sigmas[:-1].tolist(), desc="flow", disable=None, leave=False):
        dx1, dl1 = slope(x, start)
        dx2, dl2 = slope(x + h / 2 * dx1, start + h / 2)
        dx3, dl3 = slope(x + h / 2 * dx2, start + h / 2)
        dx4, dl4 = slope(x + h * dx3, start + h)
        x = x + h / 6 * (dx1 + 2 * dx2 + 2 * dx3 + dx4)
        integral = integral + h / 6 * (dl1 + 2 * dl2 + 2 * dl3 + dl4)
    return terminal_log_prob(x) - integral


def prior_log_prob(truth: Dataset, sigma: float) -> Callable[[Tensor], Tensor]:
    """The log-density of ``init=prior``, N(E[x], Cov[x] + sigma^2 I)."""
    values, rotation = torch.linalg.eigh(truth.perturbed_covariance(sigma))

    def log_prob(x: Tensor) -> Tensor:
        offset = (x - truth.mean.to(x)) @ rotation.to(x)  # (B, D)
        variances = values.to(x)
        return -(offset**2 / variances + (2 * math.pi * variances).log()).sum(-1) / 2

    return log_prob


def check_flow(sigmas: Tensor, key: str) -> None:
    """Raise ``ConfigError`` naming ``key`` where there is no flow from one level to another."""
    if len(sigmas) < 2 or bool((sigmas == 0).any()):
        raise ConfigError(f"{key}: the sampler should visit two levels or more, all above 0")


class RecoveredDensity(NamedTuple):
    """The density whose score is known, D = 1, at one level.

    Args:
        x: Points (G,), over all that pictures show and 4 sigma more on each side.
        log_prob: log q there (G,), q having mass 1 on them.
        kl: KL(p_sigma || q) in nats, p_sigma scaled to mass 1 on them too; None where the score
            changes over less than the points allowed resolve.
    """

    x: Tensor
    log_prob: Tensor
    kl: float | None


def recovered_density(
    score: Score, truth: Dataset, sigma: Tensor, most_points: int = _MOST_POINTS
) -> RecoveredDensity:
    """Integrate ``score`` at the level ``sigma`` (), on its device, for D = 1.

        log q(x) = integral of s(u, sigma) du up to x, and a constant,

    by the trapezoid rule. On the way from a mode of standard deviation w to one at the distance d
    the score turns over a length of w^2/d: four points to that at least, and 20 to w.
    """
    (low, high), level = truth.extent, float(sigma)
    width = float(high - low) + 8 * level
    narrow = math.hypot(truth.smallest_std, level)
    num = math.ceil(max(20 * width / narrow, 4 * width * float(high - low) / narrow**2))
    x = (
        float(low)
        - 4 * level
        + width * torch.linspace(0, 1, min(num, most_points), dtype=torch.float64)
    )
    parts = x[:, None].to(sigma.dtype).split(100_000)
    s = torch.cat([score(part.to(sigma.device), sigma).cpu() for part in parts])[:, 0].double()
    log_q = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(s, x)])
    log_p = torch.cat([truth.log_prob(part, level) for part in x[:, None].split(100_000)])
    log_p, log_q = (log_f - log_f.max() for log_f in (log_p, log_q))  # exp cannot overflow
    log_p, log_q = (f - torch.trapezoid(f.exp(), x).log() for f in (log_p, log_q))
    kl = float(torch.trapezoid(log_p.exp() * (log_p - log_q), x))
    return RecoveredDensity(x, log_q, kl if num <= most_points else None)


@dataclass(frozen=True, config=STRICT)
class KL(ScoreMetric):
    """KL(p || q) in nats, q the law that the probability flow carries to sigma_min.

        KL(p || q) = E[log p(x) - log q(x)],   x ~ p,

    from exact draws, with the standard error of that mean; against p (``clean``) and against
    p_sigma_min (``perturbed``). The flow starts from the Gaussian of ``init=prior``. It belongs
    to the score and that prior, not to samples. ``prior`` is the prior's own part, KL(p_sigma_max
    || prior), which the exact score has too.

    Args:
        num_points: Exact draws.
        num_steps: Steps of the flow.
    """

    num_points: Annotated[int, Field(ge=2, le=10**9)]
    num_steps: Count

    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """``value`` (perturbed), its ``standard_error``, and both parts."""
        sigma_max, sigma_min = float(sigmas[0]), float(sigmas[-1])
        prior = prior_log_prob(truth, sigma_max)

        def divergence(sigma: float) -> dict[str, float]:
            x = truth.sample(self.num_points, sigma=sigma, generator=generator)
            log_q = log_likelihood(score, x, sigma_min, sigma_max, prior, self.num_steps)
            return _mean(truth.log_prob(x, sigma) - log_q)

        x = truth.sample(self.num_points, sigma=sigma_max, generator=generator)
        perturbed = divergence(sigma_min)
        clean = divergence(0.0) if truth.has_density(0.0) else None
        return {
            **perturbed,
            "clean": clean,
            "prior": _mean(truth.log_prob(x, sigma_max) - prior(x)),
        }

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` where there is no flow from one level to another."""
        check_flow(sigmas, "metric.kl")


def _mean(values: Tensor) -> dict[str, float]:
    values = values.double()
    error = values.std() / math.sqrt(len(values))
    return {"value": float(values.mean()), "standard_error": float(error)}
