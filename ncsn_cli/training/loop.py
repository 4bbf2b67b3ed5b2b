"""The training loop: steps, and between them progress, evaluations, checkpoints and signals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ncsn_cli.core.errors import InterruptedRun
from ncsn_cli.core.progress import BAR, HIDDEN, Lines, tqdm
from ncsn_cli.runs.signals import collect_stop_signals, hand_to_scheduler
from ncsn_cli.training.history import Row
from ncsn_cli.training.snapshots import Snapshots
from ncsn_cli.training.state import Training
from ncsn_cli.training.trainer import Trainer

log = logging.getLogger(__name__)


def fit(  # noqa: C901, PLR0915  # one table of what happens between two steps
    training: Training,
    history: list[Row],
    snapshots: Snapshots | None,
    save: Callable[[], None],
) -> None:
    """Advance ``training`` to its last step; add to ``history`` and ``snapshots`` on the way.

    Calls ``save`` for every checkpoint, before the steps are compiled, and at the end.

    Raises:
        DivergedError: If a number is not finite.
        InterruptedRun: If a signal asked to stop; ``save`` has been called before.
    """
    trainer = training.trainer
    start = time.monotonic() - ((history[-1]["seconds"] or 0.0) if history else 0.0)
    is_out_of_time, saved = False, -1
    if snapshots is not None and len(snapshots) == 0:
        snapshots.take(training.step, training.score)
    with (
        collect_stop_signals() as requests,
        tqdm(
            total=trainer.steps, initial=training.step, desc="training", bar_format=BAR,
            disable=HIDDEN, leave=None,
        ) as progress,
    ):  # fmt: skip
        lines = Lines(trainer.steps)
        while training.step < trainer.steps and not (is_out_of_time or requests):
            # Compile the steps once the first one has been made.
            if training.is_to_compile:
                save()  # first: if a signal ends compiling, torch may be unable to save
                saved = training.step
                requests.end(training.compile)
                if training.compiling_failed and not requests:  # no signal broke it off
                    save()  # record that the steps are plain from here on
                continue
            # Advance to the next step after which something is written.
            loss = training.advance(_steps_to_next_write(training.step, trainer, snapshots))
            step, seconds = training.step, time.monotonic() - start
            is_out_of_time = trainer.max_seconds is not None and seconds > trainer.max_seconds
            progress.update(step - progress.n)
            if snapshots is not None and (is_out_of_time or step in snapshots.due):
                snapshots.take(step, training.score)
            # Add a row to the history, with the excess loss at every evaluation.
            if is_out_of_time or step == trainer.steps or step % trainer.eval_every == 0:
                excess = training.excess_loss()
                history.append(training.row(loss, excess, seconds, is_evaluated=True))
                shown = f"loss {loss:.4f}"
                if excess is not None:
                    shown += f", excess loss {excess:.2e}"
                progress.set_postfix_str(shown)
                if progress.disable and (lines.are_due(step, share=0.1) or step == trainer.steps):
                    log.info("step %d/%d: %s", step, trainer.steps, shown)
            elif step == 1 or step % trainer.log_every == 0:
                history.append(training.row(loss, None, seconds))
                if progress.disable and lines.are_due(step):
                    log.info("step %d/%d: loss %.4f", step, trainer.steps, loss)
            if step % trainer.checkpoint_every == 0:
                save()
                saved = step
        if saved != training.step:
            save()
    if requests:
        hand_to_scheduler(requests[0])
        message = f"stopped at step {training.step} of {trainer.steps} and saved"
        raise InterruptedRun(message, requests[0])
    if is_out_of_time:
        log.info("stopped at step %d: trainer.max_seconds has passed", training.step)


def _steps_to_next_write(step: int, trainer: Trainer, snapshots: Snapshots | None) -> int:
    """Return how many steps lie between ``step`` and the next after which something is written."""
    every = [trainer.log_every, trainer.eval_every, trainer.checkpoint_every]
    stops = [1, trainer.steps, *(step - step % n + n for n in every)]
    if snapshots is not None:
        stops += snapshots.due
    return min(stop for stop in stops if stop > step) - step
