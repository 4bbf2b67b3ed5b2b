"""The settings of a training, and the rules for ``auto``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import nn
from torch.optim import Optimizer

from ncsn_cli.core.compiling import resolve_compile
from ncsn_cli.core.settings import STRICT, Count


@dataclass(frozen=True, config=STRICT)
class Trainer:
    """The settings of a training.

    Args:
        steps: Total number of optimizer steps.
        max_seconds: Stop after this many seconds of training; null: no limit.
        batch_size: Points per step; null, or the training set's size or more: all points.
        lr_decay: ``none``, or ``cosine`` from the optimizer's lr to 0 over ``steps``.
        grad_clip: Largest norm of the gradient; null: no limit.
        ema_decay: Exponential moving average of the weights (Technique 5 of Song & Ermon 2020,
            arXiv:2006.09011), with decay min(ema_decay, (1 + n)/(10 + n)) at step n; null: none.
        log_every: Steps between rows of ``history.csv``.
        eval_every: Steps between evaluations of the excess loss; a multiple of ``log_every``
            works best, because each evaluation is written with a row.
        checkpoint_every: Steps between checkpoints; the last step always has one.
        keep_last: Number of checkpoints kept.
        snapshots: States of the score kept for animations, after the first state; denser towards
            the beginning of ``steps``. None are kept unless an animation is chosen.
        tensorboard: Whether to write the history and the pictures for TensorBoard, too. The
            history is written with each checkpoint.
        threads: Threads of each torch operation; results are reproducible for a fixed number.
            ``auto``: one, so that jobs side by side do not wait for each other.
        compile: Whether steps are compiled, many in one call. Compiling takes
            10 seconds or more, once for all runs of the same sizes; the steps are faster
            afterwards. ``auto``: where this pays. The recorded value
            is false if compiling failed.
        resume: Folder or checkpoint of the run to resume; null: start afresh. On the command line
            ``latest`` is the newest run that was stopped. With ``auto`` the same command starts,
            resumes and finds finished the run in its own folder, which ``hydra.run.dir`` names;
            without ``hydra.run.dir`` it starts. Folders of these names are ``./latest`` and
            ``./auto``.
    """

    steps: Count = 2000
    max_seconds: PositiveFloat | None = None
    batch_size: Count | None = 128
    lr_decay: Literal["none", "cosine"] = "cosine"
    grad_clip: PositiveFloat | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    log_every: Count = 50
    eval_every: Count = 100
    checkpoint_every: Count = 1000
    keep_last: Count = 3
    snapshots: Annotated[int, Field(gt=0, le=10**4)] = 60
    tensorboard: bool = False
    threads: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    resume: str | None = None


# Seconds that compiling saves. Plain steps have become faster since, by up to .05 ms; the rule
# stays, so that it chooses for the same run what it chose before.
_SAVED_A_STEP, _SAVED_A_PRODUCT = 3.5e-4, 1.6e-11
_SECONDS_TO_COMPILE = 15.0  # at most; half of ``max_seconds`` should be left for steps


def resolve_auto(
    trainer: Trainer,
    model: nn.Module,
    optimizer: Optimizer,
    points: int,
    earlier: dict[str, Any],
) -> Trainer:
    """Return the trainer with values for ``auto``, from an ``earlier`` part of the run or by rule.

    Threads and compiling change the last bits of results, so the rules depend on sizes alone, not
    on the machine. One thread is used: a second one makes steps of a deep network up to 1.8 times
    as fast, but two runs side by side with two threads each take longer than one after the other.
    Steps of Adam and AdamW are compiled where all ``steps`` together save more than 5 seconds.
    Compiling takes about 10 seconds, but only once for all runs of the same sizes. With P
    ``points`` per step and N weights, a step saves .35 ms, and .016 ns more for each of the P N
    products. These numbers were measured by benchmarks/steps.py (docs/results/performance.md).

    Raises:
        ConfigError: If ``compile`` is true and the optimizer's steps cannot be compiled.
    """
    products = points * sum(weight.numel() for weight in model.parameters())
    threads = trainer.threads
    if threads == "auto":
        before = earlier.get("threads")
        threads = before if isinstance(before, int) else 1
    obstacle = None
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        obstacle = "trainer.compile: true needs optimizer=adam or adamw; set auto or false"
    saved = trainer.steps * (_SAVED_A_STEP + _SAVED_A_PRODUCT * products)
    is_short = (trainer.max_seconds or math.inf) / 2 <= _SECONDS_TO_COMPILE
    compiled = resolve_compile(
        trainer.compile, earlier.get("compile"), obstacle, 0.0 if is_short else saved
    )
    return replace(trainer, threads=threads, compile=compiled)
