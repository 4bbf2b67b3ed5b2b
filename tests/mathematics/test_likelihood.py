"""The density that a score implies: through its flow, on a grid, and by integrating it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from ncsn_cli.core.gaussian import Gaussian
from ncsn_cli.core.score import score_and_jacobian
from ncsn_cli.datasets import Checkerboard, Circle, GaussianMixture, moons
from ncsn_cli.evaluation.log_density import evaluate_log_density
from ncsn_cli.metrics import KL, likelihood, log_likelihood, recovered_density
from tests.helpers.problems import correlated_2d, stream, two_modes_1d
from tests.helpers.slow import slow_but

OTHER = GaussianMixture(weights=[0.3, 0.7], means=[-2.5, 3.0], stds=1.2)


def memorised(num, dim, width):
    """The law of ``num`` points: what a network that memorises them has learned."""
    points = width * torch.randn(num, dim, generator=stream(30), dtype=torch.float64)
    return GaussianMixture([1 / num] * num, points.tolist(), stds=0.0)


@pytest.mark.parametrize("q", [moons(64, 2.0, 0.2), Circle(2.0, 0.01), Checkerboard(4, 8.0)])
def test_the_flow_of_an_exact_score_has_its_density(q):
    x = q.sample(100, sigma=0.1, generator=stream(23)).double()
    found = log_likelihood(q.score, x, 0.1, 10.0, lambda y: q.log_prob(y, 10.0), 1000)
    torch.testing.assert_close(found.value, q.log_prob(x, 0.1), rtol=0, atol=0.05)


@pytest.mark.parametrize("dataset", slow_but([two_modes_1d(), correlated_2d()], 0))
def test_the_flow_of_the_exact_score_has_the_exact_density(dataset, monkeypatch):
    # With smaller tolerances than those that reports need.
    monkeypatch.setattr(likelihood, "_TOLERANCES", (1e-6, 1e-7))
    x = 3 * torch.randn(200, dataset.dim, generator=stream(24), dtype=torch.float64)
    found = log_likelihood(
        dataset.score, x, 0.2, 10.0, lambda y: dataset.log_prob(y, 10.0), num_steps=1000
    )
    assert float((found.value - dataset.log_prob(x, 0.2)).abs().max()) < 1e-3


def test_the_log_density_of_a_smooth_score_is_nearer_than_it_promises():
    # The flow starts from p's moments; OTHER's mean is 1 away, of first order in 1/sigma_max.
    p = two_modes_1d()
    numbers, _ = evaluate_log_density(OTHER.score, p, torch.tensor([1000.0, 0.5]))
    expected = divergence(p, OTHER, 0.5, 0.5)
    assert numbers["kl"] == pytest.approx(expected, abs=1e-3)
    assert numbers["recovered_kl"] == pytest.approx(expected, abs=1e-3)


def divergence(p, q, sigma, sigma_q, reach=40.0):
    """KL(p_sigma || q_sigma_q) for D = 1, by the trapezoid rule."""
    x = torch.linspace(-reach, reach, 400_001, dtype=torch.float64)[:, None]
    log_p, log_q = p.log_prob(x, sigma), q.log_prob(x, sigma_q)
    return float(torch.trapezoid(log_p.exp() * (log_p - log_q), x[:, 0]))


@pytest.mark.parametrize(
    "q",
    slow_but(
        [two_modes_1d(), correlated_2d(), memorised(20, 1, 3.0), memorised(40, 2, 1.0)], 0, 2
    ),
)
@pytest.mark.parametrize("sigma", [0.2, 0.03])
def test_the_flow_of_a_score_has_its_density(q, sigma):
    # Points far from all memorised ones, too: there log q is thousands of nats below its maximum.
    x = 3 * torch.randn(300, q.dim, generator=stream(24), dtype=torch.float64)
    found = log_likelihood(q.score, x, sigma, 10.0, lambda y: q.log_prob(y, 10.0), 20_000)
    exact = q.log_prob(x, sigma)
    assert not found.failure
    error = (found.value - exact).abs()
    assert bool((error <= 0.05 + 1e-3 * exact.abs()).all())  # what it promises
    assert float(error.mean()) <= float(found.change.abs().mean())  # what it reports


class Rectified(nn.Module):
    """A Gaussian's score and a perceptron of relu units, whose trace jumps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x, sigma):
        variance = 1 + sigma.square().expand(len(x))[:, None]
        return (self.layers(x) - x) / variance


