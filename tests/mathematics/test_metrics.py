import functools
import itertools
import math

import numpy as np
import ot
import pytest
import torch
from scipy.stats import binom, energy_distance, wasserstein_distance

from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Denoised, GaussianMixture
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.metrics import (
    MMD,
    EnergyDistance,
    ModeWeights,
    Moments,
    ScoreError,
    SlicedWasserstein,
    Wasserstein,
    Width,
    count_commitment,
    fisher_divergence,
    mode_commitment,
    random_subset,
    relative_width,
    settled_from,
)
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.slow import slow_but
from tests.helpers.statistics import assert_mean

W1 = Wasserstein(max_points=300)


def measure(metric, truth, sigma, x, seed=0):
    return metric.distance(truth, sigma, len(x))(x, stream(seed))


def test_wasserstein_1d_agrees_with_scipy():
    # scipy compares two samples; 400 000 equal-weight quantiles stand for p within 2e-5 * width.
    dataset = two_modes_1d()
    grid = torch.linspace(-9, 9, 2_000_001, dtype=torch.float64)
    levels = (torch.arange(400_000) + 0.5).double() / 400_000
    for sigma in (0.0, 0.5):
        quantiles = np.interp(levels, dataset.cdf(grid, sigma), grid)
        for num in (1, 2, 37, 1000):
            x = dataset.sample(num, sigma=1.0, generator=stream(num)) - 0.4
            ours = measure(W1, dataset, sigma, x)
            assert ours == pytest.approx(wasserstein_distance(x[:, 0], quantiles), abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_wasserstein_1d_of_many_samples_is_that_of_all_quantiles(scale, monkeypatch):
    dataset = two_modes_1d()
    samples = [scale * dataset.sample(num, generator=stream(num)) for num in (1, 2, 50, 3000)]
    expected = [measure(W1, dataset, 0.3, x) for x in samples]
    monkeypatch.setattr("ncsn_cli.metrics.transport._MOST_QUANTILES", 0)
    monkeypatch.setattr("ncsn_cli.metrics.transport._MOST_AT_A_TIME", 7)
    found = [measure(W1, dataset, 0.3, x) for x in samples]
    assert found == pytest.approx(expected, rel=1e-12)


def test_wasserstein_of_a_shift_is_the_shift():
    # Quantiles at (i + 1/2)/n, moved far to the right, are transported monotonically.
    dataset, num = two_modes_1d(), 5000
    x = dataset.sample(num, generator=stream(1)).double()
    assert measure(W1, dataset, 0.0, x + 100) - float(
        (x.mean() + 100) - dataset.mean[0]
    ) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("num", "mean", "spread"),
    [(1024, 0.084, 0.038), (5000, 0.038, 0.016), (10_000, 0.023, 0.011)],
)
def test_wasserstein_floor_of_two_modes_1d(num, mean, spread):
    # Values found independently, over an unknown number of repeats (50 assumed).
    dataset = two_modes_1d()
    floor = noise_floor(W1, dataset, 0.0, num)["floor"]
    assert abs(floor - mean) < 5 * spread * math.sqrt(1 / 200 + 1 / 50)


def test_wasserstein_2d_is_the_cheapest_assignment():
    dataset, num = correlated_2d(), 6
    x = dataset.sample(num, generator=stream(3))
    value = measure(W1, dataset, 0.0, x, 4)
    exact = dataset.sample(num, generator=stream(4))
    costs = torch.cdist(x.double(), exact.double())
    best = min(
        float(costs[range(num), list(order)].mean())
        for order in itertools.permutations(range(num))
    )
    assert value == pytest.approx(best)


def test_wasserstein_2d_finds_a_shift_at_its_size():
    # W1 of the shifted law is the shift; two-sample noise adds at most its floor.
    dataset = correlated_2d()
    x = dataset.sample(300, generator=stream(5)) + torch.tensor([30.0, 40.0])
    assert measure(W1, dataset, 0.0, x, 6) == pytest.approx(50, abs=0.5)


