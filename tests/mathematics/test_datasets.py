import math
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.expectation import moments_by_draws
from ncsn_cli.datasets import (
    Checkerboard,
    Circle,
    Denoised,
    GaussianMixture,
    grid,
    moons,
    ring,
    spiral,
)
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.statistics import LIMIT, NUM_DRAWS, assert_mean, kolmogorov_distance


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
        ({"weights": [1.0]}, "got 1, but there are 2 means"),
        ({"weights": [-0.5, 1.5]}, "greater than 0"),
        ({"means": [[0.0, 1.0], [2.0]]}, "unequal length"),
        ({"covariances": [[[1.0]], [[1.0]]]}, "not both"),
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


def test_the_width_of_a_mixture_is_one_if_none_is_given():
    shared = {"weights": [0.5, 0.5], "means": [[0.0, 0.0], [4.0, 1.0]]}
    unit = GaussianMixture(**shared, covariances=[torch.eye(2).tolist()] * 2)
    x = torch.randn(20, 2, generator=stream(0)).double()
    for default in (GaussianMixture(**shared), GaussianMixture(**shared, stds=None)):
        assert default.smallest_std == 1.0
        torch.testing.assert_close(default.score(x, 0.3), unit.score(x, 0.3))


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


def general(mixture):
    """The same mixture with full covariances, which takes the path through their eigenbasis."""
    variances = mixture.smallest_std**2 * torch.eye(mixture.dim).double()
    return GaussianMixture(
        weights=mixture.weights.tolist(),
        means=mixture.modes.tolist(),
        covariances=[variances.tolist()] * len(mixture.weights),
    )


@pytest.mark.parametrize("sigma", [0.0, 0.6, torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0]).double()])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_equal_variances_take_a_shorter_path_to_the_same_values(dim, sigma):
    means = 3 * torch.randn(4, dim, generator=stream(dim)).double()
    mixture = GaussianMixture(weights=[0.1, 0.2, 0.3, 0.4], means=means.tolist(), stds=0.7)
    x, v = 5 * torch.randn(2, 5, dim, generator=stream(9)).double()
    x[0] = mixture.modes[0]  # a distance of 0 has a derivative too
    for name in ("log_prob", "posterior", "score"):
        short, long = getattr(mixture, name), getattr(general(mixture), name)
        torch.testing.assert_close(short(x, sigma), long(x, sigma), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.func.jvp(lambda p, f=short: f(p, sigma), (x,), (v,))[1],
            torch.func.jvp(lambda p, f=long: f(p, sigma), (x,), (v,))[1],
            rtol=1e-11,
            atol=1e-11,
        )


def test_a_std_for_each_component_and_axis_is_a_diagonal_covariance():
    stds = torch.tensor([[0.5, 2.0], [1.0, 0.3]])
    shared = {"weights": [0.4, 0.6], "means": [[0.0, 0.0], [2.0, 1.0]]}
    mixture = GaussianMixture(**shared, stds=stds.tolist())
    full = GaussianMixture(**shared, covariances=[s.square().diag().tolist() for s in stds])
    x = 3 * torch.randn(20, 2, generator=stream(18)).double()
    for sigma in (0.0, 0.4):
        torch.testing.assert_close(mixture.log_prob(x, sigma), full.log_prob(x, sigma))
        torch.testing.assert_close(mixture.score(x, sigma), full.score(x, sigma))


BOARDS = [Checkerboard(), Checkerboard(side=3, length=5.0)]
CIRCLES = [Circle(), Circle(radius=3.0, std=0.5), Circle(std=0.0)]
SHAPES = [*BOARDS, *CIRCLES, moons(), spiral()]


def box_mass(dataset, sigma, step):
    """The trapezoid rule on p_sigma over the plane."""
    half = float(dataset.extent[1].max()) + 8 * math.hypot(sigma, dataset.smallest_std)
    axis = torch.arange(-half, half + step, step, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    return step**2 * sum(
        float(dataset.log_prob(part, sigma).exp().sum()) for part in points.split(200_000)
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 4.0, 50.0])
@pytest.mark.parametrize("dataset", SHAPES)
def test_density_of_shapes_integrates_to_one(dataset, sigma):
    # p_sigma's Fourier transform is below exp(-sigma^2 omega^2/2): at a step of sigma the rule
    # errs by about 4 exp(-2 pi^2) = 1e-8.
    assert box_mass(dataset, sigma, sigma) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("sigma", [0.0, 1e-3])
