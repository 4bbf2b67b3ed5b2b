"""Samplers of other libraries and the user's own functions, against ours on the same levels."""

import sys
import types
from itertools import pairwise

import numpy as np
import pytest
import torch

from ncsn_cli.commands.build import build_from_checkpoint
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.samplers import (
    Azula,
    ConsistentAnnealed,
    Diffusers,
    External,
    ProbabilityFlow,
    ReverseDiffusion,
    plan_of,
)
from ncsn_cli.sampling.recording import Recording
from ncsn_cli.schedules import Karras
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.sampling import sampling
from tests.helpers.statistics import assert_variance

LEVELS = Karras(10.0, 0.5, 9).sigmas


def samples(sampler, dataset, sigmas=LEVELS, num=500, seed=4):
    x = dataset.sample(num, sigma=float(sigmas[0]), generator=stream(3))
    return sampler(dataset.score, x, sigmas, generator=stream(seed))


@pytest.mark.parametrize(
    ("foreign", "solver"),
    [
        (Diffusers(name="DDIMScheduler"), "euler"),
        (Diffusers(name="EulerDiscreteScheduler"), "euler"),
        (Diffusers(name="HeunDiscreteScheduler"), "heun"),
        (Azula(name="EulerSampler"), "euler"),
        (Azula(name="DDIMSampler"), "euler"),
        (Azula(name="HeunSampler"), "heun"),
    ],
)
@pytest.mark.parametrize("denoise", [False, True])
def test_the_same_method_gives_the_same_points(foreign, solver, denoise):
    # Variance preserving or exploding, in steps of sigma: one and the same map. Their levels are
    # float32, which is 1e-7 of products of ten factors, of points up to 30.
    dataset = two_modes_2d()
    foreign = type(foreign)(name=foreign.name, denoise=denoise)
    ours = samples(ProbabilityFlow(solver=solver, denoise=denoise), dataset)
    torch.testing.assert_close(samples(foreign, dataset), ours, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_ancestral_sampling_has_its_variance(name):
    # On N(0, 1) each step is linear, so the variance of ancestral sampling is known.
    law, variance = GaussianMixture([1.0], [[0.0]], stds=1.0), 1 + float(LEVELS[0]) ** 2
    for sigma, after in pairwise(LEVELS.tolist()):
        keep = (after / sigma) ** 2
        factor = 1 - (1 - keep) * sigma**2 / (1 + sigma**2)
        variance = factor**2 * variance + after**2 * (1 - keep)
    for sampler in (Diffusers(name=name), ConsistentAnnealed()):
        assert_variance(samples(sampler, law, num=100_000)[:, 0], variance)


@pytest.mark.parametrize(
    "foreign",
    [
        Diffusers(name="UniPCMultistepScheduler"),
        Diffusers(name="DPMSolverMultistepScheduler", settings={"solver_order": 3}),
        Diffusers(name="DEISMultistepScheduler"),
        Diffusers(name="KDPM2DiscreteScheduler"),
        Diffusers(name="LMSDiscreteScheduler"),
        Diffusers(name="PNDMScheduler", settings={"skip_prk_steps": True}),
        Azula(name="xEABSampler"),
        Azula(name="zABSampler", settings={"order": 3}),
    ],
)
def test_flows_end_at_the_same_points(foreign):
    # 200 steps of order 2: the flow's own points to some 1e-3.
    dataset, sigmas = correlated_2d(), Karras(10.0, 0.5, 201).sigmas
    exact = samples(ProbabilityFlow(), dataset, Karras(10.0, 0.5, 1001).sigmas)
    assert float((samples(foreign, dataset, sigmas) - exact).abs().max()) < 0.02


def test_levels_between_ours_do_not_matter_to_a_method_that_reads_its_own():
    once, finer = (
        samples(Diffusers(name="EulerDiscreteScheduler", timesteps_per_level=k), two_modes_2d())
        for k in (1, 7)
    )
    torch.testing.assert_close(once, finer, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "foreign", [Diffusers(name="DDPMScheduler"), Diffusers(name="DPMSolverSDEScheduler"),
                Azula(name="DDPMSampler"), Azula(name="PCSampler")]
)  # fmt: skip
def test_noise_comes_from_the_stream_alone(foreign):
    state = torch.random.get_rng_state()
    first, again, other = (samples(foreign, two_modes_1d(), seed=s) for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        (Diffusers(name="UniPC"), "sampler.name: UniPC should be a scheduler"),
        (Diffusers(name="FlowMatchEulerDiscreteScheduler"), "takes levels"),
        (Diffusers(name="IPNDMScheduler"), "predicts noise"),
        (Diffusers(settings={"solver_ordr": 3}), "sampler.settings: UniPC.*solver_ordr"),
        (Azula(name="Sampling"), "sampler.name: Sampling should be a sampler of azula"),
        (Azula(name="EulerSampler", settings={"order": 3}), "sampler.settings: EulerSampler"),
        (External(), "sampler.target: name your function"),
        (External(target="mine"), "sampler.target: name your function"),
        (External(target="nowhere.at_all"), "No module named 'nowhere'"),
        (External(target="math.nothing"), "has no attribute 'nothing'"),
        (External(target="math.cos"), "should be a function of"),
    ],
)
def test_what_cannot_run_is_refused_by_the_plan(foreign, reason):
    with pytest.raises(ConfigError, match=reason):
        plan_of(foreign, LEVELS)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"diffusers cannot be .*pip install 'ncsn_cli\[referee"):
        plan_of(Diffusers(), LEVELS)


