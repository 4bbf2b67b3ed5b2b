import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, wasserstein_distance

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation import evaluate_samples
from ncsn_cli.metrics import ModeWeights, Moments, ScoreError, Wasserstein, fisher_divergence

from .conftest import assert_mean, correlated_2d, stream, two_modes_1d, two_modes_2d

W1 = Wasserstein(max_points=300)


def test_wasserstein_1d_agrees_with_scipy():
    # scipy compares two samples; 400 000 equal-weight quantiles stand for p within 2e-5 * width.
    dataset = two_modes_1d()
    grid = torch.linspace(-9, 9, 2_000_001, dtype=torch.float64)
    levels = (torch.arange(400_000) + 0.5).double() / 400_000
    for sigma in (0.0, 0.5):
        quantiles = np.interp(levels, dataset.cdf(grid, sigma), grid)
        for num in (1, 2, 37, 1000):
            x = dataset.sample(num, sigma=1.0, generator=stream(num)) - 0.4
            ours = W1.distance(dataset, sigma, num, stream())(x)
            assert ours == pytest.approx(wasserstein_distance(x[:, 0], quantiles), abs=1e-4)


def test_wasserstein_of_a_shift_is_the_shift():
    # Quantiles at (i + 1/2)/n, moved far to the right, are transported monotonically.
    dataset, num = two_modes_1d(), 5000
    x = dataset.sample(num, generator=stream(1)).double()
    distance = W1.distance(dataset, 0.0, num, stream())
    assert distance(x + 100) - float((x.mean() + 100) - dataset.mean[0]) == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize(
    ("num", "mean", "spread"),
    [(1024, 0.084, 0.038), (5000, 0.038, 0.016), (10_000, 0.023, 0.011)],
)
def test_wasserstein_floor_of_two_modes_1d(num, mean, spread):
    # Values found independently, over an unknown number of repeats (50 assumed).
    dataset = two_modes_1d()
    floor = evaluate_samples(
        dataset.sample(num, generator=stream(2)), dataset, 0.0, {"w": W1}, seed=0
    )["w"]["floor"]
    assert abs(floor - mean) < 5 * spread * math.sqrt(1 / 200 + 1 / 50)


def test_wasserstein_2d_is_the_cheapest_assignment():
    dataset, num = correlated_2d(), 6
    x = dataset.sample(num, generator=stream(3))
    value = W1.distance(dataset, 0.0, num, stream(4))(x)
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
    assert W1.distance(dataset, 0.0, 300, stream(6))(x) == pytest.approx(50, abs=0.5)


def test_mode_shares_are_those_of_the_nearest_centre():
    # Exact in 1D: the cells of the modes -3 and 3 meet at 0.
    dataset = two_modes_1d()
    for sigma in (0.0, 0.5, 2.0):
        x = dataset.sample(1000, sigma=sigma, generator=stream(7))
        details = ModeWeights().details(x, dataset, sigma, stream(8))
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
    assert ModeWeights().distance(dataset, 0.0, 1000, stream())(x) == pytest.approx(0.25, abs=1e-6)


def test_mode_weights_of_point_modes():
    points = GaussianMixture(weights=[0.25, 0.75], means=[-1.0, 1.0], stds=0.0)
    x = points.sample(400, generator=stream(9))
    share = float((x < 0).double().mean())
    distance = ModeWeights().distance(points, 0.0, 400, stream())
    # Without a density the true shares come from 200 000 draws.
    assert distance(x) == pytest.approx(abs(share - 0.25), abs=5 * math.sqrt(0.25 * 0.75 / 2e5))


def test_mode_shares_near_a_point_and_of_modes_in_one_place():
    # A point at .1 takes the half line below 2.55, where N(5, 1) has .007 of its mass.
    near = GaussianMixture(weights=[0.5, 0.5], means=[0.1, 5.0], stds=[0.0, 1.0])
    details = ModeWeights().details(near.sample(100, generator=stream()), near, 0.0, stream())
    assert details["expected"][0] == pytest.approx(0.5 + 0.5 * 0.00714, abs=5 * 0.5 / 450)
    same = GaussianMixture(weights=[0.5, 0.5], means=[0.0, 0.0], stds=[1.0, 3.0])
    details = ModeWeights().details(same.sample(100, generator=stream()), same, 0.0, stream())
    assert details["expected"] == pytest.approx([1.0, 0.0], abs=0.01)
    assert np.isfinite(details["interval"]).all()


def test_wasserstein_knows_a_rare_mode_far_away():
    # All 1000 samples miss a mode of weight .0005 at 1000: W1 is at least its share of the mean.
    dataset = GaussianMixture(weights=[0.9995, 0.0005], means=[0.0, 1000.0], stds=1.0)
    x = torch.linspace(-2, 2, 1000)[:, None]
    assert W1.distance(dataset, 0.0, 1000, stream())(x) == pytest.approx(0.5, abs=0.3)


def test_moments_of_shift_and_scale():
    # Samples with exactly the true moments, then moved by 3 or stretched from std 2 to 5.
    dataset = GaussianMixture(weights=[1.0], means=[1.0], stds=2.0)
    x = torch.tensor([[-1.0], [3.0]]).double()
    distance = Moments().distance(dataset, 0.0, 2, stream())
    assert distance(x) == pytest.approx(0, abs=1e-7)
    assert distance(x + 3) == pytest.approx(3)
    assert distance(1 + 2.5 * (x - 1)) == pytest.approx(3)


def test_moments_agree_with_the_wasserstein_distance_between_gaussians():
    # W2 of commuting covariances: the distance between the vectors of standard deviations.
    dataset = GaussianMixture(weights=[1.0], means=[[0.0, 0.0]], stds=[[1.0, 2.0]])
    corners = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]]).double()
    distance = Moments().distance(dataset, 0.0, 4, stream())
    assert distance(corners) == pytest.approx(math.hypot(3 - 1, 1 - 2))


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

    divergence, information = fisher_divergence(shifted, dataset, 0.5, 200_000, stream(11))
    assert divergence == pytest.approx(0.25, rel=1e-4)
    x = dataset.sample(200_000, sigma=0.5, generator=stream(11))
    squares = dataset.score(x, 0.5).square().sum(-1).double()
    assert information == pytest.approx(float(squares.mean()), rel=1e-5)
    assert_mean(squares, dataset.fisher_information(0.5))


def test_exact_draws_have_ratio_one():
    # Over 40 seeds the mean ratio is 1 within 5 standard errors (the floors' own added).
    dataset, metrics = two_modes_1d(), {"w": W1, "m": Moments(), "t": ModeWeights()}
    ratios = {name: [] for name in metrics}
    for seed in range(40):
        x = dataset.sample(500, sigma=0.5, generator=stream(100 + seed))
        entries = evaluate_samples(x, dataset, 0.5, metrics, seed=seed)
        for name, entry in entries.items():
            ratios[name].append(entry["ratio"])
            low, high = entry["floor_quantiles"]
            assert low < entry["floor"] < high
    for values in ratios.values():
        assert_mean(values, 1.0)
