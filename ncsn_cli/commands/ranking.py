"""Which metrics compare runs, and which rows are better than others beyond the noise."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ncsn_cli.commands.differences import IGNORED, differ, moving
from ncsn_cli.commands.found_runs import Run
from ncsn_cli.commands.suggestions import did_you_mean
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.evaluation.verdict import excess

BEST, TIED = "*", "~"

WORK = "score_evaluations"
"""A number that says how much was computed, not how well."""

_QUALITY = re.compile(  # numbers of which less is better
    r"(clean|perturbed|denoised)\..*\.(value|ratio)|(excess_)?loss|score_error(\.value)?"
    r"|(.*[._])?(kl|error|divergence)(\.value)?"
)
_SURE = 0.995  # of each side: 99 % of differences that are noise lie within
_DEVIATIONS = 2.576  # standard deviations of a Gaussian that hold 99 %


def choose_metrics(runs: list[Run], chosen: list[str], against: str) -> list[str]:
    """Return the metrics to show: ``chosen``, or the default ones that the runs have.

    The default ones of samples are the ratios to the noise floors, and the parts of the error
    where runs have a budget. ``against`` is a regular expression of the targets, such as
    ``clean``.

    Raises:
        ConfigError: If no run has a metric of ``chosen``.
    """
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    for name in chosen:
        if runs and name not in known:
            near = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
            raise ConfigError(f"--metric: no run has {name}{near}")
    if chosen:
        return chosen
    losses: list[str] = [key for key in ("excess_loss", "score_error") if key in known]
    if not losses and "loss" in known:
        losses = ["loss"]
    ratios = [key for key in known if re.fullmatch(rf"({against})\..*\.ratio", key)]
    about = _split_by_budget(runs)
    split = [key for key in known if re.fullmatch(rf"{about}\.parts\.\w+\.value", key)]
    return [*losses, *ratios, *split, *([WORK] if WORK in known else [])]


def _split_by_budget(runs: list[Run]) -> str:
    """Return whose parts to show of the runs' budgets: nats, if all of their parts are known.

    Otherwise it is the metric in which the data are missed most.
    """
    part = re.compile(r"budget\.metrics\.(\w+)\.parts\.")
    split = [run for run in runs if any(map(part.match, run.metrics))]
    if all("budget.nats.value" in run.metrics for run in split):
        return "budget.nats"
    found = (part.match(key) for run in split for key in run.metrics)
    names = dict.fromkeys(match[1] for match in found if match)

    def missed(name: str) -> float:
        key = f"clean.{name}"
        return sum(
            excess(run.metrics.get(f"{key}.value", 0.0), run.highest.get(key, 0.0))
            for run in split
        )

    return f"budget.metrics.{max(names, key=missed)}"


def values_of(runs: list[Run], metric: str) -> list[float]:
    """Return the values of a metric in the runs that have it."""
    return [run.metrics[metric] for run in runs if metric in run.metrics]


def mean(runs: list[Run], metric: str) -> float:
    """Return the mean of a metric over runs; inf if none has it."""
    values = values_of(runs, metric)
    return statistics.fmean(values) if values else math.inf


def is_quality(metric: str) -> bool:
    """Return whether less of a metric is better."""
    return _QUALITY.fullmatch(metric) is not None


@dataclass(frozen=True)
class _Estimate:
    """The mean of a metric over the runs of a row.

    Args:
        mean: The mean; not below the mean of exact draws, than which nothing is better.
        variance: The square of its standard error.
        freedom: The degrees of freedom of ``variance``; inf where it is known.
        is_exact: Whether the mean is within the 99 % band of exact draws.
    """

    mean: float
    variance: float
    freedom: float
    is_exact: bool


def marks(metric: str, rows: Sequence[list[Run]]) -> list[str]:
    """Return the mark of each row: ``*`` for the one best, ``~`` for the best that are tied.

    ``*`` is better than every other row beyond the noise of the difference, at 99 % (Welch's
    test). Where several runs of a row differ in the seed, the noise is their spread, but at least
    that of the measurement. Rows within the band of exact draws are tied. Nothing is marked where
    all rows are the same, where the noise is unknown, or where less is not better.
    """
    none = [""] * len(rows)
    found = [i for i, runs in enumerate(rows) if values_of(runs, metric)]
    if not is_quality(metric) or len({f"{mean(rows[i], metric):.4g}" for i in found}) < 2:
        return none
    spreads = [statistics.variance(v) for v in _several(metric, rows)]
    pooled = statistics.fmean(spreads) if spreads else None
    freedom = sum(len(values) - 1 for values in _several(metric, rows))
    estimates = {i: _estimate(metric, rows[i], pooled, freedom) for i in found}
    known = {i: estimate for i, estimate in estimates.items() if estimate is not None}
    if len(known) < len(found):
        return none
    best = min(found, key=lambda i: mean(rows[i], metric))
    tied = [i for i in found if i == best or not _is_better(known[best], known[i])]
    mark = BEST if len(tied) == 1 else TIED
    return [mark if i in tied else "" for i in range(len(rows))]


def _several(metric: str, rows: Sequence[list[Run]]) -> list[list[float]]:
    return [values for runs in rows if len(values := _independent(runs, metric)) > 1]


def _independent(runs: list[Run], metric: str) -> list[float]:
    """Return the values of a metric; a run that was repeated with the same seed counts once."""
    found = {
        (
            frozenset(each for each in run.settings.items() if not each[0].startswith(IGNORED)),
            value,
        )
        for run in runs
        if (value := run.metrics.get(metric)) is not None
    }
    return [value for _, value in found]


def _estimate(
    metric: str, runs: list[Run], pooled: float | None, pooled_freedom: int
) -> _Estimate | None:
    """Return the mean over ``runs`` and its noise; None if that is unknown.

    ``pooled`` is the variance over the seeds of other rows, for a row of one run.
    """
    values = _independent(runs, metric)
    centre, num = statistics.fmean(values), len(values)
    floor, highest = _exact_draws(metric, runs)
    measured = _noise(metric, runs, centre, floor, highest)
    spread = statistics.variance(values) if num > 1 else pooled
    if measured is None and spread is None:
        return None
    known, seen = (measured or 0.0) ** 2, spread or 0.0
    freedom = math.inf if known >= seen else num - 1 if num > 1 else pooled_freedom
    is_exact = highest is not None and centre <= highest
    return _Estimate(max(centre, floor), max(known, seen) / num, freedom, is_exact)


def _exact_draws(metric: str, runs: list[Run]) -> tuple[float, float | None]:
    """Return the mean and the upper end of the 99 % band of exact draws; 0 and None if unknown."""
    name, _, number = metric.rpartition(".")
    run = next(run for run in runs if metric in run.metrics)
    floor = run.metrics.get(f"{name}.floor")
    if name not in run.highest or not floor or number not in ("value", "ratio"):
        return 0.0, None
    unit = floor if number == "ratio" else 1.0
    return floor / unit, run.highest[name] / unit


def _noise(
    metric: str, runs: list[Run], centre: float, floor: float, highest: float | None
) -> float | None:
    """Return the standard deviation of a metric that the measurement alone causes; None: unknown.

    For samples as near as exact draws it is that of exact draws. A distance of others scatters
    more: by the triangle inequality at most by the distance of exact draws from their own law.
    For one training nothing is known of other seeds.
    """
    if highest is not None:
        return (highest - floor if centre <= highest else highest) / _DEVIATIONS
    if not runs[0].has_samples or metric.endswith(".ratio"):
        return None
    beside = (f"{metric}_standard_error", f"{metric.removesuffix('value')}standard_error")
    errors = [run.metrics[key] for run in runs for key in beside if key in run.metrics]
    return max(errors, default=None)


def _is_better(one: _Estimate, other: _Estimate) -> bool:
    """Return whether the mean of ``one`` is below that of ``other`` beyond the noise."""
    if one.is_exact and other.is_exact:
        return False
    variance = one.variance + other.variance
    if variance == 0:
        return one.mean < other.mean
    from scipy.special import stdtrit  # here: scipy is slow to import

    shares = ((e.variance / variance) ** 2 / e.freedom for e in (one, other))
    freedom = 1 / total if (total := sum(shares)) > 0 else math.inf  # Welch and Satterthwaite's
    return bool(other.mean - one.mean > stdtrit(freedom, _SURE) * math.sqrt(variance))


def incomparable(metric: str, runs: list[Run]) -> list[str]:
    """Return the words for what changes the meaning of a metric between runs; [] if nothing."""
    runs = [run for run in runs if metric in run.metrics]
    parts = metric.split(".")
    if parts[0] in ("clean", "perturbed", "denoised"):
        name = ".".join(parts[1:-1])
        words = [word for word in moving(runs) if parts[0] != "clean" or word == "the dataset"]
        keys = {
            key for run in runs for key in run.settings if f"{key}.".startswith(f"metric.{name}.")
        }
        words += ["num_samples"] if len({r.metrics.get("num_samples") for r in runs}) > 1 else []
        return words + [key for key in sorted(keys) if differ(runs, key)]
    groups = ("schedule", "loss") if metric == "loss" else ("schedule",)
    keys = {key for run in runs for key in run.settings if key.partition(".")[0] in groups}
    keys |= {"loss.weight_power", "loss.levels"} if metric == "excess_loss" else set()
    return [key for key in sorted(keys) if differ(runs, key)]