def test_mode_shares_are_those_of_the_nearest_centre():
    # Exact in 1D: the cells of the modes -3 and 3 meet at 0.
    dataset = two_modes_1d()
    for sigma in (0.0, 0.5, 2.0):
        x = dataset.sample(1000, sigma=sigma, generator=stream(7))
        details = ModeWeights().details(x, dataset, sigma)
        exact = float(dataset.cdf(torch.zeros(1).double(), sigma))
        # 100 000 draws of a leakage that is below .5 in size.
        assert details["expected"][0] == pytest.approx(exact, abs=5 * 0.25 / math.sqrt(1e5))
        assert sum(details["expected"]) == pytest.approx(1)
        assert details["weights"][0] == float((x < 0).double().mean())
        for interval, share in zip(details["interval"], details["expected"], strict=True):
            np.testing.assert_allclose(
                interval, np.array(binom.interval(0.99, 1000, share)) / 1000
            )


def test_mode_weights_is_the_total_variation():
    dataset = two_modes_2d()
    x = torch.cat([torch.full((700, 2), -5.0), torch.full((300, 2), 5.0)])
    # Modes 14 standard deviations apart: the shares are .95 and .05 to 1e-10.
    assert measure(ModeWeights(), dataset, 0.0, x) == pytest.approx(0.25, abs=1e-6)


def test_mode_weights_of_point_modes():
    points = GaussianMixture(weights=[0.25, 0.75], means=[-1.0, 1.0], stds=0.0)
    x = points.sample(400, generator=stream(9))
    share = float((x < 0).double().mean())
    found = measure(ModeWeights(), points, 0.0, x)
    # Without a density the true shares come from 200 000 draws.
    assert found == pytest.approx(abs(share - 0.25), abs=5 * math.sqrt(0.25 * 0.75 / 2e5))


def test_mode_shares_near_a_point_and_of_modes_in_one_place():
    # A point at .1 takes the half line below 2.55, where N(5, 1) has .007 of its mass.
    near = GaussianMixture(weights=[0.5, 0.5], means=[0.1, 5.0], stds=[0.0, 1.0])
    details = ModeWeights().details(near.sample(100, generator=stream()), near, 0.0)
    assert details["expected"][0] == pytest.approx(0.5 + 0.5 * 0.00714, abs=5 * 0.5 / 450)
    same = GaussianMixture(weights=[0.5, 0.5], means=[0.0, 0.0], stds=[1.0, 3.0])
    details = ModeWeights().details(same.sample(100, generator=stream()), same, 0.0)
    assert details["expected"] == [1.0]  # one mode with the sum of their weights
    assert np.isfinite(details["interval"]).all()


def test_weights_that_are_wrong_by_a_tenth_are_found_at_that_size():
    # Samples of (.2, .8) for the truth (.1, .9).
    other = GaussianMixture(weights=[0.2, 0.8], means=[-3.0, 3.0], stds=1.0)
    x = other.sample(100_000, generator=stream(33))
    found = measure(ModeWeights(), two_modes_1d(), 0.0, x)
    # Of each mode .00135 lies beyond 0: .1 * (1 - 2 * .00135).
    assert found == pytest.approx(0.1 * (1 - 0.0027), abs=5 * math.sqrt(0.16 / 1e5))


def test_moments_of_each_mode():
    # Modes 14 standard deviations apart, each moved and stretched in its own way.
    dataset, g = two_modes_2d(), stream(34)
    far = torch.tensor([-5.0, -5.0]) + torch.tensor([1.0, 0.0])
    near = torch.tensor([5.0, 5.0])
    z = torch.randn(20_000, 2, generator=g)
    x = torch.cat([far + z[:15_000] * torch.tensor([2.0, 1.0]), near + 0.5 * z[15_000:]])
    first, second = Moments().details(x, dataset, 0.0)["modes"]
    error = 5 / math.sqrt(15_000)
    assert first["mean"] == pytest.approx([-4.0, -5.0], abs=2 * error)
    assert first["covariance"][0][0] == pytest.approx(4, abs=4 * math.sqrt(2) * error)
    assert first["covariance"][0][1] == pytest.approx(0, abs=2 * error)
    assert second["covariance"][1][1] == pytest.approx(0.25, abs=0.25 * math.sqrt(6) * error)
    for mode, centre, share in ((first, -5.0, 0.95), (second, 5.0, 0.05)):
        error = 5 / math.sqrt(200_000 * share)
        assert mode["expected_mean"] == pytest.approx([centre, centre], abs=error)
        for i, row in enumerate(mode["expected_covariance"]):
            for j, value in enumerate(row):
                assert value == pytest.approx(float(i == j), abs=math.sqrt(2) * error)