@pytest.mark.slow
def test_the_flow_of_a_network_agrees_with_another_solver():
    network = Rectified()
    x = torch.randn(4, 2, generator=stream(31))
    found = log_likelihood(
        network, x, 0.1, 10.0, lambda y: -y.square().sum(1) / 200, num_steps=20_000
    )
    network = network.double()

    def slope(log_sigma, y):
        sigma = torch.tensor(math.exp(log_sigma), dtype=torch.float64)
        with torch.no_grad():
            s, jacobian = score_and_jacobian(network, torch.from_numpy(y[None, :2]), sigma)
        trace = float(jacobian[0].trace())
        return float(sigma) ** 2 * np.array([*-s[0].numpy(), trace])

    for point, value, change in zip(x.double(), found.value, found.change, strict=True):
        reference = solve_ivp(
            slope, (math.log(0.1), math.log(10.0)), [*point.tolist(), 0.0], "LSODA",
            rtol=1e-6, atol=1e-6,
        ).y[:, -1]  # fmt: skip
        exact = -float(np.square(reference[:2]).sum()) / 200 - reference[2]
        assert abs(float(value) - exact) <= 0.05
        assert abs(float(change)) <= 0.05 + 1e-3 * abs(exact)


def test_the_prior_has_the_moments_of_the_widest_level():
    dataset = correlated_2d()
    covariance = dataset.covariance + 9.0 * torch.eye(2)
    normal = torch.distributions.MultivariateNormal(dataset.mean, covariance)
    x = 5 * torch.randn(50, 2, generator=stream(25), dtype=torch.float64)
    prior = Gaussian(dataset.mean, dataset.perturbed_covariance(3.0))
    torch.testing.assert_close(prior.log_prob(x), normal.log_prob(x))


def test_kl_between_two_mixtures_equals_quadrature():
    # The score of q for the truth p: KL(p_sigma || q_sigma) by quadrature, the prior's part known.
    p = two_modes_1d()
    sigmas = torch.tensor([1000.0, 10.0, 0.5])
    result = KL(num_points=4000, num_steps=1000)(OTHER.score, p, sigmas, stream(26))
    for found, sigma in ((result, 0.5), (result["clean"], 0.0)):
        # The terminal Gaussian has p's moments, not q's, of first order in 1/sigma_max: 3e-4.
        error = abs(found["value"] - divergence(p, OTHER, sigma, 0.5))
        assert error < 5 * found["standard_error"] + 1e-3
        assert found["solver_error"] < found["standard_error"] < 0.05
    assert abs(result["prior"]["value"]) < 5 * result["prior"]["standard_error"] + 1e-6


@pytest.mark.parametrize("dim, num", slow_but([(1, 20), (2, 40)], 0))
def test_kl_of_a_score_that_memorised_its_points(dim, num):
    # On the same draws the exact density tells the value, beside the prior's part.
    p = GaussianMixture([1.0], [[0.0] * dim], stds=1.0)
    q, sigmas = memorised(num, dim, 1.0), torch.tensor([30.0, 0.03])
    found = KL(num_points=400, num_steps=20_000)(q.score, p, sigmas, stream(32))
    draws = stream(32)
    p.sample(400, sigma=30.0, generator=draws)
    x = p.sample(400, sigma=0.03, generator=draws).double()
    exact = p.log_prob(x, 0.03) - q.log_prob(x, 0.03)
    assert float(exact.mean()) > 10
    # The flow begins at N(0, 901 I) instead of q's law there, whose variance is 1 +- 1/3 beside
    # 900: 4e-4 of log q at the farthest.
    assert abs(found["value"] - float(exact.mean())) < 5 * found["solver_error"] + 1e-3 * float(
        exact.abs().mean()
    )
    assert found["standard_error"] == pytest.approx(float(exact.std()) / 20, rel=0.01)


