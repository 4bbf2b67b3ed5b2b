"""The density that a score implies by its probability flow, and its divergence from p."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.gaussian import Gaussian
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.score import Score, detached_jacobian
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.metrics.base import ScoreMetric

log = logging.getLogger(__name__)

_TOGETHER = 2048  # points in one batch: they take a step together
_TOLERANCES = 1e-4, 1e-5, 1e-6  # of the solver; each point tries them in this order
_AGREEMENT = 0.05, 1e-3  # of two answers at one point: in nats, and relative to log q
# Scales of errors: for x, _SHARE |x| + sigma; for log q, |integral| + _NATS, in nats.
_SHARE, _NATS = 0.1, 10.0
_FAR = 1e6  # in units of the reach of data and sigma_max; farther out, log q is -inf
_LONGEST_STEP = 0.25  # in log sigma; a longer step may miss a change of the score at a few levels
_SMALLEST_STEP = 1e-12  # in log sigma, for which floats have some 16 digits
_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 10.0  # for the next step's length
_OPEN, _FOLLOWED, _TOO_LONG, _NOT_FINITE, _CARRIED_OFF = range(5)  # status of a point's flow
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


class LogLikelihood(NamedTuple):
    """Log-densities of points, and how accurate they are.

    Args:
        value: log q (B,), nats; nan where the flow gives no answer, -inf where the flow carries a
            point a million times as far as data and noise reach.
        change: The last answer minus the one before, whose tolerance was ten times as large, (B,),
            nats; inf where there are not two answers.
        failure: Why some points have no finite answer; empty if all points have one.
    """

    value: Tensor
    change: Tensor
    failure: str


def in_float64(score: Score) -> Score:
    """Return ``score`` in a form that accepts points in float64 on the CPU.

    A network that does not accept such points is copied. A plain function must already accept
    them and is returned unchanged.
    """
    tensors = [*score.parameters(), *score.buffers()] if isinstance(score, nn.Module) else []
    numbers = [each for each in tensors if each.is_floating_point()]
    if all(each.dtype == torch.float64 and each.is_cpu for each in numbers):
        return score
    network: Any = copy.deepcopy(score)
    network = network.cpu().double().requires_grad_(False)
    return network  # moved to the CPU first: mps has no float64


@torch.no_grad()
def log_likelihood(
    score: Score,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    terminal_log_prob: Callable[[Tensor], Tensor],
    num_steps: int,
    tolerance: Tensor | float = _AGREEMENT[0],
) -> LogLikelihood:
    """Return log q at ``x`` (B, D), where the probability flow carries q_max to q.

        dx/dsigma = -sigma s(x, sigma),   d log q/dsigma = sigma tr(grad s),

        log q(x) = log q_max(x(sigma_max)) - integral of sigma tr(grad s(x(sigma), sigma)) dsigma

    from sigma_min, where x(sigma_min) = x, to sigma_max. The equations are solved in log sigma, in
    float64 on the CPU, with separate step sizes for each point; the trace is exact. Every point is
    solved twice, and a third time if its two answers do not agree.

    Source: Chen et al. (2018), arXiv:1806.07366, theorem 1; Song et al. (2021), arXiv:2011.13456,
    eq. 39.

    Args:
        score: s(x, sigma).
        x: Points.
        sigma_min: Level of q, > 0.
        sigma_max: Level of q_max, the terminal law.
        terminal_log_prob: log q_max, from (B, D) to (B,).
        num_steps: Max number of steps per point.
        tolerance: How far two answers may differ, () or (B,), nats, in addition to 1e-3 of log q.
            A point with the tolerance inf is solved once.
    """
    score, x = in_float64(score), x.cpu().double()
    tolerance = torch.as_tensor(tolerance, dtype=x.dtype).expand(len(x))
    value, change = x.new_full((len(x),), math.nan), x.new_full((len(x),), math.inf)
    end = torch.full((len(x),), _FOLLOWED)
    is_open = torch.ones(len(x), dtype=torch.bool)
    # Solve every point, then again with a smaller tolerance while its answers do not agree.
    for rtol in _TOLERANCES:
        last, integral, end[is_open] = _solve(
            score, x[is_open], sigma_min, sigma_max, rtol, num_steps
        )
        answer = terminal_log_prob(last) - integral
        answer = answer.where(end[is_open] == _FOLLOWED, math.nan)
        answer = answer.masked_fill(end[is_open] == _CARRIED_OFF, -math.inf)
        change[is_open] = (answer - value[is_open]).nan_to_num(math.inf)
        value[is_open] = answer
        is_open = value.isfinite() & (change.abs() > tolerance + _AGREEMENT[1] * value.abs())
        if not is_open.any():
            break
    # Say why some points have no finite answer.
    reasons = {
        _TOO_LONG: f"need more than num_steps = {num_steps} steps",
        _NOT_FINITE: "reach a place where the score is not finite",
        _CARRIED_OFF: f"are carried {_FAR:g} times as far as data and noise reach",
    }
    counts = {reason: int((end == how).sum()) for how, reason in reasons.items()}
    failure = " and ".join(f"{num} of {len(x)} points {why}" for why, num in counts.items() if num)
    return LogLikelihood(value, change, failure)


def _solve(
    score: Score, x: Tensor, sigma_min: float, sigma_max: float, rtol: float, num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x(sigma_max) (B, D), the integral (B,) of ``log_likelihood``, and each final status.

    The solver takes steps of ``_step``. ``rtol`` bounds the error of a step, in units of a scale
    of x and log q.
    """
    start, end, centre = math.log(sigma_min), math.log(sigma_max), x.mean(0)
    farthest = _FAR * math.hypot(sigma_max, float((x - centre).norm(dim=1).max()))

    def slope(log_sigma: Tensor, y: Tensor) -> Tensor:
        """Return dy/dlog sigma; the rows of ``y`` (n, D + 1) are x - centre and the integral."""
        sigma = log_sigma.exp()  # (n,)
        s, jacobian = detached_jacobian(score, centre + y[:, :-1], sigma)
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True)  # (n, 1)
        return (sigma**2)[:, None] * torch.cat([-s, trace], dim=1)

    y = nn.functional.pad(x - centre, (0, 1))  # (B, D + 1)
    log_sigma = x.new_full((len(x),), start)
    parts = zip(log_sigma.split(_TOGETHER), y.split(_TOGETHER), strict=True)
    slopes = torch.cat([slope(*part) for part in parts])  # (B, D + 1)
    length = x.new_full((len(x),), (end - start) / 100)  # of the next step
    num_taken = torch.zeros(len(x), dtype=torch.int64)
    how = torch.where(log_sigma < end, _OPEN, _FOLLOWED)
    with tqdm(total=len(x), desc="flow", bar_format=_BAR, disable=HIDDEN, leave=False) as bar:
        while len(now := (how == _OPEN).nonzero()[:_TOGETHER, 0]):  # (n,)
            # Make one step for a batch of open points.
            before, t = y[now], log_sigma[now]
            h = torch.minimum(length[now], end - t).clamp(max=_LONGEST_STEP)
            after, after_slopes, error = _step(slope, t, before, slopes[now], h)
            # Choose the length of the next step from the error of this one.
            scale = torch.maximum(before.abs(), after.abs())
            scale[:, :-1] = _SHARE * scale[:, :-1] + t.exp()[:, None]
            scale[:, -1] += _NATS
            size = (error / scale).square().mean(1).sqrt() / rtol  # (n,), nan if not finite
            factor = (_SAFETY * size ** (-1 / 3)).clamp(_LEAST_FACTOR, _LARGEST_FACTOR)
            length[now] = h * factor.nan_to_num(_LEAST_FACTOR)
            num_taken[now] += 1
            # Accept the steps whose error is small enough.
            is_good = size <= 1
            taken = now[is_good]
            y[taken], slopes[taken], log_sigma[taken] = (
                f[is_good] for f in (after, after_slopes, torch.where(h < end - t, t + h, end))
            )
            # Update the status of each point.
            how[now] = torch.where(num_taken[now] < num_steps, _OPEN, _TOO_LONG)
            how[now[length[now] <= _SMALLEST_STEP]] = _NOT_FINITE
            how[now[log_sigma[now] == end]] = _FOLLOWED
            how[now[y[now, :-1].norm(dim=1) > farthest]] = _CARRIED_OFF
            bar.update(float((log_sigma - start).sum()) / (end - start) - bar.n)
    return centre + y[:, :-1], y[:, -1], how


