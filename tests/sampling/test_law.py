"""The law of a chain's last state on a grid, against closed forms and real chains."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from pydantic.dataclasses import dataclass

from ncsn_cli.core.score import detached_jacobian
from ncsn_cli.core.settings import STRICT
from ncsn_cli.datasets import Denoised, GaussianMixture, Sampled
from ncsn_cli.inits import Data, Normal, Prior, Uniform
from ncsn_cli.metrics import log_likelihood
from ncsn_cli.mistakes import NoiseNotAnnealed
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
)
from ncsn_cli.sampling.law import divergence, law_of_chain
from ncsn_cli.sampling.transition import NoLaw
from ncsn_cli.schedules import Geometric, Karras, technique_1
from tests.helpers.commands import CONFIGS, composed
from tests.helpers.problems import stream, two_modes_1d, two_modes_2d
from tests.helpers.statistics import LIMIT, NUM_DRAWS, kolmogorov_distance

LEVELS = Geometric(3.0, 0.5, 5).sigmas
GAUSSIAN = GaussianMixture(weights=[1.0], means=[[1.0]], stds=0.7)


def law_of(sampler, truth, init, sigmas=LEVELS, score=None, log_prob=None):
    start = init.law(truth, float(sigmas[0]))
    plan = plan_of(sampler, sigmas)
    return law_of_chain(
        sampler, plan, score or truth.score, start, truth, log_prob or truth.log_prob
    )


def nats(sampler, truth, init, sigmas=LEVELS, target=None, **kwargs):
    target = target or partial(truth.log_prob, sigma=float(sigmas[-1]))
    return divergence(law_of(sampler, truth, init, sigmas, **kwargs), target)


def moments_after(sampler, mean, variance):
    """Those of chains on N(1, .7^2), whose score is linear: mean and variance obey a recursion."""
    plan = plan_of(sampler, LEVELS)

    def pull(sigma):
        return 1 / (0.7**2 + sigma**2)

    moves = []  # (slope, variance of the noise)
    for level, following in zip(plan, [*plan[1:], None], strict=True):
        moves += level.steps * [(1 - level.tau * pull(level.sigma), 2 * level.tau)]
        if isinstance(sampler, ReverseDiffusion) and following:
            change = level.sigma**2 - following.sigma**2
            moves.append((1 - change * pull(level.sigma), change))
        if isinstance(sampler, ConsistentAnnealed) and following:
            eta = level.tau / level.sigma**2
            noise = following.sigma**2 - ((1 - eta) * level.sigma) ** 2
            moves.append((1 - eta * level.sigma**2 * pull(level.sigma), noise))
    if isinstance(sampler, ProbabilityFlow):  # the map is linear: two points give it
        ends = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        for state in sampler.chain(GAUSSIAN.score, ends, plan, generator=stream()):
            ends = state.x
        moves = [(float(ends[1] - ends[0]), 0.0)]
    elif sampler.denoise:
        moves.append((1 - plan[-1].sigma ** 2 * pull(plan[-1].sigma), 0.0))
    for slope, noise in moves:
        mean, variance = 1 + slope * (mean - 1), slope**2 * variance + noise
    return mean, variance


def gaussian_nats(mean, variance, other_mean, other_variance):
    ratio = variance / other_variance
    return (ratio - 1 - math.log(ratio) + (mean - other_mean) ** 2 / other_variance) / 2


SAMPLERS = {
    "langevin": Langevin(step_size=0.1, steps=7),
    "annealed": AnnealedLangevin(step_size=0.02, steps_per_level=20),
    "annealed, denoised": AnnealedLangevin(step_size=0.02, steps_per_level=2, denoise=True),
    "constant step": ConstantStepLangevin(step_size=0.2, steps_per_level=1),
    "consistent": ConsistentAnnealed(eta=0.6),
    "ancestral": ConsistentAnnealed(),
    "predictor-corrector": PredictorCorrector(snr=0.4, corrector_steps=3),
    "reverse diffusion": ReverseDiffusion(denoise=True),
    "flow, Euler": ProbabilityFlow(solver="euler"),
    "flow, Heun": ProbabilityFlow(solver="heun", denoise=True),
    "flow, multistep": ProbabilityFlow(solver="multistep"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_nats_of_a_gaussian_are_the_closed_form(name):
    sampler = SAMPLERS[name]
    mean, variance = moments_after(sampler, -2.0, 2.5**2)
    perfect, width = partial(GAUSSIAN.log_prob, sigma=0.5), math.hypot(0.7, 0.5)
    if sampler.denoise:
        perfect, width = partial(Denoised(GAUSSIAN).log_prob, sigma=0.5), 0.7**2 / width
    found = nats(sampler, GAUSSIAN, Normal(std=2.5, mean=-2.0), target=perfect)
    expected = gaussian_nats(1.0, width**2, mean, variance)
    assert found.kl == pytest.approx(expected, abs=1e-6)
    assert abs(found.kl - expected) <= found.kl_error + 1e-9  # the error covers
    assert found.kl_error < 1e-4
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)[:, None]
    p, q = (
        GaussianMixture([1.0], [[m]], stds=math.sqrt(v)).log_prob(x).exp()
        for m, v in ((1.0, width**2), (mean, variance))
    )
    tv = float((p - q).abs().sum()) * 1e-4 / 2
    assert abs(found.tv - tv) <= found.tv_error + 1e-6
    assert found.tv_error < 5e-3


def test_the_nats_of_a_gaussian_in_the_plane():
    # The flow's map is linear: its matrix is found from three points.
    covariance = [[1.5, 0.6], [0.6, 0.4]]
    truth = GaussianMixture([1.0], [[0.5, -1.0]], covariances=[covariance])
    flow, sigma = ProbabilityFlow(solver="heun"), float(LEVELS[-1])
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    ends = flow(truth.score, points, LEVELS, generator=stream())
    matrix = (ends[1:] - ends[0]).T
    start = Normal(std=2.5, mean=-0.5)
    mean = ends[0] + matrix @ torch.full((2,), -0.5, dtype=torch.float64)
    q = torch.distributions.MultivariateNormal(mean, 2.5**2 * matrix @ matrix.T)
    p = torch.distributions.MultivariateNormal(truth.mean, truth.perturbed_covariance(sigma))
    expected = float(torch.distributions.kl_divergence(p, q))
    found = nats(flow, truth, start)
    assert found.kl == pytest.approx(expected, abs=1e-6)
    assert abs(found.kl - expected) <= found.kl_error + 1e-9
    assert found.kl_error < 1e-3


def test_the_nats_of_a_product_are_the_sum_over_the_axes():
    # Four modes whose law is a product: in the plane a map has seams between them, whose error
    # is covered. In 1D there is next to none.
    x, y = [(0.3, -3.0), (0.7, 3.0)], [(0.6, -2.0), (0.4, 4.0)]
    axes = [GaussianMixture([w for w, _ in a], [[m] for _, m in a], stds=0.5) for a in (x, y)]
    both = GaussianMixture(
        [v * w for v, _ in x for w, _ in y], [[m, n] for _, m in x for _, n in y], stds=0.5
    )
    for solver, num_levels in (("euler", 10), ("multistep", 10), ("heun", 20)):
        flow, sigmas = ProbabilityFlow(solver=solver), Geometric(10.0, 0.1, num_levels).sigmas
        parts = [nats(flow, axis, Prior(), sigmas) for axis in axes]
        found = nats(flow, both, Prior(), sigmas)
        total = sum(part.kl for part in parts)
        assert abs(found.kl - total) <= found.kl_error + sum(part.kl_error for part in parts)
        assert found.kl_error < 0.25 * total


def cdf_of(law):
    """The distribution function of a law in 1D, from the masses at its points."""
    order = law.x[:, 0].argsort()
    x, masses = law.x[order, 0].numpy(), law.masses[order]
    values = (masses.cumsum(0) - masses / 2).numpy()
    return lambda t: torch.from_numpy(np.interp(t.numpy(), x, values))


@pytest.mark.parametrize(
    ("sampler", "init"),
    [
        (AnnealedLangevin(step_size=0.03, steps_per_level=5, denoise=True), Uniform(-2.0, 6.0)),
        (AnnealedMALA(step_size=0.2, steps_per_level=4), Uniform(-2.0, 6.0)),
        (PredictorCorrector(snr=0.3), Normal(std=1.0)),
        (ConsistentAnnealed(eta=0.5), Data(sigma=1.0)),
        (ProbabilityFlow(solver="euler"), Prior()),
        (NoiseNotAnnealed(step_size=0.02, steps_per_level=5), Prior()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_real_chains_follow_the_law(sampler, init):
    truth = two_modes_1d()
    law = law_of(sampler, truth, init)
    with torch.no_grad():
        x = init(NUM_DRAWS, truth, float(LEVELS[0]), stream(1))
        log_prob = truth.log_prob
        x = sampler(truth.score, x, LEVELS, generator=stream(2), log_prob=log_prob)
    assert kolmogorov_distance(x[:, 0], cdf_of(law.fine)) < LIMIT + 1e-3  # of the grid
    share = float(law.fine.masses[truth.nearest_mode(law.fine.x) == 0].sum())
    seen = float((truth.nearest_mode(x) == 0).double().mean())
    assert abs(seen - share) < 5 * math.sqrt(share * (1 - share) / NUM_DRAWS) + 1e-4


def test_the_metropolis_test_leaves_each_law_invariant():
    truth, sampler = two_modes_1d(), AnnealedMALA(step_size=0.5, steps_per_level=50)
    still = nats(sampler, truth, Data(), torch.tensor([0.5]))
    assert abs(still.kl) <= still.kl_error < 1e-7
    assert still.tv <= still.tv_error < 1e-5
    # Unadjusted steps do not, and over several levels the law lags behind.
    unadjusted = AnnealedLangevin(step_size=0.5, steps_per_level=50)
    assert nats(unadjusted, truth, Data(), torch.tensor([0.5])).kl > 0.01
    assert nats(sampler, truth, Data()).kl > 1e-6


def test_fine_steps_of_the_flow_have_the_nats_of_the_equation():
    # An independent way: the continuous flow, backwards from some points.
    truth, sigmas = two_modes_1d(), Geometric(5.0, 0.3, 100).sigmas

    def wrong(x, sigma):
        return 1.2 * truth.score(x, sigma)

    law = law_of(ProbabilityFlow(), truth, Prior(), sigmas, score=wrong).fine
    some = law[law.masses > 1e-4][::40]
    prior = Prior().law(truth, 5.0).log_prob
    known = log_likelihood(wrong, some.x, 0.3, 5.0, prior, num_steps=2000)
    assert float((some.log_q - known.value).abs().max()) < 2e-4
    assert float((some.log_q - truth.log_prob(some.x, 0.3)).abs().max()) > 0.1


PRESETS = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *((name, "heun" if name == "spiral_2d" else "euler") for name in PRESETS),
        ("ring_2d", "heun"),
        ("grid_2d", "multistep"),
        ("two_modes_2d", "multistep"),
    ],
)
def test_the_nats_of_each_preset_are_those_of_random_points(name, solver):
    # KL = E[r log r - r + 1] over points of the start, r = p(T) |det dT|/q_0: no grid, no seams.
    config = composed("train", f"dataset={name}", "dataset.num_samples=null")
    truth = instantiate(config["dataset"], _convert_="all")
    high, low = technique_1(truth.sample(5000, generator=stream())), truth.smallest_std / 3
    flow, sigmas = ProbabilityFlow(solver=solver), Karras(high, low, 20).sigmas
    start = Prior().law(truth, high)
    x = Prior()(40_000, truth, high, stream(5)).double()

    def end(x, _):
        return flow(truth.score, x, sigmas, generator=stream())

    parts = [detached_jacobian(end, part, torch.zeros(())) for part in x.split(2000)]
    ends, jacobians = (torch.cat(both) for both in zip(*parts, strict=True))
    log_r = truth.log_prob(ends, low) + torch.linalg.det(jacobians).log() - start.log_prob(x)
    values = log_r.exp() * (log_r - 1) + 1
    known, error = float(values.mean()), float(values.std()) / math.sqrt(len(x))
    found = nats(flow, truth, Prior(), sigmas)
    assert abs(found.kl - known) < found.kl_error + 4 * error
    assert found.kl_error < 5e-3


def test_a_grid_becomes_wide_enough_for_the_target():
    # With 2.5 times the score chains end .4 times as wide: the target reaches over the first grid.
    flow = ProbabilityFlow(solver="heun")
    score = partial(lambda x, sigma: 2.5 * GAUSSIAN.score(x, sigma))
    ends = flow(score, torch.tensor([[1.0], [2.0]]).double(), LEVELS, generator=stream())[:, 0]
    variance = float(ends[1] - ends[0]) ** 2 * (0.7**2 + 9)
    found = nats(flow, GAUSSIAN, Prior(), score=score)
    expected = gaussian_nats(1.0, 0.7**2 + 0.25, 1.0, variance)
    assert expected > 1
    assert abs(found.kl - expected) <= found.kl_error + 1e-9
    assert found.kl_error < 1e-3
    # A target that reaches over the last grid is a part of the error.
    flow = ProbabilityFlow(solver="heun", denoise=True)
    mean, variance = moments_after(flow, -2.0, 2.5**2)
    found = nats(flow, GAUSSIAN, Normal(std=2.5, mean=-2.0))
    expected = gaussian_nats(1.0, 0.7**2 + 0.25, mean, variance)
    assert 1e-6 < abs(found.kl - expected) <= found.kl_error < 1e-2


def test_points_that_come_back_from_far_out_change_nothing():
    # Beyond 4.5 standard deviations of the start the score is wrong, as a network's may be. There
    # the map folds, and the target is covered more than once: up to three times.
    truth = two_modes_1d()

    def wrong(slope, x, sigma):
        offset = x - truth.mean
        far = offset.abs() - 4.5 * (truth.covariance[0, 0] + sigma**2).sqrt()
        return truth.score(x, sigma) - slope * far.clamp(min=0) * offset.sign() / sigma**2

    for solver, slope in (("heun", 16), ("euler", 8)):
        score = partial(wrong, slope)
        flow = ProbabilityFlow(solver=solver)
        right, found = (nats(flow, truth, Prior(), score=s) for s in (truth.score, score))
        assert found.kl == pytest.approx(right.kl, abs=right.kl_error + found.kl_error)
        assert found.kl_error < 0.2 * found.kl
        law = law_of(flow, truth, Prior(), score=score).fine
        assert float((truth.log_prob(law.x, 0.5).exp() * law.weight).sum()) > 1.1


def test_the_grid_is_that_of_any_coordinates():
    # Data far from 0, and the same chains around the data's mean.
    far = GaussianMixture([0.3, 0.7], [[997.0], [1003.0]], stds=1.0)
    near = far.centred()
    for sampler in (AnnealedLangevin(step_size=0.05, steps_per_level=3), ProbabilityFlow()):
        for init in (Uniform(990.0, 1010.0), Prior()):
            start = init.law(far, float(LEVELS[0])).around(near.origin)
            law = law_of_chain(sampler, plan_of(sampler, LEVELS), near.score, start, near)
            moved = divergence(law, partial(near.log_prob, sigma=0.5))
            found = nats(sampler, far, init)
            assert moved.tv == pytest.approx(found.tv, abs=1e-6 + found.tv_error)
            if found.kl is not None:
                assert moved.kl == pytest.approx(found.kl, abs=1e-7 + found.kl_error)


def test_denoised_samples_are_measured_against_their_own_law():
    # An invertible map keeps KL: with the exact score, denoising changes nothing.
    truth = two_modes_1d()
    for kind in (partial(AnnealedLangevin, step_size=0.05, steps_per_level=3), ReverseDiffusion):
        before = nats(kind(), truth, Prior())
        perfect = partial(Denoised(truth).log_prob, sigma=0.5)
        after = nats(kind(denoise=True), truth, Prior(), target=perfect)
        assert after.kl == pytest.approx(before.kl, abs=before.kl_error + after.kl_error)


@pytest.mark.parametrize("init", [Normal(2.0, 1.0), Uniform(-3.0, 5.0), Prior(), Data(sigma=0.4)])
def test_the_law_of_initial_points_is_that_of_their_draws(init):
    truth = two_modes_1d()
    law = init.law(truth, 1.5).around(torch.tensor([0.7], dtype=torch.float64))
    x = torch.linspace(float(law.low), float(law.high), 20_001, dtype=torch.float64)
    density = law.log_prob(x[:, None]).exp()
    cdf = torch.cumulative_trapezoid(density, x)
    assert float(cdf[-1]) == pytest.approx(1.0, abs=1e-6)
    draws = init(NUM_DRAWS, truth, 1.5, stream(4))[:, 0].double() - 0.7
    assert bool(((draws >= law.low) & (draws <= law.high)).all())
    assert kolmogorov_distance(draws, lambda t: torch.from_numpy(np.interp(t, x[1:], cdf))) < LIMIT
    log_density = density[density > 1e-9 * density.max()].log()
    assert float(log_density.diff().abs().max() / (x[1] - x[0])) < 8 / law.scale


@dataclass(frozen=True, config=STRICT)
class OwnSteps(Langevin):
    def langevin(self, step, x):
        yield from super().langevin(step, x)


class OwnInit(Normal):
    def __call__(self, num, truth, sigma_max, generator):
        return torch.ones(num, truth.dim)


def outwards(x, sigma):
    return 20 * x


NO_LAWS = {
    "noise in the plane": (AnnealedLangevin(step_size=0.1), two_modes_2d(), Prior(), None),
    "three dimensions": (ProbabilityFlow(), GaussianMixture([1.0], [[0.0] * 3]), Prior(), None),
    "an own sampler": (OwnSteps(), two_modes_1d(), Prior(), None),
    "an own init": (ProbabilityFlow(), two_modes_1d(), OwnInit(), None),
    "draws alone": (ProbabilityFlow(), Sampled(two_modes_1d()), Prior(), lambda x, sigma: -x),
    "short steps": (Langevin(step_size=1e-12), two_modes_1d(), Prior(), None),
    "many steps": (Langevin(step_size=1e-6, steps=10**6), two_modes_1d(), Prior(), None),
    "chains that leave": (Langevin(step_size=0.1, steps=40), two_modes_1d(), Prior(), outwards),
    "denoised points": (
        ProbabilityFlow(denoise=True), GaussianMixture([1.0], [[0.0]], stds=0.0), Prior(), None,
    ),
}  # fmt: skip
REASONS = {
    "noise in the plane": "D = 1 alone",
    "three dimensions": "D = 1 and 2",
    "an own sampler": "OwnSteps has steps of its own",
    "an own init": "initial points",
    "draws alone": "where the truth is known",
    "short steps": "so short",
    "many steps": "so many",
    "chains that leave": "leaves any grid",
    "denoised points": "no density",
}


@pytest.mark.parametrize("name", NO_LAWS)
def test_a_law_that_is_not_known_says_why(name):
    sampler, truth, init, score = NO_LAWS[name]
    with pytest.raises(NoLaw, match=REASONS[name]):
        law_of(sampler, truth, init, score=score, log_prob=outwards)


def test_numbers_that_a_law_does_not_give_say_why():
    truth = two_modes_1d()
    flow = ProbabilityFlow(solver="euler")
    # From a box, a flow leaves out a part of the line. Its total variation is known.
    boxed = nats(flow, truth, Uniform(-1.0, 2.0))
    assert (boxed.kl, boxed.reason) == (None, "the chains do not reach all of the target")
    ends = flow(truth.score, torch.tensor([[-1.0], [2.0]]).double(), LEVELS, generator=stream())
    low, high = truth.cdf(ends[:, 0], 0.5).tolist()
    assert 1 - (high - low) <= boxed.tv + boxed.tv_error
    # A step that is too long turns the line over.
    folded = nats(flow, truth, Prior(), score=lambda x, sigma: 20 * truth.score(x, sigma))
    assert folded.tv is None
    assert "determinant <= 0" in folded.reason
    # A target far narrower than any step is between the points.
    narrow = GaussianMixture([1.0], [[0.0037]], stds=1e-7)
    unresolved = nats(ReverseDiffusion(), truth, Prior(), target=narrow.log_prob)
    assert unresolved.reason == "the grid of the law holds 0 of the target's mass instead of 1"
    # Where the chains have no mass that doubles can hold, KL is not known.
    lost = GaussianMixture([0.5, 0.5], [[0.0], [60.0]], stds=0.5)
    stuck = nats(Langevin(step_size=0.05, steps=5), lost, Normal(std=0.5), torch.tensor([0.5]))
    assert stuck.kl is None
    assert "50 % of the target" in stuck.reason
    assert stuck.tv == pytest.approx(0.5, abs=0.1)
