"""The job of ``ncsn-sample``: built from a request, checked, ready to run."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.commands.build import (
    build_from_checkpoint,
    fit_schedule,
    instantiate,
    instantiate_list,
    reference_data,
)
from ncsn_cli.commands.config import Config, SampleSettings, without_paths
from ncsn_cli.commands.contract import MOST_TRIED, try_metrics, try_own, try_sampler
from ncsn_cli.commands.job import choose_device, is_published, output_folder
from ncsn_cli.commands.names import AUTO, override
from ncsn_cli.commands.present import Pictures
from ncsn_cli.commands.resume import (
    MAY_CHANGE,
    Stopped,
    check_same_request,
    compile_setting_on_resume,
    digest_of,
    find_stopped,
)
from ncsn_cli.commands.sample_start import Start, fitted_levels
from ncsn_cli.commands.score import empirical_score, exact_score, learned_score, load_network
from ncsn_cli.core.compiling import resolve_compile
from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, MissingInputError
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised
from ncsn_cli.evaluation.parts import FINITE_DATA
from ncsn_cli.evaluation.schedule_advice import examine, unresolved
from ncsn_cli.inits import Init
from ncsn_cli.metrics import SampleMetric, ScoreMetric, check_flow
from ncsn_cli.runs.checkpoints import load_checkpoint, save_checkpoint
from ncsn_cli.runs.files import read_json, to_json
from ncsn_cli.runs.folder import STOPPED_CHAINS
from ncsn_cli.runs.workers import CORES
from ncsn_cli.samplers import External, Level, LogProb, Sampler, plan_of
from ncsn_cli.sampling.compiled_langevin import gain_of_compiling
from ncsn_cli.sampling.run import Sampling, Saved
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import FromData, Schedule

log = logging.getLogger(__name__)

_WITHOUT_CHECKPOINT: dict[str, Config] = {
    "schedule": {"_target_": "ncsn_cli.schedules.Single", "sigma": 0.0},
    "init": {"_target_": "ncsn_cli.inits.Prior"},
}


@dataclass(frozen=True)
class Request:
    """A command line that was read.

    Args:
        run: The run-level keys.
        config: The configuration, as composed.
        source: The checkpoint's file, or None.
        tensors: The checkpoint's tensors, or {}.
        trained: The checkpoint's configuration, or {}.
        digest: See ``digest_of``.
    """

    run: SampleSettings
    config: Config
    source: Path | None
    tensors: dict[str, Tensor]
    trained: Config
    digest: str


@dataclass(frozen=True)
class Parts:
    """The objects that a request names.

    Args:
        dataset: The dataset.
        schedule: The schedule, with levels.
        sampler: The sampler.
        plan: Its levels.
        init: The law of the initial points.
        of_samples: Metrics of the samples, by name.
        of_score: Metrics of the score, by name.
        pictures: The pictures to draw.
        settings: The settings of the groups that the checkpoint supplied, by group.
    """

    dataset: Dataset
    schedule: Schedule
    sampler: Sampler
    plan: list[Level]
    init: Init
    of_samples: dict[str, SampleMetric]
    of_score: dict[str, ScoreMetric]
    pictures: Pictures
    settings: Config

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that the chains pass, (L,), float64."""
        return torch.tensor([level.sigma for level in self.plan], dtype=torch.float64)

    def on(self, fitted: Config) -> Parts:
        """Return these parts with the levels of ``fitted``, which is {} if none are fitted."""
        if not fitted:
            return self
        sigmas = torch.tensor(fitted["fitted_levels"]["sigmas"], dtype=torch.float64)
        return replace(self, plan=plan_of(self.sampler, sigmas))


