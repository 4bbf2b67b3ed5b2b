"""Every sampler with the exact score, by score evaluations, on every dataset preset.

    python benchmarks/samplers.py evaluations [--seeds 1] [--only NAME ...]
    python benchmarks/samplers.py flow [--seeds 100] [--only NAME ...]

The number is the sliced Wasserstein distance of 10 000 samples from p_sigma_min over its noise
floor (200 sets of as many exact draws): 1 is perfect. Levels run from 20 to half the data's
smallest standard deviation, geometric for Langevin dynamics and Karras's (rho = 7) for the others;
chains start from the moment-matched prior.
``evaluations`` prints a table of means over seeds and draws ``docs/pictures/samplers.png``;
``flow`` prints mean ratio and standard error, the floor's own included, of the probability flow,
also down to .01. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from quality import dataset, dataset_presets

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.inits import Prior
from ncsn_cli.metrics import SlicedWasserstein
from ncsn_cli.plots.canvas import SERIES, new_figure, own_settings
from ncsn_cli.samplers import (
    AnnealedLangevin,
    AnnealedMALA,
    ConsistentAnnealed,
    ConstantStepLangevin,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Sampler,
)
from ncsn_cli.schedules import Geometric, Karras

SIGMA_MAX, NUM = 20.0, 10_000
BUDGETS = [10, 30, 100, 300, 1000]
Point = tuple[int, list[float]]  # evaluations, and each seed's ratio
METRIC = SlicedWasserstein(num_directions=100)


def samplers(budget: int, sigma_min: float, std: float) -> dict[str, tuple[Sampler, int]]:
    """Each sampler with a number of levels that takes ``budget`` evaluations, or a few less.

    Langevin dynamics at several levels makes about as many steps at each as there are levels. Its
    step at sigma_min is a tenth of the narrowest component's variance, which widens that by 5 %;
    sigma_min^2 with a Metropolis test; Technique 4's for ``annealed_langevin``.
    """
    levels = max(2, math.isqrt(budget))
    steps = budget // levels
    tau = 0.1 * (std**2 + sigma_min**2)
    return {
        "langevin": (Langevin(step_size=tau, steps=budget, denoise=False), 2),
        "constant_step_langevin": (
            ConstantStepLangevin(step_size=tau, steps_per_level=steps, denoise=False),
            levels,
        ),
        "annealed_langevin": (
            AnnealedLangevin(step_size="auto", steps_per_level=steps, denoise=False),
            levels,
        ),
        "annealed_mala": (
            AnnealedMALA(step_size=sigma_min**2, steps_per_level=steps - 1, denoise=False),
            levels,
        ),
        "predictor_corrector": (
            PredictorCorrector(snr=0.16, corrector_steps=1, denoise=False),
            (budget + 1) // 2,
        ),
        "reverse_diffusion": (ReverseDiffusion(denoise=False), budget + 1),
        "consistent_annealed": (ConsistentAnnealed(eta="auto", denoise=False), budget + 1),
        "probability_flow, euler": (ProbabilityFlow(solver="euler", denoise=False), budget + 1),
        "probability_flow, heun": (
            ProbabilityFlow(solver="heun", denoise=False),
            budget // 2 + 1,
        ),
        "probability_flow": (ProbabilityFlow(solver="multistep", denoise=False), budget + 1),
    }


@torch.no_grad()
def ratio(
    truth: Dataset, sampler: Sampler, num_levels: int, sigma_min: float, seed: int, floor: float
) -> float:
    """The distance of one run's samples over the noise floor."""
    schedule = (
        Karras(SIGMA_MAX, sigma_min, num_levels, 7.0)
        if sampler.descends
        else Geometric(SIGMA_MAX, sigma_min, num_levels)
    )
    sigmas = schedule.sigmas
    stream = random_stream(seed, "benchmark")
    x = Prior()(NUM, truth, SIGMA_MAX, stream)
    x = sampler(truth.score, x, sigmas, generator=stream, log_prob=truth.log_prob)
    distance = METRIC.distance(truth, sigma_min, NUM)
    return distance(x, random_stream(seed, "exact draws")) / floor


