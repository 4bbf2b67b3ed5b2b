"""``ncsn-sample``: run a sampler with a learned or the exact score, and measure its samples."""

from __future__ import annotations

import importlib
import logging
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from ncsn_cli.commands.config import Config, SampleSettings, read_config, settings, without_paths
from ncsn_cli.commands.job import (
    compare_command,
    log_next,
    log_unknown,
    objective_of,
    open_folder,
    output_folder,
    write_config,
)
from ncsn_cli.commands.names import RESUME, override
from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.commands.present import present
from ncsn_cli.commands.resume import command_to_resume, digest_of, done_before, resume_command
from ncsn_cli.commands.sample_budget import budget_of
from ncsn_cli.commands.sample_job import Job, Request, build, save_chains
from ncsn_cli.commands.startup import prepare_process
from ncsn_cli.core.errors import ConfigError, UnknownTruthError, counted
from ncsn_cli.core.scene import SamplingScene
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.floors import Floors
from ncsn_cli.evaluation.grid import compose_scene, recovered_on_grid
from ncsn_cli.evaluation.log_density import evaluate_log_density
from ncsn_cli.evaluation.samples import FloorOf, against_truth, evaluate_trajectory
from ncsn_cli.evaluation.verdict import of_samples
from ncsn_cli.metrics import settled_point
from ncsn_cli.models.one_level import Recentred
from ncsn_cli.runs.checkpoints import load_newest
from ncsn_cli.runs.files import read_json, to_json, to_npz
from ncsn_cli.runs.folder import SAMPLES, STOPPED_CHAINS, RunFolder
from ncsn_cli.runs.records import flatten
from ncsn_cli.sampling.chains import Chains
from ncsn_cli.sampling.reference import Reference
from ncsn_cli.sampling.run import Saved

log = logging.getLogger(__name__)


def sample(cfg: DictConfig) -> float | None:
    """Run ``ncsn-sample`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    request = read_request(cfg)
    resume = request.run.resume
    if finished := done_before(request.digest, resume):
        log_next(output_folder(), compare_command(), of_samples(finished))
        return objective_of(finished, request.run.objective)
    prepare_process()
    job = build(request)
    with (
        open_folder(job.config, job.facts, resume) as folder,
        resume_command(folder, RESUME["sample"], resume, STOPPED_CHAINS),
        torch.no_grad(),
    ):
        chains, seconds, config = run_chains(job, folder)
        report, log_density = measure(job, chains, seconds, folder)
        scene = partial(scene_of, job, chains, report, log_density)
        verdict = of_samples(report)
        present(
            folder, job.parts.pictures, scene, config, report, verdict, partial(live_page_of, job)
        )
        log.info("everything is in %s", folder.path)
        log_next(folder.path, compare_command(), verdict)
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
        save_chains(folder.path, state, {**job.identity, "config": without_paths(config)})

    log.info(
        "sampling with %s on %s, sigma = %g to %g", type(job.parts.sampler).__name__,
        counted(len(job.parts.plan), "level"),
        job.parts.plan[0].sigma, job.parts.plan[-1].sigma,
    )  # fmt: skip
    start = time.monotonic()
    chains = job.sampling.run(save, job.stopped)
    seconds = round(time.monotonic() - start, 3)
    shown = chains.in_data_units(job.truth.origin)
    folder.write(SAMPLES, to_npz(_arrays(shown) | _unrounded(chains, job.truth.origin)))
    save(job.sampling.finished())
    return chains, seconds, config


def measure(
    job: Job, chains: Chains, seconds: float, folder: RunFolder
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Measure samples and score; write and return ``metrics.json``, and the log-density arrays.

    Removes the saved state of the chains, which is not needed any more.
    """
    run, truth = job.run, job.truth
    floors = Floors(Path(job.config["paths"]["outputs"], "floors"), job.workers)
    report: dict[str, Any] = {
        "num_samples": run.num_samples,
        "seconds": seconds,
        "score_evaluations": chains.score_evaluations,
    }
    if "fitted_levels" in job.facts:
        report["fitted_levels"] = job.facts["fitted_levels"]
    if chains.acceptance:
        report["acceptance_per_level"] = chains.acceptance
    if len(job.parts.plan) > 1:
        report["mode_commitment"] = chains.mode_commitment if truth.is_known else None
        report |= _foretold(job, chains)
    report |= against_truth(
        chains.samples, truth, job.parts.plan[-1].sigma, job.parts.of_samples, floors, run.seed,
        job.target if job.parts.sampler.denoise else None,
    )  # fmt: skip
    folder.write("metrics.json", to_json(report))  # before what takes longer
    if truth.is_known or not job.parts.sampler.denoise:  # else nothing to hold samples against
        beside = _reference(job, floors)
        if flow := beside.flow(run.num_samples, chains.score_evaluations):
            report["probability_flow"] = flow
        if not run.budget:
            report["causes"] = beside.causes(chains.samples, report)
    if run.budget:
        report["budget"] = budget_of(job, chains.samples, report["clean"])
    if run.trajectory_metrics:
        report["trajectory"] = _along_the_way(job, chains, report["clean"], floors)
    of_score, log_density = _measure_score(job, folder)
    report |= of_score
    if unknown := [name for name, v in [*report["clean"].items(), *report.items()] if v is None]:
        log_unknown(unknown)
    folder.write("metrics.json", to_json(report))
    (folder.path / STOPPED_CHAINS).unlink(missing_ok=True)
    return report, log_density