@dataclass(frozen=True)
class Job:
    """A run that was built and checked.

    Args:
        run: The run-level keys.
        config: The effective configuration, with what the checkpoint supplied.
        facts: What ``run.json`` records.
        identity: What the chains are saved with, to know them again.
        device: The device of the chains.
        parts: The objects that the request names.
        truth: The distribution to measure against, in the coordinates of the chains.
        target: The law of perfect samples at the last level; ``truth`` if these are denoised and
            the true score is not known.
        setup: What the chains run with, such as the score that they follow.
        sampling: The chains, ready to run.
        workers: Max number of tiles that run at a time.
        stopped: The chains to resume, or None.
    """

    run: SampleSettings
    config: Config
    facts: Config
    identity: Config
    device: torch.device
    parts: Parts
    truth: Dataset
    target: Law
    setup: Setup
    sampling: Sampling
    workers: int
    stopped: Saved | None

    @property
    def score_name(self) -> str | None:
        """What the score of the chains is, in words; None if it is the exact score."""
        if self.run.score == "exact" and self.parts.dataset.truth is self.parts.dataset:
            return None
        return {"checkpoint": "network", "empirical": FINITE_DATA}.get(self.run.score, "score")


def _resolve_compile(
    run: SampleSettings, parts: Parts, score: Score, kept: Config, device: torch.device
) -> bool:
    """Return whether to compile; ``kept`` is the record of a stopped run, or {}."""
    setting = compile_setting_on_resume(run.compile, kept, "compile")
    obstacle, gain = gain_of_compiling(score, parts.sampler, parts.plan, run.num_samples, device)
    compiles = resolve_compile(setting, kept.get("config", {}).get("compile"), obstacle, gain)
    if run.compile == AUTO and obstacle is None:
        log.info("chosen for this run, in place of auto: %s", override("compile", compiles))
    return compiles


def build(request: Request) -> Job:
    """Build everything that ``request`` names; raise if something does not fit together."""
    run, device, parts = request.run, choose_device(request.run.device), _build_parts(request)
    # Chains run around the data's mean. In data units run those that an earlier version started,
    # and a function of the user's own.
    found = find_stopped(_load_chains, run.resume, request.digest)
    is_older = found is not None and "origin" not in found.record
    in_data_units = is_older or isinstance(parts.sampler, External)
    truth = parts.dataset.truth if in_data_units else parts.dataset.truth.centred()
    score, log_prob, network = _choose_score(request, parts, truth.origin, device)
    # Prepare the chains: their start, and their levels where these are fitted.
    kept, sigmas = {} if found is None else found.record, parts.schedule.sigmas
    start = Start(parts.init, parts.dataset, float(sigmas[0]), truth.origin, device, run.seed)
    start(1, random_stream(run.seed, "first try", device), 0)
    fitted = fitted_levels(parts.sampler, sigmas, score, start, kept)
    parts = parts.on(fitted)
    # Decide on compiling, and check that the stopped run had the same request.
    compiles = _resolve_compile(run, parts, score, kept, device)
    effective = {**request.config, **parts.settings, **network, "compile": compiles}
    config = {k: v for k, v in effective.items() if k not in ("loss", "optimizer", "trainer")}
    identity: Config = {
        "config": without_paths(config),
        "checkpoint": None if request.source is None else digest_of({}, request.source),
        "device_type": device.type,
        "origin": truth.origin.tolist(),
        **fitted,
    }
    if found is not None:
        _check_same_chains(found, identity)
    setup = Setup(parts.sampler, parts.plan, score, log_prob, start, truth, run.seed, device)
    workers = CORES if device.type == "cpu" else 1
    sampling = Sampling(
        setup, run.num_samples, num_paths=run.trajectories,
        keep_by_level=run.trajectory_metrics, workers=workers, compile=compiles,
    )  # fmt: skip
    facts: Config = {"device": str(device), "seed": run.seed, "request": request.digest, **fitted}
    facts["schedule"] = _advise(request, parts, truth.origin)
    target = Denoised(truth) if parts.sampler.denoise and truth.is_known else truth
    stopped = None if found is None else (found.tensors, found.record)
    return Job(
        run, config, facts, identity, device, parts, truth, target, setup, sampling, workers,
        stopped,
    )  # fmt: skip


def save_chains(folder: Path, state: Saved, identity: Config) -> None:
    """Write ``state``, from which chains resume, into ``folder``.

    ``identity`` is the request that the chains were made for.
    """
    tensors, record = state
    try:
        save_checkpoint(folder / STOPPED_CHAINS, tensors, record | identity)
    except ConfigError:
        log.warning("too many chains to save: if this run is stopped, it has to start afresh")


