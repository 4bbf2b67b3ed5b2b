"""Visible and total error of small networks, beside the KL divergence of their samples.

    python benchmarks/visible.py networks [--num 30] [--folder FOLDER]
    python benchmarks/visible.py turned [--picture FILE]

``networks`` trains small networks of different kinds, widths, lengths and seeds, in 1D and 2D,
through the real command. For each it prints score error and visible error, both bounds in nats,
the KL divergence of p_sigma_min from the law of the reverse diffusion that starts at p_sigma_max,
and that of the probability flow (``metric=kl``). Then follow the rank correlations.

In 1D the law of the reverse diffusion is that of 1000 Euler-Maruyama steps, by transition kernels
(``sampling.law``), and the divergence is that of p_sigma_min. In 2D the law solves the
Fokker-Planck equation on a grid, in which steps are infinitely small, and the divergence is that
of the exact score's law on the same grid, which takes away most of the grid's own error. What the
exact score's law has against p_sigma_min is printed.

``turned`` adds c J grad log p, a quarter turn of the true score, to one of these networks, and
prints the same numbers and the sliced Wasserstein distance of samples; the picture shows these.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, eye_array, kron
from scipy.sparse import diags_array as diagonal
from scipy.sparse.linalg import splu
from scipy.stats import spearmanr

import ncsn_cli as ncsn
from ncsn_cli.commands.score import load_network
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.network import evaluate_training
from ncsn_cli.inits import Data
from ncsn_cli.losses import Denoising
from ncsn_cli.metrics import KL, SlicedWasserstein, in_float64
from ncsn_cli.plots.canvas import MODEL, TRUTH, new_figure, own_settings, to_png
from ncsn_cli.runs.checkpoints import load_newest
from ncsn_cli.samplers import ReverseDiffusion, plan_of
from ncsn_cli.sampling.law import divergence, law_of_chain
from ncsn_cli.schedules import Geometric

Array = NDArray[np.float64]

SIGMA_MAX, SIGMA_MIN = 10.0, 0.5
LEVELS_1D = 1000
STEPS_2D, POINTS_2D = 150, 97
REACH = 6.0  # standard deviations beyond the modes
CPU = torch.device("cpu")

TRUTHS = {
    "two_modes_1d": GaussianMixture([0.1, 0.9], [-3.0, 3.0], 1.0),
    "three_modes_2d": GaussianMixture([0.4, 0.4, 0.2], [[-3, -3], [3, 3], [-1, 1]], 1.0),
}
MODELS = {
    "mlp": ["model=mlp", "model.activation=tanh"],
    "fourier_mlp": ["model=fourier_mlp"],
    "preconditioned_mlp": ["model=preconditioned_mlp"],
}
TURNED = 10  # the place of the network to which more is added
DRAWS, STEPS = 5000, 400  # of the samples of that network
SIZES = [(16, 300), (32, 600), (16, 1200), (64, 1200), (32, 2400)]  # width, steps of training


def reach(truth: Dataset, sigma: float) -> float:
    """Half the width of the grid at a level."""
    return float(truth.modes.abs().max()) + REACH * math.hypot(1.0, sigma)


def evaluate(score: Score, x: Array, sigma: float) -> Array:
    """The score at points (G, D)."""
    points = torch.from_numpy(x)
    with torch.no_grad():
        found = score(points, torch.tensor(sigma, dtype=points.dtype))
    return found.double().numpy()


def law_2d(score: Score, truth: Dataset) -> tuple[Array, Array]:
    r"""Points and density of the reverse diffusion from p_sigma_max, by Fokker and Planck.

        dq/dt = -div(s q) + Laplace q/2,   t = sigma_max^2 - sigma^2

    in coordinates y = x/B that shrink with the box, B = ``reach``: the drift is (s - B' y)/B and
    the diffusion 1/(2 B^2). Central differences and Crank-Nicolson steps.
    """
    sigmas = Geometric(SIGMA_MAX, SIGMA_MIN, STEPS_2D + 1).sigmas.tolist()
    y = np.linspace(-1, 1, POINTS_2D)
    h, one = y[1] - y[0], eye_array(POINTS_2D)
    # From nodes to the middles of edges, the mean and the difference; and the flux's divergence.
    shape = (POINTS_2D - 1, POINTS_2D)
    mean = diagonal([0.5, 0.5], offsets=[0, 1], shape=shape)
    difference = diagonal([-1 / h, 1 / h], offsets=[0, 1], shape=shape)
    axes = [(y[1:] + y[:-1]) / 2, y]
    middles = [np.stack(np.meshgrid(*each, indexing="ij"), -1) for each in (axes, axes[::-1])]
    nodes = np.stack(np.meshgrid(y, y, indexing="ij"), -1).reshape(-1, 2)

    def operator(sigma: float) -> csc_array:
        """dq/dt as a matrix."""
        box = reach(truth, sigma)
        shrinking = -REACH / (2 * math.hypot(1.0, sigma))  # dB/dt = -dB/d sigma^2
        total = None
        for axis, places in enumerate(middles):
            points = places.reshape(-1, 2)
            drift = (evaluate(score, box * points, sigma) - shrinking * points)[:, axis] / box
            average, slope = (
                kron(part, one) if axis == 0 else kron(one, part) for part in (mean, difference)
            )
            flux = diagonal(drift) @ average - slope / (2 * box**2)
            change = slope.T @ flux  # the transpose of a difference is minus the divergence
            total = change if total is None else total + change
        return csc_array(total)

    q = truth.log_prob(torch.from_numpy(reach(truth, SIGMA_MAX) * nodes), SIGMA_MAX).exp().numpy()
    q = q * reach(truth, SIGMA_MAX) ** 2
    before, whole = operator(sigmas[0]), eye_array(POINTS_2D**2)
    for sigma, following in pairwise(sigmas):
        step, after = sigma**2 - following**2, operator(following)
        q = splu(csc_array(whole - step / 2 * after)).solve(q + step / 2 * (before @ q))
        before = after
    box = reach(truth, SIGMA_MIN)
    return box * nodes, q / box**2


def on_grid(p: Array, q: Array) -> float:
    """KL(p || q) of two densities on the same grid, both scaled to mass 1."""
    p, q = p / p.sum(), q / q.sum()
    is_seen = p > 1e-12 * p.max()
    ratio = p[is_seen] * np.log(p[is_seen] / np.maximum(q[is_seen], 1e-300))
    return float(ratio.sum() - p[is_seen].sum() + q[is_seen].sum())


class Diffusion1D:
    """The law of 1000 Euler-Maruyama steps from p_sigma_max, by the package's own kernels."""

    def __init__(self, truth: Dataset) -> None:
        self.truth = truth
        self.error = self.kl(truth.score)

    def kl(self, score: Score) -> float:
        """The KL divergence of p_sigma_min from the law of ``score``."""
        sampler = ReverseDiffusion()
        plan = plan_of(sampler, Geometric(SIGMA_MAX, SIGMA_MIN, LEVELS_1D).sigmas)
        law = law_of_chain(sampler, plan, score, Data().law(self.truth, SIGMA_MAX), self.truth)
        kl = divergence(law, partial(self.truth.log_prob, sigma=SIGMA_MIN)).kl
        return math.nan if kl is None else kl


class Diffusion2D:
    """The law of the exact score on a grid, and how far it is from p_sigma_min."""

    def __init__(self, truth: Dataset) -> None:
        self.truth = truth
        x, self.q = law_2d(truth.score, truth)
        p = truth.log_prob(torch.from_numpy(x), SIGMA_MIN).exp().numpy()
        self.error = on_grid(p, self.q)

    def kl(self, score: Score) -> float:
        """The KL divergence of the exact score's law from that of ``score``."""
        return on_grid(self.q, law_2d(score, self.truth)[1])


def train(name: str, place: int, folder: Path) -> ncsn.Run:
    """Train one of the networks of a dataset, or read it again."""
    (kind, model), (width, steps) = [*MODELS.items()][place % 3], SIZES[place // 3 % 5]
    path = folder / f"{name}_{kind}_{width}_{steps}_{place}"
    if (path / "metrics.json").is_file():
        return ncsn.load_run(path)
    return ncsn.train(
        f"dataset={name}", "dataset.num_samples=null", "loss=denoising_continuous", *model,
        f"model.hidden=[{width},{width}]", f"schedule.sigma_max={SIGMA_MAX}",
        f"schedule.sigma_min={SIGMA_MIN}", f"trainer.steps={steps}", "trainer.compile=false",
        f"seed={place}", "plot=[]", "device=cpu", folder=path,
    )  # fmt: skip


def score_of(run: ncsn.Run, dim: int) -> Score:
    """The trained network, in float64."""
    _, tensors, record = load_newest(run.folder)
    return in_float64(load_network(record["config"]["model"], None, tensors, dim, []).eval())


def networks(num: int, folder: Path, only: list[str]) -> None:
    """The table of the networks and the rank correlations."""
    rows: list[dict[str, float]] = []
    print("| dataset | network | score error | visible | KL | visible bound | bound | flow's KL |")
    print("|---|---|---|---|---|---|---|---|")
    for name in only:
        truth = TRUTHS[name]
        reference = Diffusion1D(truth) if truth.dim == 1 else Diffusion2D(truth)
        for place in range(math.ceil(num / len(TRUTHS))):
            run = train(name, place, folder)
            metrics, score = run.metrics, score_of(run, truth.dim)
            sigmas = torch.tensor(metrics["sigmas"], dtype=torch.float64)
            flow = KL(num_points=500)(score, truth, sigmas, random_stream(0, "kl"))["value"]
            row = {
                "score error": metrics["score_error"],
                "visible error": metrics["visible_error"],
                "KL": reference.kl(score),
                "visible": metrics["kl_bound"]["visible"],
                "total": metrics["kl_bound"]["total"],
                "flow": math.nan if flow is None else flow,
                "dim": truth.dim,
            }
            rows.append(row)
            cells = [f"{row[key]:.3g}" for key in list(row)[:-1]]
            words = run.folder.name.removeprefix(f"{name}_").rsplit("_", 1)[0]
            print(f"| `{name}` | {words} | {' | '.join(cells)} |", flush=True)
        print(f"the exact score's law against p, {name}: {reference.error:.1e} nats", flush=True)
    for dims, title in ((1, "1D"), (2, "2D")):
        if not (chosen := [row for row in rows if row["dim"] == dims]):
            continue
        kl = [row["KL"] for row in chosen]
        for key in ("visible error", "score error", "visible", "total"):
            rank = spearmanr(kl, [row[key] for row in chosen]).statistic
            print(f"{title}: rank correlation of KL with {key}: {rank:.3f}")
        for key in ("visible", "total"):
            ratios = [row[key] / row["KL"] for row in chosen]
            print(
                f"{title}: {key} bound over KL: median {median(ratios):.2f},"
                f" {min(ratios):.2f} to {max(ratios):.2f}"
            )
        above = sum(row["flow"] > row["visible"] for row in chosen)
        print(f"{title}: the flow's KL is above the visible bound {above} of {len(chosen)} times")


def with_turned(network: Score, truth: Dataset, c: float) -> Score:
    """The network's score plus c J grad log p_sigma, with a quarter turn J."""

    def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        true = truth.score(x, sigma)
        return network(x, sigma) + c * torch.stack([-true[:, 1], true[:, 0]], dim=-1)

    return score


def turned(folder: Path, picture: Path | None) -> None:
    """The table of a network with more and more that does not show, and its picture."""
    name = "three_modes_2d"
    truth, run = TRUTHS[name], train(name, TURNED, folder)
    network, reference = score_of(run, 2), Diffusion2D(truth)
    sigmas = torch.tensor(run.metrics["sigmas"], dtype=torch.float64)
    fine = Geometric(SIGMA_MAX, SIGMA_MIN, STEPS).sigmas
    metric, drawn = SlicedWasserstein(), {}
    floor = noise_floor(metric, truth, SIGMA_MIN, DRAWS)
    print(
        "| c | score error | visible | bound | visible bound | KL | sliced Wasserstein / floor |"
    )
    print("|---|---|---|---|---|---|---|")
    for c in (0.0, 1.0, 2.0):
        score = with_turned(network, truth, c)
        found = evaluate_training(
            lambda x, s, score=score: score(x.double(), s.double()),
            truth, sigmas, Denoising(levels="continuous"), 0, CPU,
        )  # fmt: skip
        stream = random_stream(0, "turned")
        x = truth.sample(DRAWS, sigma=SIGMA_MAX, generator=stream).double()
        with torch.no_grad():
            x = ReverseDiffusion(denoise=False)(score, x, fine, generator=stream)
        distance = metric.distance(truth, SIGMA_MIN, DRAWS)(x.float(), stream)
        bound = found["kl_bound"]
        cells = [
            c, found["score_error"], found["visible_error"], bound["total"], bound["visible"],
            reference.kl(score), distance / floor["floor"],
        ]  # fmt: skip
        print(f"| {' | '.join(f'{cell:.3g}' for cell in cells)} |", flush=True)
        drawn[c] = x.numpy(), found["score_error"], found["visible_error"]
    if picture is not None:
        picture.write_bytes(draw_turned(truth, drawn))


def draw_turned(truth: Dataset, drawn: dict[float, tuple[Array, float, float]]) -> bytes:
    """The samples of each network as a PNG file."""
    axis = np.linspace(-8, 8, 161)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = truth.log_prob(torch.from_numpy(nodes), SIGMA_MIN).exp().numpy().reshape(161, 161)
    levels = density.max() * np.exp(-0.5 * np.array([4.0, 3.0, 2.0, 1.0]) ** 2)
    with own_settings():
        figure, panels = new_figure(1, len(drawn), width=3.8, height=5.4)
        for axes, (c, (x, whole, visible)) in zip(panels, drawn.items(), strict=True):
            axes.scatter(*x[:2000].T, s=4, color=MODEL, alpha=0.5, linewidths=0)
            axes.contour(axis, axis, density.T, levels=levels, colors=TRUTH, linewidths=1)
            axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
            axes.set_title(f"$c$ = {c:g}\nscore error {whole:.2g}\nvisible {visible:.2g}")
        figure.suptitle(r"Samples with the score: network + $c\,J\nabla\log p_\sigma$")
        return to_png(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("networks")
    table.add_argument("--num", type=int, default=30)
    table.add_argument("--folder", type=Path, help="where trained networks are kept")
    table.add_argument("--only", nargs="*", default=[*TRUTHS], choices=[*TRUTHS])
    added = commands.add_parser("turned")
    added.add_argument("--folder", type=Path, help="where the trained network is kept")
    added.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if chosen.command == "turned":
            turned(chosen.folder or Path(temporary), chosen.picture)
        else:
            networks(chosen.num, chosen.folder or Path(temporary), chosen.only)
