"""The split of a score's error into what reaches the samples and what does not."""

import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate

from ncsn_cli.datasets import Circle, GaussianMixture
from ncsn_cli.metrics import compared_scores, relative_error, split_error, visible_field
from ncsn_cli.models import EnergyMLP
from ncsn_cli.samplers import ReverseDiffusion
from ncsn_cli.schedules import Geometric
from tests.helpers.commands import composed
from tests.helpers.problems import correlated_2d, network_2d, stream, two_modes_2d
from tests.helpers.statistics import LIMIT, NUM_DRAWS, kolmogorov_distance


def turned(field):
    """J times the field, a quarter turn."""
    return torch.stack([-field[:, 1], field[:, 0]], dim=-1)


def with_error(truth, along, across, score=None):
    """The true score, or ``score``, with the error along s* + across J s*."""

    def added(x, sigma):
        true = truth.score(x, sigma)
        return (true if score is None else score(x, sigma)) + along * true + across * turned(true)

    return added


def shares(score, truth, sigma):
    found = split_error(score, truth, sigma)
    assert found.failure == ""
    return found.visible / found.information, found.invisible / found.information


def assert_split_exactly(preset, places):
    config = composed("train", preset)
    truth, schedule = (
        instantiate(config[group], _convert_="all") for group in ("dataset", "schedule")
    )
    levels = schedule.sigmas.tolist()
    for sigma in levels if places is None else [levels[place] for place in places]:
        for along, across in ((0.3, 0.0), (0.0, 0.3)):
            visible, invisible = shares(with_error(truth, along, across), truth, sigma)
            assert visible == pytest.approx(along**2, abs=1e-3 * 0.09)
            assert invisible == pytest.approx(across**2, abs=1e-3 * 0.09)


@pytest.mark.parametrize(
    "preset, places", [("experiment=ncsn_2d", [0, 49, 99]), ("dataset=grid_2d", [10])]
)
def test_gradients_are_visible_and_turned_ones_are_not(preset, places):
    # J grad log p flows along the lines of p: div(p J grad log p) = div(J grad p) = 0.
    assert_split_exactly(preset, places)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        "experiment=ncsn_2d",
        "experiment=song_ermon_annealed",
        "experiment=dsm_continuous_2d",
        "dataset=grid_2d",
        "experiment=edm_karras_2d",
    ],
)
def test_gradients_are_visible_and_turned_ones_are_not_at_any_level(preset):
    assert_split_exactly(preset, None)


def test_both_parts_add_up_to_the_score_error_of_draws():
    # Of two modes with correlated axes, and a network whose error has both parts.
    truth, network = correlated_2d(), network_2d()
    score = with_error(truth, 0.0, 2.0, network)
    for sigma in (2.0, 0.3):
        visible, invisible = shares(score, truth, sigma)
        with torch.no_grad():
            products = compared_scores(score, truth, sigma, 20_000, stream())
        error, variance = relative_error(products)
        assert visible + invisible == pytest.approx(error, abs=5 * math.sqrt(variance))
        assert min(visible, invisible) > 0.05 * error


def test_the_change_in_the_last_refinement_bounds_the_error():
    # Against a grid of half the step: the error of e = J s* falls with h^4.
    truth = two_modes_2d()
    found = split_error(with_error(truth, 0.0, 0.3), truth, 0.1)
    error = abs(found.invisible - 0.09 * found.information)
    assert error < found.change / 3
    assert found.change < 1e-3 * found.invisible


def test_the_score_of_an_energy_has_no_invisible_part():
    # Beside the network that has one. On the grid a difference of energies is not quite the
    # score in the middle: of the error's square this is (h^2 f'''/(24 f'))^2.
    truth = correlated_2d()
    energy = network_2d(EnergyMLP, features=8)
    visible, invisible = shares(energy, truth, 1.0)
    assert invisible < 1e-3 * visible


