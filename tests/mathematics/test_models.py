import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import FunctionAtSigma, score_at
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.models import (
    MLP,
    EmbeddingMLP,
    EnergyMLP,
    FourierMLP,
    MixtureScore,
    NCSNv2MLP,
    PreconditionedMLP,
)
from ncsn_cli.models.networks import FewInputs
from ncsn_cli.models.one_level import Perceptron, Recentred
from tests.helpers.problems import correlated_2d, shaken, stream

RESIDUAL = {"features": 6, "hidden": [8, 5], "activation": "silu"}


def networks(dim):
    return [
        MLP(dim, hidden=[8, 5], activation="silu", conditional=True),
        EmbeddingMLP(dim, embedding=4, hidden=[8], activation="relu"),
        FourierMLP(dim, **RESIDUAL),
        PreconditionedMLP(dim, sigma_data=1.5, **RESIDUAL),
        EnergyMLP(dim, sigma_data="auto", **RESIDUAL),
        NCSNv2MLP(dim, hidden=[8], activation="softplus"),
    ]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_sigma_for_all_equals_the_same_sigma_for_each(dim, device):
    x = torch.randn(7, dim, device=device)
    for network in networks(dim):
        shaken(network).to(device)
        score = network(x, torch.tensor(0.3, device=device))
        assert score.shape == (7, dim)
        torch.testing.assert_close(score, network(x, torch.full((7,), 0.3, device=device)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "softplus", "silu", "tanh", "gelu"])
@pytest.mark.parametrize("dim", [1, 2])
def test_at_one_level_scores_are_the_same_but_for_rounding(dim, activation, dtype, device):
    # Rounding is eps times the sum of the terms' sizes, layer by layer, which is the score where
    # no weight is negative; once that was met.
    random = stream(dim)
    residual = {**RESIDUAL, "activation": activation}
    some = [
        MLP(dim, hidden=[8, 5], activation=activation, conditional=True),
        MLP(dim, hidden=[], activation=activation, conditional=True),
        MLP(dim, hidden=[8], activation=activation, conditional=False),
        EmbeddingMLP(dim, embedding=4, hidden=[8, 5], activation=activation),
        FourierMLP(dim, **residual),
        PreconditionedMLP(dim, sigma_data=1.5, **residual),
        NCSNv2MLP(dim, hidden=[8, 5], activation=activation),
    ]
    for network in some:
        shaken(network).to(device, dtype)
        if isinstance(network, PreconditionedMLP):
            network.mean += 3
        positive = copy.deepcopy(network)
        for parameter in positive.parameters():
            parameter.data.abs_()
        for sigma in torch.tensor([0.01, 0.5, 20.0], dtype=dtype, device=device):
            with torch.no_grad():
                quick = network.at(sigma)
                for num in (9, 40, 9):
                    x = 3 * torch.randn(num, dim, generator=random).to(device, dtype)
                    expected, terms = network(x, sigma), positive(x.abs(), sigma).abs().max()
                    rounding = 5 * torch.finfo(dtype).eps * float(terms)
                    for points in (x, x.mT.contiguous().mT):
                        found = quick(points)
                        assert found.shape == (num, dim)
                        torch.testing.assert_close(found, expected, rtol=0, atol=rounding)


def test_a_subclass_with_a_forward_of_its_own_is_not_passed_over():
    class Doubling:
        def forward(self, x, sigma):
            return 2 * super().forward(x, sigma)

    class Doubled(Doubling, MLP):
        pass

    class Again(Doubled):
        def forward(self, x, sigma):
            return 2 * super().forward(x, sigma)

    class Fast(Again):
        def at(self, sigma):
            return FunctionAtSigma(lambda x: self(x, sigma))

    x, sigma = torch.randn(7, 2), torch.tensor(0.5)
    for kind in (Doubled, Again, Fast):
        network = kind(2, hidden=[8], activation="relu", conditional=True)
        with torch.no_grad():
            assert torch.equal(score_at(network, sigma)(x), network(x, sigma))


