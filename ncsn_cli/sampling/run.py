"""Running chains, several tiles of them at a time: progress, paths, and counts of the modes.

All tiles have the same number of chains, so the last tile may have more than are asked for. Each
tile has its own stream of random numbers. So a chain depends only on the seed and on its position,
not on the number of other chains, nor on the number of processes that share the tiles. (Its last
bits also depend on whether its steps are compiled.) Memory holds what is returned, and one tile
per process.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import BadCheckpointError, DivergedError, InterruptedRun, one_line
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.metrics import count_commitment, mode_commitment, settled_from
from ncsn_cli.runs.signals import collect_stop_signals, hand_to_scheduler
from ncsn_cli.samplers import LogProb, Sampler, State
from ncsn_cli.sampling.chains import Chains
from ncsn_cli.sampling.compiled_langevin import CompiledLangevin
from ncsn_cli.sampling.tile import Counted, Finished, ResumePoint, Running
from ncsn_cli.sampling.workers import run_in_processes, shared_zeros

log = logging.getLogger(__name__)

TILE = {"cpu": 1280, "cuda": 65_536, "mps": 65_536}
"""Chains in a tile, by type of device."""

_FRAMES = 200  # max states of a kept path
_KEPT_LEVELS = 20  # max levels at whose end all chains are kept
_BLOCK = 16  # max steps between checks that the chains are finite
_SECONDS_BETWEEN_NEWS = 0.1  # from a running tile
_SECONDS_BETWEEN_SAVES = 60.0

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""All that resuming needs: tensors, and a JSON record.

A running tile is saved as it was at the start of its level, or of the first level if the sampler
``remembers``.
"""


