import math

import pytest
import torch
from pydantic import ValidationError

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.samplers import (
    AnnealedLangevin,
    ConstantStepLangevin,
    Data,
    Langevin,
    Normal,
    Prior,
    Uniform,
    technique_4,
)
from ncsn_cli.schedules import Geometric
from ncsn_cli.scores import ConfigError

from .conftest import (
    LIMIT,
    NUM_DRAWS,
    assert_mean,
    assert_variance,
    correlated_2d,
    kolmogorov_distance,
    stream,
    two_modes_1d,
)

LEVELS = Geometric(3.0, 0.5, 4).sigmas


def gaussian(std, mean=0.0, dim=1):
    return GaussianMixture(weights=[1.0], means=[[mean] * dim], stds=std)


def test_one_langevin_step_has_its_normal_law(device):
    dataset, tau, start = two_modes_1d(), 0.2, -0.3
    x = torch.full((NUM_DRAWS, 1), start, device=device)
    sampler = Langevin(step_size=tau, steps=1)
    after = sampler(dataset.score, x, LEVELS, generator=stream(1, device))[:, 0]
    mean = start + tau * float(dataset.score(torch.tensor([[start]]).double(), float(LEVELS[-1])))

    def cdf(t):
        return torch.special.ndtr((t - mean) / math.sqrt(2 * tau))

    assert kolmogorov_distance(after, cdf) < LIMIT


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.5])
def test_langevin_is_stationary_at_sigma2_over_1_minus_half_eta(eta):
    # On N(0, 1): 100 000 chains from the stationary law stay there; 2 steps would show a wrong
    # step, noise or both, since each moves the variance by a share eta of the difference.
    stationary = 1 / (1 - eta / 2)
    x = math.sqrt(stationary) * torch.randn(100_000, 1, generator=stream(2))
    sampler = Langevin(step_size=eta, steps=2)
    after = sampler(gaussian(1.0).score, x, torch.tensor([0.0]), generator=stream(3))
    assert_mean(after[:, 0], 0.0)
    assert_variance(after[:, 0], stationary)


@pytest.mark.parametrize(
    "sampler",
    [
        AnnealedLangevin(step_size=0.05, steps_per_level=5, denoise=False),
        AnnealedLangevin(step_size="auto", steps_per_level=5, denoise=True),
        ConstantStepLangevin(step_size=0.2, steps_per_level=5),
        Langevin(step_size=0.1, steps=7),
    ],
)
def test_mean_and_variance_follow_their_recursion_at_every_level(sampler):
    # On N(1, s^2) each step maps m to m - tau (m - 1)/v and the variance u to
    # (1 - tau/v)^2 u + 2 tau, with v = s^2 + sigma^2.
    s = 0.7
    dataset, num = gaussian(s, mean=1.0), 100_000
    x = -2.0 + 3.0 * torch.randn(num, 1, generator=stream(4))
    mean, variance = -2.0, 9.0
    expected = []
    for sigma, tau, steps in sampler.levels(LEVELS):
        v = s**2 + sigma**2
        for _ in range(steps):
            mean, variance = mean - tau * (mean - 1) / v, (1 - tau / v) ** 2 * variance + 2 * tau
            expected.append((mean, variance))
    if sampler.final_denoising:
        shrink = 1 - sigma**2 / v
        expected.append((1 + shrink * (mean - 1), shrink**2 * variance))
    states = [state for _, state in sampler.chain(dataset.score, x, LEVELS, generator=stream(5))]
    assert len(states) == len(expected) == sampler.num_steps(LEVELS)
    for state, (mean, variance) in zip(states, expected, strict=True):
        # x itself has the sample moments of its 100 000 starts, within the same errors.
        assert_mean(state[:, 0], mean, standard_errors=6)
        assert abs(float(state.var()) - variance) <= 6 * variance * math.sqrt(2 / num)


def test_annealed_steps_scale_with_sigma_squared():
    plan = AnnealedLangevin(step_size=0.01, steps_per_level=3, denoise=False).levels(LEVELS)
    assert [sigma for sigma, _, _ in plan] == LEVELS.tolist()
    for sigma, tau, steps in plan:
        assert tau / sigma**2 == pytest.approx(0.01 / 0.25)
        assert steps == 3


def test_langevin_stays_at_the_smallest_level():
    assert Langevin(step_size=0.1, steps=4).levels(LEVELS) == [(0.5, 0.1, 4)]


