"""The job of ``ncsn-train``: built from a request, checked, restored if it is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ncsn_cli.commands.build import (
    fit_schedule,
    instantiate,
    instantiate_list,
    reference_data,
    what_torch_refuses,
)
from ncsn_cli.commands.config import Config, TrainSettings
from ncsn_cli.commands.contract import try_own
from ncsn_cli.commands.job import choose_device, in_search, is_published, output_folder
from ncsn_cli.commands.names import AUTO, override
from ncsn_cli.commands.present import Pictures
from ncsn_cli.commands.resume import (
    MAY_CHANGE_IN_TRAINING,
    Stopped,
    check_same_request,
    compile_setting_on_resume,
    find_stopped,
)
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, RefusedStart, UnknownTruthError
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.network import EVALUATED, unknown_numbers
from ncsn_cli.evaluation.schedule_advice import examine
from ncsn_cli.losses import Explicit, Implicit, Loss, Sliced
from ncsn_cli.runs.checkpoints import check_size, load_newest
from ncsn_cli.samplers import Sampler
from ncsn_cli.training.history import Row, read_history
from ncsn_cli.training.snapshots import Snapshots
from ncsn_cli.training.state import Training, optimizer_step
from ncsn_cli.training.tensorboard import TensorBoard
from ncsn_cli.training.trainer import Trainer, resolve_auto

log = logging.getLogger(__name__)


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
class Parts:
    """The objects that a request names.

    Args:
        trainer: The settings of the training, as asked for; ``Training.trainer`` has them without
            ``auto``.
        dataset: The dataset.
        data: Its training set, or draws if it is endless (N, D).
        sigmas: The noise levels (L,), float64, descending.
        fitted: The settings of the schedule that was fitted to the data, or {}.
        loss: The loss.
        model: The network, on its device, with its initial weights.
        optimizer: The optimizer of the network.
        sampler: The sampler that ncsn-sample will take from the checkpoint.
        pictures: The pictures to draw.
    """

    trainer: Trainer
    dataset: Dataset
    data: Tensor
    sigmas: Tensor
    fitted: Config
    loss: Loss
    model: nn.Module
    optimizer: Optimizer
    sampler: Sampler
    pictures: Pictures


@dataclass(frozen=True)
class Job:
    """A training that was built and checked, and restored if it is resumed.

    Args:
        run: The run-level keys.
        config: The effective configuration.
        facts: What ``run.json`` records.
        device: The device of the network.
        parts: The objects that the request names.
        training: The state of the training.
        history: The rows of ``history.csv`` so far; the training appends to it.
        snapshots: The states of the score that animations show, or None.
        board: The event files for TensorBoard, or None.
    """

    run: TrainSettings
    config: Config
    facts: Config
    device: torch.device
    parts: Parts
    training: Training
    history: list[Row]
    snapshots: Snapshots | None
    board: TensorBoard | None


def build(request: Request) -> Job:
    """Build everything that ``request`` names; raise if something does not fit together."""
    run, device = request.run, choose_device(request.run.device)
    parts = _build_parts(request.config, run.seed, device)
    dataset, sigmas, model = parts.dataset, parts.sigmas, parts.model
    if not dataset.truth.is_known and run.objective in EVALUATED[1:] and in_search():
        raise ConfigError(
            f"objective: {run.objective} is not known for this dataset; choose objective=loss"
        )
    # Find the checkpoint to resume, and decide on threads and compiling.
    stopped = find_stopped(_load_checkpoint, parts.trainer.resume, request.digest)
    trainer = _resolve_auto(parts, {} if stopped is None else stopped.record)
    settled = {"threads": trainer.threads, "compile": trainer.compile}
    asked = {"threads": parts.trainer.threads, "compile": parts.trainer.compile}
    if chosen := [override(f"trainer.{k}", settled[k]) for k, v in asked.items() if v == AUTO]:
        log.info("chosen for this run, in place of auto: %s", " ".join(chosen))
    config = {**request.config, "trainer": {**request.config["trainer"], **settled}}
    config |= {"schedule": parts.fitted} if parts.fitted else {}
    torch.set_num_threads(int(trainer.threads))
    # Prepare the training, and restore it if it is resumed.
    training = Training(trainer, model, parts.optimizer, parts.loss, dataset, sigmas, run.seed)
    if in_search() and run.objective in unknown_numbers(parts.loss, sigmas.tolist()):
        # Past Hydra: a sweeper would try the other jobs, too.
        raise RefusedStart from ConfigError(
            f"objective: {run.objective} is null for this loss; choose loss or score_error"
        )
    snapshots = None
    if parts.pictures.animations and dataset.dim <= 2:
        snapshots = Snapshots(trainer.snapshots, trainer.steps, dataset, sigmas, device)
    weights = list(model.parameters())  # also kept: their average and the optimizer's state
    check_size(4 * sum(weight.nbytes for weight in weights), 4 * len(weights))
    history = _restore(training, config, snapshots, stopped)
    board = TensorBoard(output_folder(), training.step) if trainer.tensorboard else None
    facts: Config = {"device": str(device), "seed": run.seed, "request": request.digest}
    facts["schedule"] = examine(
        sigmas, parts.sampler, parts.data, dataset.smallest_std, law=dataset.truth,
        num_points=dataset.num_samples, learns=not isinstance(parts.loss, Explicit),
        is_published=is_published(),
    )  # fmt: skip
    return Job(run, config, facts, device, parts, training, history, snapshots, board)


def _build_parts(config: Config, seed: int, device: torch.device) -> Parts:
    trainer: Trainer = instantiate(config, "trainer")
    dataset: Dataset = instantiate(config, "dataset")
    data = reference_data(dataset, seed)
    schedule, fitted = fit_schedule(instantiate(config, "schedule"), data)
    sigmas, loss = schedule.sigmas, instantiate(config, "loss").for_dataset(dataset)
    model = initial_model(config, data, seed).to(device)
    _try_own(model, dataset, loss, sigmas, device)
    _try_once(model, dataset, loss, float(sigmas[-1]), device)
    optimizer = instantiate(config, "optimizer", params=model.parameters())
    _try_optimizer(config, model)
    sampler: Sampler = instantiate(config, "sampler")
    instantiate(config, "init")  # ncsn-sample will take both from the checkpoint
    if instantiate_list(config, "metric"):
        raise ConfigError("metric: ncsn-train has no samples to measure; use it with ncsn-sample")
    pictures = Pictures(config)
    return Parts(trainer, dataset, data, sigmas, fitted, loss, model, optimizer, sampler, pictures)


def _resolve_auto(parts: Parts, record: Config) -> Trainer:
    """Return the trainer with values for ``auto``; ``record`` is that of a stopped run, or {}."""
    trainer, earlier = parts.trainer, record.get("config", {}).get("trainer")
    compiles = compile_setting_on_resume(trainer.compile, record, "trainer.compile")
    points = parts.loss.points(trainer.batch_size or len(parts.data), len(parts.sigmas))
    return resolve_auto(
        replace(trainer, compile=compiles), parts.model, parts.optimizer, points,
        earlier if isinstance(earlier, dict) else {},
    )  # fmt: skip


def initial_model(config: Config, data: Tensor, seed: int) -> nn.Module:
    """Return the network of ``config`` with its initial weights, adapted to ``data`` (N, D)."""
    # Layers draw their initial weights from the global stream, which is left unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random_stream(seed, "initial weights").initial_seed())
        model: nn.Module = instantiate(config, "model", dim=data.shape[-1])
    adapt_to: Callable[[Tensor], None] | None = getattr(model, "adapt_to", None)
    if adapt_to is not None:
        adapt_to(data)
    return model


def _try_once(
    model: nn.Module, dataset: Dataset, loss: Loss, sigma: float, device: torch.device
) -> None:
    """Raise if the truth or the network has no score at ``sigma``; warn of a biased gradient.

    Raise also if the loss needs the true score and only draws of the dataset are known.
    """
    x, level = torch.zeros(2, dataset.dim, device=device), torch.tensor(sigma, device=device)
    if dataset.is_known:
        dataset.score(x.cpu(), sigma)
    model(x, level)
    if not dataset.is_known:
        draws = loss.draw(x, level[None], random_stream(0, "first try", device))
        try:
            loss.given(draws, model, x, level[None], dataset.score)
        except UnknownTruthError:
            raise ConfigError(
                "loss: this loss needs the true score, and of this dataset only draws are known;"
                " choose another one, such as loss=denoising"
            ) from None
    differentiates = isinstance(loss, Implicit | Sliced)
    if differentiates and any(isinstance(module, nn.ReLU) for module in model.modules()):
        log.warning(
            "the derivative of a relu network jumps, and the gradient of this loss misses the"
            " jumps, so it is biased; choose another model.activation, such as softplus"
        )


def _try_own(
    model: nn.Module, dataset: Dataset, loss: Loss, sigmas: Tensor, device: torch.device
) -> None:
    """Raise if a model or a loss of the user's own returns something else than it should."""
    stream, levels = random_stream(0, "trial", device), sigmas[-2:].to(device, torch.float32)
    x = dataset.sample(3, generator=stream)
    for sigma in (levels[-1], levels[-1].expand(3)):
        try_own("model", model, "forward", partial(model, x, sigma), (3, dataset.dim))

    def terms() -> Tensor:
        loss.check(sigmas)
        drawn = loss.draw(x, levels, stream)
        found = loss.terms(drawn, model, x, levels, dataset.score)
        if isinstance(found, Tensor) and not found.requires_grad:
            raise ConfigError("loss: its term has no gradient by the score; was it detached?")
        return found

    try_own("loss", loss, "term", terms, (loss.points(3, len(levels)),))
    lowest = float(levels[-1])
    floor, weight = partial(loss.floor, lowest, dataset.dim, 1.0), partial(loss.weight, lowest)
    try_own("loss", loss, "floor", floor, None, may_be_none=True)
    try_own("loss", loss, "weight", weight, None, may_be_none=True)


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
    may_change = MAY_CHANGE_IN_TRAINING
    if training.trainer.lr_decay != "none":
        may_change = may_change - {"trainer.steps"}  # the learning rate of every step follows it
    check_same_request(record["config"], config, may_change, "trainer.resume", path)
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
