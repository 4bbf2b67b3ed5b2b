import numpy as np
import pytest
import torch

from ncsn_cli.evaluation import excess_loss
from ncsn_cli.losses import Denoising
from ncsn_cli.models import MLP
from ncsn_cli.schedules import Geometric
from ncsn_cli.scores import ConfigError

from .conftest import assert_mean, correlated_2d, stream, two_modes_1d, two_modes_2d


def denoising(levels="all", noise="fresh", weight_power=2.0):
    return Denoising(levels=levels, noise=noise, weight_power=weight_power)


def floor(loss, dataset, sigmas):
    return np.mean(
        [loss.floor(s, dataset.dim, dataset.fisher_information(s)) for s in sigmas.tolist()]
    )


def batches(loss, score, dataset, sigmas, num=60, size=2000, device="cpu"):
    """Independent values of the loss."""
    g = stream(4, device)
    sigmas = sigmas.float().to(device)
    with torch.no_grad():
        return [
            float(loss(score, dataset.sample(size, generator=g), sigmas, generator=g))
            for _ in range(num)
        ]


@pytest.mark.parametrize(
    ("dataset", "schedule", "value"),
    [
        (two_modes_1d(), Geometric(2.0, 0.5, 16), 0.290216),
        (two_modes_1d(), Geometric(2.0, 0.5, 6), 0.291409),
        (two_modes_2d(), Geometric(20.0, 0.1, 100), 0.453413),
    ],
)
def test_floor_has_its_known_value(dataset, schedule, value):
    assert floor(denoising(), dataset, schedule.sigmas) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("weight_power", [2.0, 0.0])
@pytest.mark.parametrize("levels", ["all", "random"])
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_the_true_score_meets_the_floor(dataset, levels, weight_power, device):
    loss, sigmas = denoising(levels, weight_power=weight_power), Geometric(2.0, 0.5, 5).sigmas
    values = batches(loss, dataset.score, dataset, sigmas, device=device)
    assert_mean(values, floor(loss, dataset, sigmas))


@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_any_score_exceeds_the_floor_by_its_weighted_fisher_divergence(dataset):
    loss, sigmas = denoising(), Geometric(2.0, 0.5, 5).sigmas
    network = MLP(dataset.dim, hidden=[16], activation="tanh", conditional=True)
    excess = excess_loss(network, dataset, sigmas, loss, 400_000, stream(5))  # error below 0.5 %
    values = np.array(batches(loss, network, dataset, sigmas, num=200))
    assert_mean(values - floor(loss, dataset, sigmas), excess, standard_errors=6)


def test_fixed_noise_is_drawn_once_for_each_point_and_level():
    dataset, sigmas = two_modes_1d(num_samples=50), Geometric(2.0, 0.5, 3).sigmas.float()
    data = dataset.training_set()
    assert denoising().fixed_noise(data, sigmas, stream()) is None
    for levels in ("all", "random"):
        loss = denoising(levels, noise="fixed")
        noise = loss.fixed_noise(data, sigmas, stream(6))
        assert noise.shape == (50, 3, 1)
        values = {
            float(loss(dataset.score, data, sigmas, generator=stream(k), noise=noise))
            for k in range(3)
        }
        assert len(values) == (1 if levels == "all" else 3)


def test_noise_at_each_level_is_the_one_given():
    # With s = 0 the loss is E||z||^2/2 for weight_power = 2: any mix-up of rows would show.
    loss, sigmas = denoising(noise="fixed"), torch.tensor([2.0, 1.0])
    z = torch.arange(6.0).reshape(3, 2, 1)
    value = loss(lambda x, s: 0 * x, torch.zeros(3, 1), sigmas, generator=stream(), noise=z)
    assert float(value) == pytest.approx(float(z.square().mean() / 2))
    seen = []
    loss(
        lambda x, s: seen.append((x, s)) or x,
        torch.zeros(3, 1),
        sigmas,
        generator=stream(),
        noise=z,
    )
    x_noisy, sigma = seen[0]
    torch.testing.assert_close(x_noisy[:, 0], sigma * z.flatten())


def test_sigma_zero_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        denoising().check(torch.tensor([1.0, 0.0]))
