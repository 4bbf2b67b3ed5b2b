"""The live page of a run: its law, its levels, its sampler and its network in a browser."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from hydra.core.hydra_config import HydraConfig
from torch import nn

from ncsn_cli import inits, samplers
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import one_line
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.inits import Init
from ncsn_cli.plots.live import Law, LiveState, live_page, program_of
from ncsn_cli.samplers import Level, Sampler

_MOST_COMPONENTS = 400  # each particle visits all of them at each step

_MOST_PARTICLES = 2000  # that the page starts with, so that it moves smoothly

_MOST_OF_A_NETWORK = 500  # with these, the default network makes about 50 steps a second

_MOST_POINTS = 1000  # the end of the slider

_MOST_BYTES = 300_000  # of a network, so that the page stays below 400 kB

_SAMPLERS: dict[type[Sampler], str] = {
    samplers.Langevin: "langevin",
    samplers.AnnealedLangevin: "annealed_langevin",
    samplers.ReverseDiffusion: "reverse_diffusion",
    samplers.ProbabilityFlow: "probability_flow",
}


def law_of(dataset: Dataset) -> Law:
    """Return a mixture of Gaussians as the page takes it; of another law, some draws."""
    if not is_small_mixture(dataset):
        draws = dataset.sample(_MOST_COMPONENTS, generator=random_stream(0, "live page"))
        return [[[1 / len(draws)], point, [0.0]] for point in draws.tolist()]
    weights, means, covariances = (tensor.tolist() for tensor in dataset.components(0.0))
    return [
        [[w], mean, [c[0][0]] if len(mean) == 1 else [c[0][0], c[0][1], c[1][1]]]
        for w, mean, c in zip(weights, means, covariances, strict=True)
    ]


def is_small_mixture(dataset: Dataset) -> TypeGuard[GaussianMixture]:
    """Return whether the page can take all components of ``dataset``."""
    return isinstance(dataset, GaussianMixture) and dataset.num_components <= _MOST_COMPONENTS


class Moved(NamedTuple):
    """How a run moved its chains.

    Args:
        sampler: The sampler.
        plan: Its levels.
        init: Where the chains started.
        num: Number of chains; None if the run had none yet.
    """

    sampler: Sampler
    plan: list[Level]
    init: Init
    num: int | None = None


def page_of_run(
    title: str,
    dataset: Dataset,
    sigmas: Sequence[float],
    *,
    seed: int,
    score: str,
    network: nn.Module | None = None,
    moved: Moved | None = None,
) -> str | None:
    """Return the live page of a run, which starts with the run's own settings; None if D > 2.

    Args:
        title: Its heading.
        dataset: The dataset.
        sigmas: The run's levels (L,).
        seed: The run's seed.
        score: ``exact``, ``empirical`` or ``checkpoint``.
        network: The learned score in data units; None if there is none.
        moved: How the run sampled; None if it did not.
    """
    if dataset.dim > 2:
        return None
    name = HydraConfig.get().runtime.choices.get("dataset") or "this run's"  # of a checkpoint
    law, notes = law_of(dataset.truth), _about_the_law(name, dataset)
    state: dict[str, Any] = {
        "law": name, "seed": seed, "score": "exact" if score == "checkpoint" else score,
        "max": sigmas[0], "min": sigmas[-1], "levels": len(sigmas),
        "tau": 0.1 * sigmas[-1] ** 2 or 0.01,
    }  # fmt: skip
    if score == "empirical" and dataset.num_samples is not None:
        state["points"] = min(dataset.num_samples, _MOST_POINTS)
        notes.append("The score's points are not those of the run, but others of the same law.")
    program = None if network is None else _program(network, dataset.dim, sigmas, notes)
    state |= {} if program is None else {"score": "network"}
    state |= {} if moved is None else _state_of(moved, sigmas[0], notes)
    if program is not None:
        state["num"] = min(state.get("num", _MOST_PARTICLES), _MOST_OF_A_NETWORK)
    if len(sigmas) == 1:
        state["sampler"] = "langevin"
    ratios = [a / b for a, b in pairwise(sigmas) if b > 0]
    is_geometric = all(math.isclose(ratio, ratios[0], rel_tol=1e-6) for ratio in ratios)
    return live_page(
        title,
        {name: law},
        LiveState(**state),
        sigmas=None if is_geometric else sigmas,
        program=program,
        notes=notes,
    )


def _about_the_law(name: str, dataset: Dataset) -> list[str]:
    """Return what is to be said of the page's law."""
    notes = []
    if not is_small_mixture(dataset.truth):
        notes.append(
            f"The law is that of {_MOST_COMPONENTS} draws of {name}, which is no mixture of at"
            f" most {_MOST_COMPONENTS} Gaussians."
        )
    if dataset.truth is not dataset:
        notes.append("The run's score is wrong on purpose. The exact score of this page is right.")
    return notes


def _program(
    network: nn.Module, dim: int, sigmas: Sequence[float], notes: list[str]
) -> dict[str, Any] | None:
    """Return the network as the page takes it; otherwise None, and add to ``notes`` why."""
    try:
        score = copy.deepcopy(network).cpu().eval()
        program = program_of(score, dim, (sigmas[0], sigmas[-1]))
    except Exception as error:  # any code may be in a network of the user's own
        notes.append(f"This page cannot carry out the run's network: {one_line(str(error))}.")
        return None
    if (size := len(json.dumps(program))) > _MOST_BYTES:
        notes.append(f"The run's network is too large for this page: {size / 1000:.0f} kB.")
        return None
    notes.append("The network has learned the run's law. If you move a mode, it does not follow.")
    return program


def _state_of(moved: Moved, sigma_max: float, notes: list[str]) -> dict[str, Any]:
    """Return the controls as the run had them; add to ``notes`` what the page does not have."""
    sampler, plan, init, num = moved
    state: dict[str, Any] = {"num": min(num or _MOST_PARTICLES, _MOST_PARTICLES)}
    if (name := _SAMPLERS.get(type(sampler))) is None:
        notes.append(f"The run sampled with {type(sampler).__name__}, which this page lacks.")
    else:
        state |= {"sampler": name, "denoise": sampler.denoise}
        if isinstance(sampler, samplers.ProbabilityFlow) and sampler.solver != "multistep":
            notes.append(f"The run's solver was {sampler.solver}, that of this page is multistep.")
        if plan[-1].steps:
            state |= {"steps": plan[-1].steps, "tau": plan[-1].tau}
    starts: dict[str, Init] = {
        "prior": inits.Prior(),
        "uniform": inits.Uniform(),
        "data": inits.Data(),
    }
    if sigma_max > 0:
        starts["normal"] = inits.Normal(std=sigma_max)
    if isinstance(init, inits.Transformed):  # the law of each point is the same
        init = replace(init, quasi_random=False)
    start = next((key for key, here in starts.items() if here == init), None)
    if start is None:
        notes.append(f"The run started elsewhere: {init}.")
    return state | ({} if start is None else {"start": start})
