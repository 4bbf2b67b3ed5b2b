"""``ncsn-train``: fit a score network, check it against the truth, keep everything."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from ncsn_cli.commands.config import (
    Config,
    SampleSettings,
    TrainSettings,
    read_config,
    settings,
    without_paths,
)
from ncsn_cli.commands.job import (
    log_next,
    log_unknown,
    objective_of,
    open_folder,
    output_folder,
    write_config,
)
from ncsn_cli.commands.names import RESUME, override, sample_command
from ncsn_cli.commands.present import present
from ncsn_cli.commands.resume import digest_of, done_before, resume_command
from ncsn_cli.commands.startup import prepare_process
from ncsn_cli.commands.train_job import Job, Request, build
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.scene import TrainingScene
from ncsn_cli.evaluation.grid import compose_scene, recovered_on_grid, visible_on_grid
from ncsn_cli.evaluation.network import EVALUATED, evaluate_training
from ncsn_cli.evaluation.verdict import of_network
from ncsn_cli.inits import Prior
from ncsn_cli.models import MixtureScore
from ncsn_cli.runs.checkpoints import checkpoint_path, save_checkpoint
from ncsn_cli.runs.files import path_inside, to_json, to_npz
from ncsn_cli.runs.folder import CHECKPOINTS, RunFolder
from ncsn_cli.runs.records import flatten
from ncsn_cli.samplers import plan_of
from ncsn_cli.training.history import COLUMNS, MEMORISING, Row, history_csv
from ncsn_cli.training.loop import fit
from ncsn_cli.training.memorising import times
from ncsn_cli.training.snapshots import Snapshots
from ncsn_cli.training.state import Training

log = logging.getLogger(__name__)

# Every key of SampleSettings that must not be null needs a value here.
_UNSET_SAMPLE_KEYS: Config = {
    "checkpoint": None, "score": "exact", "num_samples": 1, "trajectories": 0,
    "trajectory_metrics": False, "log_density": False, "budget": False, "compile": "auto",
    "resume": None, "plugins": [],
}  # fmt: skip


def train(cfg: DictConfig) -> float | None:
    """Run ``ncsn-train`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    request = read_request(cfg)
    resume = flatten(request.config).get(RESUME["train"])
    if finished := done_before(request.digest, resume):
        log_next(output_folder(), sample_command(output_folder(), request.config))
        return objective_of(finished, request.run.objective)
    prepare_process()
    job = build(request)
    with (
        open_folder(job.config, job.facts, resume) as folder,
        resume_command(folder, RESUME["train"], resume, CHECKPOINTS),
    ):
        seconds, config = run_training(job, folder)
        metrics = measure(job, seconds, folder)
        losses = [row["excess_loss"] for row in job.history if row["excess_loss"] is not None]
        verdict = of_network(metrics, losses, _more_work(job.training), _more_data(job.config))
        scene = partial(scene_of, job, metrics)
        present(
            folder, job.parts.pictures, scene, config, metrics, verdict, partial(live_page_of, job)
        )
        if job.board is not None:
            job.board.write(job.history, with_pictures=True)
        log.info("everything is in %s", folder.path)
        log_next(folder.path, sample_command(folder.path, config), verdict)
        return objective_of(metrics, job.run.objective)


def read_request(cfg: DictConfig) -> Request:
    """Read the command line that ``cfg`` holds."""
    config = read_config(cfg)
    run: TrainSettings = settings(TrainSettings, config)
    settings(SampleSettings, {**_UNSET_SAMPLE_KEYS, **config})  # an experiment may set them
    if run.objective not in (None, *EVALUATED):
        raise ConfigError(f"objective: choose from {', '.join(EVALUATED)}, not {run.objective!r}")
    return Request(run, config, digest_of(config))


def _more_work(training: Training) -> str:
    """Return the override that doubles the length of the training."""
    trainer = training.trainer
    if training.step < trainer.steps and trainer.max_seconds is not None:
        return override("trainer.max_seconds", 2 * trainer.max_seconds)
    return override("trainer.steps", 2 * training.step)


def _more_data(config: Config) -> str | None:
    """Return the override that doubles the training set; None if its size is not set."""
    num = config["dataset"].get("num_samples")
    return None if num is None else override("dataset.num_samples", 2 * num)


def run_training(job: Job, folder: RunFolder) -> tuple[float, Config]:
    """Train, and save checkpoints.

    Returns:
        The seconds, and the configuration with ``compile`` as it was done: compiling may fail.
    """
    training, config = job.training, job.config

    def save() -> None:
        nonlocal config
        compiled = training.trainer.compile
        if config["trainer"]["compile"] != compiled:  # compiling failed
            config = {**config, "trainer": {**config["trainer"], "compile": compiled}}
            write_config(folder, config)
        save_training(folder, training, config, job.history, job.snapshots)
        if job.board is not None:
            job.board.write(job.history)

    start = time.monotonic()
    try:
        fit(training, job.history, job.snapshots, save)
    finally:
        folder.step = training.step
        folder.write("history.csv", history_csv(job.history))
    return round(time.monotonic() - start, 3), config


def measure(job: Job, seconds: float, folder: RunFolder) -> dict[str, Any]:
    """Hold the network against the truth; write and return ``metrics.json``."""
    training = job.training
    metrics = evaluate_training(
        training.score.eval(),  # without dropout, as it is used afterwards
        job.parts.dataset,
        job.parts.sigmas,
        job.parts.loss,
        job.run.seed,
        job.device,
    )
    if isinstance(training.score, MixtureScore):
        metrics["mixture"] = training.score.estimates()
        rounded = {name: np.round(n, 4).tolist() for name, n in metrics["mixture"].items()}
        log.info("learned: %s", ", ".join(f"{name} {n}" for name, n in rounded.items()))
    metrics |= times(job.history)
    metrics["seconds"] = seconds
    folder.write("metrics.json", to_json(metrics))
    if not job.parts.dataset.truth.is_known:
        log_unknown(name for name, value in metrics.items() if value is None)
    elif metrics["loss_floor"] is None:
        log.info("loss floor unknown: the loss states none")
    return metrics


def live_page_of(job: Job, title: str) -> str | None:
    """Return the live page of the run; None if D > 2."""
    from ncsn_cli.commands.live import Moved, page_of_run  # here: matplotlib comes with it

    moved = None
    with suppress(ConfigError):  # ncsn-sample will ask for a sampler that these levels suit
        plan = plan_of(job.parts.sampler, job.parts.sigmas)
        moved = Moved(job.parts.sampler, plan, Prior())
    return page_of_run(
        title,
        dataset=job.parts.dataset,
        sigmas=job.parts.sigmas.tolist(),
        seed=job.run.seed,
        score="checkpoint",
        network=job.training.score,
        moved=moved,
    )


def scene_of(job: Job, metrics: dict[str, Any]) -> TrainingScene:
    """Return what the pictures of the run show. Slow: truth and score are evaluated on a grid."""
    truth, sigmas, score = job.parts.dataset.truth, job.parts.sigmas, job.training.score
    arrays: dict[str, Any] = {}
    if job.parts.pictures.may_show("visible_error"):
        arrays |= visible_on_grid(score, truth, sigmas, job.device)
    if job.parts.pictures.may_show("recovered_density"):
        arrays |= recovered_on_grid(score, truth, sigmas)
    return compose_scene(
        TrainingScene,
        truth,
        sigmas,
        job.device,
        score=score,
        **arrays,
        data=job.parts.data.numpy(),
        history={
            column: np.array([row.get(column) for row in job.history], dtype=float)
            for column in [*COLUMNS, *MEMORISING]
        },
        loss_floor=metrics["loss_floor"],
        snapshots=None if job.snapshots is None else job.snapshots.arrays(),
    )


def save_training(
    folder: RunFolder,
    training: Training,
    config: Config,
    history: list[Row],
    snapshots: Snapshots | None,
) -> None:
    """Write the history, the snapshots and a checkpoint; remove old checkpoints."""
    tensors, record = training.state()
    record = {"config": without_paths(config), **record}
    folder.write("history.csv", history_csv(history))  # first: resuming drops newer rows
    if snapshots is not None:
        folder.write("snapshots.npz", to_npz(snapshots.arrays()))
    path = path_inside(folder.path, str(checkpoint_path(Path(), training.step)))
    save_checkpoint(path, tensors, record)
    folder.step = training.step
    folder.set_status("running")
    files = sorted((folder.path / "checkpoints").glob("step_*.safetensors"))
    ours = [file for file in files if file.name <= path.name]  # later files are damaged
    for old in {*files} - {*ours[-training.trainer.keep_last :]}:
        old.unlink(missing_ok=True)
