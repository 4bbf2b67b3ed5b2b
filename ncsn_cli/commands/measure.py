"""``ncsn-measure``: hold samples that were made elsewhere against the truth."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from ncsn_cli.commands.build import instantiate, instantiate_list
from ncsn_cli.commands.config import Config, MeasureSettings, read_config, settings
from ncsn_cli.commands.contract import MOST_TRIED, try_metrics
from ncsn_cli.commands.job import (
    compare_command,
    log_next,
    log_unknown,
    objective_of,
    open_folder,
    output_folder,
)
from ncsn_cli.commands.present import Pictures, present
from ncsn_cli.commands.resume import digest_of, done_before
from ncsn_cli.commands.startup import prepare_process
from ncsn_cli.commands.suggestions import UNUSED
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.scene import SamplingScene
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised
from ncsn_cli.evaluation.floors import Floors
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.evaluation.samples import against_truth
from ncsn_cli.evaluation.verdict import of_samples
from ncsn_cli.metrics import SampleMetric, random_subset
from ncsn_cli.runs.files import to_json
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.samples import Samples, read_samples, samples_file

log = logging.getLogger(__name__)

_MOST_SHOWN = 100_000  # samples in the pictures


@dataclass(frozen=True)
class Job:
    """Samples to measure, and what to hold them against.

    Args:
        run: The run-level keys.
        config: The configuration.
        truth: The distribution to measure against, in coordinates around its mean.
        samples: The samples in the same coordinates (N, D).
        metrics: The metrics, by name.
        pictures: The pictures to draw.
    """

    run: MeasureSettings
    config: Config
    truth: Dataset
    samples: Tensor
    metrics: dict[str, SampleMetric]
    pictures: Pictures

    @property
    def denoised(self) -> Denoised | None:
        """The law of exact draws after a denoising step, if the samples are denoised."""
        return Denoised(self.truth) if self.run.denoised else None


def measure(cfg: DictConfig) -> float | None:
    """Run ``ncsn-measure`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    config = read_config(cfg)
    refuse_unused(HydraConfig.get().overrides.task)
    run: MeasureSettings = settings(MeasureSettings, config)
    if run.file is None:
        raise ConfigError("file: give a file with samples, ncsn-measure FILE dataset=NAME")
    file = samples_file(run.file)
    digest = digest_of(config, file)
    if finished := done_before(digest, None):
        log_next(output_folder(), compare_command(), of_samples(finished))
        return objective_of(finished, run.objective)
    prepare_process()
    job = build(run, config, partial(read_samples, file, run.key))
    facts: Config = {"device": "cpu", "seed": run.seed, "request": digest}
    with open_folder(config, facts, None) as folder, torch.no_grad():
        report = hold_against_truth(job, folder)
        verdict = of_samples(report)
        present(folder, job.pictures, partial(scene_of, job), config, report, verdict)
        log.info("everything is in %s", folder.path)
        log_next(folder.path, compare_command(), verdict)
        return objective_of(report, run.objective)


def refuse_unused(words: Iterable[str]) -> None:
    """Raise if the overrides ``words`` set a group that has no effect here.

    An experiment may hold it, because the same experiment is for the other commands, too.
    """
    for word in words:
        group = re.split(r"[./=@]", word.lstrip("+~"))[0]
        if group in UNUSED["measure"] - {"animation"}:
            raise ConfigError(
                f"{word}: ncsn-measure takes no {group}, the samples are there already; leave it"
                " out (sigma=S measures against the data with noise of level S)"
            )


def build(run: MeasureSettings, config: Config, read: Callable[[int], Samples]) -> Job:
    """Build everything that ``config`` names; ``read`` returns the samples for D dimensions."""
    truth: Dataset = instantiate(config, "dataset").truth.centred()
    metrics = instantiate_list(config, "metric")
    for name, metric in metrics.items():
        if not isinstance(metric, SampleMetric):
            raise ConfigError(f"metric.{name}: it measures a score, and there are only samples")
    if run.denoised and not truth.is_known:
        raise ConfigError("denoised: denoised draws need the score, and only draws are known")
    pictures = Pictures(config)
    try_metrics(metrics, truth, run.sigma, MOST_TRIED)
    samples = read(truth.dim).around(truth.origin)
    return Job(run, config, truth, samples, metrics, pictures)


def hold_against_truth(job: Job, folder: RunFolder) -> dict[str, Any]:
    """Measure the samples; write and return ``metrics.json``."""
    start, run = time.monotonic(), job.run
    floors = Floors(Path(job.config["paths"]["outputs"], "floors"))
    found = against_truth(
        job.samples, job.truth, run.sigma, job.metrics, floors, run.seed, job.denoised
    )
    seconds = round(time.monotonic() - start, 3)
    report = {"num_samples": len(job.samples), "seconds": seconds, **found}
    folder.write("metrics.json", to_json(report))
    if unknown := [name for name, entry in found["clean"].items() if entry is None]:
        log_unknown(unknown)
    return report


def scene_of(job: Job) -> SamplingScene:
    """Return what the pictures show: at most ``_MOST_SHOWN`` of the samples, chosen at random."""
    sigma, law = job.run.sigma, job.denoised
    samples = random_subset(job.samples, _MOST_SHOWN)
    stream = random_stream(job.run.seed, "exact draws shown")
    exact = (law or job.truth).sample(len(samples), sigma=sigma, generator=stream)
    return compose_scene(
        SamplingScene,
        job.truth,
        torch.tensor([sigma], dtype=torch.float64),
        torch.device("cpu"),
        samples=samples.numpy(),
        drawn_from=len(job.samples) if len(job.samples) > len(samples) else None,
        exact=exact.numpy(),
        denoised=law,
        level_sigmas=np.empty(0),
        committed=np.empty(0),
        mode_shares=np.empty(0),
    )
