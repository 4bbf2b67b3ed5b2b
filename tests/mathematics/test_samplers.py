import math
import types
from bisect import bisect_left

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ncsn_cli.commands.sample_start import Start
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.inits import Data, Normal, Prior, Uniform
from ncsn_cli.samplers import (
    AnnealedLangevin,
    AnnealedMALA,
    ConsistentAnnealed,
    ConstantStepLangevin,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    plan_of,
    technique_4,
)
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import Geometric, Linear
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.statistics import (
    LIMIT,
    NUM_DRAWS,
    assert_mean,
    assert_variance,
    kolmogorov_distance,
)

LEVELS = Geometric(3.0, 0.5, 4).sigmas


def gaussian(std, mean=0.0, dim=1):
    return GaussianMixture(weights=[1.0], means=[[mean] * dim], stds=std)


def test_one_langevin_step_has_its_normal_law(device):
    dataset, tau, start = two_modes_1d(), 0.2, -0.3
    x = torch.full((NUM_DRAWS, 1), start, device=device)
    sampler = Langevin(step_size=tau, steps=1, denoise=False)
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
    sampler = Langevin(step_size=eta, steps=2, denoise=False)
    after = sampler(gaussian(1.0).score, x, torch.tensor([0.0]), generator=stream(3))
    assert_mean(after[:, 0], 0.0)
    assert_variance(after[:, 0], stationary)


SAMPLERS = {
    "langevin": Langevin(step_size=0.1, steps=7, denoise=False),
    "annealed": AnnealedLangevin(step_size=0.05, steps_per_level=5, denoise=False),
    "annealed, auto": AnnealedLangevin(step_size="auto", steps_per_level=5, denoise=True),
    "constant step": ConstantStepLangevin(step_size=0.2, steps_per_level=5, denoise=False),
    "consistent": ConsistentAnnealed(eta=0.6, denoise=True),
    "ancestral": ConsistentAnnealed(eta="auto", denoise=False),
    "predictor-corrector": PredictorCorrector(snr=0.4, corrector_steps=3, denoise=False),
    "reverse diffusion": ReverseDiffusion(denoise=True),
    "flow, Euler": ProbabilityFlow(solver="euler", denoise=False),
    "flow, Heun": ProbabilityFlow(solver="heun", denoise=True),
}


def moves_of(sampler, sigmas):
    """What each step does, from the papers' formulas: ("langevin", sigma, tau) and so on."""
    sigma_min = float(sigmas[-1])
    if isinstance(sampler, Langevin):
        yield from [("langevin", sigma_min, 0.1)] * 7
    for sigma, following in zip(sigmas.tolist(), [*sigmas[1:].tolist(), None], strict=True):
        if isinstance(sampler, AnnealedLangevin):
            step = sampler.step_size
            step = technique_4(sigmas, 5) if step == "auto" else step
            yield from [("langevin", sigma, step * sigma**2 / sigma_min**2)] * 5
        if isinstance(sampler, ConstantStepLangevin):
            yield from [("langevin", sigma, 0.2)] * 5
        if isinstance(sampler, PredictorCorrector):
            yield from [("langevin", sigma, 2 * 0.4**2 * sigma**2)] * 3
        if following is None:
            continue
        if isinstance(sampler, ReverseDiffusion):
            yield ("reverse", sigma, following)
        if isinstance(sampler, ConsistentAnnealed):
            yield ("ancestral" if sampler.eta == "auto" else "consistent", sigma, following)
        if isinstance(sampler, ProbabilityFlow):
            yield (sampler.solver, sigma, following)
    if sampler.denoise:
        yield ("denoise", sigma_min, None)