def test_density_of_a_thin_circle_integrates_to_one(sigma):
    circle = Circle(std=0.01)
    r = torch.linspace(1.85, 2.15, 2001, dtype=torch.float64)
    for direction in torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64):
        density = circle.log_prob(r[:, None] * direction, sigma).exp()
        assert float(torch.trapezoid(2 * math.pi * r * density, r)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 4.0, 50.0])
@pytest.mark.parametrize("dataset", SHAPES)
def test_score_of_shapes_is_the_gradient_of_the_log_density(dataset, sigma):
    scale = torch.tensor([1e-6, 1.0, 4.0, 10.0, 100.0]).double().repeat(40)[:, None]
    x = scale * torch.randn(200, 2, generator=stream(4)).double()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(dataset.log_prob(x, sigma).sum(), x)
    x.requires_grad_(False)
    # Rounding of x/sigma, squared in log p, is magnified there; 1/sigma is the score's own size.
    size = 1 / sigma + x.norm(dim=-1) / sigma**2
    distance = 1 + x.norm(dim=-1) / sigma
    error = (dataset.score(x, sigma) - gradient).norm(dim=-1)
    eps = torch.finfo(torch.float64).eps
    assert bool((error <= 100 * eps * size * (distance**2 + sigma)).all())


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0, 50.0])
@pytest.mark.parametrize("dataset", [*BOARDS, *CIRCLES])
def test_shapes_are_stable_in_float32(dataset, sigma, device):
    scale = torch.tensor([0.0, 1e-4, 1.0, 5.0, 1e2, 1e4, 1e6]).repeat(50)[:, None]
    x = scale * torch.randn(350, 2, generator=stream(5))
    x[::2, 1] = torch.randn(175, generator=stream(6))  # far along one axis only
    score = dataset.score(x.to(device), sigma).cpu()
    assert score.dtype == torch.float32
    exact = dataset.score(x.double(), sigma)
    # x and what it is subtracted from are rounded; A, a difference over a square's width, loses
    # sigma/width more.
    eps = torch.finfo(torch.float32).eps
    length = 4 + x.double().norm(dim=-1)
    bound = 20 * eps * (length / sigma**2 + 1 / sigma + 1)
    assert bool(((score.double() - exact).norm(dim=-1) <= bound).all())
    log_prob = dataset.log_prob(x.to(device), sigma).cpu()
    error = (log_prob.double() - dataset.log_prob(x.double(), sigma)).abs()
    assert bool((error <= 20 * eps * ((length / sigma) ** 2 + 1 + sigma)).all())


@pytest.mark.parametrize("dataset", SHAPES)
def test_shapes_take_a_sigma_for_each_point(dataset):
    x = 2 * torch.randn(5, 2, generator=stream(6)).double()
    sigmas = torch.tensor([0.01, 0.1, 1.0, 3.0, 20.0]).double()
    for name in ("log_prob", "posterior", "score"):
        f = getattr(dataset, name)
        alone = torch.cat([f(x[i : i + 1], float(sigmas[i])) for i in range(5)])
        torch.testing.assert_close(f(x, sigmas), alone)
    num = 40_000
    at_origin = dataset.sample(num, sigma=torch.zeros(num), generator=stream(7))
    assert torch.equal(at_origin, dataset.sample(num, sigma=0.0, generator=stream(7)))
    z = dataset.sample(num, sigma=torch.full((num,), 1e4), generator=stream(7)) / 1e4
    assert_mean(z.square().sum(-1), 2.0)


@pytest.mark.parametrize("dataset", [*BOARDS, *CIRCLES[:2], moons()])
def test_score_of_shapes_has_forward_derivatives(dataset):
    x, v = 2 * torch.randn(2, 30, 2, generator=stream(8)).double()
    x[0] = 0
    x[1] = dataset.modes[-1]
    h = 1e-5
    expected = (dataset.score(x + h * v, 0.5) - dataset.score(x - h * v, 0.5)) / (2 * h)
    derivative = torch.func.jvp(lambda p: dataset.score(p, 0.5), (x,), (v,))[1]
    # The third derivative of the score is of size L^3/sigma^8 at most, mostly 1/sigma^4.
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("board", BOARDS)
def test_inside_a_large_square_the_score_and_its_derivative_vanish(board, dtype):
    x = board.modes.to(dtype) + 0.3
    score, derivative = torch.func.jvp(lambda p: board.score(p, 0.01), (x,), (torch.ones_like(x),))
    assert float(score.abs().max()) < 1e-25
    assert float(derivative.abs().max()) < 1e-25