def test_a_mode_without_samples_has_no_moments():
    x = torch.full((10, 1), 3.0)
    empty, full = Moments().details(x, two_modes_1d(), 0.0)["modes"]
    assert empty["mean"] is None and empty["covariance"] is None
    assert full["mean"] == [3.0] and full["covariance"] == [[0.0]]


def test_wasserstein_knows_a_rare_mode_far_away():
    # All 1000 samples miss a mode of weight .0005 at 1000: W1 is at least its share of the mean.
    dataset = GaussianMixture(weights=[0.9995, 0.0005], means=[0.0, 1000.0], stds=1.0)
    x = torch.linspace(-2, 2, 1000)[:, None]
    assert measure(W1, dataset, 0.0, x) == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize("scale", [1.0, 1.3, 0.6])
def test_modes_that_are_scaled_are_as_wide_as_the_scale(scale):
    # Modes 100 standard deviations apart: no leakage. w^2 is a mean of two sample variances of
    # 2 n_k degrees of freedom, each with the relative error sqrt(2/(2 n_k)).
    law = GaussianMixture([0.25, 0.75], [[-50.0, 0.0], [50.0, 3.0]], stds=[[1.0, 1.0], [3.0, 3.0]])
    num = 8000
    x = law.sample(num, sigma=2.0, generator=stream(5))
    centres = law.modes[law.nearest_mode(x)].float()
    found = Width().details(centres + scale * (x - centres), law, 2.0)["width"]
    error = math.sqrt(1 / (0.25 * num) + 1 / (0.75 * num)) / 2 / 2
    assert found == pytest.approx(scale, rel=5 * error)
    distance = Width().distance(law, 2.0, num)
    assert distance(centres + scale * (x - centres), stream()) == abs(found - 1)
    # E tr C_k(2) / tr C_k(0): (1 + 4)/1 and (9 + 4)/9.
    assert relative_width(law, 2.0) == pytest.approx(math.sqrt((5 + 13 / 9) / 2))


def test_the_level_at_which_the_law_is_as_wide_as_the_samples():
    law = GaussianMixture([0.25, 0.75], [[-50.0, 0.0], [50.0, 3.0]], stds=[[1.0, 1.0], [3.0, 3.0]])
    num = 40_000
    for level in (0.5, 2.0, 4.0):
        x = law.sample(num, sigma=level, generator=stream(5))
        # w^2 has a relative error of (2 / (2 n_k))^(1/2) / 2 in each of two modes at most, and
        # level^2 = 4 + (w^2 - 1) 6.9 (6.9: harmonic mean of 5 and 13, to a digit).
        error = 7 * 0.7 * math.sqrt(1 / (0.25 * num)) * (1 + level**2) / 5
        found = Width().details(x, law, 2.0)["sigma"]
        assert found**2 == pytest.approx(level**2, abs=5 * error)
    narrow = law.modes[law.nearest_mode(x)] + 0.1 * (x - law.modes[law.nearest_mode(x)])
    assert Width().details(narrow, law, 2.0)["sigma"] is None  # narrower than the data
    near = GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=1.0)
    assert Width().details(near.sample(500, generator=stream()), near, 0.5)["sigma"] is None
    assert Width().details(x, Denoised(law), 2.0)["sigma"] is None
    wide = two_modes_2d().sample(4000, sigma=10.0, generator=stream())  # there modes are merged
    assert Width().details(wide, two_modes_2d(), 0.5)["sigma"] is None


def test_the_width_of_points_and_of_modes_without_samples():
    law = GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=0.0)
    assert Width().details(torch.ones(5, 1), law, 0.0)["width"] == 1  # nothing has a width
    assert relative_width(law, 1.0) is None
    x = law.sample(4000, sigma=0.1, generator=stream(6))
    kept = x[x[:, 0] > 0]
    error = math.sqrt(2 / len(kept)) / 2
    assert Width().details(kept, law, 0.1)["width"] == pytest.approx(1, abs=5 * error)


