"""``ncsn-train``: fit a score network, check it against the truth, keep everything."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ncsn_cli.commands.build import (
    fit_schedule,
    instantiate,
    instantiate_list,
    reference_data,
    what_torch_refuses,
)
from ncsn_cli.commands.config import (
    Config,
    SampleSettings,
    TrainSettings,
    read_config,
    settings,
    without_paths,
)
from ncsn_cli.commands.job import (
    add_resume_command,
    choose_device,
    objective_of,
    open_folder,
    output_folder,
    write_config,
)
from ncsn_cli.commands.present import Pictures, present
from ncsn_cli.commands.resume import (
    Stopped,
    check_same_request,
    compile_setting_on_resume,
    digest_of,
    done_before,
    find_stopped,
)
from ncsn_cli.commands.startup import prepare_process
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, InterruptedRun
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.evaluation.network import EVALUATED, evaluate_training
from ncsn_cli.evaluation.schedule_advice import examine
from ncsn_cli.losses import Implicit, Loss, Sliced
from ncsn_cli.runs.checkpoints import check_size, checkpoint_path, load_newest, save_checkpoint
from ncsn_cli.runs.files import path_inside, to_json, to_npz
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.samplers import Sampler
from ncsn_cli.training.history import COLUMNS, Row, history_csv, read_history
from ncsn_cli.training.loop import fit
from ncsn_cli.training.snapshots import Snapshots
from ncsn_cli.training.state import Training, optimizer_step
from ncsn_cli.training.tensorboard import TensorBoard
from ncsn_cli.training.trainer import Trainer, resolve_auto

log = logging.getLogger(__name__)

_MAY_CHANGE = {
    "device", "metric", "plot", "sampler", "init", "num_samples", "score", "checkpoint",
    "trajectories", "trajectory_metrics", "log_density", "animation", "objective", "compile",
    "resume", "plugins", "trainer.steps", "trainer.max_seconds", "trainer.log_every",
    "trainer.eval_every", "trainer.checkpoint_every",
    "trainer.keep_last", "trainer.snapshots", "trainer.tensorboard", "trainer.resume",
}  # fmt: skip

# Every key of SampleSettings that must not be null needs a value here.
_UNSET_SAMPLE_KEYS: Config = {
    "checkpoint": None, "score": "exact", "num_samples": 1, "trajectories": 0,
    "trajectory_metrics": False, "log_density": False, "compile": "auto", "resume": None,
    "plugins": [],
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A command line that was read.

    Args:
        run: The run-level keys.
        config: The configuration, as composed.
        digest: See ``digest_of``.
    """

    run: TrainSettings
    config: Config
    digest: str


@dataclass(frozen=True)
class Job:
    """A training that was built and checked, and restored if it is resumed.

    Args:
        run: The run-level keys.
        config: The effective configuration.
        facts: What ``run.json`` records.
        device: The device of the network.
        dataset: The dataset.
        data: Its training set, or draws if it is endless (N, D).
        sigmas: The noise levels (L,), float64, descending.
        loss: The loss.
        training: The state of the training.
        history: The rows of ``history.csv`` so far; the training appends to it.
        snapshots: The states of the score that animations show, or None.
        board: The event files for TensorBoard, or None.
        pictures: The pictures to draw.
    """

    run: TrainSettings
    config: Config
    facts: Config
    device: torch.device
    dataset: Dataset
    data: Tensor
    sigmas: Tensor
    loss: Loss
    training: Training
    history: list[Row]
    snapshots: Snapshots | None
    board: TensorBoard | None
    pictures: Pictures


def train(cfg: DictConfig) -> float | None:
    """Run ``ncsn-train`` and return the objective.

    Everything that can be refused is refused before the run starts.
    """
    request = read_request(cfg)
    if finished := done_before(request.digest):
        return objective_of(finished, request.run.objective)
    prepare_process()
    job = build(request)
    with open_folder(job.config, job.facts) as folder:
        seconds, config = run_training(job, folder)
        metrics = measure(job, seconds, folder)
        present(folder, job.pictures, partial(scene_of, job, metrics), config, metrics)
        if job.board is not None:
            job.board.write(job.history, with_pictures=True)
        log.info("everything is in %s", folder.path)
        return objective_of(metrics, job.run.objective)