def _build_parts(request: Request) -> Parts:
    found: Config = {}
    dataset: Dataset = _group(request, "dataset", found)
    _warn_of_another_dataset(request)
    schedule = _schedule(request, dataset, found)
    sampler: Sampler = _group(request, "sampler", found)
    init: Init = _group(request, "init", found)
    metrics = instantiate_list(request.config, "metric")
    of_samples = {k: m for k, m in metrics.items() if isinstance(m, SampleMetric)}
    of_score = {k: m for k, m in metrics.items() if isinstance(m, ScoreMetric)}
    pictures, plan = Pictures(request.config), plan_of(sampler, schedule.sigmas)
    parts = Parts(dataset, schedule, sampler, plan, init, of_samples, of_score, pictures, found)
    _try_own(parts, request.run.num_samples)
    for metric in of_score.values():
        metric.check(parts.sigmas)
    if request.run.budget and not dataset.is_known:
        raise ConfigError(
            "budget: it needs the true score, and of this dataset only draws are known"
        )
    if request.run.log_density:
        check_flow(parts.sigmas, "log_density")
        if dataset.dim > 2:
            raise ConfigError("log_density: there is a grid for D = 1 and 2 only")
    return parts


def _try_own(parts: Parts, num: int) -> None:
    """Raise if an init, sampler or metric of the user's own fails on at most ``num`` points."""
    truth, stream, num = parts.dataset.truth, random_stream(0, "trial"), min(num, MOST_TRIED)
    sigma_max, sigma_min = float(parts.schedule.sigmas[0]), parts.plan[-1].sigma
    shape = (num, truth.dim)
    try_own(
        "init", parts.init, "__call__", lambda: parts.init(num, truth, sigma_max, stream), shape
    )
    try_sampler(parts.sampler, parts.plan, truth.dim)
    try_metrics(parts.of_samples, truth, sigma_min, num)
    for name, metric in parts.of_score.items():

        def value(metric: ScoreMetric = metric) -> object:
            found = metric(truth.score, truth, parts.sigmas[-2:], stream)
            to_json(found)  # raises for what cannot be written
            return found["value"]

        try_own(f"metric.{name}", metric, "__call__", value, None)


def _choose_score(
    request: Request, parts: Parts, origin: Tensor, device: torch.device
) -> tuple[Score, LogProb | None, Config]:
    """Return the score that the request names, its log-density or None, and its settings.

    Score and log-density take coordinates around ``origin`` (D,), which is 0 or the data's mean.
    The settings are the network's ``model``; the exact and the empirical score have none.
    """
    dataset, network = parts.dataset, Config()
    score: Score
    log_prob: LogProb | None
    if request.run.score == "exact":
        if not dataset.is_known:
            raise ConfigError(
                "score: exact needs a dataset whose score is known, and of this one only draws"
                " are; give checkpoint=RUN and leave score out"
            )
        score, log_prob = exact_score(dataset, origin)
    elif request.run.score == "empirical":
        score, log_prob = empirical_score(dataset, origin)
    else:
        network = {"model": request.trained.get("model") or {}}
        model = load_network(
            network["model"], request.config.get("model"), request.tensors, dataset.dim,
            request.run.plugins,
        )  # fmt: skip
        score, log_prob = learned_score(model, origin, device)
    if parts.sampler.needs_log_prob and log_prob is None:
        exact = "score=exact, or " if dataset.is_known else ""
        raise ConfigError(
            f"sampler: this sampler needs a log-density; choose {exact}a checkpoint of"
            " model=energy_mlp"
        )
    # Truth and score raise an error where they have no value.
    last = parts.plan[-1].sigma
    if dataset.is_known:
        dataset.score(torch.zeros(1, dataset.dim), last)
    score(torch.zeros(1, dataset.dim, device=device), torch.tensor(last, device=device))
    return score, log_prob, network


