"""A dataset of which only draws are known, held against the mixture that makes the draws."""

import functools
import math

import numpy as np
import pytest
import torch

from ncsn_cli.commands.contract import adopted
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, UnknownTruthError
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.settings import NUM_DRAWS
from ncsn_cli.datasets import GaussianMixture, Sampled
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.evaluation.network import evaluate_training
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.evaluation.schedule_advice import examine
from ncsn_cli.losses import Denoising, ImplicitRegularized
from ncsn_cli.metrics import (
    KL,
    MMD,
    EnergyDistance,
    ModeWeights,
    Moments,
    ScoreError,
    SlicedWasserstein,
    Wasserstein,
)
from ncsn_cli.samplers import AnnealedLangevin
from ncsn_cli.schedules import Geometric
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d, two_modes_5d
from tests.helpers.statistics import LIMIT, kolmogorov_distance
from tests.helpers.statistics import NUM_DRAWS as NUM_TESTED

CPU = torch.device("cpu")


class Draws:
    """Nothing but a mixture's draws, moved by ``offset``."""

    def __init__(self, mixture, offset=0.0):
        self._mixture, self._offset = mixture, offset

    def sample(self, num, generator):
        return self._mixture.sample(num, generator=generator).double() + self._offset


@pytest.mark.parametrize("make", [two_modes_1d, correlated_2d, two_modes_2d, two_modes_5d])
def test_moments_are_the_true_ones_within_their_standard_errors(make):
    truth = make()
    sampled = Sampled(Draws(truth))
    assert sampled.dim == truth.dim
    assert bool(((sampled.mean - truth.mean).abs() <= 5 * sampled.mean_error()).all())
    off = sampled.perturbed_covariance(0.5) - truth.perturbed_covariance(0.5)
    assert bool((off.abs() <= 5 * sampled.covariance_error(0.5)).all())
    # The errors are no larger than they have to be: variance/n, itself known to 3 %.
    expected = (truth.covariance.diagonal() / NUM_DRAWS).sqrt()
    assert torch.allclose(sampled.mean_error(), expected, rtol=0.03)


def test_the_errors_of_a_gaussians_covariance():
    # Var x_i x_j = C_ii C_jj + C_ij^2 for a Gaussian of mean 0.
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
    truth = GaussianMixture([1.0], [[0.0, 0.0]], covariances=[covariance.tolist()])
    variances = covariance.diagonal()
    expected = ((variances[:, None] * variances + covariance**2) / NUM_DRAWS).sqrt()
    assert torch.allclose(Sampled(Draws(truth)).covariance_error(0.0), expected, rtol=0.03)


@pytest.mark.parametrize("sigma", [0.0, 0.7, torch.full((NUM_TESTED,), 0.7)])
def test_draws_of_every_level(sigma, device):
    truth, level = two_modes_1d(), float(torch.as_tensor(sigma).max())
    given = {"sigma": torch.as_tensor(sigma, device=device), "generator": stream(1, device)}
    x = Sampled(Draws(truth)).sample(NUM_TESTED, **given)[:, 0]
    assert (x.dtype, x.device.type) == (torch.float32, device.type)
    assert kolmogorov_distance(x, lambda x: truth.cdf(x, level)) < LIMIT
    assert kolmogorov_distance(x, lambda x: truth.cdf(x, level + 0.5)) > LIMIT


def test_far_away_the_centred_law_keeps_its_digits():
    # Near 1e8, float32 numbers are 8 apart.
    truth, far = two_modes_2d(), Sampled(Draws(two_modes_2d(), 1e8)).centred()
    assert torch.allclose(far.origin - 1e8, truth.mean, atol=5 * 2.5 / math.sqrt(NUM_DRAWS))
    assert float(far.mean.abs().max()) == 0
    x = far.sample(NUM_TESTED, generator=stream(1))[:, 0]
    one = GaussianMixture([0.95, 0.05], [-5.0, 5.0], stds=1.0)  # the first axis
    shift = float(far.origin[0] - 1e8)
    assert kolmogorov_distance(x + shift, one.cdf) < LIMIT
    low, high = far.extent
    assert bool((low < x.min()).all() and (high > 5.0).all() and (high - low < 30).all())