def test_moments_of_shift_and_scale():
    # Samples with exactly the true moments, then moved by 3 or stretched from std 2 to 5.
    dataset = GaussianMixture(weights=[1.0], means=[1.0], stds=2.0)
    x = torch.tensor([[-1.0], [3.0]]).double()
    assert measure(Moments(), dataset, 0.0, x) == pytest.approx(0, abs=1e-7)
    assert measure(Moments(), dataset, 0.0, x + 3) == pytest.approx(3)
    assert measure(Moments(), dataset, 0.0, 1 + 2.5 * (x - 1)) == pytest.approx(3)


def test_moments_agree_with_the_wasserstein_distance_between_gaussians():
    # W2 of commuting covariances: the distance between the vectors of standard deviations.
    dataset = GaussianMixture(weights=[1.0], means=[[0.0, 0.0]], stds=[[1.0, 2.0]])
    corners = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]]).double()
    assert measure(Moments(), dataset, 0.0, corners) == pytest.approx(math.hypot(3 - 1, 1 - 2))


def test_score_error_of_a_scaled_score_is_known(device):
    dataset, sigmas = correlated_2d(), torch.tensor([2.0, 0.5])

    def scaled(x, sigma):
        return 1.2 * dataset.score(x, sigma)

    result = ScoreError(num_points=1000)(scaled, dataset, sigmas, stream(10, device))
    assert result["value"] == pytest.approx(0.04, rel=1e-4)
    assert result["per_level"] == pytest.approx([0.04, 0.04], rel=1e-4)


def test_fisher_divergence_of_a_shifted_score_is_known():
    dataset = correlated_2d()

    def shifted(x, sigma):
        return dataset.score(x, sigma) + torch.tensor([0.3, 0.4])

    divergence, information, _ = fisher_divergence(shifted, dataset, 0.5, 200_000, stream(11))
    assert divergence == pytest.approx(0.25, rel=1e-4)
    x = dataset.sample(200_000, sigma=0.5, generator=stream(11))
    squares = dataset.score(x, 0.5).square().sum(-1).double()
    assert information == pytest.approx(float(squares.mean()), rel=1e-5)
    assert_mean(squares, dataset.fisher_information(0.5))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_best_scale_undoes_a_scale(scale):
    dataset = correlated_2d()
    found = fisher_divergence(
        lambda x, s: scale * dataset.score(x, s), dataset, 0.5, 1000, stream(29)
    )
    assert found.best_scale == pytest.approx(1 / scale, rel=1e-5)


def same_draws(metric, dataset, samples, sigma=0.5):
    """A distance, and the exact draws that it compared the samples with."""
    kept, sample = [], dataset.sample

    def keep(num, **kwargs):
        kept.append(sample(num, **kwargs))
        return kept[-1]

    dataset.sample = keep
    value = measure(metric, dataset, sigma, samples, 12)
    del dataset.sample
    return value, kept[-1]


def test_sliced_wasserstein_agrees_with_pot():
    dataset = correlated_2d()
    x = dataset.sample(300, generator=stream(13))
    value, y = same_draws(SlicedWasserstein(num_directions=40), dataset, x)
    directions = torch.randn(2, 40, generator=random_stream(0, "directions"))
    directions = (directions / directions.norm(dim=0)).double().numpy()
    expected = ot.sliced_wasserstein_distance(
        x.double().numpy(), y.double().numpy(), projections=directions, p=1
    )
    assert value == pytest.approx(expected, rel=1e-5)  # float32 projections


