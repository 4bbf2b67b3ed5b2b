"""Where the chains of a sampling job start, and the levels that are fitted with some of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn_cli.commands.config import Config
from ncsn_cli.commands.names import override
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, UnknownTruthError, counted
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.inits import Init, Transformed
from ncsn_cli.samplers import ProbabilityFlow, Sampler
from ncsn_cli.sampling.fitted_levels import PILOTS, fit_levels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The initial points of the chains, in coordinates around ``origin``.

    Args:
        init: Their law.
        dataset: The dataset, in data units.
        sigma_max: The schedule's first level.
        origin: 0 or the data's mean, (D,).
        device: Where the chains run.
        seed: Seed of the run.
    """

    init: Init
    dataset: Dataset
    sigma_max: float
    origin: Tensor
    device: torch.device
    seed: int

    def __call__(self, num: int, stream: torch.Generator, first: int) -> Tensor:
        """Return the points (num, D) of the chains ``first``, ``first + 1``, ..., float32.

        Raises:
            ConfigError: If the init needs more of the dataset than is known.
        """
        init, dataset, sigma_max = self.init, self.dataset, self.sigma_max
        try:
            if isinstance(init, Transformed) and init.quasi_random:
                points = init.quasi(num, first, dataset, sigma_max, self.seed)
            else:
                points = init(num, dataset, sigma_max, stream).cpu()
        except UnknownTruthError:
            raise ConfigError(
                "init: this one needs more of the dataset than draws, and nothing else is known;"
                " choose another one, such as init=prior"
            ) from None
        return (points - self.origin).to(self.device, torch.float32)


def fitted_levels(
    sampler: Sampler, sigmas: Tensor, score: Score, start: Start, kept: Config
) -> Config:
    """Return what ``fit_levels`` finds, as ``fitted_levels``; {} if ``sampler`` asks for nothing.

    ``sigmas`` (L,) are the schedule's. ``kept`` is the record of a stopped run, whose levels are
    used again, or {}.
    """
    if not (isinstance(sampler, ProbabilityFlow) and sampler.fit_levels):
        return {}
    if "fitted_levels" in kept:
        return {"fitted_levels": kept["fitted_levels"]}
    log.info("fitting %s with %d chains", counted(len(sigmas) - 2, "level"), PILOTS)
    x = start(PILOTS, random_stream(start.seed, "pilot chains", start.device), 0)
    found = fit_levels(sampler, score, x, sigmas)
    first, *inner, last = found.sigmas.tolist()
    rounded = [first, *(float(f"{sigma:.6g}") for sigma in inner), last]
    log.info(
        "levels fitted: chains end %.3g from the exact flow, instead of %.3g; to use them again,"
        " schedule=listed %s",
        found.after, found.before, override("schedule.levels", rounded),
    )  # fmt: skip
    record = {**found._asdict(), "sigmas": found.sigmas.tolist(), "chains": PILOTS}
    return {"fitted_levels": record}