def _foretold(job: Job, chains: Chains) -> dict[str, dict[str, float | None]]:
    """Return the levels of speciation and of collapse, as foretold and as the chains had them.

    A level that is not foretold is left out, and with the exact score nothing collapses. The
    collapse of the chains is None if they never reached it.
    """
    found, advice = {}, job.facts["schedule"]
    if advice["speciation"] is not None:
        median = float(np.median(chains.settled_sigma))
        found["speciation"] = {"foretold": advice["speciation"], "median_of_chains": median}
    follows_data = job.run.score != "exact"
    if follows_data and advice["collapse"] is not None and chains.paths is not None:
        data = job.parts.dataset.training_set()
        assert data is not None  # or no collapse would be foretold
        median_point = settled_point(
            torch.from_numpy(chains.paths), torch.from_numpy(chains.path_sigmas),
            data - job.truth.origin,
        )  # fmt: skip
        found["collapse"] = {"foretold": advice["collapse"], "median_of_chains": median_point}
    return found


def _measure_score(
    job: Job, folder: RunFolder
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Return the numbers about the score, and the log-density arrays; write the latter.

    Numbers that need more of the truth than is known are None.
    """
    run, score, truth, sigmas = job.run, job.setup.score, job.truth, job.parts.sigmas
    report: dict[str, Any] = {}
    for name, metric in job.parts.of_score.items():
        stream, report[name] = random_stream(run.seed, name, job.device), None
        with suppress(UnknownTruthError):
            report[name] = metric(score, truth, sigmas, stream)
    log_density: dict[str, NDArray[np.float64]] = {}
    if run.log_density:
        report["log_density"] = None
        with suppress(UnknownTruthError):
            report["log_density"], log_density = evaluate_log_density(score, truth, sigmas)
            folder.write("log_density.npz", to_npz(log_density))
    return report, log_density


def live_page_of(job: Job, title: str) -> str | None:
    """Return the live page of the run; None if D > 2."""
    from ncsn_cli.commands.live import Moved, page_of_run  # here: matplotlib comes with it

    parts, network = job.parts, job.setup.score
    if isinstance(network, Recentred):
        network = network.network
    return page_of_run(
        title,
        dataset=parts.dataset,
        sigmas=(parts.sigmas if len(parts.plan) > 1 else parts.schedule.sigmas).tolist(),
        seed=job.run.seed,
        score=job.run.score,
        network=network if isinstance(network, nn.Module) else None,
        moved=Moved(parts.sampler, parts.plan, parts.init, job.run.num_samples),
    )


def scene_of(
    job: Job,
    chains: Chains,
    report: dict[str, Any],
    log_density: dict[str, NDArray[np.float64]],
) -> SamplingScene:
    """Return what the pictures of the run show. Slow: truth and score are evaluated on a grid."""
    run = job.run
    stream = random_stream(run.seed, "exact draws shown")
    arrays: dict[str, Any] = {}
    if run.score != "exact" and job.parts.pictures.may_show("recovered_density"):
        arrays |= recovered_on_grid(job.setup.score, job.truth, job.parts.sigmas)
    exact = job.target.sample(run.num_samples, sigma=job.parts.plan[-1].sigma, generator=stream)
    return compose_scene(
        SamplingScene,
        job.truth,
        job.parts.sigmas,
        job.device,
        score=None if run.score == "exact" else job.setup.score,
        score_name="learned" if run.score == "checkpoint" else run.score,
        samples=chains.samples.numpy(),
        exact=exact.numpy(),
        denoised=None if job.target is job.truth else job.target,
        paths=None
        if chains.paths is None
        else (chains.paths, chains.path_steps, chains.path_sigmas),
        level_sigmas=np.array(chains.mode_commitment["sigmas"]),
        committed=np.array(chains.mode_commitment["committed"]),
        mode_shares=np.array(chains.mode_commitment.get("shares", [])),
        foretold={k: report[k] for k in ("speciation", "collapse") if k in report},
        distances=report.get("trajectory"),
        budget=report.get("budget"),
        log_density=log_density.get("log_density"),
        **arrays,
    )


def _reference(job: Job, floors: FloorOf) -> Reference:
    """Return the run, with what other chains beside it need."""
    return Reference(
        job.setup,
        job.parts.schedule.sigmas,
        job.target,
        job.parts.of_samples,
        floors,
        job.score_name,
        (job.truth.score, job.truth.log_prob) if job.truth.is_known else None,
    )


def _along_the_way(
    job: Job, chains: Chains, clean: dict[str, Any], floors: Floors
) -> dict[str, Any] | None:
    """Return distances level by level; None for what is not known, as in ``clean``."""
    states = [*chains.by_level.items()]
    if job.parts.sampler.denoise and not job.truth.is_known:
        states.pop()  # the last state is denoised, and the law of denoised draws is not known
    known = {k: metric for k, metric in job.parts.of_samples.items() if clean[k] is not None}
    if not states:
        return None
    found = evaluate_trajectory(dict(states), job.truth, known, floors, job.run.seed, job.target)
    return found | dict.fromkeys(k for k in job.parts.of_samples if k not in known)


def _read_checkpoint(run: SampleSettings) -> tuple[Path | None, dict[str, Tensor], Config]:
    """Return the checkpoint's file, tensors and configuration, or None and two empty dicts."""
    if run.checkpoint is None:
        if run.score == "checkpoint":
            raise ConfigError("checkpoint: give the folder of a run of ncsn-train, or score=exact")
        return None, {}, {}
    path, tensors, record = load_newest(Path(run.checkpoint))
    config = with_new_names(record["config"])
    _warn_of_unfinished(Path(os.path.expanduser(run.checkpoint)), record["step"], config)
    return path, tensors, config


def _warn_of_unfinished(run: Path, step: int, config: Config) -> None:
    """Log if the training in the folder ``run`` ended at a ``step`` before its last.

    A checkpoint that is named by its file was chosen on purpose.
    """
    steps = flatten(config).get("trainer.steps")
    if not run.is_dir() or not isinstance(steps, int) or step >= steps:
        return
    place, at = os.path.relpath(run), f"its newest checkpoint is at step {step} of {steps}"
    status = read_json(run / "status.json")
    state = status.get("state")
    if status.get("step") != step and state == "done":
        return  # the newer ones are damaged, and a warning has named them
    if state in ("done", "running"):
        why = "trainer.max_seconds ended the training" if state == "done" else "it still trains"
        log.info("%s: %s, %s", place, at, why)
        return
    resume = command_to_resume(run, RESUME["train"], place)
    resume = resume or f"ncsn-train {override(RESUME['train'], place)}"
    log.warning("%s: %s, the training has not finished; resume it: %s", place, at, resume)


def _unrounded(chains: Chains, origin: Tensor) -> dict[str, NDArray[Any]]:
    """Return the samples before rounding to data units, x = origin + offset; {} if origin is 0.

    ``ncsn-measure`` then gives the very numbers of ``metrics.json``.
    """
    if not bool((origin != 0).any()):
        return {}
    return {"origin": origin.numpy(), "offsets": chains.samples.numpy()}


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