def test_conditional_networks_see_sigma_and_others_do_not():
    x, low, high = torch.randn(7, 2), torch.tensor(0.1), torch.tensor(5.0)
    for network in networks(2):
        assert not torch.allclose(shaken(network)(x, low), network(x, high))
    blind = MLP(2, hidden=[8], activation="relu", conditional=False)
    assert torch.equal(blind(x, low), blind(x, high))


def test_published_sizes():
    # 257 parameters: Random notes, "Multiple denoising score matching", prints this number.
    network = MLP(1, hidden=[64], activation="relu", conditional=True)
    assert sum(p.numel() for p in network.parameters()) == 257


@pytest.mark.parametrize("values", [{"hidden": [0]}, {"activation": "Relu"}, {"width": 3}])
def test_impossible_networks_are_refused(values):
    with pytest.raises(ValidationError):
        MLP(1, **{"hidden": [8], "activation": "relu", "conditional": True, **values})


def test_preconditioning_is_that_of_karras_et_al():
    # Table 1: D = c_skip x + c_out F(c_in x), s = (D - x)/sigma^2, here around the data's mean.
    network = shaken(PreconditionedMLP(2, sigma_data="auto", **RESIDUAL))
    data = correlated_2d().sample(500, generator=stream(2))
    network.adapt_to(data)
    variance = data.var(0, correction=0).mean()
    x, sigma = 3 * torch.randn(7, 2), torch.rand(7, 1) + 0.1
    c_skip, c_in = variance / (sigma**2 + variance), (sigma**2 + variance).rsqrt()
    c_out = sigma * variance.sqrt() * c_in
    centred = x - data.mean(0)
    denoised = c_skip * centred + c_out * network.network(c_in * centred, sigma)
    expected = (denoised - centred) / sigma**2
    torch.testing.assert_close(network(x, sigma[:, 0]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [PreconditionedMLP, EnergyMLP])
def test_the_start_is_the_score_of_the_gaussian_with_the_datas_moments(kind):
    network = kind(1, sigma_data="auto", **RESIDUAL)
    network.adapt_to(torch.tensor([[1.0], [5.0]]))
    x, sigma = torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 2.0])
    expected = -(x - 3.0) / (4.0 + sigma[:, None] ** 2)
    torch.testing.assert_close(network(x, sigma), expected)


def test_energy_is_the_potential_of_its_score():
    # Central differences in float64 with step 1e-4 err by about 1e-8.
    network = shaken(EnergyMLP(2, sigma_data=1.5, **RESIDUAL)).double()
    x, sigma, step = torch.randn(9, 2).double(), torch.tensor(0.7).double(), 1e-4
    with torch.no_grad():
        score = network(x, sigma)
        for axis in range(2):
            ahead = x.clone()
            ahead[:, axis] += step
            behind = x.clone()
            behind[:, axis] -= step
            slope = (network.energy(behind, sigma) - network.energy(ahead, sigma)) / (2 * step)
            torch.testing.assert_close(score[:, axis], slope, rtol=1e-6, atol=1e-6)


def test_energy_learns_through_its_score():
    network = shaken(EnergyMLP(2, sigma_data=1.5, **RESIDUAL))
    network(torch.randn(3, 2), torch.tensor(0.5)).square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in network.network.inner.parameters())
    with pytest.raises(ConfigError, match="second derivative"):
        EnergyMLP(2, sigma_data=1.5, **{**RESIDUAL, "activation": "relu"})


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_networks_that_divide_by_sigma_refuse_zero(sigma):
    for network in networks(1)[2:]:
        with pytest.raises(ConfigError, match="above 0"):
            network(torch.zeros(1, 1), torch.tensor(sigma))


def test_a_head_without_sigma_warns_in_low_dimensions(caplog):
    NCSNv2MLP(3, hidden=[8], activation="relu")
    assert not caplog.records
    network = NCSNv2MLP(2, hidden=[8], activation="relu")
    assert "17.9" in caplog.text
    x = torch.randn(4, 2)
    torch.testing.assert_close(network(x, torch.tensor(0.1)), 10 * network(x, torch.tensor(1.0)))


