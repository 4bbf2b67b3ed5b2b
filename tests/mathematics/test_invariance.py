"""No number depends on where the data lie, in which unit they are, or (in 2D) how they are turned.

Exactly in the coordinates around the mean in which chains run; in data units to what float32
resolves. Scales are powers of 2, which round nothing.
"""

import math

import numpy as np
import pytest
import torch

from ncsn_cli.datasets import Denoised, GaussianMixture
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.network import evaluate_training
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.losses import Denoising, Explicit, Implicit, Sliced
from ncsn_cli.metrics import (
    MMD,
    EnergyDistance,
    ModeWeights,
    Moments,
    SlicedWasserstein,
    Wasserstein,
)
from ncsn_cli.runs.records import flatten
from tests.helpers.commands import only_run, read
from tests.helpers.problems import stream
from tests.helpers.slow import slow_but

CPU = torch.device("cpu")
SHIFTS = [100.0, 1e4]
SIGMA = 0.25
METRICS = {
    "wasserstein": Wasserstein(max_points=60),
    "sliced_wasserstein": SlicedWasserstein(num_directions=10),
    "energy_distance": EnergyDistance(max_points=200),
    "mmd": MMD(max_points=200, bandwidth=None),
    "mode_weights": ModeWeights(),
    "moments": Moments(),
}
UNITS = {"wasserstein": 1, "sliced_wasserstein": 1, "energy_distance": 0.5, "moments": 1}
MEANS = {1: [[-3.0], [3.0]], 2: [[-2.0, 0.0], [1.0, 1.0], [1.5, -2.0]]}


def mixture(dim, shift=0.0, scale=1.0, kind=GaussianMixture, **kwargs):
    num = len(MEANS[dim])
    means = [[scale * m + shift * (i + 1) for i, m in enumerate(mean)] for mean in MEANS[dim]]
    weights, stds = [0.25, 0.5, 0.25][:num], [0.5, 1.0, 0.75][:num]
    weights[-1] += 1 - sum(weights)
    return kind(weights, means, [scale * s for s in stds], **kwargs)


def measured(truth, samples):
    return evaluate_samples(samples, truth, SIGMA, METRICS, noise_floor, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("law", [lambda truth: truth, Denoised], ids=["exact", "denoised"])
def test_a_shift_changes_no_metric_or_floor_around_the_mean(law, dim, shift):
    here, there = (law(mixture(dim, by).centred()) for by in (0.0, shift))
    x = mixture(dim).sample(100, sigma=1.0, generator=stream(1)) - mixture(dim).mean
    expected, found = (flatten(measured(truth, x.float())) for truth in (here, there))
    offsets = shift * torch.arange(1, dim + 1).double()
    for name, value in expected.items():
        if name.endswith("moments.modes"):
            for a, b in zip(value, found[name], strict=True):
                moved = np.array(a["expected_mean"]) + offsets.numpy()
                np.testing.assert_allclose(b["expected_mean"], moved, atol=1e-7)
                np.testing.assert_allclose(
                    b["expected_covariance"], a["expected_covariance"], rtol=1e-5, atol=1e-6
                )
        elif isinstance(value, str):
            assert found[name] == value
        elif name.split(".")[1:] in (["mean"], ["expected_mean"]):
            np.testing.assert_allclose(found[name], value + offsets.numpy(), atol=1e-7)
        else:
            # Means of 1e4 + 3 are known to 1e-12 in float64; float32 draws differ by a last bit.
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("dim", [1, 2])
def test_a_shift_in_data_units_changes_distances_by_two_spacings(dim, shift):
    # Samples and exact draws are rounded to float32 at the shifted place, each by half a spacing
    # in each coordinate; every distance moves by no more than its points do, mode weights by those
    # near a boundary (there are none here), the energy distance's square by twice its points.
    spacing = 2 * math.sqrt(dim) * float(np.spacing(np.float32(shift * dim + 4)))
    here, there = mixture(dim), mixture(dim, shift)
    x = here.sample(100, sigma=1.0, generator=stream(1)).double() + 1
    offsets = shift * torch.arange(1, dim + 1).double()
    for name, metric in METRICS.items():
        expected, found = (
            metric.distance(truth, SIGMA, 100)(points, stream(2))
            for truth, points in ((here, x), (there, (x + offsets).float()))
        )
        near = spacing / expected if name == "energy_distance" else spacing
        assert found == pytest.approx(expected, abs=max(near, 1e-6)), name
    assert bool((here.nearest_mode(x) == there.nearest_mode(x + offsets)).all())


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("scale", slow_but([8.0, 2.0**-20], 1))
def test_every_metric_and_floor_has_its_unit(dim, scale):
    here, there = mixture(dim), mixture(dim, scale=scale)
    x = here.sample(100, sigma=1.0, generator=stream(1))
    expected = evaluate_samples(x, here, SIGMA, METRICS, noise_floor, 0)
    found = evaluate_samples(scale * x, there, scale * SIGMA, METRICS, noise_floor, 0)
    for name, unit in (dict.fromkeys(METRICS, 0) | UNITS).items():
        for key in ("value", "floor", "floor_quantiles"):
            np.testing.assert_allclose(
                found[name][key], scale**unit * np.array(expected[name][key]), rtol=1e-6
            )
        assert found[name]["ratio"] == pytest.approx(expected[name]["ratio"], rel=1e-6)
    for a, b in zip(expected["moments"].get("modes", []), found["moments"]["modes"], strict=True):
        np.testing.assert_allclose(b["expected_mean"], scale * np.array(a["expected_mean"]))


TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)


