import numpy as np
import pytest
import torch

from ncsn_cli.core.scene import Scene
from ncsn_cli.evaluation.grid import compose_scene
from ncsn_cli.plots.fields import at_arrows
from ncsn_cli.runs.files import to_npz
from ncsn_cli.schedules import Geometric
from ncsn_cli.training.snapshots import Snapshots
from tests.helpers.problems import correlated_2d, two_modes_1d

CPU = torch.device("cpu")
SIGMAS = Geometric(2.0, 0.5, 5).sigmas


def taken(dataset, score=None, steps=(0, 3, 12)):
    snapshots = Snapshots(2, 12, dataset, SIGMAS, CPU)
    for step in steps:
        snapshots.take(step, score or dataset.score)
    return snapshots


@pytest.mark.parametrize("num, steps", [(1, 1), (4, 100), (60, 20), (60, 30_000)])
def test_the_first_and_the_last_step_are_due(num, steps):
    due = Snapshots(num, steps, two_modes_1d(), SIGMAS, CPU).due
    assert {0, steps} <= due <= set(range(steps + 1))
    assert len(due) <= num + 1


def test_the_exact_score_in_one_dimension_recovers_the_density():
    dataset = two_modes_1d()
    arrays = taken(dataset).arrays()
    scene = compose_scene(Scene, dataset, SIGMAS, CPU)
    assert arrays["steps"].tolist() == [0, 3, 12]
    for scores, density, kl in zip(
        arrays["scores"], arrays["recovered"], arrays["kl"], strict=True
    ):
        np.testing.assert_allclose(scores, scene.true_scores, atol=1e-4)
        np.testing.assert_allclose(density, scene.densities[-1], atol=1e-4)
        assert abs(kl) < 1e-5


def test_the_exact_score_in_two_dimensions_is_that_at_the_arrows():
    dataset = correlated_2d()
    scores = taken(dataset).arrays()["scores"]
    scene = compose_scene(Scene, dataset, SIGMAS, CPU)
    assert scores.shape == (3, 3, 400, 2)
    for level in range(3):
        expected = at_arrows(scene.true_scores[level], scene)
        np.testing.assert_allclose(scores[0, level], expected, atol=1e-4)


def test_what_was_kept_is_taken_up_again_as_far_as_the_checkpoint(tmp_path):
    file = tmp_path / "snapshots.npz"
    file.write_bytes(to_npz(taken(two_modes_1d()).arrays()))
    again = Snapshots(2, 12, two_modes_1d(), SIGMAS, CPU)
    again.restore(file, 5)
    assert again.arrays()["steps"].tolist() == [0, 3]
    again.take(12, two_modes_1d().score)
    for name, values in taken(two_modes_1d()).arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], values)


def test_nothing_kept_is_no_error(tmp_path):
    snapshots = Snapshots(2, 12, two_modes_1d(), SIGMAS, CPU)
    assert snapshots.arrays()["steps"].tolist() == []
