"""What noise is good for, in numbers: the tables and the picture of docs/learn/why_noise.md.

    python -m benchmarks.why_noise efficiency [--picture FILE]
    python -m benchmarks.why_noise trained
    python -m benchmarks.why_noise targets
    python -m benchmarks.why_noise steps
    python -m benchmarks.why_noise levels

``efficiency`` estimates the weight of 1/2 N(-m, 1) + 1/2 N(m, 1) from 200 training sets by score
matching at one level with the noise averaged, and prints the variance over that of maximum
likelihood: foretold by the sandwich formula, and measured, with intervals that hold all cells
together with 99 %. ``trained`` holds what ``ncsn-train experiment=efficiency_1d`` learns against
the minimiser by Newton's method. ``targets`` prints the variance of each loss's target by level,
and the bias of the stable target against the size of its reference batch. ``steps`` trains with
each loss until the score error is .01. ``levels`` runs chains and prints the levels of speciation
and of collapse, foretold and measured.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.stats import chi2, norm

import ncsn_cli as ncsn
from ncsn_cli.commands.score import load_network
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture, moons
from ncsn_cli.evaluation.efficiency import data_needed
from ncsn_cli.losses import ControlVariate, Denoising, StableTarget, TargetScore
from ncsn_cli.metrics import ScoreError
from ncsn_cli.plots.canvas import SERIES, new_figure, own_settings, to_png
from ncsn_cli.runs.checkpoints import checkpoint_path, load_checkpoint

Array = NDArray[np.float64]

SEPARATIONS, LEVELS = (1.0, 2.0, 3.0, 4.0), (0.0, 0.5, 1.0, 2.0, 3.0)
SETS, POINTS = 200, 10_000_000  # training sets, and points in each: counts in bins are cheap
BIN = 0.02  # width of the bins, in standard deviations of a mode
REACH = 8.5  # standard deviations of the modes and of the noise, beyond the modes
MISSED = 0.01  # probability that one of the intervals misses
GOAL, EVERY = 0.01, 50  # score error to reach; steps between looks at it
SONG_ERMON = GaussianMixture([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], 1.0)


class Counted:
    """Training sets of 1/2 N(-m, 1) + 1/2 N(m, 1) as counts in bins, and the estimator at sigma.

    The estimate of w minimises the implicit loss at ``sigma``, averaged over the noise. As the
    kernel of the noise is symmetric, it may smooth the counts instead of the loss.
    """

    def __init__(self, m: float, sigma: float) -> None:
        self.m, self.sigma = m, sigma
        half = m + REACH * (1 + sigma)
        self.x = np.arange(-half, half, BIN) + BIN / 2
        edges = np.append(self.x - BIN / 2, self.x[-1] + BIN / 2)
        self.shares = np.diff(norm.cdf(edges, -m) + norm.cdf(edges, m)) / 2
        r, _, _ = self.shares_and_slopes(np.full((1, 1), 0.5), 0.0)
        u = 2 * (2 * r[0] - 1)  # d log p/dw
        self.information = float(self.shares @ u**2)

    def shares_and_slopes(self, w: Array, sigma: float) -> tuple[Array, Array, Array]:
        """r = w N(-m)/p at each bin, its slope by x, and the score, at weights w (sets, 1)."""
        v, m = 1 + sigma**2, self.m
        r = 1 / (1 + (1 - w) / w * np.exp(2 * m * self.x / v))
        return r, r * (1 - r) * -2 * m / v, (m * (1 - 2 * r) - self.x) / v

    def slopes(self, w: Array) -> tuple[Array, Array]:
        """First and second derivative of the loss's term by w at each bin, w (sets, 1).

        With u = d log p/dw the first is psi = s u' + u'', and since du/dw = -u^2 the second is
        -u'^2 - 2 u psi.
        """
        r, slope, score = self.shares_and_slopes(w, self.sigma)
        c = 1 / (w * (1 - w))
        u = r / w - (1 - r) / (1 - w)
        first = c * slope
        psi = score * first + first * (1 - 2 * r) * -2 * self.m / (1 + self.sigma**2)
        return psi, -(first**2) - 2 * u * psi

    def minimise(self, counts: Array) -> Array:
        """The estimates of w (sets,) for smoothed counts (sets, bins), by Newton's method."""
        w = np.full((len(counts), 1), 0.5)
        for _ in range(50):
            first, second = ((counts * each).sum(1, keepdims=True) for each in self.slopes(w))
            step = np.clip(first / np.maximum(second, 1e-300), -0.1, 0.1)
            w = np.clip(w - step, 1e-3, 1 - 1e-3)
            if np.abs(step).max() < 1e-12:
                break
        return w[:, 0]

    def estimates(self, rng: np.random.Generator, num: int, sets: int) -> Array:
        """Estimates of w (sets,) from training sets of ``num`` points."""
        counts = rng.multinomial(num, self.shares / self.shares.sum(), size=sets).astype(float)
        return self.minimise(self.smoothed(counts))

    def smoothed(self, counts: Array) -> Array:
        """Counts (sets, bins) after the noise."""
        if self.sigma == 0:
            return counts
        return gaussian_filter1d(counts, self.sigma / BIN, mode="constant", truncate=REACH)


