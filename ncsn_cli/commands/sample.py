"""``ncsn-sample``: run a sampler with a learned or the exact score, and measure its samples."""

from __future__ import annotations

import importlib
import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from ncsn_cli.commands.build import (
    build_from_checkpoint,
    fit_schedule,
    instantiate,
    instantiate_list,
    reference_data,
)
from ncsn_cli.commands.config import Config, SampleSettings, read_config, settings, without_paths
from ncsn_cli.commands.job import (
    add_resume_command,
    choose_device,
    objective_of,
    open_folder,
    output_folder,
    write_config,
)
from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.commands.present import Pictures, present
from ncsn_cli.commands.resume import (
    Stopped,
    check_same_request,
    compile_setting_on_resume,
    digest_of,
    done_before,
    find_stopped,
)
from ncsn_cli.commands.score import empirical_score, exact_score, learned_score, load_network
from ncsn_cli.commands.startup import prepare_process
from ncsn_cli.core.compiling import resolve_compile
from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, InterruptedRun, MissingInputError
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.evaluation.log_density import evaluate_log_density
from ncsn_cli.evaluation.samples import FloorOf, evaluate_samples, evaluate_trajectory
from ncsn_cli.evaluation.schedule_advice import examine, unresolved
from ncsn_cli.inits import Init
from ncsn_cli.metrics import SampleMetric, ScoreMetric, check_flow
from ncsn_cli.runs.checkpoints import load_checkpoint, load_newest, save_checkpoint
from ncsn_cli.runs.files import to_json, to_npz
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.samplers import Level, LogProb, Sampler
from ncsn_cli.sampling.chains import Chains
from ncsn_cli.sampling.compiled_langevin import gain_of_compiling
from ncsn_cli.sampling.run import Sampling, Saved
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import FromData, Schedule

log = logging.getLogger(__name__)

_STOPPED_CHAINS = "sampling.safetensors"
"""File in which a stopped run keeps its chains."""

_WORKERS = torch.get_num_threads()  # on import: the second job of a sweep would find 1

