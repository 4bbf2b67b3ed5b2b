"""The error budget of a sampling run: what each of its parts adds to the error of its samples.

A chain of hybrids leads from exact draws of the data to the run's own samples. Each hybrid takes
one more part from the run:

    exact_draws       x ~ p
    smallest_level    x + sigma_min z; denoised by the exact score if the sampler denoises
    steps             the run's steps, with the exact score, from exact draws of p_sigma_max
    start             the run's steps and start, with the exact score
    network           the run itself

A part of an error is the metric of its hybrid less the metric of the hybrid before. So parts are
signed and depend on this order, and their sum is the error beyond that of exact draws. Hybrids
share their random numbers, and metrics share the exact draws to compare with: then there is little
noise in the differences.

For a single Gaussian the parts are known in closed form: Pierret & Galerne (2024),
arXiv:2405.14250.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.core.errors import DivergedError
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised
from ncsn_cli.evaluation.parts import FINITE_DATA, beyond_noise, part_names
from ncsn_cli.evaluation.verdict import GOOD, Entry
from ncsn_cli.inits import StartLaw
from ncsn_cli.metrics import Distance, SampleMetric
from ncsn_cli.samplers import LogProb, some_levels
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup

_MOST_TERMS = 3_000_000_000  # steps times chains times components: some seconds

_REPEATS = 10  # parts of the samples, whose scatter gives the standard errors

_FEWEST_POINTS = 2  # in such a part

_NEARER = 0.9  # times as far from the empirical score as from the true one: not by chance

_MOST_LEVELS = 20  # at which the network is compared with the empirical score

_MOST_POINTS = 20_000_000  # at a level, times training points, in this comparison

_MOST_PAIRS = 600_000_000  # steps times chains times training points: some seconds

_FEWEST_CHAINS = 100  # with the empirical score


@dataclass(frozen=True)
class Budget:
    """A finished run, and the hybrids of it.

    Args:
        setup: The run's sampler, score and start.
        exact: The exact score and log-density.
        start: The law of the run's initial points; None if it is not known.
        has_exact_start: Whether the run starts from exact draws of p at its first level.
        score_name: What the run's score is, such as "network"; None if it is the exact score.
        empirical: The score of the training set smoothed by sigma, and the training set (M, D) in
            the coordinates of the chains; None unless a network was trained on a finite set.
        workers: Max number of tiles that run at a time.
    """

    setup: Setup
    exact: tuple[Score, LogProb]
    start: StartLaw | None
    has_exact_start: bool
    score_name: str | None
    empirical: tuple[Score, Tensor] | None
    workers: int

    def split(
        self, samples: Tensor, metrics: Mapping[str, SampleMetric], clean: Mapping[str, Entry]
    ) -> dict[str, Any]:
        """Return the parts of the error of the ``samples`` (N, D), in each of the ``metrics``.

        Of many samples only the first are used, so that each hybrid takes seconds. ``clean`` are
        the metrics' entries against p; a metric without one is left out. ``parts`` are the parts'
        names in words. The part ``network`` is named ``finite data`` if the network is nearer to
        the empirical score than to the true one, by a tenth or more. ``diverged`` names the hybrid
        whose chains diverge; then there are no numbers.
        """
        num = self._num_chains(len(samples), self.setup.truth.num_components)
        found: dict[str, Any] = {"num_samples": num, "parts": part_names(self.score_name)}
        if self.empirical is not None:
            empirical, true = self._distances_to_scores(*self.empirical)
            found["distance_to_empirical_score"] = empirical
            found["distance_to_true_score"] = true
            if empirical < _NEARER * true:
                found["parts"] = part_names(FINITE_DATA)
        try:
            hybrids = self._hybrids(samples[:num])
        except _HybridDivergedError as error:
            return found | {"diverged": str(error), "metrics": {}}
        finite_data = self._with_finite_data(num)
        found["metrics"] = {
            name: self._of_metric(name, metric, clean[name], hybrids, finite_data)
            for name, metric in metrics.items()
            if clean[name] is not None
        }
        return found

    def _num_chains(self, num: int, num_components: int) -> int:
        """Return how many of ``num`` chains to run with a score of so many components."""
        most = _MOST_TERMS // (self.setup.num_evaluations * num_components)
        return min(num, max(most, self.setup.tile_size))

    def _hybrids(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the points (n, D) of each hybrid, by name; ``samples`` (n, D) are the run's own.

        Raises:
            _HybridDivergedError: If the chains of a hybrid diverge.
        """
        setup, num, sigma = self.setup, len(samples), self.setup.plan[-1].sigma
        score, log_prob = self.exact
        stream = random_stream(setup.seed, "budget")
        x = setup.truth.sample(num, generator=stream)
        noisy = x + sigma * torch.randn(x.shape, generator=stream)
        if setup.sampler.denoise:
            noisy = Denoised(setup.truth).denoise(noisy.double(), sigma).to(x)
        found = {"exact_draws": x, "smallest_level": noisy}
        with_exact_score = replace(setup, score=score, log_prob=log_prob)
        steps = None
        if not self.has_exact_start:
            steps = self._run(replace(with_exact_score, init=self._exact_start), num, "steps")
        start = samples
        if self.score_name is not None:
            start = self._run(with_exact_score, num, "start")
        found |= {"steps": start if steps is None else steps, "start": start}
        return found if self.score_name is None else found | {"network": samples}

    def _exact_start(self, num: int, stream: torch.Generator, first: int) -> Tensor:
        """Return ``num`` exact draws of p at the first level, (num, D).

        They are made of the same z as the run's own start, if that is Gaussian. ``stream`` is left
        as the own start leaves it: the chains share their noise.
        """
        setup = self.setup
        own = setup.init(num, stream, first)
        other = random_stream(stream.initial_seed(), "exact start", setup.device)
        x = setup.truth.sample(num, generator=other)
        fresh = torch.randn(x.shape, generator=other, device=setup.device)
        whiten = None if self.start is None else self.start.whiten
        z = fresh if whiten is None else whiten(own)
        return x + setup.plan[0].sigma * z

    def _run(self, setup: Setup, num: int, name: str) -> Tensor:
        """Return the samples (num, D) of the hybrid ``name``."""
        sampling = Sampling(
            setup, num, num_paths=0, keep_by_level=False, workers=self.workers,
            name=f"budget: {name}",
        )  # fmt: skip
        try:
            return sampling.run().samples
        except DivergedError as error:
            raise _HybridDivergedError(name) from error

    def _with_finite_data(self, num: int) -> list[Tensor]:
        """Return at most ``num`` samples with the exact score, and with the empirical one instead.

        They share their random numbers. Return nothing if there is no training set, if a hundred
        chains take too long, or if the chains diverge.
        """
        if self.empirical is None or self.setup.sampler.needs_log_prob:
            return []
        score, data = self.empirical
        most = _MOST_PAIRS // (self.setup.num_evaluations * len(data))
        num = min(num, self.setup.tile_size, most)
        if num < _FEWEST_CHAINS:
            return []
        one_tile = replace(self.setup, log_prob=None, chains_in_tile=num)
        with suppress(_HybridDivergedError):
            return [
                self._run(replace(one_tile, score=each), num, FINITE_DATA)
                for each in (self.exact[0], score)
            ]
        return []

    def _distances_to_scores(self, empirical: Score, data: Tensor) -> tuple[float, float]:
        """Return the means of sigma^2 ||s - s'||^2 with the empirical and the true score for s'.

        They are means over levels of the plan and over x = training point + sigma z.
        """
        setup = self.setup
        levels = [level.sigma for level in setup.plan if level.sigma > 0]
        stream = random_stream(setup.seed, "budget: scores")
        num = max(1, _MOST_POINTS // len(data))
        distances = []
        for sigma in (levels[i] for i in some_levels(len(levels), _MOST_LEVELS)):
            chosen = torch.randperm(len(data), generator=stream)[:num]
            x = data[chosen].repeat(-(-min(num, 1000) // len(chosen)), 1)
            x = x + sigma * torch.randn(x.shape, generator=stream)
            at = torch.tensor(sigma)
            own = setup.score(x.to(setup.device), at.to(setup.device)).cpu()
            distances.append([
                float(sigma**2 * (own - score(x, at)).square().sum(1).mean())
                for score in (empirical, self.exact[0])
            ])  # fmt: skip
        first, second = torch.tensor(distances, dtype=torch.float64).mean(0).tolist()
        return first, second

    def _of_metric(
        self,
        name: str,
        metric: SampleMetric,
        entry: Entry,
        hybrids: Mapping[str, Tensor],
        finite_data: Sequence[Tensor],
    ) -> dict[str, Any]:
        """Return the parts of one metric's distance from p.

        ``entry`` is what was found for all samples. ``first`` is the largest part; None where the
        samples are as good as exact draws, or no part is beyond its noise. ``visible_above`` is
        the distance that 99.5 % of sets of exact draws do not exceed. ``finite_data``, not a
        part, is what the empirical score adds to a few chains in place of the network. ``shares``
        are the parts of the modes' shares, where the metric knows these.
        """
        values, errors = self._increments(name, metric, list(hybrids.values()))
        names = list(hybrids)[1:]
        parts = {
            part: {"value": value, "standard_error": error}
            for part, value, error in zip(names, values[1:], errors, strict=True)
        }
        adding = [part for part, value in beyond_noise(parts).items() if value > 0]
        is_good = entry["verdict"] in (GOOD, None)
        found: dict[str, Any] = {
            "visible_above": entry["floor_quantiles"][1],
            "exact_draws": values[0],
            "parts": parts,
            "first": None if is_good or not adding else adding[0],
        }
        if finite_data:
            (_, value), (error,) = self._increments(name, metric, finite_data)
            found["finite_data"] = {"value": value, "standard_error": error}
        details = [metric.details(x, self.setup.truth, 0.0) for x in hybrids.values()]
        if "weights" in details[0]:
            shares = torch.tensor([each["weights"] for each in details]).double().diff(dim=0)
            found["shares"] = dict(zip(names, shares.tolist(), strict=True))
        return found

    def _increments(
        self, name: str, metric: SampleMetric, hybrids: Sequence[Tensor]
    ) -> tuple[list[float], list[float | None]]:
        """Return the distance of the first hybrid, and what each other one adds to the one before.

        Also returned are the standard errors of what they add; None if there are too few points.
        They come from the scatter over parts of the hybrids: distances of n points scatter as
        1/sqrt(n), whether they are near the noise floor or far from it.
        """
        truth, num = self.setup.truth, len(hybrids[0])
        size = num // _REPEATS

        def values(sets: Sequence[Tensor], distance: Distance, stream: str) -> list[float]:
            return [float(distance(x, random_stream(self.setup.seed, stream))) for x in sets]

        found = values(hybrids, metric.distance(truth, 0.0, num), name)
        increments = [found[0], *(b - a for a, b in pairwise(found))]
        if size < _FEWEST_POINTS:
            return increments, [None] * (len(found) - 1)
        distance = metric.distance(truth, 0.0, size)
        repeats = [
            values([x[i * size : (i + 1) * size] for x in hybrids], distance, f"{name} {i}")
            for i in range(_REPEATS)
        ]
        scatter = torch.tensor(repeats, dtype=torch.float64).diff(dim=1).std(0)
        used, used_of_all = (metric.num_points(n, truth.dim) for n in (size, num))
        return increments, (scatter * math.sqrt(used / used_of_all)).tolist()


class _HybridDivergedError(Exception):
    """The chains of a hybrid diverge; the message is its name."""