def test_no_kl_where_the_steps_do_not_suffice(caplog):
    q, sigmas = memorised(20, 1, 3.0), torch.tensor([10.0, 0.03])
    found = KL(num_points=50, num_steps=5)(q.score, two_modes_1d(), sigmas, stream(33))
    assert (found["value"], found["standard_error"], found["clean"]["value"]) == (None, None, None)
    assert found["prior"]["value"] is not None
    assert ["num_steps = 5" in record.message for record in caplog.records] == [True, True]
    assert all(record.message.startswith("metric.kl: ") for record in caplog.records)


@pytest.mark.parametrize(
    "score, says",
    [
        (lambda x, sigma: -30 * x, "as far as data and noise reach"),  # x ~ exp(15 sigma^2)
        (lambda x, sigma: x / 0, "not finite"),
    ],
)
def test_no_kl_of_a_flow_that_leads_nowhere(score, says, caplog):
    sigmas = torch.tensor([10.0, 0.5])
    found = KL(num_points=20, num_steps=1000)(score, two_modes_1d(), sigmas, stream(34))
    assert found["value"] is None
    assert says in caplog.text


@pytest.mark.parametrize("dataset", slow_but([two_modes_1d(), correlated_2d()], 0))
def test_the_log_density_of_the_exact_score_is_the_exact_one(dataset):
    numbers, arrays = evaluate_log_density(dataset.score, dataset, torch.tensor([100.0, 0.5]))
    axes = [arrays[f"x{i + 1}"] for i in range(dataset.dim)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, dataset.dim)
    exact = dataset.log_prob(torch.from_numpy(points), 0.5).numpy()
    np.testing.assert_allclose(arrays["true_log_density"], exact)
    likely = exact > exact.max() - 9  # where 99.99 % of the mass is
    assert np.abs(arrays["log_density"] - exact)[likely].max() < 1e-2
    assert numbers["mass"] == pytest.approx(1, abs=1e-3)
    assert numbers["true_mass"] == pytest.approx(1, abs=1e-3)
    assert abs(numbers["kl"]) < 1e-3
    assert numbers["sigma"] == 0.5
    assert ("recovered_kl" in numbers) == (dataset.dim == 1)


@pytest.mark.parametrize(
    "q, sigma_min",
    slow_but(
        [
            (OTHER, 0.5),
            (GaussianMixture([1.0], [0.0], stds=9.0), 0.5),  # wider than the pictures
            (GaussianMixture([0.2, 0.8], [-40.0, 0.0], stds=2.0), 0.5),  # with a mode beyond them
            (memorised(12, 1, 3.0), 0.1),  # rough
        ],
        0,
    ),
)
def test_the_log_density_of_another_score_errs_by_its_size(q, sigma_min):
    # By quadrature, both through the flow and by integrating the score.
    p = two_modes_1d()
    numbers, arrays = evaluate_log_density(q.score, p, torch.tensor([1e4, sigma_min]))
    # The flow starts from p's moments, of first order in q's distance over sigma_max.
    expected = divergence(p, q, sigma_min, sigma_min, reach=200.0)
    assert numbers["mass"] == pytest.approx(1, abs=0.01)
    assert numbers["kl"] == pytest.approx(expected, abs=0.01 * (1 + expected))
    if q.weights[0] != 0.2:  # a mode that the others do not lead to is seen by the mass alone
        assert numbers["recovered_kl"] == pytest.approx(expected, rel=1e-4)
    assert arrays["x1"][[0, -1]].tolist() == [float(end) for end in p.extent]  # of the pictures


def test_data_far_wider_than_the_noise_are_not_carried_off():
    p = GaussianMixture([0.5, 0.5], [-2000.0, 2000.0], stds=100.0)
    found = KL(num_points=100, num_steps=100)(p.score, p, torch.tensor([1e-5, 1e-6]), stream(35))
    assert found["value"] is not None