def law_of(move, score, x):
    """Mean and variance of the next state from x, in the convention of each move."""
    kind, sigma, other = move
    s = score(x, sigma)
    if kind == "langevin":
        return x + other * s, 2 * other
    if kind == "reverse":
        change = sigma**2 - other**2
        return x + change * s, change
    if kind == "consistent":
        eta = 0.6
        return x + eta * sigma**2 * s, other**2 * (1 - ((1 - eta) * sigma / other) ** 2)
    if kind == "ancestral":  # Song et al. (2021), eq. 47
        change = sigma**2 - other**2
        return x + change * s, change * other**2 / sigma**2
    if kind == "denoise":
        return x + sigma**2 * s, 0.0
    h = other - sigma  # the flow: dx/dsigma = -sigma score
    euler = x - h * sigma * s
    if kind == "euler":
        return euler, 0.0
    return x - h * (sigma * s + other * score(euler, other)) / 2, 0.0


def test_multistep_is_exact_where_the_posterior_mean_is_a_parabola():
    # dx/dlog sigma = x - d, d = 1 + 2 t + 3 t^2 with t = log sigma, is solved by
    # x = d + d' + d'' + c sigma. Steps grow from .001, as the first two have a line only.
    def d(t):
        return 1 + 2 * t + 3 * t**2, 2 + 6 * t, 6.0

    def score(x, sigma):
        return (d(torch.log(sigma))[0] - x) / sigma**2

    t = 1 - 0.001 * torch.cumsum(1.2 ** torch.arange(-1, 35, dtype=torch.float64), 0)
    x = torch.tensor([[0.7], [4.0]], dtype=torch.float64)
    c = (x - sum(d(t[0]))) / t[0].exp()
    end = ProbabilityFlow(solver="multistep", denoise=False)(score, x, t.exp(), generator=stream())
    torch.testing.assert_close(end, sum(d(t[-1])) + c * t[-1].exp(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_levels", [10, 20, 50, 100])
def test_multistep_on_uneven_levels_is_no_worse_than_euler(num_levels):
    # Linear levels: in log sigma each step is longer than the one before, the last one many times.
    dataset, sigmas = two_modes_1d(), Linear(20.0, 0.1, num_levels).sigmas
    start = torch.linspace(-30, 30, 201, dtype=torch.float64)[:, None]
    errors = []
    for solver in ("euler", "multistep"):
        sampler = ProbabilityFlow(solver=solver, denoise=False)
        end = sampler(dataset.score, start, sigmas, generator=stream())
        errors.append(float((dataset.cdf(end, 0.1) - dataset.cdf(start, 20.0)).abs().max()))
    assert errors[1] < errors[0]


def test_multistep_forgets_between_runs():
    dataset, x = two_modes_1d(), torch.linspace(-3, 3, 9)[:, None]
    sampler = ProbabilityFlow(solver="multistep", denoise=False)
    ends = [sampler(dataset.score, x, LEVELS, generator=stream()) for _ in range(2)]
    assert bool((ends[0] == ends[1]).all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_variance_follow_their_recursion_at_every_step(name):
    # On N(1, s^2) the score is linear, so every step maps the offset u from 1 to a u + noise.
    s, num, sampler = 0.7, 100_000, SAMPLERS[name]
    dataset = gaussian(s, mean=1.0)
    x = -2.0 + 3.0 * torch.randn(num, 1, generator=stream(4))
    mean, variance, expected = -2.0, 9.0, []
    for move in moves_of(sampler, LEVELS):
        shrink, noise = law_of(move, lambda u, sigma: -u / (s**2 + sigma**2), 1.0)
        mean, variance = 1 + shrink * (mean - 1), shrink**2 * variance + noise
        expected.append((mean, variance))
    states = list(sampler.chain(dataset.score, x, sampler.levels(LEVELS), generator=stream(5)))
    assert len(states) == len(expected)
    ends = sampler.ends(sampler.levels(LEVELS))
    assert [state.level for state in states] == [
        bisect_left(ends, step) for step in range(1, len(states) + 1)
    ]
    for state, (mean, variance) in zip(states, expected, strict=True):
        # x itself has the sample moments of its 100 000 starts, within the same errors.
        assert_mean(state.x[:, 0], mean, standard_errors=6)
        assert abs(float(state.x.var()) - variance) <= 6 * variance * math.sqrt(2 / num)


GRID = torch.linspace(-20, 20, 2001, dtype=torch.float64)  # every kernel is wider than its step


def normal_kernel(mean, variance):
    """Probabilities of each grid point (columns) from N(mean, variance) (rows)."""
    return torch.softmax(-((GRID - mean[:, None]) ** 2) / (2 * variance), dim=1)


def on_grid(dataset):
    return lambda x, sigma: dataset.score(x[:, None], sigma)[:, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_finished_chain_has_the_law_propagated_on_a_grid(name):
    # Independent of the sampler: the law on 2001 points, moved by each step's kernel or map.
    sampler, dataset = SAMPLERS[name], two_modes_1d()
    law = dataset.log_prob(GRID[:, None], float(LEVELS[0])).exp()
    law, places = law / law.sum(), GRID  # places: where the points of a map without noise lie
    for move in moves_of(sampler, LEVELS):
        mean, variance = law_of(move, on_grid(dataset), places)
        if variance > 0:
            law, places = law @ normal_kernel(mean, variance), GRID
        else:
            places = mean
    order = places.argsort()
    cumulative = law[order].cumsum(0) - law[order] / 2
    x = dataset.sample(NUM_DRAWS, sigma=float(LEVELS[0]), generator=stream(20))
    with torch.no_grad():
        x = sampler(dataset.score, x, LEVELS, generator=stream(21))[:, 0]

    def cdf(t):
        return torch.from_numpy(np.interp(t.numpy(), places[order].numpy(), cumulative.numpy()))

    # The grid's own error is below .001.
    assert kolmogorov_distance(x, cdf) < LIMIT + 0.001


def test_mala_has_the_law_propagated_on_a_grid():
    dataset, sampler = (
        two_modes_1d(),
        AnnealedMALA(step_size=0.4, steps_per_level=3, denoise=False),
    )
    law = dataset.log_prob(GRID[:, None], float(LEVELS[0])).exp()
    law = law / law.sum()
    for sigma in LEVELS.tolist():
        tau = 0.4 * sigma**2 / 0.25
        density = dataset.log_prob(GRID[:, None], sigma)
        proposal = normal_kernel(GRID + tau * on_grid(dataset)(GRID, sigma), 2 * tau)
        balance = density[None] - density[:, None] + proposal.T.log() - proposal.log()
        moved = proposal * balance.nan_to_num(-math.inf).clamp(max=0).exp()
        for _ in range(3):
            law = law @ moved + law * (1 - moved.sum(1))
    x = dataset.sample(NUM_DRAWS, sigma=float(LEVELS[0]), generator=stream(22))
    x = sampler(dataset.score, x, LEVELS, generator=stream(23), log_prob=dataset.log_prob)[:, 0]
    cumulative = (law.cumsum(0) - law / 2).numpy()
    distance = kolmogorov_distance(
        x, lambda t: torch.from_numpy(np.interp(t.numpy(), GRID.numpy(), cumulative))
    )
    assert distance < LIMIT + 0.001


def test_mala_leaves_p_sigma_invariant_where_unadjusted_steps_do_not(device):
    dataset, sigmas = two_modes_1d(), torch.tensor([0.5])
    x = dataset.sample(NUM_DRAWS, sigma=0.5, generator=stream(24, device))
    sampler = AnnealedMALA(step_size=1.0, steps_per_level=10, denoise=False)
    states = list(
        sampler.chain(
            dataset.score,
            x,
            sampler.levels(sigmas),
            generator=stream(25, device),
            log_prob=dataset.log_prob,
        )
    )
    law = states[-1].x[:, 0].cpu()
    assert kolmogorov_distance(law, lambda t: dataset.cdf(t, 0.5)) < LIMIT
    unadjusted = AnnealedLangevin(step_size=1.0, steps_per_level=10, denoise=False)
    law = unadjusted(dataset.score, x, sigmas, generator=stream(26, device))[:, 0].cpu()
    assert kolmogorov_distance(law, lambda t: dataset.cdf(t, 0.5)) > 2 * LIMIT
    # The acceptance reported is the share of chains that moved.
    moved = (states[1].x != states[0].x).any(1).double().mean()
    assert states[1].acceptance == pytest.approx(float(moved), abs=1e-9)
    assert 0.3 < states[1].acceptance < 0.95


def test_mala_keeps_the_moments_of_a_correlated_mixture():
    dataset, num = correlated_2d(), 100_000
    x = dataset.sample(num, sigma=0.3, generator=stream(27))
    sampler = AnnealedMALA(step_size=0.3, steps_per_level=10, denoise=False)
    x = sampler(
        dataset.score, x, torch.tensor([0.3]), generator=stream(28), log_prob=dataset.log_prob
    )
    offset = x.double() - dataset.mean
    covariance = dataset.covariance + 0.09 * torch.eye(2).double()
    for i in range(2):
        assert_mean(offset[:, i], 0.0)
        for j in range(2):
            assert_mean(offset[:, i] * offset[:, j], float(covariance[i, j]))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("multistep", 3)])
def test_the_flow_has_its_order(solver, order):
    # In 1D the exact flow keeps the distribution function: F_min(x_end) = F_max(x_start).
    dataset = two_modes_1d()
    start = torch.linspace(-12, 12, 201, dtype=torch.float64)[:, None]
    errors, counts = [], [40, 80, 160, 320]
    for num_levels in counts:
        sigmas = Geometric(10.0, 0.2, num_levels + 1).sigmas
        end = ProbabilityFlow(solver=solver, denoise=False)(
            dataset.score, start, sigmas, generator=stream()
        )
        errors.append(float((dataset.cdf(end, 0.2) - dataset.cdf(start, 10.0)).abs().max()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.15)


# The settings that Song & Ermon (2020) published: sigma_max, L, T and epsilon = tau.
PUBLISHED = {
    "CIFAR-10": (50, 232, 5, 6.2e-6, 1.062),
    "CelebA": (90, 500, 5, 3.3e-6, 1.059),
    "bedroom": (190, 1086, 3, 1.8e-6, 1.096),
    "FFHQ": (348, 2311, 3, 0.9e-6, 1.096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_annealing_overshoots_on_a_point_where_the_consistent_one_does_not(name):
    # Jolicoeur-Martineau et al. (2020), figure 1: a point mass and its exact score. The standard
    # deviations, in units of sigma_min, are the closed form's to a unit in the last digit.
    sigma_max, num_levels, steps, step_size, overshoot = PUBLISHED[name]
    sigmas = Geometric(float(sigma_max), 0.01, num_levels).sigmas[-100:]  # the end decides
    plain = AnnealedLangevin(step_size=step_size, steps_per_level=steps, denoise=False)
    dataset, num = gaussian(0.0), 100_000
    start = float(sigmas[0]) * torch.randn(num, 1, generator=stream(29))
    x = plain(dataset.score, start, sigmas, generator=stream(30))
    assert float(x.std() / 0.01) == pytest.approx(overshoot, abs=5 / math.sqrt(2 * num) + 0.001)
    consistent = ConsistentAnnealed(eta=step_size / 0.01**2, denoise=False)
    for state in consistent.chain(
        dataset.score, start, consistent.levels(sigmas), generator=stream(31)
    ):
        assert_variance(state.x[:, 0], state.sigma**2)


def test_the_corrector_leaves_chains_independent():
    # A step from norms averaged over the batch, as in score_sde, would tie them together.
    dataset, sampler = two_modes_1d(), SAMPLERS["predictor-corrector"]
    assert [level.tau for level in sampler.levels(LEVELS)] == pytest.approx(
        [2 * (0.4 * sigma) ** 2 for sigma in LEVELS.tolist()]
    )
    first, second = torch.zeros(5, 1), torch.zeros(5, 1)
    second[1:] = 100.0
    ends = [sampler(dataset.score, x, LEVELS, generator=stream(32)) for x in (first, second)]
    torch.testing.assert_close(ends[0][0], ends[1][0])


@pytest.mark.parametrize("name", ["consistent", "predictor-corrector", "flow, Heun"])
def test_descending_needs_two_levels_above_zero(name):
    for sigmas in ([1.0], [1.0, 0.0]):
        with pytest.raises(ConfigError, match="two levels or more, all above 0"):
            SAMPLERS[name].levels(torch.tensor(sigmas))


def test_consistent_annealing_refuses_an_eta_that_needs_negative_noise():
    ratio = float(LEVELS[1] / LEVELS[0])
    for eta in (0.99 * (1 - ratio), 1.01 * (1 + ratio)):
        with pytest.raises(ConfigError, match=r"eta: .* between"):
            ConsistentAnnealed(eta=eta, denoise=False).levels(LEVELS)
    ConsistentAnnealed(eta=1.01 * (1 - ratio), denoise=False).levels(LEVELS)
    plan = ConsistentAnnealed(eta="auto", denoise=False).levels(LEVELS)
    assert [level.tau / level.sigma**2 for level in plan[:-1]] == pytest.approx(
        [1 - ratio**2] * (len(LEVELS) - 1)
    )


def test_annealed_steps_scale_with_sigma_squared():
    plan = AnnealedLangevin(step_size=0.01, steps_per_level=3, denoise=False).levels(LEVELS)
    assert [sigma for sigma, _, _ in plan] == LEVELS.tolist()
    for sigma, tau, steps in plan:
        assert tau / sigma**2 == pytest.approx(0.01 / 0.25)
        assert steps == 3


def test_langevin_stays_at_the_smallest_level():
    assert Langevin(step_size=0.1, steps=4, denoise=False).levels(LEVELS) == [(0.5, 0.1, 4)]


def test_chain_names_the_level_of_every_state():
    sampler = ConstantStepLangevin(step_size=0.1, steps_per_level=2, denoise=False)
    plan = sampler.levels(LEVELS)
    chain = sampler.chain(gaussian(1.0).score, torch.zeros(1, 1), plan, generator=stream())
    assert [state.level for state in chain] == [0, 0, 1, 1, 2, 2, 3, 3]


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
    sampler = ConstantStepLangevin(step_size=0.0125, steps_per_level=50, denoise=False)
    sigmas, num = Geometric(2.0, 0.5, 16).sigmas, 20_000
    x = Normal(std=1.0)(num, two_modes_1d(), 2.0, stream(6))
    with torch.no_grad():
        share = (sampler(two_modes_1d().score, x, sigmas, generator=stream(7)) < 0).double().mean()
    # DESIGN's .188 is rounded, so half a unit of its last digit is added to 5 standard errors.
    assert abs(float(share) - 0.188) < 5 * math.sqrt(0.188 * 0.812 / num) + 0.0005


@pytest.mark.parametrize(
    ("sampler", "sigmas", "share"),
    [
        (Langevin(step_size=0.05, steps=1000, denoise=False), torch.zeros(1), (0.49, 0.52)),
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
    assert low - 5 * error < measured < high + 5 * error


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


QUASI = {
    "prior": (Prior(quasi_random=True), lambda t: torch.special.ndtr(t)),
    "normal": (Normal(std=2.0, quasi_random=True), lambda t: torch.special.ndtr(t)),
    "uniform": (Uniform(low=-2.0, high=3.0, quasi_random=True), lambda t: t),
}


def standardised(name, x, dataset):
    """The points of a start with all its coordinates on one scale: N(0, 1), or uniform."""
    if name == "uniform":
        return (x + 2) / 5
    if name == "normal":
        return x / 2
    variances, rotation = torch.linalg.eigh(dataset.perturbed_covariance(2.0))
    return (x - dataset.mean) @ rotation / variances.sqrt()


@pytest.mark.parametrize("name", QUASI)
def test_quasi_random_points_are_more_even_than_random_ones(name):
    # Of 4096 = 2^12 scrambled Sobol points each 1/4096 of every axis holds one, so that the
    # distance of the distribution functions is at most 1/4096; of random points it is about
    # .87/64. Scrambled, the mean has a standard error below n^(-1); of random points 1/64.
    init, cdf = QUASI[name]
    dataset, num = two_modes_2d(), 4096
    x = standardised(name, init.quasi(num, 0, dataset, 2.0, 0).double(), dataset)
    for axis in range(2):
        assert kolmogorov_distance(x[:, axis], cdf) < 1.01 / num + 1e-6
    centred = x - (0.5 if name == "uniform" else 0.0)
    assert float(centred.mean(0).abs().max()) < 10 / num
    assert float((centred[:, 0] * centred[:, 1]).mean().abs()) < 1 / math.sqrt(num) / 3


@pytest.mark.parametrize("name", QUASI)
def test_each_quasi_random_point_has_the_law_of_the_start(name):
    # Point 5 over many seeds: independent draws of the law.
    init, cdf = QUASI[name]
    dataset = two_modes_2d()
    draws = [init.quasi(1, 5, dataset, 2.0, seed) for seed in range(2000)]
    x = standardised(name, torch.cat(draws).double(), dataset)
    for axis in range(2):
        assert kolmogorov_distance(x[:, axis], cdf) < LIMIT * math.sqrt(NUM_DRAWS / 2000)


def test_quasi_random_points_are_refused_where_there_are_none():
    class Own(Prior):
        def __call__(self, num, truth, sigma_max, generator):
            return torch.full((num, truth.dim), 7.0)

    dataset = two_modes_2d()
    assert float(Own()(2, dataset, 1.0, stream()).mean()) == 7
    with pytest.raises(ConfigError, match=r"init\.quasi_random: Own draws its points itself"):
        Own(quasi_random=True).quasi(4, 0, dataset, 1.0, 0)
    wide = types.SimpleNamespace(dim=30_000)
    with pytest.raises(ConfigError, match="21201 dimensions only"):
        Normal(quasi_random=True).quasi(4, 0, wide, 1.0, 0)


def test_a_quasi_random_point_depends_on_its_place_and_seed_alone():
    init, dataset = Prior(quasi_random=True), two_modes_2d()
    whole = init.quasi(100, 0, dataset, 2.0, 3)
    torch.testing.assert_close(init.quasi(30, 60, dataset, 2.0, 3), whole[60:90], atol=0, rtol=0)
    assert not torch.equal(init.quasi(100, 0, dataset, 2.0, 4), whole)


def test_a_run_starts_at_the_same_quasi_random_points_in_all_tiles():
    init, dataset = Prior(quasi_random=True), two_modes_1d()
    start = Start(init, dataset, 10.0, torch.zeros(1), torch.device("cpu"), seed=7)
    sampler, sigmas = ProbabilityFlow(), Geometric(10.0, 0.5, 3).sigmas
    setup = Setup(
        sampler, plan_of(sampler, sigmas), dataset.score, None, start, dataset, seed=7,
        device=torch.device("cpu"), chains_in_tile=64,
    )  # fmt: skip
    chains = Sampling(setup, 150, num_paths=0, keep_by_level=False).run()
    torch.testing.assert_close(chains.init, init.quasi(150, 0, dataset, 10.0, 7), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Langevin, {"step_size": 0.0, "steps": 1, "denoise": False}),
        (Langevin, {"step_size": 0.1, "steps": 0, "denoise": False}),
        (ProbabilityFlow, {"solver": "rk4", "denoise": False}),
        (PredictorCorrector, {"snr": 0.0, "corrector_steps": 1, "denoise": False}),
        (AnnealedLangevin, {"step_size": "best", "steps_per_level": 1, "denoise": False}),
        (AnnealedLangevin, {"step_size": 0.1, "steps_per_level": 1, "denoise": 1}),
        (Uniform, {"low": 1.0, "high": -1.0}),
        (Normal, {"std": -1.0}),
    ],
)
def test_impossible_samplers_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind(**values)