@pytest.mark.parametrize("board", BOARDS)
def test_covariance_of_the_checkerboard_is_exact(board):
    # In a cell of constant density E[x_1 x_2] is that of its centre, and w^2/12 adds to E[x_1^2].
    width = 2 * math.sqrt(3) * board.smallest_std
    axis = (torch.arange(-9, 10).double() + 0.5 * (len(board.weights) % 2 == 0)) * width
    x = torch.cartesian_prod(axis, axis)
    mass = board.log_prob(x).exp() * width**2
    assert float(mass.sum()) == pytest.approx(1)
    second = torch.einsum("b,bi,bj->ij", mass, x, x) + width**2 / 12 * torch.eye(2).double()
    torch.testing.assert_close(board.covariance, second)
    torch.testing.assert_close(board.mean, mass @ x)
    if board is BOARDS[0]:  # each column has two squares: x_1 is uniform on [-4, 4]
        assert float(board.covariance[0, 0]) == pytest.approx(64 / 12)


def cell_probabilities(board, sigma, edges, points_per_cell=12):
    """Integral of p_sigma over each cell of the grid, by the midpoint rule, (C, C)."""
    n = len(edges) - 1
    steps = (torch.arange(points_per_cell).double() + 0.5) / points_per_cell
    width = float(edges[1] - edges[0])
    axis = (edges[:-1, None] + width * steps).reshape(-1)
    density = board.log_prob(torch.cartesian_prod(axis, axis), sigma).exp()
    cells = density.reshape(n, points_per_cell, n, points_per_cell).mean((1, 3))
    return cells * width**2


@pytest.mark.parametrize("sigma", [0.0, 0.4])
@pytest.mark.parametrize("board", BOARDS)
def test_samples_of_the_checkerboard_have_its_law(board, sigma, device):
    # Half a square a cell, so that at sigma = 0 the midpoints meet no edge.
    width = float(board.modes[1].sub(board.modes[0]).abs().max()) / 4
    edges = torch.arange(-12, 13).double() * width
    expected = NUM_DRAWS * cell_probabilities(board, sigma, edges).reshape(-1)
    x = board.sample(NUM_DRAWS, sigma=sigma, generator=stream(10, device)).double().cpu()
    counts = np.histogram2d(x[:, 0], x[:, 1], bins=[edges.numpy()] * 2)[0].reshape(-1)
    frequent = expected > 10  # the others are one cell, with what falls outside
    expected = torch.cat([expected[frequent], NUM_DRAWS - expected[frequent].sum()[None]])
    counts = torch.from_numpy(counts)[frequent]
    counts = torch.cat([counts, NUM_DRAWS - counts.sum()[None]])
    if sigma == 0:  # nothing falls outside
        assert float(counts[-1]) == 0
        assert float(expected[-1]) == pytest.approx(0, abs=1e-6)
        counts, expected = counts[:-1], expected[:-1]
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < scipy.stats.chi2.isf(1e-6, len(counts) - 1)


@pytest.mark.parametrize("sigma", [0.0, 0.4])
@pytest.mark.parametrize("circle", CIRCLES[:2])
def test_samples_of_the_circle_have_its_law(circle, sigma, device):
    x = circle.sample(NUM_DRAWS, sigma=sigma, generator=stream(11, device)).double().cpu()
    r = torch.linspace(0, 8, 200_001).double()
    density = circle.log_prob(torch.stack([r, 0 * r], -1), sigma).exp() * 2 * math.pi * r
    cdf = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(density, r)])
    radii = x.norm(dim=-1)
    assert kolmogorov_distance(radii, lambda t: torch.from_numpy(np.interp(t, r, cdf))) < LIMIT
    angles = torch.atan2(x[:, 1], x[:, 0])
    assert kolmogorov_distance(angles, lambda t: (t + math.pi) / (2 * math.pi)) < LIMIT


@pytest.mark.parametrize("dataset", [*BOARDS, *CIRCLES])
def test_shapes_have_their_moments(dataset):
    sigma = 0.3
    x = dataset.sample(200_000, sigma=sigma, generator=stream(12)).double()
    covariance = dataset.covariance + sigma**2 * torch.eye(2).double()
    offset = x - dataset.mean
    for i in range(2):
        assert_mean(offset[:, i], 0.0)
        for j in range(2):
            assert_mean(offset[:, i] * offset[:, j], float(covariance[i, j]))
    posterior = dataset.posterior(x, sigma)
    torch.testing.assert_close(posterior.sum(-1), torch.ones(len(x)).double())
    for k, weight in enumerate(dataset.weights.tolist()):
        assert_mean(posterior[:, k], weight)  # E P(k | x) = w_k
    low, high = dataset.extent
    clean = dataset.sample(1000, generator=stream(13)).double()
    assert bool(((clean > low) & (clean < high)).all())