def efficiency(picture: Path | None) -> None:
    """The table of variance ratios, and the picture."""
    cells = len(SEPARATIONS) * len(LEVELS)
    tails = MISSED / cells / 2
    low, high = ((SETS - 1) / chi2.ppf(p, SETS - 1) for p in (1 - tails, tails))
    print("| m | " + " | ".join(f"sigma = {s:g}" for s in LEVELS) + " |")
    print("|---" * (1 + len(LEVELS)) + "|")
    inside = 0
    for m in SEPARATIONS:
        row, law = [], GaussianMixture([0.5, 0.5], [[-m], [m]], 1.0)
        for sigma in LEVELS:
            counted = Counted(m, sigma)
            rng = np.random.default_rng([int(m), int(10 * sigma)])
            found = counted.estimates(rng, POINTS, SETS)
            ratio = POINTS * found.var(ddof=1) * counted.information
            foretold = data_needed(law, sigma)
            assert foretold is not None
            inside += low * ratio <= foretold <= high * ratio
            row.append(f"**{foretold:.4g}** {ratio:.3g} ({low * ratio:.3g} to {high * ratio:.3g})")
        print(f"| {m:g} | " + " | ".join(row) + " |", flush=True)
    print(f"\n{inside} of {cells} intervals hold the foretold number")
    if picture is not None:
        picture.write_bytes(draw_efficiency())


def draw_efficiency() -> bytes:
    """Data needed against sigma, for each distance of the modes, as a PNG file."""
    sigmas = [0.0, *np.geomspace(0.05, 6, 60)]
    with own_settings():
        figure, (axes,) = new_figure(1, 1, width=8)
        for m, colour in zip(SEPARATIONS, SERIES, strict=False):
            law = GaussianMixture([0.5, 0.5], [[-m], [m]], 1.0)
            needed = [data_needed(law, s) for s in sigmas]
            axes.plot(sigmas, needed, color=colour, label=f"modes {2 * m:g} apart")
        axes.set(
            xlabel=r"noise $\sigma$ (standard deviation of a mode: 1)",
            ylabel="data needed / maximum likelihood's",
            yscale="log", xlim=(0, 6),
            title="Data that score matching needs for the weights of two modes",
        )  # fmt: skip
        axes.axhline(1, color="0.5", linestyle=":")
        axes.grid(alpha=0.25)
        axes.legend()
        return to_png(figure)


def trained(folder: Path) -> None:
    """What Adam learns, against the minimiser on the same training points by Newton's method."""
    print("| sigma | seed | trained | Newton | difference | standard deviation over sets |")
    print("|---|---|---|---|---|---|")
    for sigma in (0.0, 2.0):
        counted = Counted(2.0, sigma)
        law = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 1.0, num_samples=1000)
        needed = data_needed(law, sigma)
        assert needed is not None
        std = math.sqrt(needed / counted.information / 1000)
        for seed in range(3):
            run = ncsn.train(
                "experiment=efficiency_1d", f"schedule.sigma={sigma}", f"dataset.seed={seed}",
                "trainer.steps=2000", "plot=[]", "device=cpu", folder=folder / f"{sigma}_{seed}",
            )  # fmt: skip
            learned = run.metrics["mixture"]["weights"][0]
            points = GaussianMixture(
                [0.5, 0.5], [[-2.0], [2.0]], 1.0, num_samples=1000, seed=seed
            ).training_set()
            assert points is not None
            exact = minimiser(counted, points[:, 0].double().numpy())
            print(
                f"| {sigma:g} | {seed} | {learned:.4f} | {exact:.4f} | {learned - exact:.4f} |"
                f" {std:.4f} |",
                flush=True,
            )