def test_two_samples_have_the_floor_of_two_binomial_laws():
    truth, num = two_modes_1d(), 50
    sampled, metric = Sampled(Draws(truth)), Wasserstein()
    for sigma in (0.0, 0.5):
        found = noise_floor(metric, sampled, sigma, num)
        expected = SlicedWasserstein(1).exact_floor(truth, sigma, num)  # W1 of two sets of draws
        assert abs(found["floor"] - expected) <= 5 * found["floor_standard_error"]
        one_sided = metric.exact_floor(truth, sigma, num)
        assert abs(found["floor"] - one_sided) > 5 * found["floor_standard_error"]


@pytest.mark.slow
def test_samples_are_measured_as_against_the_truth(tmp_path):
    floor_of = functools.partial(noise_floor, cache=tmp_path)
    truth = two_modes_2d()
    sampled, num = Sampled(Draws(truth)), 300
    metrics = {
        "wasserstein": Wasserstein(100), "sliced": SlicedWasserstein(10), "mmd": MMD(100),
        "energy": EnergyDistance(100), "moments": Moments(), "modes": ModeWeights(),
    }  # fmt: skip
    good, bad = truth.sample(num, sigma=0.5, generator=stream(3)), torch.zeros(num, 2)
    for x, is_good in ((good, True), (bad, False)):
        found = evaluate_samples(x, sampled, 0.5, metrics, floor_of, 0)
        assert found.pop("modes") is None
        for name, entry in found.items():
            assert (entry["value"] <= 2 * entry["floor_quantiles"][1]) == is_good, name
    entry = evaluate_samples(good, sampled, 0.5, metrics, floor_of, 0)["moments"]
    assert {"expected_mean_standard_error", "expected_covariance_standard_error"} <= entry.keys()
    known = evaluate_samples(good, truth, 0.5, {"moments": Moments()}, floor_of, 0)["moments"]
    assert "expected_mean_standard_error" not in known


@pytest.mark.parametrize("levels", ["all", "random", "continuous"])
@pytest.mark.parametrize("make", [two_modes_1d, two_modes_2d])
def test_the_loss_of_the_true_score_is_the_closed_floor(levels, make):
    truth, sigmas = make(), Geometric(2.0, 0.5, 3).sigmas
    loss = Denoising(levels=levels)
    found = evaluate_training(truth.score, Sampled(Draws(truth)), sigmas, loss, 0, CPU)
    weights = zip(*loss.quadrature(sigmas), strict=True)
    floor = sum(w * loss.floor(s, truth.dim, truth.fisher_information(s)) for s, w in weights)
    assert abs(found["loss"] - floor) <= 5 * found["loss_standard_error"] <= 0.02 * floor
    for name in ("loss_floor", "excess_loss", "score_error", "score_error_per_level"):
        assert found[name] is None
    half = evaluate_training(
        lambda x, s: truth.score(x, s) / 2, Sampled(Draws(truth)), sigmas, loss, 0, CPU
    )
    assert half["loss"] > floor + 5 * half["loss_standard_error"]


def test_a_penalty_is_found_by_draws():
    # Of N(0, 1) at sigma: s = -x/v, so sum (d_i s_i)^2 = D/v^2 at every point.
    truth, sigmas = GaussianMixture([1.0], [[0.0, 0.0]], stds=1.0), Geometric(2.0, 0.5, 3).sigmas
    loss = ImplicitRegularized(regularization=0.1)

    def score(x, sigma):
        return -x / (1 + torch.as_tensor(sigma)[..., None] ** 2)

    found = evaluate_training(score, Sampled(Draws(truth)), sigmas, loss, 0, CPU)
    expected = np.mean([0.1 * s**2 * 2 / (1 + s**2) ** 2 for s in sigmas.tolist()])
    assert found["penalty"] == pytest.approx(expected, rel=1e-4)


