import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ncsn_cli.datasets import GaussianMixture, grid, ring
from ncsn_cli.scores import ConfigError

from .conftest import (
    LIMIT,
    NUM_DRAWS,
    assert_mean,
    correlated_2d,
    kolmogorov_distance,
    stream,
    two_modes_1d,
    two_modes_2d,
)


def random_mixture(dim, num_components, condition, seed):
    """Full covariances with eigenvalues of the given largest ratio, and their matrices."""
    g = stream(seed)
    weights = torch.rand(num_components, generator=g).double() + 0.05
    weights = weights / weights.sum()
    means = 5 * torch.randn(num_components, dim, generator=g).double()
    rotations = torch.linalg.qr(torch.randn(num_components, dim, dim, generator=g).double())[0]
    variances = condition ** -torch.rand(num_components, dim, generator=g).double()
    covariances = rotations * variances[:, None] @ rotations.mT
    covariances = (covariances + covariances.mT) / 2
    mixture = GaussianMixture(
        weights=weights.tolist(), means=means.tolist(), covariances=covariances.tolist()
    )
    return mixture, weights, means, covariances


def torch_mixture(weights, means, covariances, sigma):
    covariances = covariances + sigma**2 * torch.eye(means.shape[1]).double()
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


mixtures = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.floats(1, 1e4), st.integers(0, 2**31)
)