def read_request(cfg: DictConfig) -> Request:
    """Read the command line that ``cfg`` holds."""
    config = read_config(cfg)
    run: TrainSettings = settings(TrainSettings, config)
    settings(SampleSettings, {**_UNSET_SAMPLE_KEYS, **config})  # an experiment may set them
    if run.objective not in (None, *EVALUATED):
        raise ConfigError(f"objective: choose from {', '.join(EVALUATED)}, not {run.objective!r}")
    return Request(run, config, digest_of(config))


def build(request: Request) -> Job:
    """Build everything that ``request`` names; raise if something does not fit together."""
    run, config, device = request.run, request.config, choose_device(request.run.device)
    trainer: Trainer = instantiate(config, "trainer")
    dataset: Dataset = instantiate(config, "dataset")
    data = reference_data(dataset, run.seed)
    schedule, fitted = fit_schedule(instantiate(config, "schedule"), data)
    sigmas, loss = schedule.sigmas, instantiate(config, "loss")
    model = _initial_model(config, dataset.dim, run.seed).to(device)
    adapt_to: Callable[[Tensor], None] | None = getattr(model, "adapt_to", None)
    if adapt_to is not None:
        adapt_to(data)
    _try_once(model, dataset, loss, float(sigmas[-1]), device)
    optimizer = instantiate(config, "optimizer", params=model.parameters())
    _try_optimizer(config, model)
    sampler: Sampler = instantiate(config, "sampler")
    instantiate(config, "init")  # ncsn-sample will take both from the checkpoint
    if instantiate_list(config, "metric"):
        raise ConfigError("metric: ncsn-train has no samples to measure; use it with ncsn-sample")
    pictures = Pictures(config)
    # Find the checkpoint to resume, and decide on threads and compiling.
    stopped = find_stopped(_load_checkpoint, trainer.resume)
    kept = {} if stopped is None else stopped.record
    compiles = compile_setting_on_resume(trainer.compile, kept, "trainer.compile")
    points = loss.points(trainer.batch_size or len(data), len(sigmas))
    earlier = kept.get("config", {}).get("trainer")
    trainer = resolve_auto(
        replace(trainer, compile=compiles), model, optimizer, points,
        earlier if isinstance(earlier, dict) else {},
    )  # fmt: skip
    settled = {"threads": trainer.threads, "compile": trainer.compile}
    config = {**config, "trainer": {**config["trainer"], **settled}}
    config |= {"schedule": fitted} if fitted else {}
    torch.set_num_threads(int(trainer.threads))
    # Prepare the training, and restore it if it is resumed.
    training = Training(trainer, model, optimizer, loss, dataset, sigmas, run.seed)
    snapshots = None
    if pictures.animations and dataset.dim <= 2:
        snapshots = Snapshots(trainer.snapshots, trainer.steps, dataset, sigmas, device)
    weights = list(model.parameters())  # also kept: their average and the optimizer's state
    check_size(4 * sum(weight.nbytes for weight in weights), 4 * len(weights))
    history = _restore(training, config, snapshots, stopped)
    board = TensorBoard(output_folder(), training.step) if trainer.tensorboard else None
    facts: Config = {"device": str(device), "seed": run.seed, "request": request.digest}
    facts["schedule"] = examine(sigmas, sampler, data, dataset.smallest_std)
    return Job(
        run=run,
        config=config,
        facts=facts,
        device=device,
        dataset=dataset,
        data=data,
        sigmas=sigmas,
        loss=loss,
        training=training,
        history=history,
        snapshots=snapshots,
        board=board,
        pictures=pictures,
    )


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
    except InterruptedRun as stop:
        add_resume_command(stop, folder, "trainer.resume")
        raise
    finally:
        folder.step = training.step
        folder.write("history.csv", history_csv(job.history))
    return round(time.monotonic() - start, 3), config