def test_what_does_not_show_may_be_added_to_a_network():
    truth, network = two_modes_2d(), network_2d()
    for sigma in (3.0, 0.3):
        before, after = (
            shares(with_error(truth, 0.0, across, network), truth, sigma) for across in (0.0, 1.0)
        )
        assert after[0] == pytest.approx(before[0], rel=1e-3)
        assert abs(after[1] - before[1]) > 0.01  # whichever way the network turns


def test_the_visible_field_is_the_error_itself_where_all_is_visible():
    truth, sigma = correlated_2d(), 0.5
    x = truth.sample(500, sigma=sigma, generator=stream()).double()
    field, share = visible_field(with_error(truth, 0.3, 0.0), truth, sigma, x)
    true = truth.score(x, sigma).numpy()
    # Linear between edges a third of a standard deviation apart: up to h^2/8 of the curvature.
    assert abs(field - 0.3 * true).max() < 0.3 * 0.05 * abs(true).max()
    assert share == pytest.approx(1, abs=1e-3)
    turned_field, share = visible_field(with_error(truth, 0.0, 0.3), truth, sigma, x)
    assert abs(turned_field).max() < 0.3 * 0.05 * abs(true).max()
    assert share < 1e-3
    far, _ = visible_field(truth.score, truth, sigma, torch.full((1, 2), 1e3).double())
    assert math.isnan(far[0, 0])


class Elsewhere(GaussianMixture):
    """It says that it lies where it does not."""

    def _set_moments(self):
        super()._set_moments()
        self.modes = self.modes + 100.0
        self.extent = self.extent[0] + 100.0, self.extent[1] + 100.0


POINT = GaussianMixture([1.0], [[0.0, 0.0]], stds=0.0)
WIDE = GaussianMixture([1.0], [[0.0, 0.0]], stds=1.0)


@pytest.mark.parametrize(
    "truth, sigma, score, reason",
    [
        (POINT, 0.0, None, "no density"),
        (Circle(2.0, 0.01), 0.0, None, "more than 263169 points"),
        (Elsewhere([1.0], [[0.0, 0.0]], stds=1.0), 0.5, None, "misses a part of p"),
        (WIDE, 0.5, lambda x, _: x / (x[:, :1] < 3), "not finite"),
    ],
)
def test_where_there_is_no_split_there_is_a_reason(truth, sigma, score, reason):
    found = split_error(score or truth.score, truth, sigma)
    assert reason in found.failure
    assert math.isnan(found.visible) and math.isnan(found.invisible)
    field, share = visible_field(score or truth.score, truth, sigma, torch.zeros(1, 2).double())
    assert math.isnan(share) and math.isnan(field[0, 0])


@pytest.mark.slow
def test_the_law_of_samples_does_not_depend_on_what_does_not_show():
    # By 400 steps of the reverse diffusion from exact draws, seen along three directions. With
    # the same error along s* instead, the law is another.
    truth, sigmas = two_modes_2d(), Geometric(10.0, 0.3, 400).sigmas
    angle = torch.tensor([0.0, 0.8, 2.0], dtype=torch.float64)
    directions = torch.stack([angle.cos(), angle.sin()])  # (2, 3)
    weights = truth.weights.tolist()
    lines = [GaussianMixture(weights, m.tolist(), stds=1.0) for m in (truth.modes @ directions).T]
    distances = {}
    for name, error in (("exact", (0.0, 0.0)), ("across", (0.0, 0.5)), ("along", (0.5, 0.0))):
        x = truth.sample(NUM_DRAWS, sigma=10.0, generator=stream(1))
        sampler = ReverseDiffusion(denoise=False)
        after = sampler(with_error(truth, *error), x, sigmas, generator=stream(2))
        distances[name] = max(
            kolmogorov_distance(seen, partial(line.cdf, sigma=0.3))
            for seen, line in zip((after.double() @ directions).T, lines, strict=True)
        )
    assert distances["exact"] < LIMIT
    assert distances["across"] < LIMIT
    assert distances["along"] > 2 * LIMIT