def test_what_needs_more_than_draws_says_so():
    sampled, sigmas = Sampled(Draws(two_modes_1d())), Geometric(2.0, 0.5, 3).sigmas
    x = torch.zeros(1, 1)
    asked = [
        lambda: sampled.score(x, 1.0), lambda: sampled.log_prob(x, 1.0),
        lambda: sampled.posterior(x, 1.0), lambda: sampled.fisher(1.0),
        lambda: sampled.mode_moments(1.0),
        lambda: ScoreError(10)(lambda x, s: -x, sampled, sigmas, stream()),
        lambda: KL(10)(lambda x, s: -x, sampled, sigmas, stream()),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(UnknownTruthError, match="only its draws"):
            ask()
    assert not sampled.has_density(1.0)


@pytest.mark.parametrize("make", [two_modes_1d, correlated_2d])
def test_pictures_show_the_density_of_the_draws(make):
    truth = make()
    sampled, sigmas = Sampled(Draws(truth)), Geometric(1.0, 0.3, 2).sigmas
    shown = compose_scene(Scene, sampled, sigmas, CPU)
    assert shown.true_scores is None
    points = torch.cartesian_prod(*map(torch.from_numpy, shown.axes)).reshape(-1, truth.dim)
    cell = math.prod(axis[1] - axis[0] for axis in shown.axes)
    for i, density in enumerate(shown.densities):
        off = [
            float(np.abs(density - truth.log_prob(points, s).exp().numpy()).sum() * cell)
            for s in sigmas.tolist()
        ]
        assert off[i] < 0.03 < 0.2 < off[1 - i]  # L1 distances of densities, at most 2


def test_the_schedule_is_judged_without_the_narrowest_width():
    sampled = Sampled(Draws(two_modes_1d()))
    data = sampled.sample(1000, generator=stream())
    sigmas = Geometric(10.0, 0.1, 10).sigmas
    found = examine(sigmas, AnnealedLangevin(steps_per_level=10), data, sampled.smallest_std)
    assert {"technique_1", "technique_2", "technique_4", "stability_per_level"} <= found.keys()
    assert not {"technique_0", "std_per_level"} & found.keys()
    assert found["stability_per_level"] == found["eta_per_level"]  # as on a point
    assert "narrowest component is not known" in " ".join(found["notes"])


def of(draw):
    """An object whose ``sample`` is ``draw``."""
    return type("Own", (), {"sample": lambda self, num, generator: draw(num, generator)})()


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda num, g: torch.rand(num, generator=g), r"shape \(2, D\), got \(2,\)"),
        (lambda num, g: torch.rand(num, 0, generator=g), r"got \(2, 0\)"),
        (lambda num, g: torch.rand(7, 2, generator=g), r"got \(7, 2\)"),
        (lambda num, g: torch.rand(num, 2, generator=g).numpy(), "floats, got ndarray"),
        (lambda num, g: torch.randint(3, (num, 2), generator=g), "floats, got torch.int64"),
        (lambda num, g: torch.rand(num, 2, generator=g) / 0, "not finite"),
        (lambda num, g: torch.rand(num, 2 + num % 7, generator=g), "after draws of D = 4"),
        (lambda num, g: g.nothing, "raised AttributeError"),
    ],
)
def test_draws_that_cannot_be_used_are_refused(draw, named):
    with pytest.raises(ConfigError, match=named):
        as_dataset(of(draw), {})


def test_draws_that_ignore_the_generator_are_named(caplog):
    as_dataset(of(lambda num, g: torch.rand(num, 2, generator=g)), {})
    assert not caplog.text
    other = stream(5)
    as_dataset(of(lambda num, g: torch.rand(num, 2, generator=other)), {})
    assert "a generator in the same state gave other draws" in caplog.text


class OnlySample(Dataset):
    def sample(self, num, *, generator):
        return torch.rand(num, 3, generator=generator)


class NoDensity(OnlySample):
    def score(self, x, sigma=0.0):
        return -x


def as_dataset(made, settings):
    return adopted("dataset", made, {"_target_": f"tests.{type(made).__name__}", **settings})


def test_which_datasets_are_known():
    known = two_modes_1d()
    assert as_dataset(known, {}) is known
    own = as_dataset(OnlySample(num_samples=7, seed=3), {})
    assert (own.is_known, own.dim) == (False, 3)
    assert own.training_set().shape == (7, 3)
    plain = as_dataset(Draws(known), {"num_samples": 7, "seed": 3})
    assert torch.equal(plain.training_set(), two_modes_1d(num_samples=7, seed=3).training_set())
    assert as_dataset(Draws(known), {}).training_set() is None
    with pytest.raises(
        ConfigError, match=r"no methods 'has_density', .*; see ncsn_cli\.core\.dataset"
    ):
        as_dataset(NoDensity(), {})
    with pytest.raises(ConfigError, match=r"has no methods? .*'sample'"):
        as_dataset(object(), {})
