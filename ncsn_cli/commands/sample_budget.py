"""The error budget of a job of ``ncsn-sample``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_cli.commands.sample_job import Job
from ncsn_cli.commands.score import empirical_score, learned_score
from ncsn_cli.core.score import Score
from ncsn_cli.inits import Data, Init
from ncsn_cli.metrics import in_float64
from ncsn_cli.models.one_level import Recentred
from ncsn_cli.samplers import LogProb
from ncsn_cli.sampling.budget import Budget
from ncsn_cli.sampling.nats import split_nats


def budget_of(job: Job, samples: Tensor, clean: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of the error of the ``samples`` (N, D) of ``job``, and those in nats.

    ``clean`` are the metrics' entries against p. See ``Budget.split`` and ``split_nats``.
    """
    parts, truth, init = job.parts, job.truth, job.parts.init
    sigma_max = float(parts.schedule.sigmas[0])
    law = init.law(parts.dataset, sigma_max) if isinstance(init, Init) else None
    start = None if law is None else law.around(truth.origin)
    starts_at = (sigma_max if init.sigma is None else init.sigma) if type(init) is Data else None
    exact = truth.score, truth.log_prob
    budget = Budget(
        job.setup,
        exact,
        start=start,
        has_exact_start=starts_at == parts.plan[0].sigma,
        score_name=job.score_name,
        empirical=_empirical(job),
        workers=job.workers,
    )
    precise = replace(job.setup, log_prob=_log_prob_in_float64(job))
    return {
        **budget.split(samples, parts.of_samples, clean),
        "nats": split_nats(precise, exact, start, is_exact=job.score_name is None),
    }


def _empirical(job: Job) -> tuple[Score, Tensor] | None:
    """Return the score of the network's training set, and the set; None if it is endless."""
    data = job.parts.dataset.training_set() if job.run.score == "checkpoint" else None
    if data is None:
        return None
    score, _ = empirical_score(job.parts.dataset, job.truth.origin)
    return score, (data - job.truth.origin).float()


def _log_prob_in_float64(job: Job) -> LogProb | None:
    """Return the log-density of the run's score, for points in float64 on the CPU."""
    if job.setup.log_prob is None or not isinstance(job.setup.score, nn.Module):
        return job.setup.log_prob
    score: Any = in_float64(job.setup.score)
    network = score.network if isinstance(score, Recentred) else score
    return learned_score(network, job.truth.origin, torch.device("cpu"))[1]
