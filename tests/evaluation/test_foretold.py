import math

import pytest
import torch

from ncsn_cli.datasets import Checkerboard, Circle, GaussianMixture, grid
from ncsn_cli.evaluation.foretold import collapse_level, speciation_level
from ncsn_cli.metrics import settled_point
from tests.helpers.problems import correlated_2d, two_modes_1d, two_modes_2d


def test_speciation_levels_have_their_known_values():
    song_ermon = GaussianMixture([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], stds=1.0)
    assert speciation_level(song_ermon) == pytest.approx(5.657, abs=5e-4)
    assert speciation_level(grid(side=5, spacing=2.0)) == pytest.approx(math.sqrt(8))
    assert speciation_level(two_modes_1d()) == pytest.approx(1.8)


def test_speciation_is_the_spread_of_the_means_along_the_widest_axis():
    law = correlated_2d()
    weights, means, _ = law.components(0.0)
    centred = means - weights @ means
    _, axes = torch.linalg.eigh(law.covariance)
    spread = float(weights @ (centred @ axes[:, -1]).square())
    assert speciation_level(law) == pytest.approx(math.sqrt(spread))


def test_one_mode_has_no_speciation():
    assert speciation_level(GaussianMixture([1.0], [[0.0, 0.0]], stds=[[1.0, 3.0]])) is None
    assert speciation_level(Circle()) is None


def test_collapse_levels_have_their_known_values():
    for num, level in (
        (60, 0.144),
        (100, 0.111),
        (1000, 0.0348),
        (10**4, 0.0110),
        (10**5, 3.48e-3),
    ):
        assert collapse_level(two_modes_2d(), num) == pytest.approx(level, rel=0.01)
    assert collapse_level(two_modes_1d(), 1000) == pytest.approx(0.0014, rel=0.05)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_collapse_of_one_gaussian_has_a_closed_form(dim):
    # H = D/2 log(2 pi e (s^2 + sigma^2)): sigma_C = s/sqrt(n^(2/D) - 1). The entropy of 40 000
    # draws has a standard error of sqrt(D/2/40 000), so log sigma has sqrt(1/(2 D 40 000)).
    law = GaussianMixture([1.0], [[0.0] * dim], stds=2.0)
    for num in (10, 1000):
        expected = 2 / math.sqrt(num ** (2 / dim) - 1)
        error = math.sqrt(1 / (2 * dim * 40_000)) * (1 + expected**2 / 4)
        assert collapse_level(law, num) == pytest.approx(expected, rel=5 * error)


def test_where_nothing_collapses_there_is_no_level():
    points = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], stds=0.0)
    assert collapse_level(points, 100) is None
    assert collapse_level(two_modes_2d(), 1) is None
    assert collapse_level(Checkerboard(), 1000) == pytest.approx(
        math.sqrt(32 / (2 * math.pi * math.e * 1000)), rel=0.1
    )  # the entropy of the squares is log 32, if no noise blurs their edges


def test_chains_keep_their_training_point_from_a_level():
    data, sigmas = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    paths = torch.tensor([[0.1, 1.9, 0.9], [1.1, 1.8, 1.2], [0.2, 1.7, 2.2], [0.1, 2.5, 1.6]])
    # The first keeps its point from 2.0, the second from 4.0, the third from 2.0.
    assert settled_point(paths[..., None], sigmas, data) == 2.0
    restless = torch.tensor([[0.1], [1.1], [0.1], [1.1]])
    assert settled_point(restless[..., None], sigmas, data) is None
