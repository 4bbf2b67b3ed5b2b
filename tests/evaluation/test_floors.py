import json
import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from benchmarks.floors import requests
from ncsn_cli.datasets import Denoised, GaussianMixture, Sampled
from ncsn_cli.evaluation import floors
from ncsn_cli.evaluation.floors import Floors, noise_floor
from ncsn_cli.metrics import (
    MMD,
    EnergyDistance,
    ModeWeights,
    Moments,
    SlicedWasserstein,
    Wasserstein,
)
from ncsn_cli.metrics.binomial import mean_absolute_deviation, mean_absolute_difference
from tests.helpers.problems import correlated_2d, stream, two_modes_1d
from tests.helpers.slow import slow_but
from tests.helpers.statistics import assert_mean

METRIC = SlicedWasserstein(num_directions=3)


def ask(folder, metric=METRIC, truth=None, sigma=0.5, num=20):
    return noise_floor(metric, truth or two_modes_1d(), sigma, num, folder)


def test_a_floor_is_found_once(tmp_path):
    assert ask(tmp_path) == ask(tmp_path) == ask(None)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("has_folder", [True, False])
def test_floors_in_advance_are_those_found_one_by_one(has_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(floors, "_kept", {})
    folder, truth, both = tmp_path if has_folder else None, two_modes_1d(), (0.0, 0.5)
    metrics = [METRIC, Moments(), ModeWeights(), Wasserstein()]
    expected = {
        (metric, sigma): ask(None, metric=metric, sigma=sigma)
        for metric in metrics
        for sigma in both
    }
    floors._kept.clear()
    made = Floors(folder, workers=2)
    made.prepare(metrics, [(truth, sigma) for sigma in (*both, 0.5)], 20)
    with monkeypatch.context() as patch:
        patch.setattr(floors, "noise_floor", None)  # no floor is found twice
        assert {key: made(key[0], truth, key[1], 20) for key in expected} == expected
    assert len(list(tmp_path.iterdir())) == (len(expected) if has_folder else 0)
    # What was not asked for in advance is found, too.
    assert made(METRIC, truth, 0.7, 20) == ask(None, sigma=0.7)


def test_floors_that_need_more_of_the_truth_are_left_out(tmp_path):
    unknown, metric = Sampled(two_modes_1d()), Wasserstein()
    made = Floors(tmp_path, workers=1)
    made.prepare([ModeWeights(), metric], [(unknown, 0.5)], 20)
    assert len(list(tmp_path.iterdir())) == 1
    assert made(metric, unknown, 0.5, 20) == ask(None, metric=metric, truth=unknown)


def test_floors_found_before_an_interruption_are_kept(tmp_path):
    class Stops(SlicedWasserstein):
        def distance(self, truth, sigma, num):
            calls = iter(range(10))
            return lambda x, generator: 1.0 if next(calls) < 5 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        Floors(tmp_path, workers=1).prepare(
            [METRIC, Stops(num_directions=3)], [(two_modes_1d(), 0.5)], 20
        )
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_laws_are_measured_once(tmp_path):
    calls = []

    class Counted(SlicedWasserstein):
        def distance(self, truth, sigma, num):
            return lambda x, generator: calls.append(1) or 1.0

    made, laws = Floors(tmp_path, workers=1), [(two_modes_1d(), 0.5), (two_modes_1d(), 0.5)]
    made.prepare([Counted(num_directions=3)], laws, 20)
    assert len(calls) == floors._MOST_SETS + 3


def test_a_kept_floor_is_read(tmp_path):
    ask(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"floor": ', '"floor": 1'))
    changed = json.loads(path.read_text())["floor"]
    # The training set is no part of the law.
    assert ask(tmp_path)["floor"] == ask(tmp_path, truth=two_modes_1d(num_samples=7))["floor"]
    assert ask(tmp_path)["floor"] == changed


class Narrower(GaussianMixture):
    """A law that its settings do not show."""

    def sample(self, num, *, sigma=0.0, generator):
        return super().sample(num, sigma=0.9 * sigma, generator=generator)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": SlicedWasserstein(num_directions=4)},
        {"metric": MMD(max_points=20, bandwidth=None)},
        {"sigma": 0.4},
        {"num": 21},
        {"truth": GaussianMixture([0.1, 0.9], [-3.0, 4.0], 1.0)},
        {"truth": Narrower([0.1, 0.9], [-3.0, 3.0], 1.0)},
    ],
)
def test_each_input_has_its_own_floor(change, tmp_path):
    ask(tmp_path)
    ask(tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_give_the_same_draws_have_their_own_floor(tmp_path):
    # 20 draws of which none changes its mode: only the distance tells the laws apart.
    for weight in (0.1, 0.1001):
        truth = GaussianMixture([weight, 1 - weight], [-3.0, 3.0], 1.0)
        ask(tmp_path, metric=ModeWeights(), truth=truth)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_global_stream_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    ask(tmp_path)
    assert bool((torch.get_rng_state() == before).all())


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"floor": 1}'])
def test_a_damaged_file_is_written_anew(damage, tmp_path):
    found = ask(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert ask(tmp_path) == found
    assert json.loads(path.read_text())["floor"] == found["floor"]


def test_a_floor_that_cannot_be_kept_is_found_all_the_same(tmp_path, caplog):
    blocked = tmp_path / "floors"
    blocked.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert ask(blocked) == ask(tmp_path / "elsewhere")
    assert str(blocked) in caplog.text


def test_the_exact_floors_of_the_design():
    # W1: independent quadrature; mode weights of song_ermon_2d, 10 000 samples.
    for num, mean in ((1024, 0.07625), (5000, 0.03455), (10_000, 0.02443), (100_000, 0.00773)):
        found = Wasserstein(max_points=1).exact_floor(two_modes_1d(), 0.0, num)
        assert found == pytest.approx(mean, abs=6e-6)
    song_ermon = GaussianMixture([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], 1.0)
    assert ModeWeights().exact_floor(song_ermon, 0.0, 10_000) == pytest.approx(0.00319, abs=5e-6)


@pytest.mark.parametrize("num", [1, 7, 400])
@pytest.mark.parametrize("q", [1e-9, 0.03, 0.5, 0.98])
def test_binomial_deviations_are_those_of_the_sum_over_all_counts(num, q):
    counts = np.arange(num + 1)
    law = binom.pmf(counts, num, q)
    found = mean_absolute_deviation(num, np.array([q]))[0]
    assert found == pytest.approx(law @ np.abs(counts - num * q), rel=1e-9)
    found = mean_absolute_difference(num, np.array([q]))[0]
    assert found == pytest.approx(law @ np.abs(counts[:, None] - counts) @ law, rel=1e-5)


def test_binomial_deviations_of_ten_thousand():
    q = np.array([0.2])
    assert mean_absolute_difference(10_000, q)[0] / 1e4 == pytest.approx(0.0045134, abs=5e-8)
    assert mean_absolute_deviation(10_000, q)[0] / 1e4 == pytest.approx(0.0031914, abs=5e-8)


EXACT_FLOORS = [
    (Wasserstein(max_points=1), two_modes_1d(), 0.5),
    (Wasserstein(max_points=1), Denoised(two_modes_1d()), 1.0),
    (Wasserstein(max_points=1), GaussianMixture([0.3, 0.7], [-1.0, 1.0], 0.0), 0.0),
    (ModeWeights(), two_modes_1d(), 2.0),
    (SlicedWasserstein(num_directions=5), two_modes_1d(), 0.5),
    (SlicedWasserstein(num_directions=5), correlated_2d(), 0.5),
]


@pytest.mark.parametrize(("metric", "truth", "sigma"), slow_but(EXACT_FLOORS, 0, 2, 3, 4, 5))
def test_an_exact_floor_is_the_mean_over_sets_of_draws(metric, truth, sigma):
    # 400 sets: 5 standard errors of their mean (p = 6e-7).
    g, distance = stream(5), metric.distance(truth, sigma, 50)
    values = [distance(truth.sample(50, sigma=sigma, generator=g), g) for _ in range(400)]
    assert_mean(values, metric.exact_floor(truth, sigma, 50))


def test_the_band_holds_99_percent_of_other_draws():
    # Of a distance that is uniform on [0, 1] the band's length is the share that it holds: .99 on
    # average, with a standard deviation of .007 over floors of 200 sets (numpy's default quantiles
    # would hold .98). 100 floors: five standard errors are .0035.
    rng = np.random.default_rng(0)

    class Uniform(ModeWeights):
        is_cheap = False

        def distance(self, truth, sigma, num):
            return lambda samples, generator: rng.random()

    bands = [ask(None, metric=Uniform(), num=1)["floor_quantiles"] for _ in range(100)]
    assert np.mean([high - low for low, high in bands]) == pytest.approx(0.99, abs=0.0035)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [EnergyDistance(max_points=500), MMD(max_points=500)])