class TurnedMixture(GaussianMixture):
    """The mixture of 2D, turned about 0; its draws are those of the other one, turned."""

    def sample(self, num, *, sigma=0.0, generator):
        x = mixture(2).sample(num, sigma=sigma, generator=generator)
        return (x.double() @ TURN.T).float()


def test_a_turn_changes_no_metric():
    # All but the sliced distance, whose directions stay where they are.
    here, turned = mixture(2), mixture(2)
    means = (turned.modes @ TURN.T).tolist()
    there = TurnedMixture(here.weights.tolist(), means, [0.5, 1.0, 0.75])
    x = here.sample(100, sigma=1.0, generator=stream(1)).double()
    for name, metric in METRICS.items():
        if name == "sliced_wasserstein":
            continue
        expected, found = (
            metric.distance(truth, SIGMA, 100)(points, stream(2))
            for truth, points in ((here, x), (there, x @ TURN.T))
        )
        near = 1e-5 * expected  # float32 draws
        if name == "mode_weights":  # true shares come from draws that are not turned along
            near = 5 * sum(float(t.mode_moments(SIGMA).errors[0].sum()) for t in (here, there))
        assert abs(found - expected) < near, name
    a, b = (truth.fisher(SIGMA).matrix for truth in (here, there))
    torch.testing.assert_close(b, TURN @ a @ TURN.T, rtol=1e-6, atol=1e-6)  # two grids
    a, b = (truth.mode_moments(SIGMA) for truth in (here, there))
    for i, turn in ((0, lambda s: s), (1, lambda m: m @ TURN.T), (2, lambda c: TURN @ c @ TURN.T)):
        error = torch.hypot(turn(a[i]) * 0 + a.errors[i].max(), b.errors[i].max())
        assert bool(((turn(a[i]) - b[i]).abs() <= 5 * error).all())


LEVELS = {"levels": "all", "weight_power": 2.0}
LOSSES = [
    Denoising(**LEVELS, noise="fresh"),
    Denoising(levels="continuous", weight_power=2.0, noise="fresh"),
    Explicit(**LEVELS),
    Implicit(**LEVELS),
    Sliced(**LEVELS, directions="gaussian", variance_reduced=False),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__} {loss.levels}")
def test_a_shift_and_a_scale_change_no_loss_or_floor(loss):
    # With lambda = sigma^2 no loss has a unit. Of a score 1.1 times the true one, relative error
    # .01; draws are rounded to float32 at 100: by 4e-6 of the smallest level at most.
    sigmas = torch.tensor([2.0, 0.5], dtype=torch.float64)

    def evaluated(shift, scale):
        truth = mixture(1, shift, scale)

        def score(x, sigma):
            return 1.1 * truth.score(x.double(), sigma.double()).float()

        return evaluate_training(score, truth, scale * sigmas, loss, 0, CPU)

    here = evaluated(0.0, 1.0)
    for shift, scale in ((100.0, 1.0), (0.0, 16.0)):
        there = evaluated(shift, scale)
        for name in ("loss_floor", "excess_loss", "score_error", "loss"):
            assert there[name] == pytest.approx(here[name], rel=1e-4), name
        assert there["score_error"] == pytest.approx(0.01, rel=1e-4)
        np.testing.assert_allclose(there["best_scale_per_level"], [1 / 1.1, 1 / 1.1], rtol=1e-4)


SAMPLERS = {
    "langevin": ["sampler=annealed_langevin", "sampler.steps_per_level=5"],
    "mala": ["sampler=annealed_mala", "sampler.steps_per_level=5"],
    "flow": ["sampler=probability_flow", "sampler.denoise=true"],
    "correctors": ["sampler=predictor_corrector"],
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_shift_changes_no_number_of_a_sampling_run(sampler, forked, tmp_path):
    reports = {}
    for shift in (0.0, 1e4):
        folder = tmp_path / str(shift)
        folder.mkdir()
        result = forked.call(
            "sample",
            [
                "score=exact", "dataset=mixture", f"dataset.means=[[{shift - 3}],[{shift + 3}]]",
                "dataset.weights=[.3,.7]", "dataset.stds=.5", "schedule=geometric",
                "schedule.sigma_max=4", "schedule.sigma_min=.25", "schedule.num_levels=8",
                "init=prior", "num_samples=200", "plot=[]", "metric=[wasserstein,mode_weights]",
                f"trajectory_metrics={str(sampler == 'langevin').lower()}", *SAMPLERS[sampler],
            ],
            folder,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        reports[shift] = only_run(folder, "sample")
    here, there = (flatten(read(run / "metrics.json")) for run in reports.values())
    # The start is rounded to float32 at 1e4, by 5e-4 of sigma_max = 4, and the samples are. So a
    # chain may come to another mode, or an acceptance turn to a refusal: one or two of 200.
    spacing = 2 * float(np.spacing(np.float32(1e4)))
    for name, value in here.items():
        # One chain may change a verdict, and the share of an error in a cause.
        if name == "seconds" or name.endswith(("transitions", "ratio", "verdict", "causes")):
            continue
        near = 2 / 200 if "commitment" in name or "weights" in name else spacing
        np.testing.assert_allclose(
            np.array(there[name], float), np.array(value, float), atol=near, err_msg=name
        )
    samples = [np.load(run / "samples.npz")["samples"] for run in reports.values()]
    off = np.abs(samples[1].astype(float) - 1e4 - samples[0])
    assert np.sort(off[:, 0])[-3] <= spacing