def minimiser(counted: Counted, points: Array) -> float:
    """The estimate of w from points (N,), whose noise is averaged by the trapezoid rule."""
    if counted.sigma == 0:
        counted.x, counts = points, np.ones((1, len(points)))
    else:
        z = np.linspace(-REACH, REACH, 401)
        counted.x = (points[:, None] + counted.sigma * z).ravel()
        counts = np.tile(norm.pdf(z), len(points))[None]
    return float(counted.minimise(counts)[0])


def targets() -> None:
    """Variances of the targets by level, and the bias of the stable target."""
    levels = (0.1, 0.3, 1.0, 3.0, 10.0)
    print("| sigma^2 E‖target - score‖^2 | " + " | ".join(f"{s:g}" for s in levels) + " |")
    print("|---" * (1 + len(levels)) + "|")
    informations = [SONG_ERMON.fisher_information(s) for s in levels]
    known = {
        "denoising": Denoising(),
        "target": TargetScore(),
        "control_variate": ControlVariate(),
    }
    for name, loss in known.items():
        fitted = loss.for_dataset(SONG_ERMON)
        found = [
            fitted.target_variance(s, 2, i) for s, i in zip(levels, informations, strict=True)
        ]
        print(f"| `{name}` | " + " | ".join(short(v) for v in found) + " |", flush=True)
    for size in (16, 128, 1024):
        found = [spread(size, s) for s in levels]
        cells = " | ".join(short(v) for v, *_ in found)
        print(f"| `stable_target`, reference {size} | {cells} |", flush=True)
        for place, what in ((1, "its bias"), (3, "its bias without the point itself")):
            cells = " | ".join(f"{f[place]:.4f} ± {f[place + 1]:.4f}" for f in found)
            print(f"| {what} | {cells} |", flush=True)


def short(value: float | None) -> str:
    """Two digits; rounding errors are 0."""
    return "0" if value is None or value < 1e-6 else f"{value:.2g}"