@pytest.mark.parametrize("sigma", [0.2, 1.0])
@pytest.mark.parametrize("dataset", [*BOARDS, *CIRCLES])
def test_fisher_information_of_shapes_is_the_mean_squared_score(dataset, sigma):
    x = dataset.sample(200_000, sigma=sigma, generator=stream(14)).double()
    squares = dataset.score(x, sigma).square().sum(-1)
    assert_mean(squares, dataset.fisher_information(sigma))


@pytest.mark.parametrize("sigma", [0.15, 0.7, 30.0])
@pytest.mark.parametrize("board", BOARDS)
def test_fisher_information_of_the_checkerboard_by_simpsons_rule(board, sigma):
    # I = integral |grad p|^2/p, from scipy's normal law and the squares' corners.
    ticks = board.modes.unique().numpy()
    width = ticks[1] - ticks[0]
    axis = np.linspace(-8 * sigma - 4, 8 * sigma + 4, 2 * int(32 + 40 / sigma) + 1)
    below, above = ((axis - ticks[:, None] - end) / sigma for end in (width / 2, -width / 2))
    mass = scipy.stats.norm.cdf(above) - scipy.stats.norm.cdf(below)  # (side, G)
    slope = (scipy.stats.norm.pdf(above) - scipy.stats.norm.pdf(below)) / sigma
    i, j = (np.searchsorted(ticks, board.modes[:, axis].numpy()) for axis in range(2))
    area = width**2 * len(i)
    density = np.einsum("kg,kh->gh", mass[i], mass[j]) / area
    gradient_1 = np.einsum("kg,kh->gh", slope[i], mass[j]) / area
    gradient_2 = np.einsum("kg,kh->gh", mass[i], slope[j]) / area
    seen = density > 1e-12  # beyond, the differences of scipy's values are rounding
    values = np.where(seen, (gradient_1**2 + gradient_2**2) / np.where(seen, density, 1), 0)
    expected = scipy.integrate.simpson(scipy.integrate.simpson(values, x=axis), x=axis)
    assert board.fisher_information(sigma) == pytest.approx(expected, rel=1e-5)


def test_fisher_information_of_the_checkerboard_at_a_small_level_is_that_of_its_edges():
    # Across an edge p_sigma = p Phi(t/sigma), and the integral of phi^2/Phi is 0.903; there are
    # 32 edges of length 2 with p = 1/32. Corners take away a share of sigma/s.
    t = np.linspace(-12, 12, 4001)
    per_edge = np.trapezoid(np.exp(2 * scipy.stats.norm.logpdf(t) - scipy.stats.norm.logcdf(t)), t)
    sigma = 0.01  # by draws, as the grid would be too large: relative standard error 0.025
    expected = 2 * per_edge / sigma
    assert Checkerboard().fisher_information(sigma) == pytest.approx(expected, rel=0.13)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 5.0])