def test_wasserstein_2d_agrees_with_pot():
    dataset = correlated_2d()
    x = dataset.sample(80, generator=stream(14))
    value, y = same_draws(Wasserstein(max_points=80), dataset, x)
    cost = ot.dist(x.double().numpy(), y.double().numpy(), metric="euclidean")
    assert value == pytest.approx(ot.emd2([], [], cost), rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    # In direction v a shift by d moves every point by <v, d>: |d| E|cos| = 2 |d|/pi for D = 2.
    dataset, num = two_modes_2d(), 5000
    x = dataset.sample(num, sigma=0.5, generator=stream(15)) + torch.tensor([3.0, 4.0])
    found = measure(SlicedWasserstein(num_directions=500), dataset, 0.5, x, 16)
    # |cos| has the variance 1/2 - 4/pi^2; the samples' own part is below .1 of 5.
    error = 5 * 5 * math.sqrt((0.5 - 4 / math.pi**2) / 500)
    assert found == pytest.approx(2 * 5 / math.pi, abs=error + 0.1)


def test_energy_distance_agrees_with_scipy():
    dataset = two_modes_1d()
    x = dataset.sample(400, generator=stream(17))
    value, y = same_draws(EnergyDistance(max_points=400), dataset, x)
    assert value == pytest.approx(energy_distance(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-5)


@pytest.mark.parametrize("metric", [EnergyDistance(80), MMD(80, None), Wasserstein(80)])
def test_metrics_of_some_points_say_how_many(metric):
    dataset, x = two_modes_2d(), torch.randn(100, 2, generator=stream(17))
    chosen = random_subset(x, 80)
    assert len(chosen.unique(dim=0)) == 80
    distances = [metric.distance(dataset, 0.0, len(y))(y, stream(18)) for y in (x, chosen)]
    assert distances[0] == distances[1]
    for num, expected in ((100, 80), (30, 30)):
        assert metric.details(x[:num], dataset, 0.0) == {"num_points": expected}


def test_energy_distance_of_two_gaussians():
    # In closed form for N(0, 1) and N(m, 1): E|N(m, 2)| by the folded normal law.
    m, num = 2.0, 4000
    dataset = GaussianMixture(weights=[1.0], means=[0.0], stds=1.0)
    x = dataset.sample(num, generator=stream(18)) + m
    value = measure(EnergyDistance(max_points=num), dataset, 0.0, x, 19)
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    expected = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    # The mean of each pair term errs by less than its deviation over sqrt(n); squares compared.
    assert value**2 == pytest.approx(expected, abs=5 * 2 * 2 / math.sqrt(num))


def test_mmd_of_two_gaussians():
    # E k(x, y) = sqrt(h^2/(h^2 + 2)) exp(-m^2/(2 (h^2 + 2))) for N(0, 1), N(m, 1).
    m, h, num = 1.5, 0.8, 4000
    dataset = GaussianMixture(weights=[1.0], means=[0.0], stds=1.0)
    x = dataset.sample(num, generator=stream(20)) + m
    value = measure(MMD(max_points=num, bandwidth=h), dataset, 0.0, x, 21)
    scale = math.sqrt(h**2 / (h**2 + 2))
    expected = 2 * scale * (1 - math.exp(-(m**2) / (2 * (h**2 + 2))))
    assert value**2 == pytest.approx(expected, abs=5 * 2 / math.sqrt(num))


@pytest.mark.parametrize("metric", ["mmd", "energy_distance"])
def test_kernels_of_a_point(metric):
    point = GaussianMixture(weights=[1.0], means=[0.0], stds=0.0)
    x = torch.full((50, 1), 2.0)
    # Both are ||x|| in their own units: k(0, 0) + k(x, x) - 2 k(0, x).
    expected = {"mmd": math.sqrt(2 - 2 * math.exp(-2)), "energy_distance": 2.0}[metric]
    metric = {**EVERY_METRIC, "energy_distance": EnergyDistance(max_points=200)}[metric]
    assert measure(metric, point, 0.0, x) == pytest.approx(expected, rel=1e-6)


def test_the_bandwidth_is_the_median_distance_unless_given():
    dataset = GaussianMixture(weights=[1.0], means=[0.0], stds=1.0)
    x = dataset.sample(200, generator=stream(22)) + 1
    exact = dataset.sample(1000, generator=random_stream(0, "kernel"))
    median = float(torch.pdist(exact.double()).median())
    found, given = (
        measure(MMD(max_points=200, bandwidth=h), dataset, 0.0, x, 23) for h in (None, median)
    )
    assert found == given


EVERY_METRIC = {
    "wasserstein": Wasserstein(max_points=60),
    "sliced_wasserstein": SlicedWasserstein(num_directions=20),
    "energy_distance": EnergyDistance(max_points=200),
    "mmd": MMD(max_points=200, bandwidth=None),
    "mode_weights": ModeWeights(),
    "moments": Moments(),
    "width": Width(),
}


@pytest.mark.parametrize("dataset", slow_but([two_modes_1d(), two_modes_2d()], 0))
def test_exact_draws_have_ratio_one_and_lie_in_the_band(dataset):
    # One floor for 100 sets of exact draws: their mean ratio is 1 within 3 standard errors, of
    # the 100 values and of the floor's 200 together (p = .003 a metric).
    floor_of = functools.cache(noise_floor)
    sets = dataset.sample(100 * 200, sigma=0.5, generator=stream(27)).reshape(100, 200, -1)
    for name, metric in EVERY_METRIC.items():
        entries = [
            evaluate_samples(x, dataset, 0.5, {name: metric}, floor_of, seed)[name]
            for seed, x in enumerate(sets)
        ]
        ratios = torch.tensor([entry["ratio"] for entry in entries], dtype=torch.float64)
        error = float(ratios.std()) * math.sqrt(1 / 100 + 1 / 200)
        assert abs(float(ratios.mean()) - 1) < 3 * error, name
        low, high = entries[0]["floor_quantiles"]
        inside = sum(low <= entry["value"] <= high for entry in entries)
        # The band between the first and the last of 200 draws holds 1 - 2/201 on average; as it
        # is itself random, the share varies by .007: below .95 once in 1e5, and then the binomial.
        assert inside >= binom.ppf(1e-4, 100, 0.96), name


def test_mode_commitment_of_chains_that_are_known():
    # Four chains over three levels: one stays in 0, one moves 0 to 1 at once, one 1 to 0 at the
    # end, one moves twice.
    labels = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    assert settled_from(labels).tolist() == [0, 1, 2, 2]
    assert settled_from(labels[:1]).tolist() == [0, 0, 0, 0]
    found = mode_commitment(count_commitment(labels, num_modes=3))
    assert found["committed"] == [0.25, 0.5, 1.0]
    assert found["shares"] == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
    assert found["transitions"] == [
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], None],
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], None],
    ]
    assert list(mode_commitment(count_commitment(labels, num_modes=11))) == ["committed"]