@torch.no_grad()
def test_a_network_in_coordinates_around_a_point_is_the_same_network():
    # By a perceptron's first bias, which takes the point up, and by moving the points.
    origin = torch.tensor([100.0, -3.0], dtype=torch.float64)
    y, sigma = torch.randn(50, 2, generator=stream(3)), torch.tensor(0.7)
    for network in networks(2):
        moved = Recentred(shaken(network), origin)
        expected = network(y + origin.float(), sigma)
        # Float32 rounds sums of numbers as large as 100 by 1e-5; a network may enlarge that.
        near = {"rtol": 1e-3, "atol": 1e-3 * float(expected.abs().max())}
        torch.testing.assert_close(moved(y, sigma), expected, **near)
        torch.testing.assert_close(score_at(moved, sigma)(y), expected, **near)
        is_perceptron = isinstance(network, MLP | EmbeddingMLP | NCSNv2MLP)
        assert isinstance(score_at(moved, sigma), Perceptron) == is_perceptron


@pytest.mark.parametrize("inputs", [1, 2, 3, 8])
def test_a_layer_of_few_inputs_is_linear_with_the_same_derivatives(inputs):
    few, plain = FewInputs(inputs, 16).double(), nn.Linear(inputs, 16).double()
    plain.load_state_dict(few.state_dict())
    found = []
    for layer in (few, plain):
        x = torch.randn(50, inputs, generator=stream(), dtype=torch.float64, requires_grad=True)
        made = layer(x)
        made.sin().sum().backward()
        found.append((made, x.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_a_mixture_as_a_network_has_the_score_of_the_mixture(sigma):
    weights, means, stds = [0.2, 0.5, 0.3], [[-1.0, 0.0], [1.0, 2.0], [3.0, -1.0]], [0.5, 1.0, 2.0]
    network = MixtureScore(2, weights, means, stds).double()
    truth = GaussianMixture(weights, means, stds)
    x = truth.sample(50, generator=stream()).double()
    torch.testing.assert_close(
        network(x, torch.tensor(sigma)), truth.score(x, sigma), rtol=1e-6, atol=1e-6
    )
    each = torch.linspace(0.1, 2, 50).double()
    torch.testing.assert_close(network(x, each), truth.score(x, each), rtol=1e-6, atol=1e-6)
    found = network.estimates()
    assert found["weights"] == pytest.approx(weights)
    assert found["means"] == means
    assert found["stds"] == pytest.approx(stds)


def test_each_kind_of_parameter_of_a_mixture_is_learned_or_fixed():
    names = ("weights", "means", "stds")
    for learned in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]):
        flags = {f"learn_{n}": bool(f) for n, f in zip(names, learned, strict=True)}
        network = MixtureScore(1, [0.4, 0.6], [[-1.0], [1.0]], [1.0, 0.5], **flags)
        network(torch.randn(9, 1), torch.tensor(0.3)).square().sum().backward()
        weights = (network.log_weights, network.means, network.log_stds)
        assert [w.grad is not None for w in weights] == [bool(f) for f in learned]


def test_a_mixture_starts_at_the_first_training_points():
    data = torch.randn(5, 2)
    network = MixtureScore(2, [1.0, 1.0, 2.0])
    network.adapt_to(data)
    torch.testing.assert_close(network.means.detach(), data[:3])
    given = MixtureScore(2, [1.0], [[3.0, 4.0]])
    given.adapt_to(data)
    assert given.means.tolist() == [[3.0, 4.0]]
    with pytest.raises(ConfigError, match="each needs 2 coordinates"):
        MixtureScore(2, [0.5, 0.5], [[0.0], [1.0]]).adapt_to(data)
    with pytest.raises(ConfigError, match="fewer training points"):
        network.adapt_to(data[:2])


@pytest.mark.parametrize(
    "values",
    [
        {"means": [[0.0, 0.0], [1.0]]},
        {"means": [[0.0, 0.0]]},
        {"stds": [1.0, 1.0, 1.0]},
        {"weights": [0.5, -0.5]},
        {"learn_weights": False, "learn_means": False, "learn_stds": False},
    ],
)
def test_impossible_mixtures_are_refused(values):
    with pytest.raises((ConfigError, ValidationError)):
        MixtureScore(2, **values)