def test_chain_names_the_level_of_every_state():
    sampler = ConstantStepLangevin(step_size=0.1, steps_per_level=2)
    chain = sampler.chain(gaussian(1.0).score, torch.zeros(1, 1), LEVELS, generator=stream())
    assert [level for level, _ in chain] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "steps", "published"),
    [
        (50, 232, 5, 6.18e-6),
        (90, 500, 5, 3.34e-6),
        (190, 1086, 3, 1.77e-6),
        (348, 2311, 3, 8.93e-7),
    ],
)
def test_technique_4_gives_the_published_step_sizes(sigma_max, num_levels, steps, published):
    # Song & Ermon (2020) print 6.2e-6, 3.3e-6, 1.8e-6 and 0.9e-6; here to three digits.
    sigmas = Geometric(float(sigma_max), 0.01, num_levels).sigmas
    last_digit = 10 ** (math.floor(math.log10(published)) - 2)
    assert technique_4(sigmas, steps) == pytest.approx(published, abs=last_digit / 2)


def test_annealing_needs_levels():
    sampler = AnnealedLangevin(step_size="auto", steps_per_level=5, denoise=False)
    with pytest.raises(ConfigError, match="two noise levels"):
        sampler.levels(torch.tensor([1.0]))
    with pytest.raises(ConfigError, match="above 0"):
        sampler.levels(torch.tensor([0.0]))


def test_the_random_notes_sampler_is_biased_with_the_exact_score():
    # From N(0, 1) it leaves .188 of the chains in the mode that p_.5 gives .103.
    sampler = ConstantStepLangevin(step_size=0.0125, steps_per_level=50)
    sigmas, num = Geometric(2.0, 0.5, 16).sigmas, 20_000
    x = Normal(std=1.0)(num, two_modes_1d(), 2.0, stream(6))
    with torch.no_grad():
        share = (sampler(two_modes_1d().score, x, sigmas, generator=stream(7)) < 0).double().mean()
    # DESIGN's .188 is rounded, so half a unit of its last digit is added to 5 standard errors.
    assert abs(float(share) - 0.188) < 5 * math.sqrt(0.188 * 0.812 / num) + 0.0005


@pytest.mark.parametrize(
    ("sampler", "sigmas", "share"),
    [
        (Langevin(step_size=0.05, steps=1000), torch.zeros(1), (0.49, 0.52)),
        (
            AnnealedLangevin(step_size=0.05, steps_per_level=100, denoise=False),
            Geometric(20.0, 1.0, 10).sigmas,
            (0.782, 0.782),
        ),
    ],
)
def test_annealing_finds_the_weights_that_langevin_misses(sampler, sigmas, share):
    # Song & Ermon (2019), figure 3: 80 % of the mass is at (5, 5). The bounds are the samplers'
    # own laws, found with 200 000 chains (annealed) and in four runs (Langevin).
    dataset = GaussianMixture(weights=[0.8, 0.2], means=[[5, 5], [-5, -5]], stds=1.0)
    x = Uniform(low=-8.0, high=8.0)(1280, dataset, float(sigmas[0]), stream(8))
    with torch.no_grad():
        x = sampler(dataset.score, x, sigmas, generator=stream(9))
    measured = float((x.sum(-1) > 0).double().mean())
    low, high = share
    error = math.sqrt(low * (1 - low) / 1280)
    assert low - 3 * error < measured < high + 3 * error


def test_prior_has_the_moments_of_the_widest_level(device):
    dataset, sigma = correlated_2d(), 2.0
    x = Prior()(200_000, dataset, sigma, stream(10, device)).cpu().double()
    covariance = dataset.covariance + sigma**2 * torch.eye(2).double()
    offset = x - dataset.mean
    for i in range(2):
        assert_mean(offset[:, i], 0.0)
        for j in range(2):
            assert_mean(offset[:, i] * offset[:, j], float(covariance[i, j]))


def test_other_initial_points():
    dataset = two_modes_1d()
    uniform = Uniform(low=-2.0, high=3.0)(NUM_DRAWS, dataset, 1.0, stream(11))[:, 0]
    assert kolmogorov_distance(uniform, lambda t: (t + 2) / 5) < LIMIT
    normal = Normal(std=2.5)(NUM_DRAWS, dataset, 1.0, stream(12))[:, 0]
    assert kolmogorov_distance(normal, lambda t: torch.special.ndtr(t / 2.5)) < LIMIT
    for sigma, expected in ((None, 1.5), (0.2, 0.2)):
        data = Data(sigma=sigma)(NUM_DRAWS, dataset, 1.5, stream(13))[:, 0]
        assert kolmogorov_distance(data, lambda t, s=expected: dataset.cdf(t, s)) < LIMIT


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Langevin, {"step_size": 0.0, "steps": 1}),
        (Langevin, {"step_size": 0.1, "steps": 0}),
        (AnnealedLangevin, {"step_size": "best", "steps_per_level": 1, "denoise": False}),
        (AnnealedLangevin, {"step_size": 0.1, "steps_per_level": 1, "denoise": 1}),
        (Uniform, {"low": 1.0, "high": -1.0}),
        (Normal, {"std": -1.0}),
    ],
)
def test_impossible_samplers_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind(**values)
