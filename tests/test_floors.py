import json
import logging

import pytest
import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.floors import noise_floor
from ncsn_cli.metrics import MMD, ModeWeights, SlicedWasserstein

from .conftest import two_modes_1d

METRIC = SlicedWasserstein(num_directions=3)


def ask(folder, metric=METRIC, truth=None, sigma=0.5, num=20):
    return noise_floor(metric, truth or two_modes_1d(), sigma, num, folder)


def test_a_floor_is_found_once(tmp_path):
    assert ask(tmp_path) == ask(tmp_path) == ask(None)
    assert len(list(tmp_path.iterdir())) == 1


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
