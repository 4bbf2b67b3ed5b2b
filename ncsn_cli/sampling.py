"""Running chains: progress, paths, acceptance, and what becomes of the modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.errors import DivergedError
from ncsn_cli.metrics import mode_commitment, nearest_mode, settled_from
from ncsn_cli.samplers import LogProb, Sampler, State
from ncsn_cli.scores import Dataset, Score

_FRAMES = 200  # at most so many states of a kept chain
_KEPT_LEVELS = 20  # at most so many at whose end all chains are kept


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
        acceptance: Mean share of accepted proposals at each level; empty where none are refused.
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


def run_chains(
    sampler: Sampler,
    score: Score,
    log_prob: LogProb | None,
    x: Tensor,
    sigmas: Tensor,
    truth: Dataset,
    num_paths: int,
    keep_by_level: bool,
    generator: torch.Generator,
) -> Chains:
    """Run ``sampler`` from ``x`` (N, D) down the levels ``sigmas`` (L,) with a progress bar.

    The paths of the first ``num_paths`` chains are kept, and with ``keep_by_level`` all chains at
    the end of some levels; ``truth`` has the modes.

    Raises:
        DivergedError: If a chain is not finite.
    """
    plan, total = sampler.levels(sigmas), sampler.num_states(sigmas)
    init, stride = x, -(-total // _FRAMES)
    ends: dict[float, Tensor] = {}  # by level, the mode of each chain when it ends
    kept = {len(plan) - 1, *np.linspace(0, len(plan) - 1, min(len(plan), _KEPT_LEVELS)).round()}
    by_level: dict[float, Tensor] = {}
    frames = [(0, plan[0].sigma, x[:num_paths].cpu().clone())]
    accepted: list[list[float]] = [[] for _ in plan]
    evaluations = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return score(x, sigma)

    def leave(state: State) -> None:
        ends[state.sigma] = nearest_mode(state.x, truth).to(torch.int16)
        if keep_by_level and state.level in kept:
            by_level[state.sigma] = state.x.cpu()

    if plan[0].steps == 0:
        leave(State(0, plan[0].sigma, x))
    progress = tqdm(
        sampler.chain(counted, x, sigmas, generator=generator, log_prob=log_prob),
        total=total, desc="sampling", unit="step", disable=None,
    )  # fmt: skip
    current: State | None = None
    for step, state in enumerate(progress, start=1):
        if current is not None and state.level != current.level:
            leave(current)
        current = state
        level, sigma, x, acceptance = state
        if acceptance is not None:
            accepted[level].append(acceptance)
        if step % stride == 0 or step == total:
            frames.append((step, sigma, x[:num_paths].cpu().clone()))
            numbers = {"level": f"{level + 1}/{len(plan)}", "sigma": f"{sigma:.3g}"}
            if plan[level].tau > 0 and sigma > 0:
                numbers["eta"] = f"{plan[level].tau / sigma**2:.3g}"
            if acceptance is not None:
                numbers["accepted"] = f"{acceptance:.2f}"
            progress.set_postfix(numbers)
            if not bool(torch.isfinite(x).all()):
                raise DivergedError(
                    f"a sample is not finite at step {step}, level {level + 1} (sigma ="
                    f" {sigma:g}); take smaller steps"
                )
    assert current is not None
    leave(current)
    labels = torch.stack(list(ends.values())).cpu()  # (V, N)
    path_steps, path_sigmas, paths = zip(*frames, strict=True)
    return Chains(
        samples=x.cpu(),
        init=init.cpu(),
        paths=torch.stack(paths).numpy() if num_paths else None,
        path_steps=np.array(path_steps),
        path_sigmas=np.array(path_sigmas),
        settled_sigma=np.array(list(ends))[settled_from(labels).numpy()],
        by_level=by_level,
        score_evaluations=evaluations,
        acceptance=[float(np.mean(shares)) for shares in accepted if shares],
        mode_commitment={
            "sigmas": list(ends),
            **mode_commitment(labels, len(truth.modes)),
        },
    )
