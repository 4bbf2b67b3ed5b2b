"""The tables, the CSV and the pictures of docs/results/referee.md, from the referee's cells.

What stands between the page's marks is replaced; the rest of the page is written by hand.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.referee import BUDGETS, EXACT, FITTED, FLOW, LANGEVIN, LONG, OTHERS, Cell
from ncsn_cli.plots.canvas import SERIES, new_figure, own_settings

FOLDER = Path("docs/results")
TINY = 0.02  # of the noise floor: a difference that is of no use
NEAR = 0.15  # of the noise floor: about the standard error of a mean over ten runs with noise
COMPARED = [10, 15, 20, 30, 50]
SHOWN = [
    FITTED, FLOW, "probability_flow, heun", "reverse_diffusion", "annealed_langevin",
    "diffusers UniPCMultistep", "diffusers DPMSolverMultistep", "diffusers DEISMultistep",
    "diffusers LMSDiscrete", "diffusers DPMSolverSDE", "azula zEAB", "azula xEAB",
]  # fmt: skip
"""Samplers with a line of their own in the picture."""

Key = tuple[str, str, int, str]
Runs = Mapping[Key, Sequence[Cell]]
"""Cells by dataset, sampler, evaluations and start, one for each seed."""


def report(cells: Iterable[Cell]) -> None:
    """Write the CSV, the pictures, and the tables between the marks of the page."""
    runs: dict[Key, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        key = (cell.dataset, cell.sampler, cell.evaluations, cell.starts)
        runs.setdefault(key, []).append(cell)
    names = sorted({key[0] for key in runs})
    FOLDER.mkdir(exist_ok=True)
    write_csv(runs)
    page = FOLDER / "referee.md"
    text = page.read_text()
    for title, table in (
        ("goal", above_the_exact_flow), ("others", against_the_best_other), ("ranks", ranks),
        ("parts", start_and_starts), ("stochastic", long_runs),
    ):  # fmt: skip
        begin, end = f"<!-- {title} -->\n", f"<!-- end of {title} -->"
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *table(runs, names), "", end + rest.partition(end)[2]])
    page.write_text(text)
    draw_evaluations(runs, names)
    draw_ranks(runs, names)


def ratios(runs: Runs, *key: str | int) -> np.ndarray:
    """Return the sliced Wasserstein distances over their floor, (seeds,), of one cell's runs."""
    found = runs.get(key, [])  # type: ignore[call-overload]
    return np.array([cell.sliced_wasserstein for cell in found], dtype=float)


def write_csv(runs: Runs) -> None:
    """Write one row per dataset, sampler, evaluations and start."""
    metrics = ("sliced_wasserstein", "mode_weights")
    columns = [f"{m}{suffix}" for m in metrics for suffix in ("", "_low", "_high", "_mean")]
    with (FOLDER / "referee.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["dataset", "sampler", "evaluations", "starts", "seeds", "used", "fitting", *columns]
        )
        for key in sorted(runs):
            found, numbers = runs[key], list[str]()
            for metric in metrics:
                values = [v for cell in found if (v := getattr(cell, metric)) is not None]
                if not values:
                    numbers += [""] * 4
                    continue
                summary = (np.median(values), min(values), max(values), np.mean(values))
                numbers += [f"{value:.4g}" for value in summary]
            writer.writerow([*key, len(found), found[0].used, found[0].fitting, *numbers])


def is_beyond_noise(differences: np.ndarray) -> bool:
    """Return whether all paired differences have one sign and are not tiny.

    One sign in ten seeds has the probability 2 / 2^10 by chance.
    """
    one_sign = bool((differences > 0).all() or (differences < 0).all())
    return one_sign and abs(float(np.median(differences))) > TINY


