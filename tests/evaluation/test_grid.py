"""What pictures of D > 2 show: projections on two principal axes of the truth."""

import numpy as np
import pytest
import torch

from ncsn_cli.core.scene import SamplingScene, Scene, TrainingScene
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.grid import Projection, compose_scene
from ncsn_cli.schedules import Geometric
from tests.helpers.problems import stream, two_modes_5d

CPU = torch.device("cpu")


def axes_of(dataset):
    """The two principal axes (5, 2), from a singular value decomposition; of any sign."""
    axes, variances, _ = np.linalg.svd(dataset.covariance.numpy())
    assert variances[1] > 1.2 * variances[2]  # else they are anything
    return axes[:, :2]


def test_points_are_projected_on_the_axes_of_the_largest_variances():
    dataset = two_modes_5d()
    found = Projection(dataset).project(np.eye(5))
    expected = axes_of(dataset)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-12)
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()  # the same at every call


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_density_in_projection_is_that_of_the_projected_mixture(sigma):
    dataset = two_modes_5d()
    view = Projection(dataset)
    basis = torch.as_tensor(view.project(np.eye(5)))
    variances = torch.tensor([[1.0, 0.5, 1.0, 2.0, 0.3], [0.5, 1.0, 0.7, 1.5, 0.3]]).double() ** 2
    truth = GaussianMixture(
        weights=[0.3, 0.7],
        means=(dataset.modes @ basis).tolist(),
        covariances=(basis.T * variances[:, None] @ basis).tolist(),
    )
    grid = torch.cartesian_prod(*map(torch.as_tensor, view.axes))
    expected = truth.log_prob(grid, sigma).exp().numpy()
    # A mean over n = 200 000 draws of the kernel N(0, sigma^2 I_2) has the variance
    # p/(4 pi sigma^2 n) at most; on (12/sigma)^2 points that are apart, 5 of its roots are
    # surpassed once in 3000 (and the draws are the same ones at every call). What bins and a
    # kernel cut at 4 sigma add is a thousandth; axes exchanged, or no sigma, are 10 % and more.
    error = 5 * np.sqrt(expected.max() / (4 * np.pi * sigma**2 * 200_000))
    assert np.abs(view.density(sigma) - expected).max() < error + 2e-3 * expected.max()


def test_scores_are_those_at_the_places_shown():
    # Of one Gaussian, N(mean, s^2 I): - (x - mean)/(s^2 + sigma^2), also in projection.
    mean = torch.tensor([1.0, -2.0, 0.5])
    dataset = GaussianMixture(weights=[1.0], means=[mean.tolist()], stds=0.8)
    scene = compose_scene(
        Scene,
        dataset,
        Geometric(20.0, 0.1, 9).sigmas,
        CPU,
        score=lambda x, sigma: 2 * dataset.score(x, sigma),
    )
    offset = scene.places - Projection(dataset).project(mean)
    expected = -offset / (0.64 + scene.sigmas[:, None, None] ** 2)
    assert len(scene.sigmas) == 3
    np.testing.assert_allclose(scene.true_scores, expected, atol=1e-5)
    np.testing.assert_allclose(scene.scores, 2 * expected, atol=1e-5)
    # At sigma = 20 one draw in 30 lies within +- 4; 100 of the 3000 that are made.
    for i, axis in enumerate(scene.axes):
        inside = (scene.places[..., i] >= axis[0]) & (scene.places[..., i] <= axis[-1])
        assert inside.mean(1).min() > 0.3


def test_all_points_of_a_scene_are_projected():
    dataset = two_modes_5d()
    x = dataset.sample(20, generator=stream()).numpy()
    paths, sigmas = np.stack([x, 2 * x]), np.array([2.0, 0.5])
    arrays = {"samples": 3 * x, "exact": 4 * x}
    scene = compose_scene(
        SamplingScene, dataset, Geometric(2.0, 0.5, 3).sigmas, CPU,
        paths=(paths, np.arange(2), sigmas), level_sigmas=sigmas, committed=np.ones(2),
        mode_shares=np.ones((2, 2)) / 2, **arrays,
    )  # fmt: skip
    project = Projection(dataset).project
    for name, points in arrays.items():
        np.testing.assert_array_equal(getattr(scene, name), project(points))
    np.testing.assert_array_equal(scene.paths.x, project(paths))
    assert scene.paths.densities.shape == (2, len(scene.axes[0]) * len(scene.axes[1]))
    scene = compose_scene(
        TrainingScene, dataset, Geometric(2.0, 0.5, 3).sigmas, CPU,
        data=x, history={}, loss_floor=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal(scene.data, project(x))


def test_a_point_has_a_picture():
    dataset = GaussianMixture(weights=[1.0], means=[[1.0, 2.0, 3.0]], stds=0.0)
    scene = compose_scene(Scene, dataset, Geometric(2.0, 0.5, 3).sigmas, CPU)
    assert np.isfinite(scene.densities).all()
    assert all(np.ptp(axis) > 0 for axis in scene.axes)