def test_what_one_grid_gives_is_kept_when_a_wider_one_fails(caplog):
    # The law is wider than the pictures, and its score is not finite where p is negligible.
    p, wide = two_modes_1d(), GaussianMixture([1.0], [0.0], stds=9.0)

    def score(x, sigma):
        s = wide.score(x, sigma)
        return torch.where((x.abs() > 12) & (sigma < 0.6)[..., None], math.nan, s)

    numbers, _ = evaluate_log_density(score, p, torch.tensor([1e4, 0.5]))
    assert numbers["kl"] == pytest.approx(divergence(p, wide, 0.5, 0.5), rel=0.02)
    assert (numbers["mass"], numbers["recovered_kl"]) == (None, None)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert ["no mass, because" in said[0], "no recovered_kl, because" in said[1]] == [True, True]


@pytest.mark.slow
def test_no_kl_divergence_on_a_grid_too_coarse(caplog):
    points = GaussianMixture(weights=[0.5, 0.5], means=[-1.0, 1.0], stds=0.0)
    numbers, _ = evaluate_log_density(points.score, points, torch.tensor([10.0, 0.001]))
    assert numbers["kl"] is None
    assert "log_density: no " in caplog.text


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_the_density_recovered_from_a_score(sigma):
    # Of the exact score it is the truth; of another one it errs by the KL divergence.
    p = two_modes_1d()
    found = recovered_density(p.score, p, sigma)
    exact = p.log_prob(found.x[:, None], sigma)
    # Simpson's rule errs by less than its distance from the trapezoid rule, 1e-4 on each of some
    # hundred pieces on the way from one mode to another.
    likely = exact > exact.max() - 9
    torch.testing.assert_close(found.log_prob[likely], exact[likely], rtol=0, atol=1e-3)
    assert abs(found.kl) < 1e-6
    expected = divergence(p, OTHER, sigma, sigma)
    assert recovered_density(OTHER.score, p, sigma).kl == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.03, 0.003])
def test_the_density_recovered_from_a_score_that_memorised_its_points(sigma):
    p, q = two_modes_1d(), memorised(20, 1, 3.0)
    found = recovered_density(q.score, p, sigma).kl
    assert found == pytest.approx(divergence(p, q, sigma, sigma, reach=16.0), rel=1e-4)


def test_narrow_modes_far_apart_are_recovered_or_nothing_is_claimed():
    # The score turns over w^2/d: 7e-5, then 7e-7, and 2e-15, which is less than floats resolve.
    narrow = GaussianMixture(weights=[0.1, 0.9], means=[-3.0, 3.0], stds=0.02)
    points = GaussianMixture(weights=[0.1, 0.9], means=[-3.0, 3.0], stds=0.0)
    for truth, sigma in ((narrow, 0.0), (points, 0.002)):
        found = recovered_density(truth.score, truth, sigma)
        left, x = found.x < 0, found.x
        mass = torch.trapezoid(found.log_prob[left].exp(), x[left])
        assert float(mass) == pytest.approx(0.1, abs=1e-3)  # trapezoid
        assert abs(found.kl) < 1e-6
    assert recovered_density(points.score, points, 1e-7).kl is None


def test_a_narrow_component_between_the_first_points_is_seen():
    p = GaussianMixture([0.5, 0.5], [-3.0, 3.0], stds=[2.0, 2e-4])
    q = GaussianMixture([0.5, 0.5], [-3.0, 3.0], stds=[2.0, 1e-2])
    x = 3 + torch.linspace(-1e-2, 1e-2, 400_001, dtype=torch.float64)[:, None]
    log_p, log_q = p.log_prob(x), q.log_prob(x)  # elsewhere they differ by nothing that counts
    near = float(torch.trapezoid(log_p.exp() * (log_p - log_q), x[:, 0]))
    found = recovered_density(q.score, p, 0.0).kl
    assert found == pytest.approx(near, abs=0.02)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_no_density_is_recovered_from_a_score_that_does_not_lead_back(slope):
    p = two_modes_1d()
    assert recovered_density(lambda x, sigma: slope * x, p, 0.5).kl is None
