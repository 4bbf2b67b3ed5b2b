"""Chains that run beside a run's own, to say where its error comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.core.dataset import Law
from ncsn_cli.core.errors import ConfigError, DivergedError
from ncsn_cli.core.score import Score
from ncsn_cli.evaluation.samples import FloorOf, evaluate_samples
from ncsn_cli.evaluation.verdict import GOOD, verdict_lines
from ncsn_cli.inits import Data, Init, Prior
from ncsn_cli.metrics import SampleMetric, relative_width
from ncsn_cli.samplers import LogProb, ProbabilityFlow, plan_of, some_levels
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup

_FLOW_LEVELS = 20

_MOST_FLOWING = 10_000  # chains of the flow; more would only cost time

_MOST_REPEATED = 1280  # chains with the exact score: one tile on a CPU

_MOST_TERMS = 2_000_000_000  # steps times chains times components: some seconds

_MAIN = 0.5  # what takes away this share of an error is its cause

# budget=true runs wherever these are said, because the exact score is known.
_NOT_FOUND = "not found by a quick check (budget=true splits the error)"
_NOT_SOUGHT = "not looked for: it would take too long (budget=true splits the error)"


@dataclass(frozen=True)
class Reference:
    """A finished run, beside which other chains run.

    Args:
        setup: The run's sampler, score and start.
        sigmas: The schedule's levels (L,), descending.
        target: The law that the samples were asked for.
        metrics: The metrics of samples, by name.
        floor_of: See ``FloorOf``.
        score_name: What the run's score is, such as "network"; None if it is the exact score.
        exact: The exact score and log-density, or None if these are not known.
    """

    setup: Setup
    sigmas: Tensor
    target: Law
    metrics: Mapping[str, SampleMetric]
    floor_of: FloorOf
    score_name: str | None
    exact: tuple[Score, LogProb] | None

    def flow(self, num: int, evaluations: int) -> dict[str, Any] | None:
        """Run the probability flow of 20 levels with the run's score, and measure its samples.

        The flow starts from the Gaussian with the moments of p_sigma_max. Of more than 20 levels
        it takes 20, evenly spread.

        Args:
            num: Number of chains; at most 10 000 are used.
            evaluations: The run's evaluations of its score.

        Returns:
            The number of levels and evaluations, and an entry for each metric. None if the run is
            a flow itself, if it takes no more evaluations, or if the flow cannot run.
        """
        setup, length = self.setup, len(self.sigmas)
        chosen = some_levels(length, _FLOW_LEVELS)
        sampler = ProbabilityFlow(denoise=setup.sampler.denoise)
        if isinstance(setup.sampler, ProbabilityFlow) or not self.metrics:
            return None
        try:
            plan = plan_of(sampler, self.sigmas[chosen])
        except ConfigError:  # it needs two levels above 0
            return None
        if evaluations <= len(plan):
            return None
        beside = replace(
            setup, sampler=sampler, plan=plan, init=_start(setup, Prior(), plan[0].sigma)
        )
        try:
            chains = Sampling(
                beside, min(num, _MOST_FLOWING), num_paths=0, keep_by_level=False, name="flow"
            ).run()
        except DivergedError:
            return None
        return {
            "levels": len(plan),
            "score_evaluations": chains.score_evaluations,
            "metrics": self._measure(chains.samples, plan[-1].sigma, self.metrics),
        }

    def causes(self, samples: Tensor, report: Mapping[str, Any]) -> list[str]:
        """Return sentences on what causes the errors in ``report``; none without an error.

        The run's first chains are repeated with the exact score, and then from exact draws of
        p_sigma_max, too. What takes away half of an error is its cause: the score, or the start.
        Otherwise it is the sampler. An error against the data alone is that of sigma_min.

        Args:
            samples: The run's samples (N, D).
            report: Its ``metrics.json``.
        """
        lines = verdict_lines(report)
        shown = [line for line in lines if line.word != GOOD]
        # The noise floor is needed for other numbers of samples: take a cheap metric.
        cheap = [line for line in shown if self.metrics[line.name].is_cheap]
        found = []
        if shown:
            worst = max(cheap or shown, key=lambda line: line.excess)
            found.append(self._part_behind(worst.name, samples))
        if any(line.is_worse_against_data for line in lines):
            found.append(self._smallest_level())
        return found

    def _part_behind(self, name: str, samples: Tensor) -> str:
        """Return which part of the run is behind its error in the metric ``name``."""
        setup, num, what = self.setup, min(len(samples), _MOST_REPEATED), name.replace("_", " ")
        work = setup.num_evaluations * num * setup.truth.num_components
        if self.exact is None:
            return "these numbers do not tell"
        own = self._entry(name, samples[:num])
        if own["verdict"] == GOOD:
            return _NOT_FOUND
        if work > _MOST_TERMS:
            return _NOT_SOUGHT
        score, log_prob = self.exact
        ideal = replace(setup, score=score, log_prob=log_prob)
        known = own if self.score_name is None else self._repeat(name, ideal, num)
        if known is None:
            return "the sampler (with the exact score, its chains diverge)"
        rest = f"of the error in {what} is left"
        if known["value"] <= _MAIN * own["value"]:
            return f"the {self.score_name} (with the exact score, {_share(known, own)} {rest})"
        if known["verdict"] == GOOD:
            return _NOT_FOUND
        started = _start(setup, Data(), setup.plan[0].sigma)
        best = self._repeat(name, replace(ideal, init=started), num)
        if best is not None and best["value"] <= _MAIN * known["value"]:
            return f"the start (from exact draws of p_sigma_max, {_share(best, known)} {rest})"
        left = "" if best is None else f" (with exact score and start, {_share(best, own)} {rest})"
        return f"the sampler{left}"

    def _smallest_level(self) -> str:
        """Return how much wider than the data's modes those of p_sigma_min are."""
        sigma = self.setup.plan[-1].sigma
        truth, text = self.setup.truth, f"sigma_min = {sigma:g}"
        if self.setup.sampler.denoise:
            return f"{text} (posterior means are narrower than the data)"
        width = relative_width(truth, sigma) if truth.is_known else None
        return text if width is None else f"{text} (it makes the modes {width:.2f} times as wide)"

    def _repeat(self, name: str, setup: Setup, num: int) -> dict[str, Any] | None:
        """Return the entry of the metric ``name`` for ``num`` chains; None if they diverge."""
        try:
            chains = Sampling(
                setup, num, num_paths=0, keep_by_level=False, name="exact score"
            ).run()
        except DivergedError:
            return None
        return self._entry(name, chains.samples)

    def _entry(self, name: str, samples: Tensor) -> dict[str, Any]:
        sigma = self.setup.plan[-1].sigma
        entry = self._measure(samples, sigma, {name: self.metrics[name]})[name]
        assert entry is not None  # it was known for the run
        return entry

    def _measure(
        self, samples: Tensor, sigma: float, metrics: Mapping[str, SampleMetric]
    ) -> dict[str, dict[str, Any] | None]:
        return evaluate_samples(
            samples, self.target, sigma, metrics, self.floor_of, self.setup.seed
        )


def _start(
    setup: Setup, init: Init, sigma_max: float
) -> Callable[[int, torch.Generator, int], Tensor]:
    """Return the function that draws initial points around the truth's origin, on the device."""

    def start(num: int, stream: torch.Generator, first: int) -> Tensor:
        return init(num, setup.truth, sigma_max, stream).to(setup.device, torch.float32)

    return start


def _share(entry: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return in words how much of the distance in ``whole`` there is in ``entry``."""
    share = entry["value"] / whole["value"]
    return "all" if share >= 1 else f"{100 * share:.0f} %"