def test_a_single_level_is_refused():
    with pytest.raises(ConfigError, match="two levels or more"):
        plan_of(External(target="mine.sampler"), torch.tensor([0.5]))


@pytest.fixture
def mine(monkeypatch):
    """A module of the user's own, with samplers in numpy."""
    module = types.ModuleType("mine")

    def diffusion(score, x, sigmas, rng):
        for sigma, after in pairwise(sigmas):
            change = sigma**2 - after**2
            x = x + change * score(x, sigma) + np.sqrt(change) * rng.standard_normal(x.shape)
        return x

    def euler(score, x, sigmas, rng):
        for sigma, after in pairwise(sigmas):
            x = x - (after - sigma) * sigma * score(x, np.full(len(x), sigma))
        return x

    module.diffusion, module.euler = diffusion, euler
    module.breaks = lambda score, x, sigmas, rng: 1 / 0
    module.one_axis = lambda score, x, sigmas, rng: x[:, 0]
    module.words = lambda score, x, sigmas, rng: "samples"
    monkeypatch.setitem(sys.modules, "mine", module)


def test_a_function_in_numpy_gives_the_same_points(mine):
    own = samples(External(target="mine.euler"), two_modes_2d())
    ours = samples(ProbabilityFlow(solver="euler"), two_modes_2d())
    torch.testing.assert_close(own, ours, atol=1e-4, rtol=0)


def test_a_function_draws_from_its_stream(mine):
    law, own = GaussianMixture([1.0], [[0.0]], stds=1.0), External(target="mine.diffusion")
    first, again, other = (samples(own, law, seed=s, num=50_000) for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # On N(0, 1) the variance of reverse diffusion is known.
    variance = 1 + float(LEVELS[0]) ** 2
    for sigma, after in pairwise(LEVELS.tolist()):
        change = sigma**2 - after**2
        variance = (1 - change / (1 + sigma**2)) ** 2 * variance + change
    for x in (first, samples(ReverseDiffusion(), law, num=50_000)):
        assert_variance(x[:, 0], variance)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("breaks", "mine.breaks failed: ZeroDivisionError"),
        ("one_axis", r"should return an array \(500, 2\), as it gets, but returned \(500,\)"),
        ("words", "mine.words failed: ValueError"),
    ],
)
def test_what_a_function_gets_wrong_is_named(mine, name, reason):
    with pytest.raises(ConfigError, match=reason):
        samples(External(target=f"mine.{name}"), two_modes_2d())


def test_a_checkpoint_may_name_no_function(mine):
    settings = {"_target_": "ncsn_cli.samplers.External", "target": "mine.euler"}
    with pytest.raises(ConfigError, match=r"sampler\.target: a checkpoint may name no function"):
        build_from_checkpoint(settings, "sampler", [])
    with pytest.raises(ConfigError, match="a checkpoint may name no function"):
        build_from_checkpoint(settings, "sampler", ["min"])
    assert build_from_checkpoint(settings, "sampler", ["mine"]).target == "mine.euler"


def test_nothing_is_known_between_the_first_level_and_the_last(mine):
    foreign, sigmas = External(target="mine.euler"), LEVELS
    plan = plan_of(foreign, sigmas)
    assert [level.sigma for level in plan] == sigmas.tolist()
    recording = Recording(foreign, plan, 1, 30, 30, 4, keep_by_level=True)
    assert recording.last == 1
    chains = sampling(foreign, num_levels=6).run()
    assert [*chains.by_level] == pytest.approx([10.0, 0.1])
    torch.testing.assert_close(chains.by_level[chains.mode_commitment["sigmas"][0]], chains.init)
    has_moved = (chains.init < 0) != (chains.samples < 0)  # from one mode's side to the other's
    assert bool(has_moved.any())
    settled = torch.from_numpy(chains.settled_sigma)
    torch.testing.assert_close(settled[has_moved[:, 0]].unique(), torch.tensor([0.1]).double())
    torch.testing.assert_close(settled[~has_moved[:, 0]].unique(), torch.tensor([10.0]).double())