def _advise(request: Request, parts: Parts, origin: Tensor) -> dict[str, Any]:
    """Log the literature's advice on schedule and sampler, and lengths lost to rounding.

    Returns the numbers for ``run.json``.
    """
    run, source = request.run, request.source
    sigmas, tau, width = parts.schedule.sigmas, parts.plan[-1].tau, parts.dataset.smallest_std
    data = reference_data(parts.dataset, run.seed)
    seen = data if run.score == "checkpoint" else data - origin  # networks take data units
    trained = {} if source is None else read_json(source.parent.parent / "run.json")
    advice = examine(
        sigmas, parts.sampler, seen, width, law=parts.dataset.truth,
        num_points=parts.dataset.num_samples,
        learns=run.score == "checkpoint",
        is_published=is_published(trained), is_fixed=run.score == "checkpoint",
    )  # fmt: skip
    lost = unresolved(data, sigmas, tau, width)
    if lost and not unresolved(seen, sigmas, tau, width):
        log.warning("samples.npz: %s; metrics are computed from the chains before rounding", lost)
    return advice


_IDENTITY = {"config", "checkpoint", "device_type"}
"""Other entries in the file of stopped chains: the request that the chains were made for."""


def _load_chains(folder: Path) -> Stopped:
    """Return the stopped chains in ``folder``.

    Raises:
        MissingInputError: If there are none.
        ConfigError: If ``resume`` names a folder whose run is complete.
        BadCheckpointError: If the file is damaged, or holds something else.
    """
    path = folder / STOPPED_CHAINS
    if not os.path.exists(path):  # pathlib's ``exists`` raises for a name that is too long
        if folder != output_folder() and os.path.exists(folder / "metrics.json"):
            raise ConfigError(f"resume: {folder} has all its samples and metrics already")
        raise MissingInputError(
            f"{folder}: no stopped chains in this folder; run its command again"
        )
    tensors, record = load_checkpoint(path)
    if not record.keys() >= _IDENTITY or not isinstance(record["config"], dict):
        raise BadCheckpointError(f"{path}: this file holds no stopped chains")
    return Stopped(path, tensors, record)


def _check_same_chains(found: Stopped, identity: Config) -> None:
    """Raise if the chains ``found`` were started for another request than ``identity``."""
    folder = found.path.parent
    check_same_request(found.record["config"], identity["config"], MAY_CHANGE, "resume", folder)
    for key in ("checkpoint", "device_type"):
        if found.record[key] != identity[key]:
            raise ConfigError(f"resume: {folder} was made with another {key}")


def _group(request: Request, key: str, groups: Config) -> Any:  # noqa: ANN401
    """Build and return the object of the group ``key``; add its settings to ``groups``.

    An option that the user chose replaces the checkpoint's. Single values are merged into the
    checkpoint's settings.
    """
    chosen = request.config.get(key) or {}
    base = request.trained.get(key) or _WITHOUT_CHECKPOINT.get(key) or {}
    if "_target_" in chosen or not base:
        return instantiate(request.config, key)
    if not isinstance(base, dict):
        raise ConfigError(f"{key}: the checkpoint's value is not a group of settings")
    groups[key] = {**base, **chosen}
    return build_from_checkpoint(groups[key], key, request.run.plugins)


def _warn_of_another_dataset(request: Request) -> None:
    """Log if the network was trained on another law than the one that was chosen."""
    chosen, trained = (c.get("dataset") or {} for c in (request.config, request.trained))
    if "_target_" not in chosen or not isinstance(trained, dict) or not trained:
        return
    keys = (chosen.keys() | trained.keys()) - {"num_samples", "seed"}
    if any(chosen.get(key) != trained.get(key) for key in keys):
        log.warning(
            "dataset: the network was trained on another one; its samples are measured against"
            " the one chosen here"
        )


def _schedule(request: Request, dataset: Dataset, groups: Config) -> Schedule:
    """Return the schedule, with levels; add its settings to ``groups``."""
    schedule: Schedule | FromData = _group(request, "schedule", groups)
    if isinstance(schedule, Schedule):
        return schedule
    fitted, groups["schedule"] = fit_schedule(schedule, reference_data(dataset, request.run.seed))
    return fitted