def _step(
    slope: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, k1: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y at t + h, the slope at t + h, and the error of the step, all (n, M).

    This is a Runge-Kutta step of length ``h`` (n,) from ``t`` (n,), where the slope is ``k1``. The
    error is the difference between the results of orders 3 and 2. The orders are low because the
    trace of a network with relu units jumps: pairs of order 5 and 4 do not see a jump between
    their nodes, and were off by ten times their tolerance.

    Source: Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321.
    """
    dt = h[:, None]
    k2 = slope(t + h / 2, y + dt / 2 * k1)
    k3 = slope(t + 3 / 4 * h, y + 3 / 4 * dt * k2)
    after = y + dt * (2 * k1 + 3 * k2 + 4 * k3) / 9
    k4 = slope(t + h, after)
    return after, k4, dt * (5 * k1 - 6 * k2 - 8 * k3 + 9 * k4) / 72


def check_flow(sigmas: Tensor, key: str) -> None:
    """Raise ``ConfigError`` naming ``key`` unless the flow has two levels or more, all above 0."""
    if len(sigmas) < 2 or bool((sigmas == 0).any()):
        raise ConfigError(f"{key}: the sampler should visit two levels or more, all above 0")


@dataclass(frozen=True, config=STRICT)
class KL(ScoreMetric):
    """KL(p || q) in nats, where q is the law that the probability flow reaches at sigma_min.

        KL(p || q) = E[log p(x) - log q(x)],   x ~ p,

    from exact draws, both for p itself (``clean``) and for p_sigma_min (``perturbed``). The flow
    starts from the Gaussian of ``init=prior``. The number describes the score and that prior, not
    samples. ``prior`` is the prior's own part, KL(p_sigma_max || prior), which the exact score has
    too.

    ``solver_error`` is the solver's share of the error: sqrt(mean change^2 + its standard error^2)
    with the change of log q in the solver's last answer (see ``LogLikelihood``). With it,
    ``standard_error`` = sqrt(the draws' standard error^2 + ``solver_error``^2). ``value``,
    ``solver_error`` and ``standard_error`` are None if the flow cannot be followed from some draw.

    Args:
        num_points: Number of exact draws.
        num_steps: Max number of steps of the flow per point.
    """

    num_points: Annotated[int, Field(ge=2, le=10**9)] = 2000
    num_steps: Count = 20_000

    def __call__(
        self, score: Score, truth: Dataset, sigmas: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        """Return ``value`` (perturbed), its errors, and the parts ``clean`` and ``prior``."""
        sigma_max, sigma_min = float(sigmas[0]), float(sigmas[-1])
        prior = Gaussian(truth.mean, truth.perturbed_covariance(sigma_max)).log_prob

        def draw(sigma: float) -> Tensor:
            x = truth.sample(self.num_points, sigma=sigma, generator=generator)
            return x.cpu().double()

        def divergence(name: str, sigma: float) -> dict[str, float | None]:
            x = draw(sigma)
            log_p = truth.log_prob(x, sigma)
            flow = log_likelihood(score, x, sigma_min, sigma_max, prior, self.num_steps)
            if flow.failure:
                log.warning("metric.kl: %s has no value, because %s", name, flow.failure)
            return _divergence(log_p - flow.value, flow.change)

        widest = draw(sigma_max)
        return {
            **divergence("the divergence from p_sigma_min", sigma_min),
            "clean": divergence("clean", 0.0) if truth.has_density(0.0) else None,
            "prior": _mean(truth.log_prob(widest, sigma_max) - prior(widest)),
        }

    def check(self, sigmas: Tensor) -> None:
        """Raise ``ConfigError`` unless there are two levels or more, all above 0."""
        check_flow(sigmas, "metric.kl")


def _divergence(values: Tensor, change: Tensor) -> dict[str, float | None]:
    """Return the mean of ``values`` (N,) and its errors; ``change`` (N,) gives the solver's."""
    if not bool((values + change).isfinite().all()):
        return dict.fromkeys(("value", "standard_error", "solver_error"))
    mean, solver_error = _mean(values), math.hypot(*_mean(change).values())
    return {
        "value": mean["value"],
        "standard_error": math.hypot(mean["standard_error"], solver_error),
        "solver_error": solver_error,
    }


def _mean(values: Tensor) -> dict[str, float]:
    error = values.std() / math.sqrt(len(values))
    return {"value": float(values.mean()), "standard_error": float(error)}
