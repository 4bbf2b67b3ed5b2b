"""Running chains, several tiles of them at a time: progress, paths, and counts of the modes.

All tiles have the same number of chains, so the last tile may have more than are asked for. Each
tile has its own stream of random numbers. So a chain depends only on the seed and on its position,
not on the number of other chains, nor on the number of processes that share the tiles. (Its last
bits also depend on whether its steps are compiled.) Memory holds what is returned, and one tile
per process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.core.compiling import compile_or_stay_plain
from ncsn_cli.core.errors import BadCheckpointError, InterruptedRun
from ncsn_cli.core.progress import BAR, HIDDEN, Lines, tqdm
from ncsn_cli.metrics import count_commitment
from ncsn_cli.runs.signals import collect_stop_signals, hand_to_scheduler
from ncsn_cli.runs.workers import run_in_processes
from ncsn_cli.sampling.chains import Chains
from ncsn_cli.sampling.compiled_langevin import CompiledLangevin
from ncsn_cli.sampling.recording import Recording
from ncsn_cli.sampling.tile import Finished, ResumePoint, Running, Setup, run_tile

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 60.0

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""All that resuming needs: tensors, and a JSON record.

A running tile is saved as it was at the start of its level.
"""


class Sampling:
    """Chains to run, and their results so far.

    Args:
        setup: The sampler, its score and its start.
        num: Number of chains; each gives one sample.
        num_paths: Number of chains whose path is kept: the first ones.
        keep_by_level: Whether to keep all chains at the end of some levels.
        workers: Max number of tiles that run at a time, each in its own process; 1 on a GPU.
        compile: Whether Langevin steps are compiled (``CompiledLangevin``).
        name: What the progress bar calls these chains.
    """

    def __init__(
        self,
        setup: Setup,
        num: int,
        *,
        num_paths: int,
        keep_by_level: bool,
        workers: int = 1,
        compile: bool = False,
        name: str = "sampling",
    ) -> None:
        self.is_to_compile = compile
        """Whether ``run`` still has to compile the Langevin steps."""
        self.compiling_failed = False
        """Whether steps are plain because compiling failed, in this process or before resuming."""
        self._setup, self._workers, self._name = setup, workers, name
        self._recording = Recording(
            setup.sampler,
            setup.plan,
            setup.truth.dim,
            num,
            setup.tile_size,
            num_paths,
            keep_by_level,
        )
        nobody = torch.zeros(len(setup.plan), 0, dtype=torch.long)
        self._counts = count_commitment(nobody, len(setup.truth.modes))
        self._evaluations = 0
        self._has_earlier_steps = False

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
        missing = (~self._recording.tensors["finished"]).nonzero()[:, 0].tolist()
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
        return self._recording.chains(self._counts, self._evaluations)

    @torch.no_grad()
    def compile(self) -> None:
        """Compile the Langevin steps if possible; otherwise say so in the log."""
        self.is_to_compile = False
        setup = self._setup
        x = torch.zeros(setup.truth.dim, setup.tile_size, device=setup.device).mT
        compiled = compile_or_stay_plain(
            lambda: CompiledLangevin(setup.score, x), "compile", self._has_earlier_steps
        )
        if compiled is None:
            self.compiling_failed = True
        else:
            self._setup = replace(setup, score=compiled)

    def finished(self) -> Saved:
        """Return the saved state of the finished run, from which ``run`` returns its chains."""
        return self._to_save({})

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
        setup, recording = self._setup, self._recording
        tiles = [run_tile(setup, recording, n, resume_points.get(n)) for n in numbers]
        running: dict[int, Running] = {}
        last_save, lines = time.monotonic(), Lines(recording.last)
        with (
            tqdm(
                total=recording.last,
                initial=self._step(running, resume_points),
                desc=self._name,
                bar_format=BAR,
                disable=HIDDEN,
                leave=None,
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
                self._show(bar, lines, running, resume_points)
                if requests:
                    break
                if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                    save(self._to_save(resume_points))
                    last_save = time.monotonic()
        if requests:
            save(self._to_save(resume_points))

    def _add(self, number: int, finished: Finished) -> None:
        """Add a finished tile to the results of the run."""
        self._recording.tensors["finished"][number] = True
        for name, count in finished.counts.items():
            self._counts[name] = self._counts[name] + torch.from_numpy(count)
        self._evaluations = max(self._evaluations, finished.evaluations)

    def _to_save(self, resume_points: dict[int, ResumePoint]) -> Saved:
        """Return all that resuming needs: the results so far, and the ``resume_points``.

        A resumed tile writes its results again from the level at which it resumes.
        """
        # Copies, because the processes that run tiles continue to write.
        results = self._recording.tensors | self._counts
        tensors = {name: tensor.clone() for name, tensor in results.items()}
        places = []
        for number, at in sorted(resume_points.items()):
            kept: dict[str, Any] = {f"memory.{i}": array for i, array in enumerate(at.memory)}
            kept |= {"x": at.x, "generator": at.generator, "labels": at.labels}
            tensors |= {f"{number}.{name}": torch.from_numpy(a) for name, a in kept.items()}
            places.append([number, at.step, at.level, at.evaluations, len(at.memory)])
        return tensors, {
            "tiles": places,
            "evaluations": self._evaluations,
            **({"compiling_failed": True} if self.compiling_failed else {}),
        }

    def _restore(self, saved: Saved) -> dict[int, ResumePoint]:
        """Restore the results from ``saved``; return the unfinished tiles, by number.

        Raises:
            BadCheckpointError: If ``saved`` is not the state of chains like these.
        """
        tensors, record = saved
        places, outputs, setup = record.get("tiles"), self._recording.tensors, self._setup
        if (
            not all(_fits(tensors, name, like) for name, like in (outputs | self._counts).items())
            or not _are_counts([record.get("evaluations")])
            or not isinstance(places, list)
            or not all(_are_counts(place) and len(place) in (4, 5) for place in places)
            or len({number for number, *_ in places}) < len(places)
            or _beyond(tensors["settled"], len(setup.plan))
        ):
            raise _other_chains()
        resume_points = {
            number: self._resume_point(number, place, tensors) for number, *place in places
        }
        for name, tensor in outputs.items():
            tensor.copy_(tensors[name])
        self._counts = {name: tensors[name] for name in self._counts}
        self._evaluations = record["evaluations"]
        self.compiling_failed = record.get("compiling_failed") is True
        is_far = any(at.step > 0 for at in resume_points.values())
        self._has_earlier_steps = is_far or bool(outputs["finished"].any())
        return resume_points

    def _resume_point(
        self, number: int, place: list[int], tensors: dict[str, Tensor]
    ) -> ResumePoint:
        """Return where the tile ``number`` resumes.

        ``place`` holds its step, level and evaluations, and the number of tensors in its memory.
        Version 0.1 has written the first three.

        Raises:
            BadCheckpointError: If it is not a place of chains like these.
        """
        setup, recording = self._setup, self._recording
        step, level, evaluations, num_memory = [*place, 0][:4]
        stream = torch.Generator(setup.device)
        x = torch.empty(setup.tile_size, setup.truth.dim)
        labels = torch.empty(recording.num_ended(step), setup.tile_size, dtype=torch.int16)
        expected = {"x": x, "generator": stream.get_state(), "labels": labels}
        memory = [f"memory.{i}" for i in range(min(num_memory, len(tensors)))]
        expected |= dict(zip(memory, repeat(x), strict=False))
        if (
            number >= recording.num_tiles
            or bool(tensors["finished"][number])
            or recording.level_starting_at(step) != level
            or not all(_fits(tensors, f"{number}.{k}", like) for k, like in expected.items())
            or _beyond(tensors[f"{number}.labels"], len(setup.truth.modes))
        ):
            raise _other_chains()
        try:
            stream.set_state(tensors[f"{number}.generator"])
        except RuntimeError:
            raise _other_chains() from None
        arrays = {name: tensors[f"{number}.{name}"].numpy() for name in expected}
        return ResumePoint(
            step, level, evaluations, arrays["x"], tuple(arrays[name] for name in memory),
            arrays["generator"], arrays["labels"],
        )  # fmt: skip

    def _where(self, resume_points: dict[int, ResumePoint]) -> str:
        """Return in words where the first of the tiles in ``resume_points`` was stopped."""
        if bool(self._recording.tensors["finished"].all()):
            return "after the last step"
        if not resume_points:
            return "between tiles"
        number, at = min(resume_points.items(), key=lambda item: item[0])
        where = f"at level {at.level + 1} of {len(self._setup.plan)}"
        num_tiles = self._recording.num_tiles
        return where if num_tiles == 1 else f"{where}, tile {number + 1} of {num_tiles}"

    def _show(
        self,
        bar: tqdm[Any],
        lines: Lines,
        running: dict[int, Running],
        resume_points: dict[int, ResumePoint],
    ) -> None:
        """Update the progress bar or, where it is hidden, now and then add a line to the log.

        The level is that of the first unfinished tile, as in ``_where``.
        """
        step = self._step(running, resume_points)
        if running:
            number = min(running)
            has_ended = step == self._recording.last
            shown = self._numbers(None if has_ended else number, running[number])
            bar.set_postfix_str(shown, refresh=False)
            if bar.disable and lines.are_due(step):
                log.info("%s: step %d/%d, %s", self._name, step, self._recording.last, shown)
        bar.update(step - bar.n)

    def _step(self, running: dict[int, Running], resume_points: dict[int, ResumePoint]) -> int:
        """Return the number of steps made so far, as a mean over all tiles, rounded down."""
        recording = self._recording
        steps = int(recording.tensors["finished"].sum()) * recording.last
        places = {number: at.step for number, at in resume_points.items()}
        places |= {number: tile.step for number, tile in running.items()}
        return (steps + sum(places.values())) // recording.num_tiles

    def _numbers(self, number: int | None, tile: Running) -> str:
        """Return what the progress bar shows of ``tile``; None for ``number`` leaves that out.

        It has to fit 80 columns, so an acceptance takes the place of sigma.
        """
        plan, num_tiles = self._setup.plan, self._recording.num_tiles
        place = "" if number is None or num_tiles == 1 else f"tile {number + 1}/{num_tiles}, "
        last = f"sigma {plan[tile.level].sigma:.3g}"
        if tile.acceptance is not None:
            last = f"accepted {tile.acceptance:.2f}"
        return f"{place}level {tile.level + 1}/{len(plan)}, {last}"


def _other_chains() -> BadCheckpointError:
    return BadCheckpointError("resume: the stopped chains do not match those asked for")


def _fits(tensors: dict[str, Tensor], name: str, like: Tensor) -> bool:
    """Return whether ``tensors`` has a tensor ``name`` of the shape and type of ``like``."""
    found = tensors.get(name)
    return found is not None and found.shape == like.shape and found.dtype == like.dtype


def _are_counts(numbers: object) -> bool:
    """Return whether ``numbers`` is a list of integers >= 0."""
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _beyond(indices: Tensor, num: int) -> bool:
    """Return whether some of ``indices`` lie outside 0, ..., num - 1."""
    return bool(((indices < 0) | (indices >= num)).any())