class Sampling:
    """Chains to run, and their results so far.

    Args:
        sampler: The sampler.
        score: The score that it follows.
        log_prob: The log-density, for a sampler that ``needs_log_prob``.
        init: ``init(num, generator)`` draws initial points (num, D).
        num: Number of chains; each gives one sample.
        sigmas: Noise levels (L,), descending.
        truth: The distribution whose modes are counted.
        num_paths: Number of chains whose path is kept: the first ones.
        keep_by_level: Whether to keep all chains at the end of some levels.
        seed: Seed of all chains.
        device: Where the chains run.
        workers: Max number of tiles that run at a time, each in its own process; 1 on a GPU.
        compile: Whether Langevin steps are compiled (``CompiledLangevin``).
    """

    def __init__(
        self,
        sampler: Sampler,
        score: Score,
        log_prob: LogProb | None,
        init: Callable[[int, torch.Generator], Tensor],
        num: int,
        sigmas: Tensor,
        truth: Dataset,
        *,
        num_paths: int,
        keep_by_level: bool,
        seed: int,
        device: torch.device,
        workers: int = 1,
        compile: bool = False,
    ) -> None:
        self.is_to_compile = compile
        """Whether ``run`` still has to compile the Langevin steps."""
        self._sampler, self._score, self._log_prob, self._init = sampler, score, log_prob, init
        self._num, self._sigmas, self._truth = num, sigmas, truth
        self._seed, self._device, self._tile = seed, device, TILE[device.type]
        self._num_tiles, self._workers = -(-num // self._tile), workers
        self._plan = sampler.levels(sigmas)
        levels = [0, *sampler.levels_of_states(sigmas)]  # levels by step, from the start
        self._last = len(levels) - 1
        self._ends = {level: step for step, level in enumerate(levels)}
        starts = {end + sampler.descends: level + 1 for level, end in self._ends.items()}
        if sampler.remembers:
            starts = {}
        self._level_ends = [*self._ends.values()]
        self._resume_steps = {0: 0, **{step: i for step, i in starts.items() if step < self._last}}
        frames = [*range(0, self._last, -(-self._last // _FRAMES)), self._last]
        self._frames = {step: frame for frame, step in enumerate(frames)}
        self._recorded_steps = sorted({*self._resume_steps, *self._frames, *self._ends.values()})
        self._frame_sigmas = [self._plan[levels[step]].sigma for step in frames]
        num_kept = min(len(self._plan), _KEPT_LEVELS) if keep_by_level else 0
        kept = np.linspace(0, len(self._plan) - 1, num_kept).round().astype(int).tolist()
        self._kept_levels = {level: i for i, level in enumerate(kept)}
        self._outputs = {
            "samples": shared_zeros(num, truth.dim),
            "init": shared_zeros(num, truth.dim),
            "settled": shared_zeros(num, dtype=torch.int32),
            "by_level": shared_zeros(num_kept, num, truth.dim),
            "paths": shared_zeros(len(frames), min(num_paths, num), truth.dim),
            "accepted": shared_zeros(
                self._num_tiles * sampler.needs_log_prob, len(self._plan), dtype=torch.float64
            ),  # one row per tile: a float sum depends on the order in which tiles finish
            "finished": shared_zeros(self._num_tiles, dtype=torch.bool),
        }
        nobody = torch.zeros(len(self._plan), 0, dtype=torch.long)
        self._counts = count_commitment(nobody, len(truth.modes))
        self._evaluations = 0
        self._has_steps_of_before = False
        self.compiling_failed = False
        """Whether steps are plain because compiling failed, in this process or before resuming."""

    def run(
        self, save: Callable[[Saved], None] = lambda saved: None, saved: Saved | None = None
    ) -> Chains:
        """Run the chains down the levels with a progress bar; resume from ``saved`` if given.

        ``save`` is called with the state of the run once a minute, before the steps are compiled,
        and when a signal asks to stop.

        Raises:
            DivergedError: If a chain is not finite.
            InterruptedRun: If a signal asked to stop; ``save`` has been called before.
        """
        resume_points = {} if saved is None else self._restore(saved)
        missing = (~self._outputs["finished"]).nonzero()[:, 0].tolist()
        with collect_stop_signals() as requests:
            if self.is_to_compile and missing:
                # Save first: if a signal ends compiling, torch may be unable to save.
                save(self._to_save(resume_points))
                requests.end(self.compile)
                if self.compiling_failed and not requests:  # no signal broke it off
                    # Record that the steps are plain from here on.
                    save(self._to_save(resume_points))
            if not requests:
                self._run_tiles(missing, resume_points, save, requests)
        if requests:
            hand_to_scheduler(requests[0])
            raise InterruptedRun(f"stopped {self._where(resume_points)} and saved", requests[0])
        return self._chains()

    @torch.no_grad()
    def compile(self) -> None:
        """Compile the Langevin steps if possible; otherwise say so in the log."""
        self.is_to_compile = False
        start = time.monotonic()
        log.info("compile: compiling the Langevin steps")
        x = torch.zeros(self._truth.dim, self._tile, device=self._device).mT
        try:
            self._score = CompiledLangevin(self._score, x)
        except Exception as error:  # torch raises many kinds, and plain steps always work
            self.compiling_failed = True
            what = "the steps stay plain"
            if self._has_steps_of_before:
                what = (
                    "the steps are plain from here on; those before were compiled, so the last"
                    " bits of these samples will differ from those of an undisturbed run"
                )
            log.warning("compile: %s; %s", one_line(str(error)), what)
        else:
            log.info("compile: %.1f s", time.monotonic() - start)

    def _run_tiles(
        self,
        numbers: list[int],
        resume_points: dict[int, ResumePoint],
        save: Callable[[Saved], None],
        requests: list[int],
    ) -> None:
        """Run the tiles with these ``numbers``; save once a minute, and on a request to stop.

        Updates ``resume_points``: where each unfinished tile would resume.
        """
        tiles = [self._run_tile(number, resume_points.get(number)) for number in numbers]
        running: dict[int, Running] = {}
        last_save = time.monotonic()
        with (
            tqdm(
                total=self._num_tiles * self._last, desc="sampling", unit="step", disable=None
            ) as bar,
            closing(run_in_processes(tiles, self._workers)) as all_news,
        ):
            for news in all_news:
                for i, message in news:
                    number = numbers[i]
                    if isinstance(message, Running):
                        running[number], resume_points[number] = message, message.resume_point
                    else:
                        running.pop(number, None)
                        resume_points.pop(number, None)
                        self._add(number, message)
                self._show(bar, running)
                if requests:
                    break
                if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                    save(self._to_save(resume_points))
                    last_save = time.monotonic()
        if requests:
            save(self._to_save(resume_points))

    def _restore(self, saved: Saved) -> dict[int, ResumePoint]:
        """Restore the results from ``saved``; return the unfinished tiles, by number.

        Raises:
            BadCheckpointError: If ``saved`` is not the state of chains like these.
        """
        tensors, record = saved
        places, evaluations = record.get("tiles"), record.get("evaluations")
        refusal = BadCheckpointError("resume: the stopped chains do not match those asked for")

        def has(name: str, like: Tensor, *shape: int) -> bool:
            return (
                name in tensors
                and tensors[name].shape == (shape or like.shape)
                and (tensors[name].dtype == like.dtype or like.numel() == 0)
            )

        if (
            not all(has(name, like) for name, like in (self._outputs | self._counts).items())
            or not _is_place([evaluations])
            or not isinstance(places, list)
            or not all(_is_place(place) and len(place) == 4 for place in places)
            or len({number for number, *_ in places}) < len(places)
            or _beyond(tensors["settled"], len(self._plan))
        ):
            raise refusal
        resume_points = {}
        stream = torch.Generator(self._device)
        for number, step, level, evaluated in places:
            x, state, labels = (f"{number}.{name}" for name in ("x", "generator", "labels"))
            ended = bisect_right(self._level_ends, step)
            if (
                number >= self._num_tiles
                or bool(tensors["finished"][number])
                or self._resume_steps.get(step) != level
                or not has(x, torch.empty(self._tile, self._truth.dim))
                or not has(state, stream.get_state())
                or not has(labels, torch.empty(ended, self._tile, dtype=torch.int16))
                or _beyond(tensors[labels], len(self._truth.modes))
            ):
                raise refusal
            try:
                stream.set_state(tensors[state])
            except RuntimeError:
                raise refusal from None
            resume_points[number] = ResumePoint(
                step, level, evaluated, *(tensors[name].numpy() for name in (x, state, labels))
            )
        for name, tensor in self._outputs.items():
            tensor.copy_(tensors[name])
        self._counts = {name: tensors[name] for name in self._counts}
        self._evaluations = record["evaluations"]
        self.compiling_failed = record.get("compiling_failed") is True
        is_far = any(at.step > 0 for at in resume_points.values())
        self._has_steps_of_before = is_far or bool(self._outputs["finished"].any())
        return resume_points

    def finished(self) -> Saved:
        """Return the saved state of the finished run, from which ``run`` returns its chains."""
        return self._to_save({})

    def _to_save(self, resume_points: dict[int, ResumePoint]) -> Saved:
        """Return all that resuming needs: the results so far, and the ``resume_points``.

        A resumed tile writes its results again from the level at which it resumes.
        """
        # Copies, because the processes that run tiles continue to write.
        tensors = {name: tensor.clone() for name, tensor in (self._outputs | self._counts).items()}
        places = []
        for number, at in sorted(resume_points.items()):
            tensors[f"{number}.x"] = torch.from_numpy(at.x)
            tensors[f"{number}.generator"] = torch.from_numpy(at.generator)
            tensors[f"{number}.labels"] = torch.from_numpy(at.labels)
            places.append([number, at.step, at.level, at.evaluations])
        return tensors, {
            "tiles": places,
            "evaluations": self._evaluations,
            **({"compiling_failed": True} if self.compiling_failed else {}),
        }

    @torch.no_grad()
    def _run_tile(
        self, number: int, resume_point: ResumePoint | None
    ) -> Iterator[Running | Finished]:
        """Run a tile, from ``resume_point`` if given; yield its progress, finally its counts."""
        sampler, outputs = self._sampler, self._outputs
        rows = slice(number * self._tile, min((number + 1) * self._tile, self._num))
        num = rows.stop - rows.start
        paths = slice(rows.start, max(rows.start, min(rows.stop, outputs["paths"].shape[1])))
        stream = random_stream(self._seed, f"chains {number}", self._device)
        labels = torch.zeros(len(self._plan), self._tile, dtype=torch.int16)

        def look(step: int, level: int, x: Tensor) -> None:
            if step in self._frames:
                path = x[: paths.stop - paths.start].cpu()
                outputs["paths"][self._frames[step], paths] = path
            if step == self._ends[level]:
                labels[level] = self._truth.nearest_mode(x)
                if level in self._kept_levels:
                    outputs["by_level"][self._kept_levels[level], rows] = x[:num].cpu()

        def begin(step: int, x: Tensor) -> ResumePoint:
            return ResumePoint(
                step, self._resume_steps[step], score.evaluations, x.cpu().numpy(),
                stream.get_state().numpy(),
                labels[: bisect_right(self._level_ends, step)].numpy(),
            )  # fmt: skip

        if resume_point is None:
            score, step, level, x = Counted(self._score, 0), 0, 0, self._init(self._tile, stream)
            outputs["init"][rows] = x[:num].cpu()
            look(0, 0, x)
            resume_point = begin(0, x)
        else:
            step, level, x = (
                resume_point.step,
                resume_point.level,
                torch.from_numpy(resume_point.x).to(self._device),
            )
            score = Counted(self._score, resume_point.evaluations)
            stream.set_state(torch.from_numpy(resume_point.generator))
            labels[: len(resume_point.labels)] = torch.from_numpy(resume_point.labels)
        # Empty for samplers without an acceptance test.
        accepted = outputs["accepted"][number : number + 1]
        accepted[:, level:] = 0
        chain = sampler.chain(
            score, x, self._sigmas, generator=stream, log_prob=self._log_prob, first=level
        )
        last_news = time.monotonic()
        while step < self._last:
            next_look = self._recorded_steps[bisect_right(self._recorded_steps, step)]
            block = list(islice(chain, min(next_look - step, _BLOCK)))
            _refuse_non_finite(block, step)
            for state in block:
                if state.acceptance is not None:
                    accepted[:, state.level] += state.acceptance
            step, x = step + len(block), state.x
            look(step, state.level, x)
            if step in self._resume_steps:
                resume_point = begin(step, x)
            if time.monotonic() - last_news > _SECONDS_BETWEEN_NEWS:
                yield Running(resume_point, step, state.level, state.acceptance)
                last_news = time.monotonic()
        modes = labels[:, :num]  # (V, num)
        outputs["samples"][rows] = x[:num].cpu()
        outputs["settled"][rows] = settled_from(modes)
        counts = count_commitment(modes, len(self._truth.modes))
        yield Finished({name: count.numpy() for name, count in counts.items()}, score.evaluations)

    def _add(self, number: int, finished: Finished) -> None:
        """Add a finished tile to the results of the run."""
        self._outputs["finished"][number] = True
        for name, count in finished.counts.items():
            self._counts[name] = self._counts[name] + torch.from_numpy(count)
        self._evaluations = max(self._evaluations, finished.evaluations)

    def _where(self, resume_points: dict[int, ResumePoint]) -> str:
        """Return in words where the first of the tiles in ``resume_points`` was stopped."""
        if bool(self._outputs["finished"].all()):
            return "after the last step"
        if not resume_points:
            return "between tiles"
        number, at = min(resume_points.items())
        where = f"at level {at.level + 1} of {len(self._plan)}"
        return (
            where if self._num_tiles == 1 else f"{where}, tile {number + 1} of {self._num_tiles}"
        )

    def _show(self, bar: tqdm[Any], running: dict[int, Running]) -> None:
        """Update the progress bar."""
        steps = int(self._outputs["finished"].sum()) * self._last
        for tile in running.values():
            steps += tile.step
            bar.set_postfix(self._numbers(tile.level, tile.acceptance), refresh=False)
        bar.update(steps - bar.n)

    def _numbers(self, level: int, acceptance: float | None) -> dict[str, str]:
        """Return what the progress bar shows beside the steps, by name."""
        sigma, tau, _ = self._plan[level]
        numbers = {"level": f"{level + 1}/{len(self._plan)}", "sigma": f"{sigma:.3g}"}
        if tau > 0 and sigma > 0:
            numbers["eta"] = f"{tau / sigma**2:.3g}"
        if acceptance is not None:
            numbers["accepted"] = f"{acceptance:.2f}"
        return numbers

    def _chains(self) -> Chains:
        outputs, sigmas = self._outputs, [level.sigma for level in self._plan]
        by_level = {
            sigmas[level]: outputs["by_level"][i] for level, i in self._kept_levels.items()
        }
        steps = torch.tensor([level.steps for level in self._plan])
        acceptance = outputs["accepted"].sum(0) / (steps * self._num_tiles)
        return Chains(
            samples=outputs["samples"],
            init=outputs["init"],
            paths=outputs["paths"].numpy() if outputs["paths"].shape[1] else None,
            path_steps=np.array(list(self._frames)),
            path_sigmas=np.array(self._frame_sigmas),
            settled_sigma=np.array(sigmas)[outputs["settled"].numpy()],
            by_level=by_level,
            score_evaluations=self._evaluations,
            acceptance=acceptance.tolist() if self._sampler.needs_log_prob else [],
            mode_commitment={"sigmas": sigmas, **mode_commitment(self._counts)},
        )


def _refuse_non_finite(block: list[State], step: int) -> None:
    """Check that the states after ``step`` are finite.

    Checks the last state first, because a point that is not finite stays so.

    Raises:
        DivergedError: If a chain is not finite; the error names the first such state.
    """
    # The sum is cheaper to check. It is finite for finite points, unless they are beyond 1e34.
    if math.isfinite(float(block[-1].x.sum())):
        return
    for number, state in enumerate(block, start=step + 1):
        if not bool(torch.isfinite(state.x).all()):
            raise DivergedError(
                f"a sample is not finite at step {number}, level {state.level + 1} (sigma ="
                f" {state.sigma:g}); take smaller steps"
            )


def _is_place(numbers: object) -> bool:
    """Return whether ``numbers`` is a list of integers >= 0, like the place of a tile."""
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _beyond(indices: Tensor, num: int) -> bool:
    """Return whether some of ``indices`` lie outside 0, ..., num - 1."""
    return bool(((indices < 0) | (indices >= num)).any())