def test_a_floor_scaled_from_fewer_draws_is_that_of_all(metric):
    # Both are quantiles and means of 1000 sets: five standard errors of a difference of two means,
    # and of two upper quantiles (measured: .02 of themselves).
    scaled = noise_floor(metric, correlated_2d(), 0.5, 500)
    assert scaled["floor_scaled_from"] == metric.floor_draws == 150
    type_ = type("Direct", (type(metric),), {"floor_draws": 500})
    direct = noise_floor(type_(max_points=500), correlated_2d(), 0.5, 500)
    assert "floor_scaled_from" not in direct
    error = math.hypot(scaled["floor_standard_error"], direct["floor_standard_error"])
    assert abs(scaled["floor"] - direct["floor"]) < 5 * error
    ratio = scaled["floor_quantiles"][1] / direct["floor_quantiles"][1]
    assert ratio == pytest.approx(1, abs=5 * math.sqrt(2) * 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["two_modes_1d", "two_modes_2d", "grid_2d"])
def test_the_floors_that_come_with_the_package_are_those_computed_here(preset, monkeypatch):
    shipped = floors.shipped()
    monkeypatch.setattr(floors, "shipped", dict)
    for name, metric, law, sigma, num in requests():
        if name == preset and not isinstance(metric, Wasserstein):
            monkeypatch.setattr(floors, "_kept", {})
            found = noise_floor(metric, law, sigma, num)
            (key,) = floors._kept
            assert shipped[key].keys() == found.keys()
            for each, value in found.items():
                assert shipped[key][each] == pytest.approx(value, rel=1e-6)


def test_a_floor_without_a_formula_says_its_error_and_an_exact_one_has_none():
    assert "floor_standard_error" not in ask(None, metric=ModeWeights())
    found = ask(None, metric=MMD(max_points=20, bandwidth=None))
    assert 0 < found["floor_standard_error"] < found["floor"] / 10
