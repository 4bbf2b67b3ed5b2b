"""Running chains, a tile of them at a time: progress, paths, and what becomes of the modes.

Each tile has the same number of chains, the last one more than are asked for, and a stream of
random numbers of its own. So a chain depends on the seed and its place alone, not on how many
others there are, and memory holds what is returned and one tile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.errors import BadCheckpointError, DivergedError, InterruptedRun
from ncsn_cli.metrics import count_commitment, mode_commitment, nearest_mode, settled_from
from ncsn_cli.runs import hand_to_scheduler, signals_as_requests
from ncsn_cli.samplers import LogProb, Sampler
from ncsn_cli.scores import Dataset, Score, random_stream

TILE = {"cpu": 1024, "cuda": 65_536, "mps": 65_536}
"""Chains in a tile, by type of device."""

_FRAMES = 200  # at most so many states of a kept chain
_KEPT_LEVELS = 20  # at most so many at whose end all chains are kept
_SECONDS_BETWEEN_SAVES = 60.0

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""Chains stopped at the beginning of a level: tensors, and numbers for JSON."""


@dataclass(frozen=True)
class Chains:
    """What finished chains leave, on the CPU.

    Args:
        samples: Their last state (N, D).
        init: Their first (N, D).
        paths: Some chains over time (frames, chains, D); None where none are kept.
        path_steps: The step of each frame (frames,).
        path_sigmas: The level of each frame (frames,).
        settled_sigma: The level from which each chain keeps its mode (N,), the first if it never
            changes.
        by_level: All chains (N, D) when they leave a level, by its sigma, for at most 20 levels
            evenly spread; empty unless asked for. The last are the samples, denoised if the
            sampler denoises.
        score_evaluations: Evaluations of the score, each of all chains.
        acceptance: Mean share of accepted proposals at each level, in whole tiles; empty where
            none are refused.
        mode_commitment: See ``metrics.mode_commitment``, with the ``sigmas`` of its levels.
    """

    samples: Tensor
    init: Tensor
    paths: NDArray[np.float32] | None
    path_steps: NDArray[np.int64]
    path_sigmas: NDArray[np.float64]
    settled_sigma: NDArray[np.float64]
    by_level: dict[float, Tensor]
    score_evaluations: int
    acceptance: list[float]
    mode_commitment: dict[str, Any]


class _Begun(NamedTuple):
    """A tile that has come to the beginning of a level.

    Args:
        step: States of its chains before.
        level: Row of ``Sampler.levels``.
        x: The chains (B, D).
        generator: State of their stream of random numbers.
        labels: The mode of each chain at the end of the levels before, (B,) each.
        accepted: Sum over the steps of the share of accepted proposals, by level.
        evaluations: Evaluations of the score before.
    """

    step: int
    level: int
    x: Tensor
    generator: Tensor
    labels: list[Tensor]
    accepted: Tensor
    evaluations: int

    def to_save(self, tile: int, left: dict[str, Tensor]) -> Saved:
        """Together with what chains have ``left`` so far, all that is needed to go on."""
        labels = torch.stack(self.labels) if self.labels else torch.zeros(0, len(self.x))
        tensors = {"x": self.x, "generator": self.generator, "labels": labels}
        tensors |= {"accepted_in_tile": self.accepted}
        numbers = {"step": self.step, "level": self.level, "evaluations": self.evaluations}
        return left | tensors, {"tile": tile, **numbers}

    @staticmethod
    def of(saved: Saved) -> _Begun:
        """What ``to_save`` returned."""
        tensors, record = saved
        return _Begun(
            record["step"], record["level"], tensors["x"], tensors["generator"],
            list(tensors["labels"]), tensors["accepted_in_tile"], record["evaluations"],
        )  # fmt: skip