def measure(job: Job, seconds: float, folder: RunFolder) -> dict[str, Any]:
    """Hold the network against the truth; write, log and return ``metrics.json``."""
    training = job.training
    metrics = evaluate_training(
        training.score, job.dataset, job.sigmas, job.loss, job.run.seed, job.device
    )
    metrics["seconds"] = seconds
    folder.write("metrics.json", to_json(metrics))
    log.info(
        "from draws, with their standard errors: loss %.4f ± %.1g, excess loss %.2e ± %.1g,"
        " score error %.2e ± %.1g",
        *(metrics[f"{key}{error}"] for key in ("loss", "excess_loss", "score_error")
          for error in ("", "_standard_error")),
    )  # fmt: skip
    error = metrics.get("loss_floor_standard_error")
    log.info(
        "loss floor %.4f (%s)", metrics["loss_floor"],
        "exact" if error is None else f"from draws, ± {error:.1g}",
    )  # fmt: skip
    return metrics


def scene_of(job: Job, metrics: dict[str, Any]) -> Scene:
    """Return what the pictures of the run show. Slow: truth and score are evaluated on a grid."""
    return compose_scene(
        job.dataset.truth,
        job.sigmas,
        job.device,
        score=job.training.score,
        data=job.data.numpy(),
        history={c: np.array([row[c] for row in job.history], dtype=float) for c in COLUMNS},
        loss_floor=metrics["loss_floor"],
        snapshots=None if job.snapshots is None else job.snapshots.arrays(),
    )


def _initial_model(config: Config, dim: int, seed: int) -> nn.Module:
    # Layers draw their initial weights from the global stream, which is left unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random_stream(seed, "initial weights").initial_seed())
        model: nn.Module = instantiate(config, "model", dim=dim)
    return model


def _try_once(
    model: nn.Module, dataset: Dataset, loss: Loss, sigma: float, device: torch.device
) -> None:
    """Raise if the truth or the network has no score at ``sigma``; warn of a biased gradient."""
    dataset.score(torch.zeros(1, dataset.dim), sigma)
    model(torch.zeros(1, dataset.dim, device=device), torch.tensor(sigma, device=device))
    differentiates = isinstance(loss, Implicit | Sliced)
    if differentiates and any(isinstance(module, nn.ReLU) for module in model.modules()):
        log.warning(
            "the derivative of a relu network jumps, and the gradient of this loss misses the"
            " jumps, so it is biased; choose another model.activation, such as softplus"
        )


def _try_optimizer(config: Config, model: nn.Module) -> None:
    """Raise if the optimizer cannot make a step for ``model``; try it on a copy of the weights."""
    chosen = config["optimizer"]
    if chosen.get("differentiable"):
        raise ConfigError("optimizer.differentiable: no gradient is taken of a step; leave it out")
    weights = [nn.Parameter(weight.detach().clone()) for weight in model.parameters()]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    copy = instantiate(config, "optimizer", params=weights)
    if isinstance(copy, torch.optim.LBFGS):
        raise ConfigError("optimizer: LBFGS needs a closure at each step; choose another one")
    try:
        optimizer_step(copy)()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(what_torch_refuses(chosen, error)) from error


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


def _load_checkpoint(path: Path) -> Stopped:
    """Return the checkpoint at ``path``, or the newest of the run there."""
    return Stopped(*load_newest(path))


def _restore(
    training: Training, config: Config, snapshots: Snapshots | None, stopped: Stopped | None
) -> list[Row]:
    """Restore ``training`` and ``snapshots`` from ``stopped``, if given; return the history."""
    if stopped is None:
        return []
    path, record = stopped.path, stopped.record
    check_same_request(
        record["config"], config, lambda key: _may_change(key, training.trainer),
        "trainer.resume", path,
    )  # fmt: skip
    if record["step"] > training.trainer.steps:
        raise ConfigError(f"trainer.steps: {path} has made {record['step']} steps already")
    try:
        training.restore(stopped.tensors, record)
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadCheckpointError(
            f"{path}: its state does not fit this training ({reason})"
        ) from error
    kept = path.parent.parent / "snapshots.npz"
    if snapshots is not None and os.path.lexists(kept):
        snapshots.restore(kept, training.step)
    rows = path.parent.parent / "history.csv"
    if not os.path.lexists(rows):
        return []
    return [row for row in read_history(rows) if (row["step"] or 0) <= training.step]


def _may_change(key: str, trainer: Trainer) -> bool:
    if key == "trainer.steps" and trainer.lr_decay != "none":
        return False  # the learning rate of every step depends on it
    return key in _MAY_CHANGE or key.split(".")[0] in _MAY_CHANGE