@settings(max_examples=200, deadline=None)
@given(mixtures, st.one_of(st.just(0.0), st.floats(1e-3, 100)), st.floats(0, 50))
def test_density_and_score_agree_with_torch_distributions(arguments, sigma, distance):
    mixture, weights, means, covariances = random_mixture(*arguments)
    perturbed = covariances + sigma**2 * torch.eye(means.shape[1]).double()
    direction = torch.randn(len(means), means.shape[1], generator=stream(arguments[-1])).double()
    direction = direction / direction.norm(dim=-1, keepdim=True)
    roots = torch.linalg.cholesky(perturbed)
    x = means + distance * torch.einsum("kij,kj->ki", roots, direction)
    x.requires_grad_()
    log_prob = torch_mixture(weights, means, covariances, sigma).log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    x.requires_grad_(False)
    pulls = torch.linalg.solve(perturbed, (x[:, None] - means)[..., None])[..., 0]  # (B, K, D)
    scale = (mixture.posterior(x, sigma) * pulls.norm(dim=-1)).sum(-1)
    error = (mixture.score(x, sigma) - score).norm(dim=-1)
    assert bool((error <= 1e-9 * scale + 1e-300).all())
    torch.testing.assert_close(mixture.log_prob(x, sigma), log_prob, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_density_integrates_to_one(dim, sigma):
    # The trapezoid rule at a third of the narrowest standard deviation errs by less than 1e-5.
    mixture = random_mixture(dim, 2, 3.0, seed=dim)[0]
    low, high = mixture.extent
    margin = 3 + 8 * sigma
    step = math.sqrt(1 / 3 + sigma**2) / 3
    axes = [
        torch.arange(float(a) - margin, float(b) + margin, step, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    ]
    points = torch.cartesian_prod(*axes).reshape(-1, dim)
    mass = sum(mixture.log_prob(part, sigma).exp().sum() for part in points.split(500_000))
    assert float(mass) * step**dim == pytest.approx(1, abs=1e-4)


def test_per_point_sigma_equals_each_sigma_alone():
    mixture, x, sigmas = correlated_2d(), torch.randn(5, 2).double(), torch.rand(5).double()
    torch.testing.assert_close(
        mixture.score(x, sigmas),
        torch.cat([mixture.score(x[i : i + 1], sigmas[i]) for i in range(5)]),
    )


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_float32_is_stable_far_from_all_modes(distance, device):
    mixture = two_modes_2d()
    x = torch.tensor([[distance, 0.5 * distance], [-distance, distance]], device=device)
    score = mixture.score(x, 0.5)
    assert score.dtype == torch.float32
    assert bool(torch.isfinite(mixture.log_prob(x, 0.5)).all())
    # The second point is as far from both modes: rounding of |x|^2 shifts its responsibilities,
    # and the modes' pulls differ by |mu_1 - mu_2|/variance = 11.3 however far x is.
    expected = mixture.score(x.cpu().double(), 0.5)
    error = (score.cpu().double() - expected).norm(dim=-1)
    rounding = torch.finfo(torch.float32).eps * x.cpu().double().square().sum(-1)
    assert bool((error <= 1e-6 * expected.norm(dim=-1) + 11.3 * rounding.clamp(max=1)).all())


def test_samples_have_the_law_of_the_distribution_function(device):
    mixture = two_modes_1d()
    for sigma in (0.0, 0.7):
        x = mixture.sample(NUM_DRAWS, sigma=sigma, generator=stream(1, device))[:, 0]
        assert x.device.type == device.type
        assert kolmogorov_distance(x, lambda t, s=sigma: mixture.cdf(t, s)) < LIMIT


def test_samples_in_2d_have_the_moments():
    mixture, sigma = correlated_2d(), 0.4
    x = mixture.sample(200_000, sigma=sigma, generator=stream(2)).double()
    covariance = mixture.covariance + sigma**2 * torch.eye(2).double()
    offset = x - mixture.mean
    for i in range(2):
        assert_mean(x[:, i], float(mixture.mean[i]))
        for j in range(2):
            assert_mean(offset[:, i] * offset[:, j], float(covariance[i, j]))


def test_samples_take_a_sigma_for_each_point():
    point = GaussianMixture(weights=[1.0], means=[0.0], stds=0.0)
    sigma = torch.tensor([1.0, 100.0]).repeat(2000)
    x = point.sample(4000, sigma=sigma, generator=stream())[:, 0] / sigma
    assert_mean(x.square(), 1.0)


def test_distribution_function_is_the_integral_of_the_density():
    mixture = two_modes_1d()
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    for sigma in (0.0, 0.5):
        density = mixture.log_prob(x[:, None], sigma).exp()
        cdf, area = mixture.cdf(x, sigma), mixture.integrated_cdf(x, sigma)
        torch.testing.assert_close(
            torch.cumulative_trapezoid(density, x), cdf[1:], rtol=0, atol=1e-7
        )
        torch.testing.assert_close(torch.cumulative_trapezoid(cdf, x), area[1:], rtol=0, atol=1e-7)


def test_known_values_of_two_modes_1d():
    mixture = two_modes_1d()
    assert mixture.fisher_information(0.0) == pytest.approx(0.978773, rel=1e-5)
    x = torch.linspace(-13, 13, 20_001, dtype=torch.float64)[:, None]
    log_prob = mixture.log_prob(x)
    entropy = -torch.trapezoid(log_prob.exp() * log_prob, x[:, 0])
    assert float(entropy) == pytest.approx(1.741819, abs=1e-6)


@pytest.mark.parametrize("mixture", [two_modes_1d(), correlated_2d()])
def test_fisher_information_is_the_mean_squared_score(mixture):
    for sigma in (0.0, 0.6):
        x = mixture.sample(400_000, sigma=sigma, generator=stream(3)).double()
        assert_mean(mixture.score(x, sigma).square().sum(-1), mixture.fisher_information(sigma))


def test_fisher_information_in_3d_by_draws():
    mixture = GaussianMixture(weights=[1.0], means=[[0, 0, 0]], stds=2.0)
    # E||x/v||^2 = 3/v, with relative standard error sqrt(2/3/200 000) of the mean.
    assert mixture.fisher_information(1.5) == pytest.approx(3 / 6.25, rel=5 * math.sqrt(2 / 6e5))


def test_posterior_is_bayes_rule():
    mixture, weights, means, covariances = random_mixture(2, 3, 10.0, seed=5)
    x, sigma = torch.randn(7, 2).double(), 0.5
    joint = torch_mixture(weights, means, covariances, sigma)
    terms = joint.component_distribution.log_prob(x[:, None]).exp() * weights
    torch.testing.assert_close(mixture.posterior(x, sigma), terms / terms.sum(-1, keepdim=True))


def test_presets_place_their_modes():
    on_circle = ring(num_modes=8, radius=4.0, std=0.3).modes
    torch.testing.assert_close(on_circle.norm(dim=-1), torch.full((8,), 4.0).double())
    assert float(torch.pdist(on_circle).min()) == pytest.approx(8 * math.sin(math.pi / 8))
    lattice = grid(side=5, spacing=2.0, std=0.1).modes
    assert lattice.shape == (25, 2)
    assert float(lattice.max()) == 4.0
    assert float(torch.pdist(lattice).min()) == 2.0


def test_training_set_depends_on_its_seed_alone():
    first = two_modes_1d(num_samples=100, seed=7)
    torch.rand(3)  # the global stream does not matter
    assert torch.equal(first.training_set(), two_modes_1d(num_samples=100, seed=7).training_set())
    assert not torch.equal(
        first.training_set(), two_modes_1d(num_samples=100, seed=8).training_set()
    )
    assert two_modes_1d().training_set() is None


def test_points_have_a_density_only_when_perturbed():
    points = GaussianMixture(weights=[0.5, 0.5], means=[-1.0, 1.0], stds=[0.0, 1.0])
    with pytest.raises(ConfigError, match="is a point"):
        points.score(torch.zeros(1, 1), 0.0)
    assert not points.has_density(0.0)
    assert bool(torch.isfinite(points.score(torch.zeros(1, 1), 0.1)).all())
    # The distribution function is a step there, and needs no density.
    assert points.cdf(torch.tensor([-1.001, -0.999]).double()).diff().item() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.5, 0.6]}, "sum to 1"),
        ({"weights": [1.0]}, "1 of them, but 2 means"),
        ({"weights": [-0.5, 1.5]}, "greater than 0"),
        ({"means": [[0.0, 1.0], [2.0]]}, "unequal length"),
        ({"stds": None}, "exactly one"),
        ({"stds": -1.0}, "greater than or equal to 0"),
        ({"stds": [1.0, 2.0, 3.0]}, "does not fit"),
        ({"stds": None, "covariances": [[[1.0]]]}, "expected"),
        ({"stds": None, "covariances": [[[1.0]], [[-1.0]]]}, "positive semidefinite"),
        ({"means": [[], []]}, "D numbers"),
        ({"num_samples": 0}, "greater than 0"),
        ({"seed": True}, "valid integer"),
        ({"weights": [float("nan"), 1.0]}, "finite"),
    ],
)
def test_impossible_mixtures_are_refused(change, message):
    valid = {"weights": [0.5, 0.5], "means": [0.0, 1.0], "stds": 1.0}
    GaussianMixture(**valid)
    with pytest.raises((ConfigError, ValidationError), match=message):
        GaussianMixture(**{**valid, **change})


def test_singular_covariances_have_no_density_of_their_own():
    for seed in range(50):
        direction = torch.randn(2, generator=stream(seed)).double()
        rank_1 = GaussianMixture(
            weights=[1.0], means=[[0, 0]], covariances=[torch.outer(direction, direction).tolist()]
        )
        assert not rank_1.has_density(0.0)
        assert rank_1.has_density(0.1)


def test_far_apart_points_have_a_fisher_information():
    points = GaussianMixture(weights=[0.5, 0.5], means=[0.0, 100.0], stds=0.0)
    assert points.fisher_information(1e-3) == pytest.approx(1e6, rel=1e-5)
    assert points.fisher_information(1e-8) > 0  # by draws, as the grid would be too large


def test_asymmetric_covariance_is_refused():
    with pytest.raises(ConfigError, match="not symmetric"):
        GaussianMixture(weights=[1.0], means=[[0, 0]], covariances=[[[1.0, 0.5], [0.0, 1.0]]])
