"""``ncsn-sample``: run a sampler with a learned or the exact score, and measure its samples."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import time
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
    in_sweep,
    objective_of,
    open_folder,
    output_folder,
    write_config,
)
from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.commands.present import Pictures, present
from ncsn_cli.commands.resume import (
    check_same_request,
    compile_setting_on_resume,
    digest_of,
    done_before,
)
from ncsn_cli.commands.startup import choose_device, keep_freed_memory
from ncsn_cli.core.compiler_cache import keep_compiled_code
from ncsn_cli.core.dataset import Dataset, Law
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, InterruptedRun, MissingInputError
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised, GaussianMixture
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.evaluation.log_density import evaluate_log_density
from ncsn_cli.evaluation.samples import FloorOf, evaluate_samples, evaluate_trajectory
from ncsn_cli.evaluation.schedule_advice import examine, unresolved
from ncsn_cli.inits import Init
from ncsn_cli.metrics import SampleMetric, ScoreMetric, check_flow
from ncsn_cli.models.one_level import Recentred
from ncsn_cli.runs.checkpoints import load_checkpoint, load_newest, save_checkpoint
from ncsn_cli.runs.files import to_json, to_npz
from ncsn_cli.samplers import LogProb, Sampler
from ncsn_cli.sampling.chains import Chains
from ncsn_cli.sampling.compiled_langevin import settle
from ncsn_cli.sampling.run import Sampling, Saved
from ncsn_cli.schedules import FromData, Schedule

log = logging.getLogger(__name__)

_STOPPED_CHAINS = "sampling.safetensors"
"""File in which a stopped run keeps its chains."""

_WORKERS = torch.get_num_threads()  # on import: the second job of a sweep would find 1

_MAY_CHANGE_ON_RESUME = {
    "metric", "plot", "animation", "objective", "log_density", "checkpoint", "device", "resume",
    "plugins",
}  # fmt: skip

_WITHOUT_CHECKPOINT: dict[str, Config] = {
    "schedule": {"_target_": "ncsn_cli.schedules.Single", "sigma": 0.0},
    "init": {"_target_": "ncsn_cli.inits.Prior"},
}


def sample(cfg: DictConfig) -> float | None:
    """Run ``ncsn-sample`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    # Read the request, and stop here if it is done already.
    config = read_config(cfg)
    run: SampleSettings = settings(SampleSettings, config)
    for module in run.plugins:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"plugins: {module!r} cannot be imported ({error})") from error
    source, tensors, trained = _read_checkpoint(run)
    request = digest_of(config, source)
    if before := done_before(request):
        return objective_of(before, run.objective)
    # Set up the process.
    device = choose_device(run.device)
    keep_freed_memory()
    keep_compiled_code()
    torch.set_num_threads(1)  # sums depend on the number of threads; tiles run in parallel
    # Build the objects, and refuse what does not fit together.
    dataset: Dataset = _object(config, trained, "dataset", run.plugins)
    schedule = _schedule(config, trained, dataset, run)
    sampler: Sampler = _object(config, trained, "sampler", run.plugins)
    init: Init = _object(config, trained, "init", run.plugins)
    metrics = instantiate_list(config, "metric")
    of_samples = {k: m for k, m in metrics.items() if isinstance(m, SampleMetric)}
    of_score = {k: m for k, m in metrics.items() if isinstance(m, ScoreMetric)}
    for name in metrics.keys() - of_samples.keys() - of_score.keys():
        raise ConfigError(f"metric.{name}: it should be one of ncsn_cli.metrics")
    pictures = Pictures(config)
    plan = sampler.levels(schedule.sigmas)
    last_sigma = plan[-1].sigma
    sigmas = torch.tensor([level.sigma for level in plan], dtype=torch.float64)
    for metric in of_score.values():
        metric.check(sigmas)
    if run.log_density:
        check_flow(sigmas, "log_density")
        if dataset.dim > 2:
            raise ConfigError("log_density: there is a grid for D = 1 and 2 only")
    config = {key: config[key] for key in config if key not in ("loss", "optimizer", "trainer")}
    # Find the chains of a stopped run, and build the score.
    found = _find_stopped_chains(run)
    # Chains run around the data's mean; those started by an earlier version run in data units.
    is_moved = found is None or "origin" in found[1][1]
    truth = dataset.truth.centred() if is_moved else dataset.truth
    target = Denoised(truth) if sampler.denoise else truth
    score, log_prob = _score(run, config, trained, tensors, dataset, truth.origin, device)
    if sampler.needs_log_prob and log_prob is None:
        raise ConfigError(
            "sampler: this sampler needs a log-density; choose score=exact, or a checkpoint of"
            " model=energy_mlp"
        )
    # Both raise an error where they have no score.
    dataset.score(torch.zeros(1, dataset.dim), last_sigma)
    score(torch.zeros(1, dataset.dim, device=device), torch.tensor(last_sigma, device=device))

    # Decide on compiling, and check that the stopped run had the same request.
    kept = {} if found is None else found[1][1]
    earlier = kept.get("config", {})
    compiles = compile_setting_on_resume(run.compile, kept, "compile")
    config["compile"] = settle(compiles, score, sampler, plan, run.num_samples, device, earlier)
    identity: Config = {
        "config": without_paths(config),
        "checkpoint": None if source is None else digest_of({}, source),
        "device_type": device.type,
        "origin": truth.origin.tolist(),
    }
    started = None if found is None else _refuse_another(*found, identity)
    # Prepare the run.
    sigma_max = float(schedule.sigmas[0])
    sampling = Sampling(
        sampler,
        score,
        log_prob,
        lambda num, stream: (init(num, dataset, sigma_max, stream).cpu() - truth.origin).to(
            device, torch.float32
        ),
        run.num_samples,
        schedule.sigmas,
        truth,
        num_paths=run.trajectories,
        keep_by_level=run.trajectory_metrics,
        seed=run.seed,
        device=device,
        workers=_WORKERS if device.type == "cpu" else 1,
        compile=config["compile"],
    )
    floors = partial(noise_floor, cache=Path(config["paths"]["outputs"], "floors"))
    facts: Config = {"device": str(device), "seed": run.seed, "request": request}
    # Compare the schedule and the sampler with the advice of the literature.
    data = reference_data(dataset, run.seed)
    seen = data if run.score == "checkpoint" else data - truth.origin  # networks take data units
    facts["schedule"] = examine(schedule.sigmas, sampler, seen, dataset.smallest_std)
    lost = unresolved(data, schedule.sigmas, plan[-1].tau, dataset.smallest_std)
    if lost and not unresolved(seen, schedule.sigmas, plan[-1].tau, dataset.smallest_std):
        log.warning("samples.npz: %s; metrics are computed from the chains before rounding", lost)
    with open_folder(config, facts) as folder, torch.no_grad():

        def save(state: Saved) -> None:
            if config["compile"] and sampling.compiling_failed:
                config["compile"] = identity["config"]["compile"] = False
                write_config(folder, config)
            _save(folder.path, state, identity)

        # Run the chains, and save the samples.
        log.info(
            "%s: %d levels, sigma %g to %g", type(sampler).__name__, len(plan), plan[0].sigma,
            last_sigma,
        )  # fmt: skip
        start = time.monotonic()
        try:
            chains = sampling.run(save, started)
        except InterruptedRun as stop:
            add_resume_command(stop, folder, "resume")
            raise
        seconds = round(time.monotonic() - start, 3)
        shown = chains.in_data_units(truth.origin)
        folder.write("samples.npz", to_npz(_arrays(shown)))
        save(sampling.finished())
        # Measure.
        report: dict[str, Any] = {
            "num_samples": run.num_samples,
            "seconds": seconds,
            "score_evaluations": chains.score_evaluations,
        }
        if chains.acceptance:
            report["acceptance_per_level"] = chains.acceptance
        if len(plan) > 1:
            report["mode_commitment"] = chains.mode_commitment
        report |= _against_truth(
            chains.samples, truth, target, last_sigma, of_samples, floors, run.seed
        )
        folder.write("metrics.json", to_json(report))  # before metrics that take longer
        if run.trajectory_metrics:
            report["trajectory"] = evaluate_trajectory(
                chains.by_level, truth, of_samples, floors, run.seed, target
            )
        for name, metric in of_score.items():
            stream = random_stream(run.seed, name, device)
            report[name] = metric(score, truth, sigmas, stream)
        log_density: dict[str, NDArray[np.float64]] = {}
        if run.log_density:
            report["log_density"], log_density = evaluate_log_density(score, truth, sigmas)
            folder.write("log_density.npz", to_npz(log_density))
        folder.write("metrics.json", to_json(report))
        (folder.path / _STOPPED_CHAINS).unlink(missing_ok=True)

        def compose() -> Scene:  # slow: it evaluates truth and score on a grid
            stream = random_stream(run.seed, "exact draws shown")
            exact = target.sample(run.num_samples, sigma=last_sigma, generator=stream)
            return compose_scene(
                truth,
                sigmas,
                device,
                score=None if run.score == "exact" else score,
                score_name="learned" if run.score == "checkpoint" else run.score,
                samples=chains.samples.numpy(),
                exact=exact.numpy(),
                denoised=target if sampler.denoise else None,
                paths=chains.paths,
                path_steps=chains.path_steps,
                path_sigmas=None if chains.paths is None else chains.path_sigmas,
                level_sigmas=np.array(chains.mode_commitment["sigmas"]),
                committed=np.array(chains.mode_commitment["committed"]),
                mode_shares=np.array(chains.mode_commitment.get("shares", [])),
                distances=report.get("trajectory"),
                log_density=log_density.get("log_density"),
            )

        present(folder, pictures, compose, config, report)
        log.info("everything is in %s", folder.path)
        return objective_of(report, run.objective)


def _against_truth(
    samples: Tensor,
    truth: Dataset,
    target: Law,
    last_sigma: float,
    metrics: dict[str, SampleMetric],
    floors: FloorOf,
    seed: int,
) -> dict[str, Any]:
    """Return every metric of the samples (N, D) against p (``clean``) and against ``target``.

    The target is perturbed p (``perturbed``), or denoised draws from perturbed p (``denoised``).
    """
    name = "perturbed" if target is truth else "denoised"
    found = {"clean": evaluate_samples(samples, truth, 0.0, metrics, floors, seed)}
    if last_sigma > 0:
        found[name] = evaluate_samples(samples, target, last_sigma, metrics, floors, seed)
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


def _find_stopped_chains(run: SampleSettings) -> tuple[Path, Saved] | None:
    """Return the folder and the state of the chains to resume, or None.

    In a sweep that is run again, the job's own chains come before those that ``resume`` names.
    """
    folder = output_folder()
    if not (in_sweep() and (folder / _STOPPED_CHAINS).exists()):
        if run.resume is None:
            return None
        folder = Path(os.path.expanduser(run.resume))
        # Not pathlib's ``exists``, which raises for a name that is too long.
        if not os.path.exists(folder / _STOPPED_CHAINS):
            if os.path.exists(folder / "metrics.json"):
                raise ConfigError(f"resume: {folder} has all its samples and metrics already")
            raise MissingInputError(
                f"{folder}: no stopped chains in this folder; run its command again"
            )
    try:
        tensors, record = load_checkpoint(folder / _STOPPED_CHAINS)
        if not record.keys() >= _IDENTITY or not isinstance(record["config"], dict):
            raise BadCheckpointError(
                f"{folder / _STOPPED_CHAINS}: this file holds no stopped chains"
            )
    except BadCheckpointError as error:
        if folder != output_folder():
            raise
        log.warning("%s; starting afresh", error)
        return None
    return folder, (tensors, record)


def _refuse_another(folder: Path, saved: Saved, identity: Config) -> Saved:
    """Return ``saved``, the chains in ``folder``; raise if ``identity`` is another request."""
    _, record = saved
    check_same_request(
        record["config"], identity["config"],
        lambda key: key.split(".")[0] in _MAY_CHANGE_ON_RESUME, "resume", folder,
    )  # fmt: skip
    for key in ("checkpoint", "device_type"):
        if record[key] != identity[key]:
            raise ConfigError(f"resume: {folder} was made with another {key}")
    return saved


def _object(config: Config, trained: Config, key: str, plugins: list[str]) -> Any:  # noqa: ANN401
    """Build and return the object of the group ``key``; write its settings into ``config``.

    An option that the user chose replaces the checkpoint's. Single values are merged into the
    checkpoint's settings.
    """
    chosen = config.get(key) or {}
    base = trained.get(key) or _WITHOUT_CHECKPOINT.get(key) or {}
    if "_target_" in chosen or not base:
        return instantiate(config, key)
    if not isinstance(base, dict):
        raise ConfigError(f"{key}: the checkpoint's value is not a group of settings")
    config[key] = {**base, **chosen}
    return build_from_checkpoint(config[key], key, plugins)


def _schedule(config: Config, trained: Config, dataset: Dataset, run: SampleSettings) -> Schedule:
    schedule: Schedule | FromData = _object(config, trained, "schedule", run.plugins)
    if isinstance(schedule, Schedule):
        return schedule
    return fit_schedule(config, schedule, reference_data(dataset, run.seed))


def _score(
    run: SampleSettings,
    config: Config,
    trained: Config,
    tensors: dict[str, Tensor],
    dataset: Dataset,
    origin: Tensor,
    device: torch.device,
) -> tuple[Score, LogProb | None]:
    """Return the score that ``run.score`` names, and its log-density or None.

    Both take coordinates around ``origin`` (D,), which is 0 or the data's mean.
    """
    is_moved = bool((origin != 0).any())
    if run.score == "exact":
        local = dataset.centred() if is_moved else dataset
        return local.score, local.log_prob
    if run.score == "empirical":
        data = dataset.training_set()
        if data is None:
            raise ConfigError(
                "dataset.num_samples: score=empirical needs a number here, the size of the"
                " training set"
            )
        around = (data - origin).tolist()
        points = GaussianMixture([1 / len(data)] * len(data), around, stds=0.0)
        chunk = max(1, 2_000_000 // len(data))  # chains at a time; limits memory

        def in_chunks(function: LogProb, x: Tensor, sigma: Tensor) -> Tensor:
            if bool((sigma == 0).any()):
                raise ConfigError(
                    "schedule: score=empirical needs every sigma above 0, as in schedule=geometric"
                )
            sigmas = sigma.split(chunk) if sigma.ndim else itertools.repeat(sigma)
            return torch.cat(list(map(function, x.split(chunk), sigmas)))

        return partial(in_chunks, points.score), partial(in_chunks, points.log_prob)
    network = _network(config, trained, tensors, dataset.dim, run.plugins).to(device)
    energy: LogProb | None = getattr(network, "energy", None)
    score = Recentred(network, origin).to(device).eval() if is_moved else network
    if energy is None:
        return score, None
    return score, lambda x, sigma: -energy(x + origin.to(x), sigma)


def _network(
    config: Config, trained: Config, tensors: dict[str, Tensor], dim: int, plugins: list[str]
) -> torch.nn.Module:
    """Return the checkpoint's network, with its averaged weights if there are any."""
    named = (config.get("model") or {"_target_": None}).get("_target_", "")
    if named == "":
        raise ConfigError(
            "model: its values come from the checkpoint; train another model to change them"
        )
    config["model"] = trained.get("model") or {}
    if not isinstance(config["model"], dict):
        raise ConfigError("model: the checkpoint's value is not a group of settings")
    prefix = "ema.module." if "ema.n_averaged" in tensors else "network."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def build() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            made: torch.nn.Module = build_from_checkpoint(
                config["model"], "model", plugins, named, dim=dim
            )
        return made

    shapes = {name: value.shape for name, value in weights.items()}
    is_ours = str(config["model"].get("_target_")).startswith("ncsn_cli.")
    # Check the size of this package's own networks before taking memory for them.
    for device in ["meta", "cpu"] if is_ours else ["cpu"]:
        with torch.device(device):
            network = build()
        if {name: value.shape for name, value in network.state_dict().items()} != shapes:
            raise ConfigError(
                f"dataset: D = {dim} does not fit the checkpoint's network; choose another dataset"
            )
    network.load_state_dict(weights)
    return network.eval()


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