def spread(size: int, sigma: float) -> tuple[float, ...]:
    """sigma^2 E‖target - score‖^2 of the stable target, and its bias along the score.

    The bias is sigma E<target - score, score>/sqrt(E‖score‖^2), with its standard error from the
    means over batches, which are independent; and the same for the mean over the other points.
    """
    loss, level = StableTarget(reference=size), torch.tensor([sigma])
    stream, means = random_stream(0, f"{size} {sigma}"), []
    for _ in range(400_000 // size):
        x = SONG_ERMON.sample(size, generator=stream)
        drawn = loss.perturbed(loss.draw(x, level, stream), x, level, SONG_ERMON.score)
        score = SONG_ERMON.score(drawn.x, drawn.sigma).double()
        square = (drawn.x[:, None] - x).square().sum(-1) + 1e9 * torch.eye(size)
        others = ((-square / (2 * sigma**2)).softmax(-1) @ x - drawn.x) / sigma**2
        errors = [sigma * (target - score) for target in (loss.target(drawn), others)]
        products = [errors[0].square(), *(error * score for error in errors), score.square()]
        means.append([float(each.sum(-1).mean()) for each in products])
    variance, own, other, length = np.array(means).T
    scale = math.sqrt(length.mean() * len(means))
    biases = (each.mean() / length.mean() ** 0.5 for each in (own, other))
    errors_of = (each.std() / scale for each in (own, other))
    pairs = zip(biases, errors_of, strict=True)
    return float(variance.mean()), *(float(n) for pair in pairs for n in pair)


LAWS: dict[str, tuple[str, Callable[[], Dataset]]] = {
    "two_modes_1d": ("schedule.sigma_max=8", lambda: GaussianMixture([0.1, 0.9], [-3.0, 3.0])),
    "song_ermon_2d": ("schedule.sigma_max=20", lambda: SONG_ERMON),
    "moons_2d": ("schedule.sigma_max=8", moons),
}


def steps(folder: Path, most: int) -> None:
    """Steps and seconds until the mean score error over the levels is .01."""
    print(f"| dataset | loss | steps to {GOAL:g} | seconds | error after {most} steps |")
    print("|---|---|---|---|---|")
    for name, (key, law) in LAWS.items():
        truth = law()
        for loss in ("denoising", "target", "control_variate", "stable_target"):
            run = ncsn.train(
                f"dataset={name}", "dataset.num_samples=null", f"loss={loss}", key,
                "schedule.sigma_min=0.1", "schedule.num_levels=12", f"trainer.steps={most}",
                "trainer.lr_decay=none", "trainer.ema_decay=0.99", "trainer.compile=false",
                f"trainer.checkpoint_every={EVERY}", f"trainer.log_every={EVERY}",
                "trainer.eval_every=100000", f"trainer.keep_last={most}", "plot=[]",
                "device=cpu", folder=folder / f"{name}_{loss}",
            )  # fmt: skip
            sigmas = torch.tensor(run.metrics["sigmas"])
            errors = {}
            for step in range(EVERY, most + 1, EVERY):
                tensors, record = load_checkpoint(checkpoint_path(run.folder, step))
                network = load_network(record["config"]["model"], None, tensors, truth.dim, [])
                with torch.no_grad():
                    found: dict[str, Any] = ScoreError(num_points=3000)(
                        network, truth, sigmas, random_stream(0, "steps")
                    )
                errors[step] = found["value"]
                if errors[step] <= GOAL:
                    break
            seconds = dict(zip(run.history["step"], run.history["seconds"], strict=True))
            first = next((step for step, error in errors.items() if error <= GOAL), None)
            shown = f"{first} | {seconds[first]:.1f}" if first else "- | -"
            print(
                f"| `{name}` | `{loss}` | {shown} | {run.metrics['score_error']:.4f} |", flush=True
            )


GAUSSIAN = (
    "two_modes_1d", "two_modes_2d", "song_ermon_2d", "three_modes_2d", "grid_2d", "ring_2d",
    "moons_2d", "spiral_2d",
)  # fmt: skip


def levels(folder: Path, num: int) -> None:
    """Levels of speciation for two samplers, and of collapse for the reverse diffusion.

    Annealed chains follow the exact score, the reverse diffusion follows the empirical one.
    """
    print("| dataset | speciation foretold | annealed Langevin | reverse diffusion |", end="")
    print(" collapse foretold | reverse diffusion |\n|---|---|---|---|---|---|")
    quiet = ["metric=[]", "plot=[]", "device=cpu", "num_samples=2000", "schedule=geometric"]
    for name in GAUSSIAN:
        annealed = ncsn.sample(
            "score=exact", f"dataset={name}", *quiet, "schedule.sigma_max=30",
            "schedule.sigma_min=0.03", "schedule.num_levels=60", "sampler=annealed_langevin",
            folder=folder / f"{name}_annealed",
        )  # fmt: skip
        reverse = ncsn.sample(
            "score=empirical", f"dataset={name}", f"dataset.num_samples={num}", *quiet,
            "schedule.sigma_max=30", "schedule.sigma_min=0.0003", "schedule.num_levels=300",
            "sampler=reverse_diffusion", folder=folder / f"{name}_reverse",
        )  # fmt: skip
        cells = [name, reverse.metrics["speciation"]["foretold"]]
        cells += [run.metrics["speciation"]["median_of_chains"] for run in (annealed, reverse)]
        cells += reverse.metrics["collapse"].values()
        shown = (f"{cell:.2g}" if isinstance(cell, float) else f"`{cell}`" for cell in cells)
        print(f"| {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("efficiency").add_argument("--picture", type=Path)
    commands.add_parser("targets")
    for command in ("trained", "steps", "levels"):
        commands.add_parser(command).add_argument(
            "--folder", type=Path, help="where runs are kept"
        )
    commands.choices["steps"].add_argument("--most", type=int, default=3000)
    commands.choices["levels"].add_argument("--num", type=int, default=1000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = getattr(chosen, "folder", None) or Path(temporary)
        if chosen.command == "efficiency":
            efficiency(chosen.picture)
        elif chosen.command == "targets":
            targets()
        elif chosen.command == "trained":
            trained(place)
        elif chosen.command == "steps":
            steps(place, chosen.most)
        else:
            levels(place, chosen.num)