def above_the_exact_flow(runs: Runs, names: list[str]) -> list[str]:
    """Fitted levels, over the same starts taken to 1000 evaluations: mean and standard error."""
    lines = [
        "| dataset | same starts, 1000 |" + "".join(f" {n} |" for n in BUDGETS),
        "|---|---|" + "---|" * len(BUDGETS),
    ]
    for name in names:
        exact = ratios(runs, name, FLOW, EXACT, "independent")
        cells = []
        for num in BUDGETS:
            above = ratios(runs, name, FITTED, num, "independent") - exact
            cells.append(f" {above.mean():+.3f} ± {_error(above):.3f} |")
        lines.append(f"| `{name}` | {exact.mean():.2f} |{''.join(cells)}")
    return lines


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def against_the_best_other(runs: Runs, names: list[str]) -> list[str]:
    """The best sampler of the other libraries, less fitted levels, from the same starts."""
    others = [name for name in OTHERS if name.startswith(("diffusers", "azula"))]
    lines = [
        "| dataset |" + "".join(f" {n} |" for n in COMPARED), "|---|" + "---|" * len(COMPARED)
    ]  # fmt: skip
    for name in names:
        cells = []
        for num in COMPARED:
            ours = ratios(runs, name, FITTED, num, "independent")
            found = {other: ratios(runs, name, other, num, "independent") for other in others}
            medians = {other: np.median(v) for other, v in found.items() if len(v)}
            best = min(medians, key=lambda other: medians[other])
            more = found[best] - ours
            mark = "**" if is_beyond_noise(more) else ""
            word = best.partition(" ")[2]
            cells.append(
                f" {mark}{np.median(more):+.2f}{mark} [{more.min():+.2f}, {more.max():+.2f}]"
                f" {word} |"
            )
        lines.append(f"| `{name}` |{''.join(cells)}")
    return lines


def ranks(runs: Runs, names: list[str]) -> list[str]:
    """All samplers: on how many datasets none is better, ratios, and evaluations to the floor."""
    shown = [10, 20, 50]
    head = "".join(f" {n}: none better | {n}: median (worst) |" for n in shown)
    lines = [f"| sampler |{head} to the floor |", "|---|" + "---|---|" * len(shown) + "---|"]
    rows = []
    for sampler in [*LANGEVIN, *OTHERS]:
        cells, order = [], math.inf
        for num in shown:
            medians, tied = [], 0
            for name in names:
                own = ratios(runs, name, sampler, num, "independent")
                if len(own):
                    medians.append(float(np.median(own)))
                    tied += _has_no_better(runs, name, sampler, num)
            if not medians:
                cells.append(" | |")
                continue
            cells.append(f" {tied} | {np.median(medians):.2f} ({max(medians):.2f}) |")
            order = float(np.median(medians)) if num == shown[0] else order
        rows.append(
            (order, f"| {_shown(sampler)} |{''.join(cells)} {_to_floor(runs, names, sampler)} |")
        )
    return [*lines, *(line for _, line in sorted(rows, key=lambda row: row[0]))]


def _shown(sampler: str) -> str:
    return f"**{sampler}**" if sampler == FITTED else sampler


def _has_no_better(runs: Runs, name: str, sampler: str, num: int) -> bool:
    """Return whether no sampler is nearer to the law than this one with every seed."""
    own = ratios(runs, name, sampler, num, "independent")
    for other in [*LANGEVIN, *OTHERS]:
        theirs = ratios(runs, name, other, num, "independent")
        if len(theirs) and is_beyond_noise(theirs - own) and theirs[0] < own[0]:
            return False
    return True


def _to_floor(runs: Runs, names: list[str], sampler: str) -> str:
    """Return the fewest evaluations that lead to the floor: median over the datasets (worst).

    There the mean is at most ``NEAR`` above that of the exact flow from the same starts.
    """
    found = []
    for name in names:
        exact = ratios(runs, name, FLOW, EXACT, "independent")
        near = math.inf
        for num in [*BUDGETS, *LONG]:
            own = ratios(runs, name, sampler, num, "independent")
            above = own - exact[: len(own)]
            if len(own) and above.mean() <= NEAR:
                near = num
                break
        found.append(near)
    texts = [f"{v:g}" if math.isfinite(v) else "more" for v in (np.median(found), max(found))]
    return f"{texts[0]} ({texts[1]})"


def start_and_starts(runs: Runs, names: list[str]) -> list[str]:
    """What start and steps add, and what quasi-random starts take away."""
    lines = [
        "| dataset | exact start, 1000 | start adds | steps add: fitted, 10 | not fitted, 10 |"
        " sobol, 1000 | sobol, fitted, 10 | sobol, fitted, 50 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        exact, own, sobol = (
            ratios(runs, name, FLOW, EXACT, starts) for starts in ("exact", "independent", "sobol")
        )
        steps = [ratios(runs, name, s, 10, "independent") - own for s in (FITTED, FLOW)]
        even = [ratios(runs, name, FITTED, num, "sobol") for num in (10, 50)]
        numbers = [exact, own - exact, *steps, sobol, *even]
        cells = "".join(
            f" {v.mean():{'+' if 1 <= i <= 3 else ''}.2f} ± {_error(v):.2f} |"
            for i, v in enumerate(numbers)
        )
        lines.append(f"| `{name}` |{cells}")
    return lines