@pytest.mark.parametrize("std", [0.1, 0.5])
def test_a_circle_is_a_ring_of_many_modes(std, sigma):
    # Modes one std apart make up the circle to 2 exp(-2 pi^2); these are a fifth apart or less.
    circle, many = Circle(radius=2.0, std=std), ring(num_modes=630, radius=2.0, std=std)
    x = 3 * torch.randn(500, 2, generator=stream(15)).double()
    torch.testing.assert_close(
        circle.log_prob(x, sigma), many.log_prob(x, sigma), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        circle.score(x, sigma), many.score(x, sigma), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(circle.covariance, many.covariance)
    if std == 0.5:
        expected = many.fisher_information(sigma)
        assert circle.fisher_information(sigma) == pytest.approx(expected, rel=1e-6)


def test_fisher_information_of_a_thin_and_of_a_hardly_seen_circle():
    # Thin: (r - R)^2/v^2 has mean 1/v, less a share of v/R^2. Hardly seen: a Gaussian.
    assert Circle(std=0.0).fisher_information(1e-4) == pytest.approx(1e8, rel=1e-7)
    assert Circle().fisher_information(1e3) == pytest.approx(2 / (1e6 + 2), rel=1e-9)


@pytest.mark.parametrize("board", BOARDS)
def test_the_checkerboard_itself_is_uniform_and_has_no_score(board):
    x = board.sample(1000, generator=stream(16)).double()
    low, high = (float(bound[0]) / 1.25 for bound in board.extent)
    width = (high - low) / (3 if len(board.weights) == 5 else 4)
    area = len(board.weights) * width**2
    torch.testing.assert_close(board.log_prob(x), torch.full((1000,), -math.log(area)).double())
    nearest = torch.cdist(x, board.modes, p=math.inf).argmin(-1)
    assert torch.equal(board.posterior(x), torch.nn.functional.one_hot(nearest).double())
    outside = torch.tensor([[low + 1.5 * width, low + width / 2], [0.0, high + 1]]).double()
    assert bool((board.log_prob(outside) == -math.inf).all())
    torch.testing.assert_close(board.posterior(outside).sum(-1), torch.ones(2).double())
    assert board.has_density(0.0)
    for sigma in (0.0, torch.tensor([0.0] + [1.0] * 999)):
        with pytest.raises(ConfigError, match="use a level above 0"):
            board.score(x, sigma)
    with pytest.raises(ConfigError, match="infinite"):
        board.fisher_information(0.0)


def test_on_an_edge_the_density_of_the_checkerboard_is_its_limit():
    # Half at an edge; a quarter at the board's corner, a half where two squares meet.
    x = torch.tensor([[-4.0, -3.5], [-4.0, -4.0], [-2.0, -2.0], [-2.5, -2.0]]).double()
    expected = torch.tensor([1 / 64, 1 / 128, 1 / 64, 1 / 64]).double()
    for sigma in (0.0, 1e-9):
        torch.testing.assert_close(Checkerboard().log_prob(x, sigma).exp(), expected)


def test_a_circle_without_width_has_a_density_only_when_perturbed():
    circle = Circle(std=0.0)
    assert not circle.has_density(0.0)
    assert circle.has_density(0.1)
    assert Circle(std=0.1).has_density(0.0)
    for function in (circle.score, circle.log_prob):
        with pytest.raises(ConfigError, match="use a level or a std above 0"):
            function(torch.zeros(1, 2), 0.0)
    with pytest.raises(ConfigError, match="above 0"):
        circle.fisher_information(0.0)


def test_smallest_std_is_that_of_the_narrowest_component():
    assert GaussianMixture(weights=[1.0], means=[0.0], stds=0.0).smallest_std == 0
    widths = [[1.0, 2.0], [3.0, 0.5]]
    assert (
        GaussianMixture(weights=[0.5, 0.5], means=[[0, 0], [1, 1]], stds=widths).smallest_std
        == 0.5
    )
    smallest = min(
        math.sqrt(np.linalg.eigvalsh(matrix)[0])
        for matrix in ([[1.0, 0.8], [0.8, 1.5]], [[0.3, -0.1], [-0.1, 0.2]])
    )
    assert correlated_2d().smallest_std == pytest.approx(smallest)
    assert Circle(std=0.2).smallest_std == 0.2
    board = Checkerboard(side=2, length=3.0)
    x = board.sample(100_000, generator=stream(17)).double()
    x = x[:, 0] - board.modes[board.posterior(x).argmax(-1), 0]
    assert_mean(x.square(), board.smallest_std**2)


def on_moon(t):
    return 2.0 * torch.stack([t.cos() - 0.5, t.sin() - 0.25], dim=-1)


def on_arm(t):
    distance = 4.0 * t / (3 * math.pi)
    return torch.stack([distance * t.cos(), distance * t.sin()], dim=-1)


@pytest.mark.parametrize("curve, dataset, end", [(on_moon, moons(), 1.0), (on_arm, spiral(), 3.0)])
def test_components_lie_evenly_on_their_curve(curve, dataset, end):
    t = torch.linspace(0, end * math.pi, 100_001).double()
    points = curve(t)
    modes = dataset.modes[: len(dataset.modes) // 2] if curve is on_moon else dataset.modes
    distance, nearest = torch.cdist(modes, points).min(-1)
    lengths = torch.cat([torch.zeros(1).double(), points.diff(dim=0).norm(dim=-1).cumsum(0)])
    assert float(distance.max()) < 2e-4  # half a step of the curve
    spacing = lengths[-1] / (len(modes) - 1)
    torch.testing.assert_close(
        lengths[nearest].diff(), spacing.expand(len(modes) - 1), rtol=2.5e-3, atol=0
    )
    assert float(spacing) == pytest.approx(dataset.smallest_std, rel=0.02)


def test_moons_are_those_of_scikit_learn_around_the_origin():
    # make_moons: (cos t, sin t) and (1 - cos t, 1 - sin t - 1/2), here less their centre.
    t = torch.linspace(0, math.pi, 32, dtype=torch.float64)
    outer = torch.stack([t.cos(), t.sin()], dim=-1)
    inner = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=-1)
    expected = 2.0 * (torch.cat([outer, inner]) - torch.tensor([0.5, 0.25]).double())
    torch.testing.assert_close(moons().modes, expected)
    with pytest.raises(ConfigError, match="num_components"):
        moons(num_components=65)


def test_density_is_even_along_the_curves():
    # Components as dense as this ripple by 1e-8. Within 3 std an end is felt by Phi(-3) = 0.1 %,
    # within 2.5 by 0.6 %; where the spiral bends with radius 1/k, (k std)^2/8 is gained.
    t = torch.linspace(0.25, math.pi - 0.25, 4000).double()
    density = moons().log_prob(on_moon(t)).exp()
    assert float(density.max() / density.min()) < 1.01
    t = torch.linspace(math.pi / 2, 3 * math.pi - 0.2, 8000).double()
    density = spiral().log_prob(on_arm(t)).exp()
    assert float(density.max() / density.min()) < 1.02


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (Checkerboard, {"side": 1}, "greater than or equal to 2"),
        (Checkerboard, {"length": 0.0}, "greater than 0"),
        (Circle, {"radius": 0.0}, "greater than 0"),
        (Circle, {"std": -1.0}, "greater than or equal to 0"),
        (spiral, {"turns": 0.0}, "greater than 0"),
        (moons, {"std": math.nan}, "finite"),
    ],
)
def test_impossible_shapes_are_refused(build, change, message):
    with pytest.raises(ValidationError, match=message):
        build(**change)


