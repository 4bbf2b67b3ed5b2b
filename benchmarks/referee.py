"""The referee: samplers of three libraries, from the same starts, against laws that are known.

    python -m benchmarks.referee run [--only NAME ...] [--seeds 10] [--processes 2]
    python -m benchmarks.referee report
    python -m benchmarks.referee flow [--only NAME ...] [--seeds 100]

``run`` draws 10 000 samples with the exact score for every dataset preset, sampler, number of
evaluations, seed and kind of start, and keeps each result in outputs/referee/cells.csv: stopped,
it resumes. It takes about an hour and a half on two cores. ``report`` writes
docs/results/referee.csv, the pictures and the page's tables. ``flow`` prints a table of two
solvers, down to .01 too.

All samplers start at the same points, draws of the Gaussian with the moments of p_sigma_max for
sigma_max = 20, ``independent`` or ``sobol``; levels run to half the data's smallest standard
deviation, geometric for Langevin dynamics and Karras's (rho = 7) for the others, as many as the
evaluations allow. A result is a distance from p_sigma_min over its noise floor: 1 is perfect.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import dataset, dataset_presets
from benchmarks.samplers import METRIC, NUM, SIGMA_MAX, samplers
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.settings import random_stream
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.inits import Prior
from ncsn_cli.metrics import ModeWeights, SampleMetric
from ncsn_cli.samplers import (
    Azula,
    ConsistentAnnealed,
    Diffusers,
    ProbabilityFlow,
    ReverseDiffusion,
    Sampler,
)
from ncsn_cli.sampling.fitted_levels import PILOTS, fit_levels
from ncsn_cli.sampling.tile import Counted
from ncsn_cli.schedules import Geometric, Karras

BUDGETS = [5, 10, 15, 20, 30, 50, 100]
LONG = [300, 1000]  # for Langevin dynamics
EXACT = 1000  # evaluations of the flow that counts as exact
STARTS = ["independent", "sobol"]
METRICS: dict[str, SampleMetric] = {
    "sliced_wasserstein": METRIC,
    "mode_weights": ModeWeights(),
}
FITTED_ANEW = 20  # most evaluations with a fit for each seed; above, levels hardly vary
CELLS = Path("outputs/referee/cells.csv")
FITTED, FLOW = "probability_flow, fitted levels", "probability_flow"


class Task(NamedTuple):
    """A sampler on a dataset: so many evaluations, and all seeds."""

    dataset: str
    sampler: str
    evaluations: int
    seeds: int

    @property
    def starts(self) -> list[str]:
        """The kinds of start; of the exact flow one more, to tell what the start adds."""
        return [*STARTS, "exact"] if self.evaluations == EXACT and self.sampler == FLOW else STARTS


class Cell(NamedTuple):
    """One run. ``used`` are its evaluations, ``fitting`` those that its levels took, for all."""

    dataset: str
    sampler: str
    evaluations: int
    starts: str
    seed: int
    used: int
    fitting: float
    sliced_wasserstein: float | None
    mode_weights: float | None


_DIFFUSERS = {
    "DDIM": {}, "DDPM": {}, "DEISMultistep": {}, "DPMSolverMultistep": {},
    "DPMSolverMultistep, order 3": {"solver_order": 3},
    "DPMSolverMultistep, SDE": {"algorithm_type": "sde-dpmsolver++"}, "DPMSolverSDE": {},
    "DPMSolverSinglestep": {"lower_order_final": True}, "EulerAncestralDiscrete": {},
    "EulerDiscrete": {}, "HeunDiscrete": {}, "KDPM2AncestralDiscrete": {}, "KDPM2Discrete": {},
    "LMSDiscrete": {}, "PNDM": {"skip_prk_steps": True}, "SASolver": {}, "UniPCMultistep": {},
    "UniPCMultistep, order 3": {"solver_order": 3},
    "UniPCMultistep, order 3 to the end": {"solver_order": 3, "lower_order_final": False},
}  # fmt: skip
_AZULA = ["DDPM", "DDIM", "Euler", "Heun", "Ito", "zAB", "vAB", "zEAB", "xEAB", "REAB", "PC"]
LANGEVIN = [
    "langevin", "constant_step_langevin", "annealed_langevin", "annealed_mala",
    "predictor_corrector",
]  # fmt: skip

OTHERS: dict[str, Sampler] = {
    "reverse_diffusion": ReverseDiffusion(),
    "consistent_annealed": ConsistentAnnealed(),
    "probability_flow, euler": ProbabilityFlow(solver="euler"),
    "probability_flow, heun": ProbabilityFlow(solver="heun"),
    FLOW: ProbabilityFlow(),
    FITTED: ProbabilityFlow(fit_levels=True),
    **{
        f"diffusers {name}": Diffusers(
            name=name.partition(",")[0] + "Scheduler", settings=settings
        )
        for name, settings in _DIFFUSERS.items()
    },
    **{f"azula {name}": Azula(name=f"{name}Sampler") for name in _AZULA},
}


def run_sampler(
    truth: Dataset, sampler: Sampler, x: Tensor, sigmas: Tensor, seed: int
) -> tuple[Tensor, int]:
    """Return the samples, and the evaluations that they took."""
    score = Counted(truth.score, 0)
    y = sampler(score, x, sigmas, generator=random_stream(seed, "chains"), log_prob=truth.log_prob)
    return y, score.evaluations


def most_levels(truth: Dataset, sampler: Sampler, evaluations: int, sigma_min: float) -> int:
    """Return the most levels with which ``sampler`` needs at most so many evaluations, or 0."""
    x = torch.zeros(2, truth.dim)
    for num in range(evaluations + 1, 1, -1):
        _, used = run_sampler(truth, sampler, x, Karras(SIGMA_MAX, sigma_min, num).sigmas, 0)
        if used <= evaluations:
            return num
    return 0


@cache
def start(name: str, kind: str, seed: int) -> Tensor:
    """Return the points where all samplers start."""
    truth = dataset(name)
    if kind == "exact":
        return truth.sample(NUM, sigma=SIGMA_MAX, generator=random_stream(seed, "benchmark"))
    if kind == "sobol":
        return Prior(quasi_random=True).quasi(NUM, 0, truth, SIGMA_MAX, seed)
    return Prior()(NUM, truth, SIGMA_MAX, random_stream(seed, "benchmark"))


@cache
def judges(name: str) -> dict[str, Callable[[Tensor, int], float | None]]:
    """Return, by metric, the function from samples and seed to the distance over its floor."""
    truth = dataset(name)
    sigma_min = truth.smallest_std / 2

    def judge(metric: SampleMetric) -> Callable[[Tensor, int], float | None]:
        floor = noise_floor(metric, truth, sigma_min, NUM, CELLS.parent)["floor"]
        distance = metric.distance(truth, sigma_min, NUM)
        if floor == 0:  # one mode: it holds all samples
            return lambda x, seed: None
        return lambda x, seed: float(distance(x, random_stream(seed, "directions"))) / floor

    return {key: judge(metric) for key, metric in METRICS.items()}


@cache
def fitted(name: str, num: int, seed: int) -> tuple[list[float], float]:
    """Return ``num`` levels fitted with chains of their own, and evaluations for all samples."""
    truth = dataset(name)
    pilots = Prior()(PILOTS, truth, SIGMA_MAX, random_stream(seed, "pilot chains"))
    sigmas = Karras(SIGMA_MAX, truth.smallest_std / 2, num).sigmas
    found = fit_levels(ProbabilityFlow(), truth.score, pilots, sigmas)
    return found.sigmas.tolist(), found.evaluations * (PILOTS / 2) / NUM


@torch.no_grad()
def work(task: Task, done: frozenset[tuple[str, int]]) -> list[Cell]:
    """Return the cells of ``task`` that are not ``done``, by kind of start and seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    truth = dataset(task.dataset)
    sigma_min, std, fitting = truth.smallest_std / 2, truth.smallest_std, 0.0
    if task.sampler in LANGEVIN:
        sampler, num = samplers(task.evaluations, sigma_min, std)[task.sampler]
        sigmas = Geometric(SIGMA_MAX, sigma_min, max(2, num)).sigmas
        if sampler.descends:
            sigmas = Karras(SIGMA_MAX, sigma_min, max(2, num)).sigmas
    else:
        sampler = OTHERS[task.sampler]
        num = most_levels(truth, sampler, task.evaluations, sigma_min)
        if num == 0:
            return []
        sigmas = Karras(SIGMA_MAX, sigma_min, num).sigmas
    cells = []
    for kind, seed in itertools.product(task.starts, range(task.seeds)):
        if (kind, seed) not in done:
            if task.sampler == FITTED:
                pilots = seed if task.evaluations <= FITTED_ANEW else 0
                levels, fitting = fitted(task.dataset, num, pilots)
                sigmas = torch.tensor(levels, dtype=torch.float64)
            x, used = run_sampler(truth, sampler, start(task.dataset, kind, seed), sigmas, seed)
            found = {key: judge(x, seed) for key, judge in judges(task.dataset).items()}
            cells.append(
                Cell(
                    task.dataset, task.sampler, task.evaluations, kind, seed, used,
                    round(fitting, 1), **found,
                )
            )  # fmt: skip
    return cells