class Sampling:
    """Chains to be run, and what they have left so far.

    Args:
        sampler: The sampler.
        score: The score that it follows.
        log_prob: For a sampler that ``needs_log_prob``.
        init: ``init(num, generator)`` draws initial points (num, D).
        num: Chains, one sample each.
        sigmas: Noise levels (L,), descending.
        truth: The distribution that has the modes.
        num_paths: So many of the first chains keep their path.
        keep_by_level: Whether to keep all chains at the end of some levels.
        seed: Seed of all chains.
        device: Where they run.
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
    ) -> None:
        self._sampler, self._score, self._log_prob, self._init = sampler, score, log_prob, init
        self._num, self._sigmas, self._truth = num, sigmas, truth
        self._seed, self._device, self._tile = seed, device, TILE[device.type]
        self._num_tiles = -(-num // self._tile)
        self._plan = sampler.levels(sigmas)
        levels = [0, *sampler.levels_of_states(sigmas)]  # of each step, the start among them
        self._last = len(levels) - 1
        self._ends = {level: step for step, level in enumerate(levels)}
        begins = {end + sampler.descends: level + 1 for level, end in self._ends.items()}
        if sampler.remembers:
            begins = {}
        self._begins = {0: 0, **{step: i for step, i in begins.items() if step < self._last}}
        frames = [*range(0, self._last, -(-self._last // _FRAMES)), self._last]
        self._frames = {step: frame for frame, step in enumerate(frames)}
        self._frame_sigmas = [self._plan[levels[step]].sigma for step in frames]
        num_kept = min(len(self._plan), _KEPT_LEVELS) if keep_by_level else 0
        kept = np.linspace(0, len(self._plan) - 1, num_kept).round().astype(int).tolist()
        self._kept_levels = {level: i for i, level in enumerate(kept)}
        self._left = {
            "samples": torch.zeros(num, truth.dim),
            "init": torch.zeros(num, truth.dim),
            "settled": torch.zeros(num, dtype=torch.int32),
            "by_level": torch.zeros(num_kept, num, truth.dim),
            "paths": torch.zeros(len(frames), min(num_paths, num), truth.dim),
            "accepted": torch.zeros(len(self._plan), dtype=torch.float64),
        }
        nobody = torch.zeros(len(self._plan), 0, dtype=torch.long)
        self._counts = count_commitment(nobody, len(truth.modes))
        self._evaluations = 0

    def run(
        self, save: Callable[[Saved], None] = lambda saved: None, saved: Saved | None = None
    ) -> Chains:
        """Run the chains down the levels with a progress bar, or what ``saved`` says is missing.

        ``save`` gets it once a minute, and when a signal asks to stop.

        Raises:
            DivergedError: If a chain is not finite.
            InterruptedRun: If a signal asked to stop; ``save`` has been called then.
        """
        first = 0
        if saved is not None:
            self._take_up(saved)
            first = saved[1]["tile"]
        last_save = time.monotonic()
        with (
            signals_as_requests() as requests,
            tqdm(
                total=self._num_tiles * self._last, desc="sampling", unit="step", disable=None
            ) as bar,
        ):
            for tile in range(first, self._num_tiles):
                earlier = None if saved is None or tile > first else _Begun.of(saved)
                for begun in self._run_tile(tile, earlier, bar):
                    if requests or time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                        save(begun.to_save(tile, self._left | self._counts))
                        last_save = time.monotonic()
                    if requests:
                        hand_to_scheduler(requests[0])
                        where = f"level {begun.level + 1} of {len(self._plan)}"
                        if self._num_tiles > 1:
                            where += f", tile {tile + 1} of {self._num_tiles}"
                        raise InterruptedRun(f"stopped by a signal at {where}", requests[0])
            if requests:
                save(self.finished())
                hand_to_scheduler(requests[0])
                raise InterruptedRun("stopped by a signal after the last step", requests[0])
        return self._chains()

    def _take_up(self, saved: Saved) -> None:
        """Raises BadCheckpointError if ``saved`` is not what chains like these leave."""
        tensors, record = saved
        numbers = [record.get(name) for name in ("tile", "step", "level", "evaluations")]
        tile, step, level, evaluations = (n if type(n) is int else -1 for n in numbers)
        expected = self._left | self._counts
        if tile < self._num_tiles:
            ended = sum(end <= step for end in self._ends.values())
            stream = torch.Generator(self._device).get_state()
            expected |= {
                "x": torch.empty(self._tile, self._truth.dim),
                "labels": torch.empty(ended, self._tile, dtype=torch.int16),
                "accepted_in_tile": self._left["accepted"],
                "generator": stream,
            }
        same = all(
            name in tensors
            and tensors[name].shape == tensor.shape
            and (tensors[name].dtype == tensor.dtype or tensor.numel() == 0)
            for name, tensor in expected.items()
        )
        place = (
            0 <= tile <= self._num_tiles and self._begins.get(step) == level and evaluations >= 0
        )
        if not (same and place):
            raise BadCheckpointError("resume: the stopped chains are not like those asked for")
        self._left = {name: tensors[name].clone() for name in self._left}
        self._counts = {name: tensors[name] for name in self._counts}
        self._evaluations = record["evaluations"]

    def finished(self) -> Saved:
        """What ``run`` needs to return the same chains again, once it has."""
        record = {"tile": self._num_tiles, "step": 0, "level": 0, "evaluations": self._evaluations}
        return self._left | self._counts, record

    def _run_tile(self, tile: int, begun: _Begun | None, bar: tqdm[Any]) -> Iterator[_Begun]:
        """Run one tile, from ``begun`` if given; yields after each step the level last begun."""
        sampler, left = self._sampler, self._left
        rows = slice(tile * self._tile, min((tile + 1) * self._tile, self._num))
        num = rows.stop - rows.start
        paths = slice(rows.start, max(rows.start, min(rows.stop, left["paths"].shape[1])))
        stream = random_stream(self._seed, f"chains {tile}", self._device)

        def score(x: Tensor, sigma: Tensor) -> Tensor:
            self._evaluations += 1
            return self._score(x, sigma)

        def look(step: int, level: int, x: Tensor) -> None:
            if step in self._frames:
                path = x[: paths.stop - paths.start].cpu()
                left["paths"][self._frames[step], paths] = path
            if step == self._ends[level]:
                labels.append(nearest_mode(x, self._truth).to("cpu", torch.int16))
                if level in self._kept_levels:
                    left["by_level"][self._kept_levels[level], rows] = x[:num].cpu()

        if begun is None:
            x = self._init(self._tile, stream)  # (B, D)
            labels: list[Tensor] = []
            self._evaluations = 0
            accepted = torch.zeros(len(self._plan), dtype=torch.float64)
            left["init"][rows] = x[:num].cpu()
            look(0, 0, x)
            begun = _Begun(0, 0, x, stream.get_state(), [*labels], accepted.clone(), 0)
        else:
            x, labels, accepted = begun.x.to(self._device), [*begun.labels], begun.accepted.clone()
            self._evaluations = begun.evaluations
            stream.set_state(begun.generator)
        bar.update(tile * self._last + begun.step - bar.n)
        chain = sampler.chain(
            score, x, self._sigmas, generator=stream, log_prob=self._log_prob, first=begun.level
        )
        for step, (level, sigma, x, acceptance) in enumerate(chain, start=begun.step + 1):
            # The sum is cheaper, and finite but for points beyond 1e34.
            if not math.isfinite(float(x.sum())) and not bool(torch.isfinite(x).all()):
                raise DivergedError(
                    f"a sample is not finite at step {step}, level {level + 1} (sigma ="
                    f" {sigma:g}); take smaller steps"
                )
            if acceptance is not None:
                accepted[level] += acceptance
            look(step, level, x)
            if step in self._begins:
                state = stream.get_state()
                begun = _Begun(
                    step, self._begins[step], x, state, [*labels], accepted.clone(),
                    self._evaluations,
                )  # fmt: skip
            bar.update()
            if step in self._frames:
                bar.set_postfix(self._numbers(level, acceptance))
            yield begun
        modes = torch.stack(labels)[:, :num]  # (V, num)
        left["samples"][rows] = x[:num].cpu()
        left["settled"][rows] = settled_from(modes)
        left["accepted"] += accepted
        for name, count in count_commitment(modes, len(self._truth.modes)).items():
            self._counts[name] = self._counts[name] + count

    def _numbers(self, level: int, acceptance: float | None) -> dict[str, str]:
        """What the progress bar shows."""
        sigma, tau, _ = self._plan[level]
        numbers = {"level": f"{level + 1}/{len(self._plan)}", "sigma": f"{sigma:.3g}"}
        if tau > 0 and sigma > 0:
            numbers["eta"] = f"{tau / sigma**2:.3g}"
        if acceptance is not None:
            numbers["accepted"] = f"{acceptance:.2f}"
        return numbers

    def _chains(self) -> Chains:
        left, sigmas = self._left, [level.sigma for level in self._plan]
        by_level = {sigmas[level]: left["by_level"][i] for level, i in self._kept_levels.items()}
        steps = torch.tensor([level.steps for level in self._plan])
        acceptance = left["accepted"] / (steps * self._num_tiles)
        return Chains(
            samples=left["samples"],
            init=left["init"],
            paths=left["paths"].numpy() if left["paths"].shape[1] else None,
            path_steps=np.array(list(self._frames)),
            path_sigmas=np.array(self._frame_sigmas),
            settled_sigma=np.array(sigmas)[left["settled"].numpy()],
            by_level=by_level,
            score_evaluations=self._evaluations,
            acceptance=acceptance.tolist() if self._sampler.needs_log_prob else [],
            mode_commitment={"sigmas": sigmas, **mode_commitment(self._counts)},
        )