def by_quadrature_1d(mixture, sigma, value):
    """The integral of ``value`` (x -> numbers) times p_sigma, on 400 001 points."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    density = mixture.log_prob(x[:, None], sigma).exp()
    return torch.trapezoid(density * value(x), x)


@pytest.mark.parametrize(
    ("weights", "means", "stds", "information"),
    [
        # Components that do not overlap: sum_k w_k D/s_k^2.
        ([0.001, 0.999], [[0.0] * 3, [50.0] * 3], [0.01, 1.0], 0.001 * 3e4 + 0.999 * 3),
        ([0.5, 0.5], [0.0, 1000.0], 1e-6, 1e12),
        ([0.04] * 25, [[2.0 * i, 2.0 * j] for i in range(5) for j in range(5)], 0.01, 2e4),
    ],
)
def test_components_apart_have_their_own_fisher_information(weights, means, stds, information):
    mixture = GaussianMixture(weights, means, stds)
    found = mixture.fisher(0.0)
    assert float(found.matrix.trace()) == pytest.approx(information, rel=1e-9)
    assert found.error == 0
    floor = -information / 2  # of implicit score matching
    assert -mixture.fisher_information(0.0) / 2 == pytest.approx(floor, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("mixture", [two_modes_1d(), correlated_2d()], ids=["1d", "2d"])
def test_the_fisher_information_by_draws_is_that_on_the_grid(mixture, sigma):
    # In 3D a third coordinate N(0, .5^2) that is independent adds 1/(.25 + sigma^2).
    exact = mixture.fisher(sigma)
    found = mixture._fisher_by_draws(sigma)
    assert abs(float((found.matrix - exact.matrix).trace())) <= 5 * found.error + 1e-4
    assert found.error <= 5e-4 * float(exact.matrix.trace())
    error = (found.matrix - exact.matrix).abs()
    assert bool((error <= 5 * found.matrix_error + 1e-4).all())
    if mixture.dim == 1:
        return
    covariances = torch.zeros(2, 3, 3, dtype=torch.float64)
    covariances[:, :2, :2], covariances[:, 2, 2] = mixture._covariances(0.0), 0.25
    means = torch.cat([mixture.modes, torch.zeros(2, 1)], dim=1).tolist()
    deep = GaussianMixture(mixture.weights.tolist(), means, covariances=covariances.tolist())
    found = deep.fisher(sigma)
    expected = float(exact.matrix.trace()) + 1 / (0.25 + sigma**2)
    assert abs(float(found.matrix.trace()) - expected) <= 5 * found.error
    assert found.error > 0


def test_an_information_that_many_draws_do_not_settle_has_its_error():
    # A point of weight .001 in the middle of N(0, I_3): the overlap is rare and large. By
    # quadrature over the radius, where the score is a function of r alone.
    mixture = GaussianMixture([0.001, 0.999], [[0.0] * 3] * 2, [0.01, 1.0])
    r = torch.linspace(0, 12, 2_400_001, dtype=torch.float64)[1:]
    x = torch.stack([r, 0 * r, 0 * r], dim=1)
    shell = mixture.log_prob(x).exp() * 4 * math.pi * r**2
    exact = float(torch.trapezoid(shell * mixture.score(x).square().sum(1), r))
    found = mixture.fisher(0.0)
    assert abs(float(found.matrix.trace()) - exact) <= 5 * found.error
    assert 0 < found.error <= 1e-3 * exact


@pytest.mark.parametrize("sigma", [0.001, 0.05, 0.3])
def test_the_fisher_information_of_a_checkerboard_needs_no_draws(sigma):
    # Against the mean of ||score||^2 over the draws: 5 standard errors.
    board = Checkerboard()
    found = board.fisher(sigma)
    x = board.sample(200_000, sigma=sigma, generator=stream(40)).double()
    assert_mean(board.score(x, sigma).square().sum(-1), float(found.matrix.trace()))
    assert found.error == 0


def test_centres_that_coincide_are_one_mode():
    mixture = GaussianMixture([0.5, 0.2, 0.3], [[1.0], [4.0], [1.0]], [1.0, 1.0, 0.1])
    assert mixture.modes.tolist() == [[1.0], [4.0]]
    assert mixture.weights.tolist() == pytest.approx([0.8, 0.2])
    x = torch.linspace(-2, 6, 9, dtype=torch.float64)[:, None]
    parts = GaussianMixture([0.5, 0.2, 0.3], [[1.0], [4.0], [1.0 + 1e-13]], [1.0, 1.0, 0.1])
    apart = parts.posterior(x)  # the same law, its modes told apart
    torch.testing.assert_close(
        mixture.posterior(x), torch.stack([apart[:, 0] + apart[:, 2], apart[:, 1]], dim=1)
    )
    shares = mixture.mode_moments(0.0).shares
    exact = float(mixture.cdf(torch.tensor([2.5]).double()))
    assert shares.tolist() == pytest.approx([exact, 1 - exact], abs=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_moments_by_mode_in_1d_are_the_quadrature(sigma):
    mixture = GaussianMixture([0.2, 0.5, 0.3], [-3.0, 0.5, 4.0], [1.0, 0.5, 2.0])
    found = mixture.mode_moments(sigma)
    for k, (low, high) in enumerate([(-99.0, -1.25), (-1.25, 2.25), (2.25, 99.0)]):
        # The rule errs at the ends by half a cell, 1e-4, times the density.
        share, first, second = (
            by_quadrature_1d(
                mixture, sigma, lambda x, n=n, a=low, b=high: x**n * ((x >= a) & (x < b))
            )
            for n in range(3)
        )
        mean, square = first / share, second / share
        assert float(found.shares[k]) == pytest.approx(float(share), abs=1e-4)
        assert float(found.means[k]) == pytest.approx(float(mean), abs=1e-3)
        assert float(found.covariances[k]) == pytest.approx(float(square - mean**2), abs=3e-3)
    assert all(not bool(error.any()) for error in found.errors)


def test_moments_by_mode_of_two_modes_in_2d_are_those_of_draws():
    # In closed form; a million draws from the strata, their errors, and 5 of them.
    mixture, sigma = correlated_2d(), 0.5
    exact = mixture.mode_moments(sigma)
    strata = mixture.strata(1_000_000, sigma, stream(41))
    found = moments_by_draws(mixture.modes, strata)
    for value, true, error in zip(found[:3], exact[:3], found.errors, strict=True):
        assert bool(((value - true).abs() <= 5 * error).all())
        assert bool((error > 0).all()) and float(error.max()) < 0.01


def test_narrow_modes_have_the_moments_of_their_components():
    # 1.2e-10 for 2.0e-10, and 5.0062 for 5.0000: float32 draws.
    narrow = GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], math.sqrt(2e-10))
    found = narrow.mode_moments(0.0)
    torch.testing.assert_close(found.means, narrow.modes, rtol=0, atol=1e-14)
    identity = 2e-10 * torch.eye(2).double().expand(2, 2, 2)
    torch.testing.assert_close(found.covariances, identity, rtol=1e-9, atol=1e-16)


def test_what_leaks_between_many_modes_is_counted_with_its_error():
    # A ring is symmetric: each mode has an eighth, and its mean lies on its radius. The errors of
    # 8 modes are dependent, so 5 of them for each of 24 numbers.
    circle = ring(num_modes=8, radius=4.0, std=0.3)
    found = circle.mode_moments(0.9)
    shares, errors = found.shares, found.errors
    assert bool(((shares - 1 / 8).abs() <= 5 * errors[0]).all()) and bool((errors[0] > 0).all())
    normal = torch.stack([-circle.modes[:, 1], circle.modes[:, 0]], dim=1) / 4
    sideways = (found.means * normal).sum(1).abs()
    assert bool((sideways <= 5 * errors[1].norm(dim=1)).all())
    still = circle.mode_moments(0.0)  # 5 standard deviations to the next cell
    torch.testing.assert_close(still.means, circle.modes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 4.0])
def test_the_denoised_law_of_a_gaussian_is_narrower(sigma):
    # N(1, s^2) denoised is N(1, s^4/(s^2 + sigma^2)).
    truth, s = GaussianMixture([1.0], [1.0], 0.5), 0.5
    law, std = Denoised(truth), s**2 / math.hypot(s, sigma)
    assert float(law.perturbed_covariance(sigma)) == pytest.approx(std**2, rel=1e-9)
    x = torch.linspace(-1, 3, 41, dtype=torch.float64)
    exact = GaussianMixture([1.0], [1.0], std)
    torch.testing.assert_close(law.cdf(x, sigma), exact.cdf(x), rtol=0, atol=1e-9)
    found = law.log_prob(x[:, None], sigma)
    torch.testing.assert_close(found, exact.log_prob(x[:, None]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        law.integrated_cdf(x, sigma), exact.integrated_cdf(x), rtol=0, atol=1e-9
    )
    draws = law.sample(NUM_DRAWS, sigma=sigma, generator=stream(42))[:, 0]
    assert kolmogorov_distance(draws, exact.cdf) < LIMIT


def test_the_denoised_law_of_a_mixture_is_that_of_denoised_draws():
    for truth, sigma in ((two_modes_1d(), 1.0), (correlated_2d(), 0.8)):
        law = Denoised(truth)
        x = law.sample(NUM_DRAWS, sigma=sigma, generator=stream(43)).double()
        covariance = law.perturbed_covariance(sigma)
        for i in range(truth.dim):
            assert_mean((x[:, i] - truth.mean[i]) ** 2, float(covariance[i, i]))
        found = law.mode_moments(sigma)
        first = (law.nearest_mode(x) == 0).double()
        error = float(found.errors[0][0])
        share = float(found.shares[0])
        assert abs(float(first.mean()) - share) <= 5 * math.hypot(
            error, 0.5 / math.sqrt(NUM_DRAWS)
        )
        # E[r/p] = 1 for another density r: the density is that of the draws.
        other, x_some = GaussianMixture([1.0], truth.modes[:1].tolist(), 0.3), x[:20_000]
        log_prob = law.log_prob(x_some, sigma)
        assert_mean((other.log_prob(x_some) - log_prob).exp(), 1.0)
        if truth.dim == 1:
            assert error == 0
            assert kolmogorov_distance(x[:, 0], partial(law.cdf, sigma=sigma)) < LIMIT
            at = torch.linspace(-4, 4, 5, dtype=torch.float64)
            for point, area in zip(at, law.integrated_cdf(at, sigma), strict=True):
                assert_mean((point - x[:, 0]).clamp(min=0), float(area))


def test_no_point_is_denoised_to_a_place_outside_of_the_data():
    # Posterior means are in the convex hull of two squares, from -1 to 0 and from 0 to 1.
    square = Checkerboard(side=2, length=2.0)
    x = torch.tensor([[0.5, 0.5], [0.3, -0.3], [-1.01, -0.5], [0.6, -0.6]]).double()
    found = Denoised(square).log_prob(x, 0.3)
    assert (found > -math.inf).tolist() == [True, True, False, False]
    assert not (found == math.inf).any()
    points = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.0)
    x = torch.tensor([-1.5, 0.3, 1.5]).double()[:, None]
    assert (Denoised(points).log_prob(x, 0.8) > -math.inf).tolist() == [False, True, False]


def test_errors_of_moments_by_mode_are_those_of_repeated_draws():
    # Of 60 repeats the standard deviation errs by 1/sqrt(2 59); five of those, for 14 numbers.
    mixture, spreads = correlated_2d(), []
    repeats = [
        moments_by_draws(mixture.modes, mixture.strata(5000, 0.5, stream(seed)))
        for seed in range(60)
    ]
    for i in range(3):
        spread = torch.stack([each[i] for each in repeats]).std(0)
        spreads.append(
            (spread / torch.stack([each.errors[i] for each in repeats]).mean(0)).ravel()
        )
    np.testing.assert_allclose(torch.cat(spreads), 1, atol=5 / math.sqrt(2 * 59))


def test_the_nearer_of_two_close_modes_far_from_zero():
    # |x|^2 - 2 <x, c> + |c|^2 in float32 rounds by .004 at 300^2; the modes' distances differ by
    # up to .003 in square.
    mixture = GaussianMixture([0.3, 0.7], [300.0, 300.1], 0.01)
    x = torch.linspace(300.02, 300.08, 1001)[:, None]
    is_second = x[:, 0].double() > 300.05
    assert bool((mixture.nearest_mode(x) == is_second).all())