def tasks(only: list[str], seeds: int) -> Iterator[Task]:
    """Yield all that is to be done, what takes longest first."""
    slowest = ["checkerboard_2d", "spiral_2d"]
    for name in sorted(only, key=lambda name: name not in slowest):
        yield Task(name, FLOW, EXACT, seeds)
        for sampler in LANGEVIN:
            for evaluations in LONG:
                yield Task(name, sampler, evaluations, min(3, seeds))
        for sampler in [*LANGEVIN, *OTHERS]:
            for evaluations in reversed(BUDGETS):
                yield Task(name, sampler, evaluations, seeds)


def read_cells() -> list[Cell]:
    """Return the cells that were kept."""
    if not CELLS.exists():
        return []

    def number(text: str) -> float | None:
        return None if text == "" else float(text)

    with CELLS.open() as file:
        return [
            Cell(
                row["dataset"], row["sampler"], int(row["evaluations"]), row["starts"],
                int(row["seed"]), int(row["used"]), float(row["fitting"]),
                number(row["sliced_wasserstein"]), number(row["mode_weights"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def run(only: list[str], seeds: int, processes: int) -> None:
    """Make the cells that are missing, and keep each task's at once."""
    done: dict[tuple[str, str, int], set[tuple[str, int]]] = {}
    for cell in read_cells():
        key = (cell.dataset, cell.sampler, cell.evaluations)
        done.setdefault(key, set()).add((cell.starts, cell.seed))
    todo = [
        (task, frozenset(had))
        for task in tasks(only, seeds)
        if len(had := done.get(task[:3], set())) < len(task.starts) * task.seeds
    ]
    CELLS.parent.mkdir(parents=True, exist_ok=True)
    is_new = not CELLS.exists()
    with (
        CELLS.open("a", newline="") as file,
        multiprocessing.get_context("spawn").Pool(processes) as pool,
    ):
        writer = csv.writer(file)
        if is_new:
            writer.writerow(Cell._fields)
        for number, cells in enumerate(pool.imap_unordered(_work_on, todo), start=1):
            writer.writerows([["" if v is None else v for v in cell] for cell in cells])
            file.flush()
            if number % 50 == 0 or number == len(todo):
                print(f"{number} of {len(todo)} tasks", flush=True)


def flow(only: list[str], seeds: int) -> None:
    """Print mean ratio and standard error, the floor's included, of two solvers of the flow."""
    budgets = [30, 60]
    print(f"| dataset | sigma_min | solver |{'|'.join(f' {budget} ' for budget in budgets)}|")
    print("|---|---|---|---|---|")
    for name in only:
        truth = dataset(name)
        for sigma_min in dict.fromkeys([truth.smallest_std / 2, 0.01]):
            floor = noise_floor(METRIC, truth, sigma_min, NUM)["floor"]
            distance = METRIC.distance(truth, sigma_min, NUM)
            for solver in ("heun", "multistep"):
                cells = []
                for budget in budgets:
                    sampler = ProbabilityFlow(solver=solver)
                    sigmas = Karras(
                        SIGMA_MAX, sigma_min, 1 + budget // (2 if solver == "heun" else 1)
                    ).sigmas
                    found = []
                    for seed in range(seeds):
                        x, _ = run_sampler(
                            truth, sampler, start(name, "independent", seed), sigmas, seed
                        )
                        found.append(distance(x, random_stream(seed, "directions")) / floor)
                    # The floor is the mean of 200 draws that vary about as much as the ratios.
                    error = np.std(found, ddof=1) * math.sqrt(1 / seeds + 1 / 200)
                    cells.append(f" {np.mean(found):.3f} ± {error:.3f} ")
                print(f"| `{name}` | {sigma_min:g} | {solver} |{'|'.join(cells)}|", flush=True)


def _work_on(job: tuple[Task, frozenset[tuple[str, int]]]) -> list[Cell]:
    return work(*job)


if __name__ == "__main__":
    presets = dataset_presets()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, seeds in (("run", 10), ("flow", 100)):
        options = commands.add_parser(name)
        options.add_argument("--only", nargs="*", default=presets, choices=presets)
        options.add_argument("--seeds", type=int, default=seeds)
    commands.choices["run"].add_argument("--processes", type=int, default=2)
    commands.add_parser("report")
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen.only, chosen.seeds, chosen.processes)
    elif chosen.command == "flow":
        flow(chosen.only, chosen.seeds)
    else:
        from benchmarks.referee_report import report

        report(read_cells())