_MAY_CHANGE = {
    "metric", "plot", "animation", "objective", "log_density", "checkpoint", "device", "resume",
    "plugins",
}  # fmt: skip

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
class Job:
    """A run that was built and checked.

    Args:
        run: The run-level keys.
        config: The effective configuration, with what the checkpoint supplied.
        facts: What ``run.json`` records.
        identity: What the chains are saved with, to know them again.
        device: The device of the chains.
        truth: The distribution to measure against, in the coordinates of the chains.
        target: The law of perfect samples at the last level.
        plan: The levels of the chains.
        sampler: The sampler.
        score: The score that the chains follow.
        sampling: The chains, ready to run.
        stopped: The chains to resume, or None.
        of_samples: Metrics of the samples, by name.
        of_score: Metrics of the score, by name.
        pictures: The pictures to draw.
    """

    run: SampleSettings
    config: Config
    facts: Config
    identity: Config
    device: torch.device
    truth: Dataset
    target: Law
    plan: list[Level]
    sampler: Sampler
    score: Score
    sampling: Sampling
    stopped: Saved | None
    of_samples: dict[str, SampleMetric]
    of_score: dict[str, ScoreMetric]
    pictures: Pictures

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that the chains pass, (L,), float64."""
        return torch.tensor([level.sigma for level in self.plan], dtype=torch.float64)


def sample(cfg: DictConfig) -> float | None:
    """Run ``ncsn-sample`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    request = read_request(cfg)
    if finished := done_before(request.digest):
        return objective_of(finished, request.run.objective)
    prepare_process()
    job = build(request)
    with open_folder(job.config, job.facts) as folder, torch.no_grad():
        chains, seconds, config = run_chains(job, folder)
        report, log_density = measure(job, chains, seconds, folder)
        scene = partial(scene_of, job, chains, report, log_density)
        present(folder, job.pictures, scene, config, report)
        log.info("everything is in %s", folder.path)
        return objective_of(report, job.run.objective)


def read_request(cfg: DictConfig) -> Request:
    """Read the command line, the plugins and the checkpoint that ``cfg`` names."""
    config = read_config(cfg)
    run: SampleSettings = settings(SampleSettings, config)
    for module in run.plugins:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"plugins: {module!r} cannot be imported ({error})") from error
    source, tensors, trained = _read_checkpoint(run)
    return Request(run, config, source, tensors, trained, digest_of(config, source))


def build(request: Request) -> Job:
    """Build everything that ``request`` names; raise if something does not fit together."""
    run, device = request.run, choose_device(request.run.device)
    # The groups, and the settings of each.
    groups: Config = {}
    dataset: Dataset = _group(request, "dataset", groups)
    schedule = _schedule(request, dataset, groups)
    sampler: Sampler = _group(request, "sampler", groups)
    init: Init = _group(request, "init", groups)
    metrics = instantiate_list(request.config, "metric")
    of_samples = {k: m for k, m in metrics.items() if isinstance(m, SampleMetric)}
    of_score = {k: m for k, m in metrics.items() if isinstance(m, ScoreMetric)}
    for name in metrics.keys() - of_samples.keys() - of_score.keys():
        raise ConfigError(f"metric.{name}: it should be one of ncsn_cli.metrics")
    pictures = Pictures(request.config)
    plan = sampler.levels(schedule.sigmas)
    _check_metrics(run, of_score, plan, dataset.dim)
    # Chains run around the data's mean; those started by an earlier version run in data units.
    found = find_stopped(_load_chains, run.resume)
    is_moved = found is None or "origin" in found.record
    truth = dataset.truth.centred() if is_moved else dataset.truth
    score, log_prob = _score(request, dataset, truth.origin, device, groups)
    if sampler.needs_log_prob and log_prob is None:
        raise ConfigError(
            "sampler: this sampler needs a log-density; choose score=exact, or a checkpoint of"
            " model=energy_mlp"
        )
    # Both raise an error where they have no score.
    dataset.score(torch.zeros(1, dataset.dim), plan[-1].sigma)
    score(torch.zeros(1, dataset.dim, device=device), torch.tensor(plan[-1].sigma, device=device))
    # Decide on compiling, and check that the stopped run had the same request.
    kept = {} if found is None else found.record
    compiles = compile_setting_on_resume(run.compile, kept, "compile")
    gain = gain_of_compiling(score, sampler, plan, run.num_samples, device)
    groups["compile"] = resolve_compile(compiles, kept.get("config", {}).get("compile"), *gain)
    effective = {**request.config, **groups}
    config = {k: v for k, v in effective.items() if k not in ("loss", "optimizer", "trainer")}
    identity: Config = {
        "config": without_paths(config),
        "checkpoint": None if request.source is None else digest_of({}, request.source),
        "device_type": device.type,
        "origin": truth.origin.tolist(),
    }
    if found is not None:
        _check_same_chains(found, identity)
    sigma_max = float(schedule.sigmas[0])
    setup = Setup(
        sampler,
        plan,
        score,
        log_prob,
        lambda num, stream: (init(num, dataset, sigma_max, stream).cpu() - truth.origin).to(
            device, torch.float32
        ),
        truth,
        run.seed,
        device,
    )
    sampling = Sampling(
        setup,
        run.num_samples,
        num_paths=run.trajectories,
        keep_by_level=run.trajectory_metrics,
        workers=_WORKERS if device.type == "cpu" else 1,
        compile=config["compile"],
    )
    facts: Config = {"device": str(device), "seed": run.seed, "request": request.digest}
    facts["schedule"] = _advise(run, dataset, schedule, sampler, plan, truth.origin)
    return Job(
        run=run,
        config=config,
        facts=facts,
        identity=identity,
        device=device,
        truth=truth,
        target=Denoised(truth) if sampler.denoise else truth,
        plan=plan,
        sampler=sampler,
        score=score,
        sampling=sampling,
        stopped=None if found is None else (found.tensors, found.record),
        of_samples=of_samples,
        of_score=of_score,
        pictures=pictures,
    )


def run_chains(job: Job, folder: RunFolder) -> tuple[Chains, float, Config]:
    """Run the chains and save the samples.

    Returns:
        The chains, the seconds that they took, and the configuration with ``compile`` as it was
        done: compiling may fail.
    """
    config = job.config

    def save(state: Saved) -> None:
        nonlocal config
        if config["compile"] and job.sampling.compiling_failed:
            config = {**config, "compile": False}
            write_config(folder, config)
        _save(folder.path, state, {**job.identity, "config": without_paths(config)})

    log.info(
        "%s: %d levels, sigma %g to %g", type(job.sampler).__name__, len(job.plan),
        job.plan[0].sigma, job.plan[-1].sigma,
    )  # fmt: skip
    start = time.monotonic()
    try:
        chains = job.sampling.run(save, job.stopped)
    except InterruptedRun as stop:
        add_resume_command(stop, folder, "resume")
        raise
    seconds = round(time.monotonic() - start, 3)
    shown = chains.in_data_units(job.truth.origin)
    folder.write("samples.npz", to_npz(_arrays(shown)))
    save(job.sampling.finished())
    return chains, seconds, config


def measure(
    job: Job, chains: Chains, seconds: float, folder: RunFolder
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Measure samples and score; write and return ``metrics.json``, and the log-density arrays.

    Removes the saved state of the chains, which is not needed any more.
    """
    run, truth = job.run, job.truth
    floors = partial(noise_floor, cache=Path(job.config["paths"]["outputs"], "floors"))
    report: dict[str, Any] = {
        "num_samples": run.num_samples,
        "seconds": seconds,
        "score_evaluations": chains.score_evaluations,
    }
    if chains.acceptance:
        report["acceptance_per_level"] = chains.acceptance
    if len(job.plan) > 1:
        report["mode_commitment"] = chains.mode_commitment
    report |= _against_truth(job, chains.samples, floors)
    folder.write("metrics.json", to_json(report))  # before metrics that take longer
    if run.trajectory_metrics:
        report["trajectory"] = evaluate_trajectory(
            chains.by_level, truth, job.of_samples, floors, run.seed, job.target
        )
    for name, metric in job.of_score.items():
        stream = random_stream(run.seed, name, job.device)
        report[name] = metric(job.score, truth, job.sigmas, stream)
    log_density: dict[str, NDArray[np.float64]] = {}
    if run.log_density:
        report["log_density"], log_density = evaluate_log_density(job.score, truth, job.sigmas)
        folder.write("log_density.npz", to_npz(log_density))
    folder.write("metrics.json", to_json(report))
    (folder.path / _STOPPED_CHAINS).unlink(missing_ok=True)
    return report, log_density


def scene_of(
    job: Job,
    chains: Chains,
    report: dict[str, Any],
    log_density: dict[str, NDArray[np.float64]],
) -> Scene:
    """Return what the pictures of the run show. Slow: truth and score are evaluated on a grid."""
    run = job.run
    stream = random_stream(run.seed, "exact draws shown")
    exact = job.target.sample(run.num_samples, sigma=job.plan[-1].sigma, generator=stream)
    return compose_scene(
        job.truth,
        job.sigmas,
        job.device,
        score=None if run.score == "exact" else job.score,
        score_name="learned" if run.score == "checkpoint" else run.score,
        samples=chains.samples.numpy(),
        exact=exact.numpy(),
        denoised=job.target if job.sampler.denoise else None,
        paths=chains.paths,
        path_steps=chains.path_steps,
        path_sigmas=None if chains.paths is None else chains.path_sigmas,
        level_sigmas=np.array(chains.mode_commitment["sigmas"]),
        committed=np.array(chains.mode_commitment["committed"]),
        mode_shares=np.array(chains.mode_commitment.get("shares", [])),
        distances=report.get("trajectory"),
        log_density=log_density.get("log_density"),
    )


def _check_metrics(
    run: SampleSettings, of_score: dict[str, ScoreMetric], plan: list[Level], dim: int
) -> None:
    """Raise if a metric of the score, or the log-density, cannot be computed with these levels."""
    sigmas = torch.tensor([level.sigma for level in plan], dtype=torch.float64)
    for metric in of_score.values():
        metric.check(sigmas)
    if run.log_density:
        check_flow(sigmas, "log_density")
        if dim > 2:
            raise ConfigError("log_density: there is a grid for D = 1 and 2 only")


def _advise(
    run: SampleSettings,
    dataset: Dataset,
    schedule: Schedule,
    sampler: Sampler,
    plan: list[Level],
    origin: Tensor,
) -> dict[str, Any]:
    """Log the literature's advice on schedule and sampler, and lengths lost to rounding.

    Returns the numbers for ``run.json``.
    """
    data, width = reference_data(dataset, run.seed), dataset.smallest_std
    seen = data if run.score == "checkpoint" else data - origin  # networks take data units
    advice = examine(schedule.sigmas, sampler, seen, width)
    lost = unresolved(data, schedule.sigmas, plan[-1].tau, width)
    if lost and not unresolved(seen, schedule.sigmas, plan[-1].tau, width):
        log.warning("samples.npz: %s; metrics are computed from the chains before rounding", lost)
    return advice


def _against_truth(job: Job, samples: Tensor, floors: FloorOf) -> dict[str, Any]:
    """Return every metric of the samples (N, D) against p (``clean``) and against the target.

    The target is perturbed p (``perturbed``), or denoised draws from perturbed p (``denoised``).
    """
    name, last_sigma = "denoised" if job.sampler.denoise else "perturbed", job.plan[-1].sigma
    given = job.of_samples, floors, job.run.seed
    found = {"clean": evaluate_samples(samples, job.truth, 0.0, *given)}
    if last_sigma > 0:
        found[name] = evaluate_samples(samples, job.target, last_sigma, *given)
    for against, entries in found.items():
        for metric, entry in entries.items():
            log.info(
                "%s%s at sigma = %g: %.4g, noise floor %.4g",
                metric, ", denoised" if against == "denoised" else "",
                0.0 if against == "clean" else last_sigma, entry["value"], entry["floor"],
            )  # fmt: skip
    return {name: found["clean"]} | found  # at sigma = 0 both targets are p itself


def _read_checkpoint(run: SampleSettings) -> tuple[Path | None, dict[str, Tensor], Config]:
    """Return the checkpoint's file, tensors and configuration, or None and two empty dicts."""
    if run.checkpoint is None:
        if run.score == "checkpoint":
            raise ConfigError("checkpoint: give the folder of a run of ncsn-train, or score=exact")
        return None, {}, {}
    path, tensors, record = load_newest(Path(run.checkpoint))
    return path, tensors, with_new_names(record["config"])


def _save(folder: Path, state: Saved, identity: Config) -> None:
    tensors, record = state
    try:
        save_checkpoint(folder / _STOPPED_CHAINS, tensors, record | identity)
    except ConfigError:
        log.warning("too many chains to save: if this run is stopped, it has to start afresh")


_IDENTITY = {"config", "checkpoint", "device_type"}
"""Other entries in the file of stopped chains: the request that the chains were made for."""


def _load_chains(folder: Path) -> Stopped:
    """Return the stopped chains in ``folder``.

    Raises:
        MissingInputError: If there are none.
        ConfigError: If ``resume`` names a folder whose run is complete.
        BadCheckpointError: If the file is damaged, or holds something else.
    """
    path = folder / _STOPPED_CHAINS
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
    check_same_request(
        found.record["config"], identity["config"],
        lambda key: key.split(".")[0] in _MAY_CHANGE, "resume", folder,
    )  # fmt: skip
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


def _schedule(request: Request, dataset: Dataset, groups: Config) -> Schedule:
    """Return the schedule, with levels; add its settings to ``groups``."""
    schedule: Schedule | FromData = _group(request, "schedule", groups)
    if isinstance(schedule, Schedule):
        return schedule
    fitted, groups["schedule"] = fit_schedule(schedule, reference_data(dataset, request.run.seed))
    return fitted


def _score(
    request: Request, dataset: Dataset, origin: Tensor, device: torch.device, groups: Config
) -> tuple[Score, LogProb | None]:
    """Return the score that the request names, and its log-density or None.

    Both take coordinates around ``origin`` (D,), which is 0 or the data's mean. The settings of a
    network are added to ``groups``.
    """
    if request.run.score == "exact":
        return exact_score(dataset, origin)
    if request.run.score == "empirical":
        return empirical_score(dataset, origin)
    groups["model"] = request.trained.get("model") or {}
    network = load_network(
        groups["model"], request.config.get("model"), request.tensors, dataset.dim,
        request.run.plugins,
    )  # fmt: skip
    return learned_score(network, origin, device)


def _arrays(chains: Chains) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "samples": chains.samples.numpy(),
        "init": chains.init.numpy(),
        "settled_sigma": chains.settled_sigma,
    }
    if chains.paths is not None:
        arrays |= {
            "trajectories": chains.paths,
            "sigmas": chains.path_sigmas,
            "steps": chains.path_steps,
        }
    return arrays
