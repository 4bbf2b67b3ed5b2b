import inspect
import json
import logging

import pytest

from ncsn_cli.floors import FloorCache, noise_floor
from ncsn_cli.metrics import SlicedWasserstein

from .conftest import two_modes_1d

DATASET = {"_target_": "GaussianMixture", "means": [-3, 3], "num_samples": 100, "seed": 0}
METRIC = SlicedWasserstein(num_directions=3)


def ask(folder, dataset=DATASET, num_directions=3, sigma=0.5, num=20):
    cache = FloorCache(folder, dataset, {"sliced": {"num_directions": num_directions}})
    metric = SlicedWasserstein(num_directions=num_directions)
    return cache("sliced", metric, two_modes_1d(), sigma, num)


def test_a_floor_is_found_once(tmp_path, monkeypatch):
    found = ask(tmp_path)
    assert found == noise_floor(METRIC, two_modes_1d(), 0.5, 20)
    monkeypatch.setattr("ncsn_cli.floors.noise_floor", None)  # would now be an error
    # The training set is no part of the law.
    other = {**DATASET, "num_samples": None, "seed": 7}
    assert ask(tmp_path) == ask(tmp_path, dataset=other) == found
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": {**DATASET, "means": [-3, 4]}},
        {"num_directions": 4},
        {"sigma": 0.4},
        {"num": 21},
    ],
)
def test_each_input_has_its_own_floor(change, tmp_path):
    ask(tmp_path)
    ask(tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("changed", ["metrics.transport", "metrics.base", "datasets.mixture"])
def test_another_code_has_its_own_floor(changed, tmp_path, monkeypatch):
    ask(tmp_path)
    source = inspect.getsource
    monkeypatch.setattr(
        "inspect.getsource",
        lambda module: source(module) + "\n" * (module.__name__ == f"ncsn_cli.{changed}"),
    )
    ask(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"result": null}', '{"result": {"floor": 1}}'])
def test_a_damaged_file_is_written_anew(damage, tmp_path):
    found = ask(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert ask(tmp_path) == found
    assert json.loads(path.read_text())["result"] == found


def test_a_floor_that_cannot_be_kept_is_found_all_the_same(tmp_path, caplog):
    blocked = tmp_path / "floors"
    blocked.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert ask(blocked) == ask(tmp_path / "elsewhere")
    assert str(blocked) in caplog.text