def evaluations(seeds: int, only: list[str]) -> None:
    """The table and the picture of all samplers."""
    panels: dict[str, dict[str, list[Point]]] = {}
    print(f"| dataset | sampler |{'|'.join(f' {budget} ' for budget in BUDGETS)}|")
    print("|---|---|---|---|---|---|---|")
    for name in only:
        truth = dataset(name)
        sigma_min = truth.smallest_std / 2
        floor = noise_floor(METRIC, truth, sigma_min, NUM)["floor"]
        lines: dict[str, list[Point]] = {}
        for budget in BUDGETS:
            for label, (sampler, levels) in samplers(
                budget, sigma_min, truth.smallest_std
            ).items():
                values = [
                    ratio(truth, sampler, levels, sigma_min, seed, floor) for seed in range(seeds)
                ]
                lines.setdefault(label, []).append((budget, values))
        for label, points in lines.items():
            cells = "|".join(f" {np.mean(values):.2f} " for _, values in points)
            print(f"| `{name}` | {label} |{cells}|", flush=True)
        panels[name] = lines
    print(
        "\n| all presets: median (worst) |" + "|".join(f" {budget} " for budget in BUDGETS) + "|"
    )
    print("|---|---|---|---|---|---|")
    for label in next(iter(panels.values())):
        cells = []
        for i in range(len(BUDGETS)):
            means = [float(np.mean(lines[label][i][1])) for lines in panels.values()]
            cells.append(f" {np.median(means):.2f} ({max(means):.2f}) ")
        print(f"| {label} |{'|'.join(cells)}|")
    draw(panels)


@own_settings()
def draw(panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    """Ratio against evaluations, a panel a dataset, a line a sampler."""
    columns = min(4, len(panels))
    figure, axes = new_figure(-(-len(panels) // columns), columns, width=4, height=3.4)
    for i, (name, lines) in enumerate(panels.items()):
        for j, (label, points) in enumerate(lines.items()):
            budgets, means = zip(*((budget, np.mean(v)) for budget, v in points), strict=True)
            look = {"color": SERIES[j % len(SERIES)], "ls": "-" if j < len(SERIES) else "--"}
            axes[i].loglog(budgets, means, marker=".", label=label, **look)
        axes[i].axhline(1, color="0.5", linewidth=1)
        axes[i].set(title=name, ylim=(0.3, 700))
        if i % columns == 0:
            axes[i].set_ylabel("distance / noise floor")
        if i >= len(panels) - columns:
            axes[i].set_xlabel("score evaluations")
    for spare in axes[len(panels) :]:
        spare.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig("docs/pictures/samplers.png", dpi=90)


def flow(seeds: int, only: list[str]) -> None:
    """The table of the probability flow, with the errors of its means."""
    budgets = [30, 60]
    print(f"| dataset | sigma_min | solver |{'|'.join(f' {budget} ' for budget in budgets)}|")
    print("|---|---|---|---|---|")
    for name in only:
        truth = dataset(name)
        for sigma_min in dict.fromkeys([truth.smallest_std / 2, 0.01]):
            law = noise_floor(METRIC, truth, sigma_min, NUM)
            for solver in ("heun", "multistep"):
                cells = []
                for budget in budgets:
                    sampler = ProbabilityFlow(solver=solver, denoise=False)
                    levels = 1 + (budget // 2 if solver == "heun" else budget)
                    ratios = [
                        ratio(truth, sampler, levels, sigma_min, seed, law["floor"])
                        for seed in range(seeds)
                    ]
                    # The floor is the mean of 200 draws that vary about as much as the ratios.
                    error = np.std(ratios, ddof=1) * math.sqrt(1 / seeds + 1 / 200)
                    cells.append(f" {np.mean(ratios):.3f} ± {error:.3f} ")
                print(f"| `{name}` | {sigma_min:g} | {solver} |{'|'.join(cells)}|", flush=True)


if __name__ == "__main__":
    presets = dataset_presets()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, seeds in ((evaluations, 1), (flow, 100)):
        options = commands.add_parser(command.__name__)
        options.set_defaults(run=command)
        options.add_argument("--seeds", type=int, default=seeds)
        options.add_argument("--only", nargs="*", default=presets, choices=presets)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.run(chosen.seeds, chosen.only)