def test_mode_commitment_of_a_markov_chain():
    # Mode 0 is left with probability .3 at each of 4 steps, mode 1 never: settled after level i
    # are those in 1, and those that will not move in the 4 - i steps left.
    g, num = stream(31), 100_000
    labels = [torch.zeros(num, dtype=torch.long)]
    for _ in range(4):
        moves = torch.rand(num, generator=g) < 0.3
        labels.append(torch.where(moves, 1, labels[-1]))
    found = mode_commitment(count_commitment(torch.stack(labels), num_modes=2))
    error = 5 * 0.5 / math.sqrt(num)
    for i in range(5):
        in_zero = 0.7**i
        assert found["committed"][i] == pytest.approx(
            1 - in_zero * (1 - 0.7 ** (4 - i)), abs=error
        )
        assert found["shares"][i][0] == pytest.approx(in_zero, abs=error)
    assert found["transitions"][0][0] == pytest.approx([0.7, 0.3], abs=error)


@pytest.mark.parametrize("kind", [Wasserstein, EnergyDistance, MMD])
def test_samples_in_any_order_are_the_same_samples(kind):
    # Each metric compares 60 of 600 samples. The first 60 after sorting are in one mode alone.
    law = GaussianMixture([0.5, 0.5], [[-5.0, -5.0], [5.0, 5.0]], stds=1.0)
    metric, draws = kind(max_points=60), law.sample(600, generator=stream(0))
    in_order = draws[draws[:, 0].argsort()]
    low, high = noise_floor(metric, law, 0.0, 60)["floor_quantiles"]  # 99 % of exact draws
    assert low < metric.distance(law, 0.0, 600)(in_order, stream(1)) < high
    assert metric.distance(law, 0.0, 60)(in_order[:60], stream(1)) > high