def long_runs(runs: Runs, names: list[str]) -> list[str]:
    """Langevin dynamics, up to 1000 evaluations: median (worst) of the datasets."""
    nums = [30, 100, *LONG]
    lines = ["| sampler |" + "".join(f" {n} |" for n in nums), "|---|" + "---|" * len(nums)]
    for sampler in LANGEVIN:
        cells = []
        for num in nums:
            found = [ratios(runs, name, sampler, num, "independent") for name in names]
            medians = [float(np.median(values)) for values in found if len(values)]
            cells.append(f" {np.median(medians):.2f} ({max(medians):.2f}) |")
        lines.append(f"| {sampler} |{''.join(cells)}")
    return lines


@own_settings()
def draw_evaluations(runs: Runs, names: list[str]) -> None:
    """Ratio against evaluations, a panel a dataset."""
    columns = 4
    figure, axes = new_figure(-(-len(names) // columns), columns, width=4.2, height=3.4)
    for axis, name in zip(axes, names, strict=False):
        for sampler in [*LANGEVIN, *OTHERS]:
            points = [
                (num, np.median(v))
                for num in [*BUDGETS, *LONG]
                if len(v := ratios(runs, name, sampler, num, "independent"))
            ]
            if not points:
                continue
            place = SHOWN.index(sampler) if sampler in SHOWN else None
            style = (
                {"color": "0.85", "lw": 0.8, "zorder": 1}
                if place is None
                else {
                    "color": SERIES[place % len(SERIES)], "label": sampler, "zorder": 2,
                    "ls": "-" if place < len(SERIES) else "--",
                    "lw": 3 if sampler == FITTED else 1.5,
                }
            )  # fmt: skip
            axis.loglog(*zip(*points, strict=True), **style)
        exact = np.median(ratios(runs, name, FLOW, EXACT, "independent"))
        axis.axhline(exact, color="black", lw=0.8, ls=":")
        axis.set(title=name, ylim=(0.4, 300), xlim=(5, 1000))
    for i, axis in enumerate(axes):
        if i >= len(names):
            axis.axis("off")
        if i % columns == 0:
            axis.set_ylabel("distance / noise floor")
        if i + columns >= len(names):
            axis.set_xlabel("score evaluations")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig("docs/pictures/referee.png", dpi=80)


@own_settings()
def draw_ranks(runs: Runs, names: list[str], num: int = 10) -> None:
    """The table of all samplers and datasets at one number of evaluations; bold: none better."""
    from matplotlib.colors import LogNorm

    samplers = [s for s in OTHERS if len(ratios(runs, names[0], s, num, "independent"))]
    median: Callable[[str, str], float] = lambda s, n: float(  # noqa: E731
        np.median(ratios(runs, n, s, num, "independent"))
    )
    samplers.sort(key=lambda s: np.median([median(s, n) for n in names]))
    table = np.array([[median(s, n) for n in names] for s in samplers])
    figure, (axis,) = new_figure(1, 1, width=14, height=0.32 * len(samplers) + 2)
    image = axis.imshow(table, aspect="auto", cmap="viridis_r", norm=LogNorm(0.7, 20))
    for i, sampler in enumerate(samplers):
        for j, name in enumerate(names):
            value = table[i, j]
            look: dict[str, str] = {"color": "white" if value > 4 else "black"}
            if _has_no_better(runs, name, sampler, num):
                look["weight"] = "bold"
            text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=11, **look)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=11)
    axis.set_yticks(range(len(samplers)), samplers, fontsize=11)
    axis.set_title(f"after {num} evaluations (bold: no sampler is better)")
    figure.colorbar(image, label="distance / noise floor", ticks=[1, 2, 5, 10, 20], format="%g")
    figure.savefig("docs/pictures/referee_ranks.png", dpi=80)
