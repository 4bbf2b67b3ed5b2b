"""Samplers of other libraries and the user's own functions, against ours on the same levels."""

import sys
import types
from itertools import pairwise

import numpy as np
import pytest
import torch

from ncsn_cli.commands.build import build_from_checkpoint
from ncsn_cli.commands.contract import try_sampler
from ncsn_cli.core.errors import ConfigError, DivergedError
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
from ncsn_cli.sampling.tile import Tile
from ncsn_cli.schedules import Karras
from tests.helpers.commands import only_run, read
from tests.helpers.problems import correlated_2d, network_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.sampling import assert_same, sampling
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
        (Diffusers(name="LCMScheduler"), "predicts noise"),
        (Diffusers(name="DPMSolverMultistepInverseScheduler"), "predicts noise"),
        (Diffusers(settings={"prediction_type": "v_prediction"}), "settings.prediction_type: nc"),
        (Diffusers(settings={"final_sigmas_type": "zero"}), "settings.final_sigmas_type: ncsn"),
        (Azula(name="Sampling"), "sampler.name: Sampling should be a sampler of azula"),
        (Azula(name="heun"), "heun should be a sampler of azula.sample, such as HeunSampler"),
        (Diffusers(name="DPMSolverMultistep"), "such as DPMSolverMultistepScheduler"),
        (Azula(name="Sampler"), "sampler.name: Sampler should be a sampler of azula"),
        (Azula(name="EulerSampler", settings={"order": 3}), "sampler.settings: EulerSampler"),
        (Azula(settings={"stop": 0.5}), "sampler.settings.stop: ncsn_cli sets this key itself"),
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


@pytest.mark.parametrize(
    "foreign",
    [
        Diffusers(name="DDIMScheduler", settings={"thresholding": True}),
        Azula(settings={"order": "x"}),
    ],
)
def test_what_a_library_raises_names_the_sampler(foreign):
    with pytest.raises(ConfigError, match=rf"sampler.name: {foreign.name} failed: "):
        samples(foreign, two_modes_2d())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler"])
def test_the_unit_of_the_data_does_not_matter(name, scale):
    # A law and its levels in other units: the same points, but for float32 (1e-7 a number, of
    # which about ten a step are multiplied, in nine steps).
    def points(scale):
        law = GaussianMixture([0.3, 0.7], [[-4.0 * scale], [3.0 * scale]], stds=scale)
        x = two_modes_1d().sample(200, sigma=10.0, generator=stream(3)) * scale
        return Diffusers(name=name)(law.score, x, LEVELS * scale, generator=stream(4)) / scale

    torch.testing.assert_close(points(scale), points(1.0), atol=2e-3, rtol=0)


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
    module.nothing = lambda score, x, sigmas, rng: None
    module.infinite = lambda score, x, sigmas, rng: np.where(x > x.mean(), np.inf, x)
    module.words = lambda score, x, sigmas, rng: "samples"
    module.complex_numbers = lambda score, x, sigmas, rng: x + 1j
    module.column_of_levels = lambda score, x, sigmas, rng: score(x, np.full((len(x), 1), 1.0))
    module.backwards = lambda score, x, sigmas, rng: score(x[::-1], sigmas[::-1][0])[::-1]
    module.elsewhere = np.copy
    for own in (diffusion, euler):
        own.__module__ = "mine"
    monkeypatch.setitem(sys.modules, "mine", module)


def test_a_function_in_numpy_gives_the_same_points(mine):
    own = samples(External(target="mine.euler"), two_modes_2d())
    ours = samples(ProbabilityFlow(solver="euler"), two_modes_2d())
    torch.testing.assert_close(own, ours, atol=1e-4, rtol=0)


def test_a_function_may_hand_over_views_and_a_network_have_gradients(mine):
    own = samples(External(target="mine.backwards"), two_modes_2d())
    x = two_modes_2d().sample(500, sigma=float(LEVELS[0]), generator=stream(3))
    torch.testing.assert_close(own, two_modes_2d().score(x, LEVELS[-1]), atol=1e-5, rtol=1e-4)
    network, x = network_2d(), torch.ones(3, 2)
    with torch.enable_grad():
        External(target="mine.euler")(network, x, LEVELS, generator=stream(4))


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("kind", [External, Diffusers])
def test_a_stopped_run_starts_its_unfinished_chains_again(kind, denoise, mine):
    named = {"target": "mine.diffusion"} if kind is External else {"name": "DDPMScheduler"}
    whole = sampling(kind(denoise=denoise, **named), num=40)
    expected = whole.run()
    stopped = sampling(kind(denoise=denoise, **named), num=40)
    saved = stopped._to_save({0: run_to_first_mark(stopped)})
    again = sampling(kind(denoise=denoise, **named), num=40)
    assert_same(again.run(saved=saved), expected)


def run_to_first_mark(stopped):
    """The point from which the first tile would resume, as soon as it has started."""
    return Tile(stopped._setup, stopped._recording, 0, None)._resume_point


def test_a_function_works_in_data_units(mine, forked, tmp_path):
    # song_ermon_2d has its mean at (3, 3); cut at 8, points near the modes are as before.
    (tmp_path / "cutting.py").write_text(
        "import numpy as np\n"
        "def flow(score, x, sigmas, rng):\n"
        "    for a, b in zip(sigmas[:-1], sigmas[1:]):\n"
        "        x = x - (b - a) * a * score(x, a)\n"
        "    assert len(x) < 100 or abs(x.mean() - 3) < 1, x.mean()\n"  # a few points are a trial
        "    return np.clip(x, -9, 9)\n"
    )
    words = [
        "score=exact", "dataset=song_ermon_2d", "schedule=karras", "schedule.sigma_max=20",
        "schedule.num_levels=60", "init=prior", "sampler=external", "sampler.target=cutting.flow",
        "num_samples=1280", "plot=[]", "metric=[mode_weights]",
    ]  # fmt: skip
    result = forked.call("sample", words, tmp_path)
    assert result.returncode == 0, result.stderr
    entry = read(only_run(tmp_path, "sample") / "metrics.json")["perturbed"]["mode_weights"]
    assert entry["verdict"] != "wrong"


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
        ("nothing", "mine.nothing failed: ValueError: it returned None; end it with 'return x'"),
        ("words", "mine.words failed: TypeError"),
        ("complex_numbers", "mine.complex_numbers failed"),
        ("column_of_levels", r"one sigma, or one for each of the 500 points, got .*\(500, 1\)"),
    ],
)
def test_what_a_function_gets_wrong_is_named(mine, name, reason):
    with pytest.raises(ConfigError, match=reason):
        samples(External(target=f"mine.{name}"), two_modes_2d())


def test_points_that_are_not_finite_are_counted(mine):
    with pytest.raises(
        DivergedError, match=r"mine\.infinite returned \d+ of 500 points that are no"
    ):
        samples(External(target="mine.infinite"), two_modes_2d())


def test_a_trial_says_how_many_points_it_had(mine):
    foreign = External(target="mine.one_axis")
    with pytest.raises(ConfigError, match=r"\(in a trial with 3 points on 5 levels\)"):
        try_sampler(foreign, plan_of(foreign, LEVELS), 2)


def test_a_checkpoint_may_name_no_function(mine):
    settings = {"_target_": "ncsn_cli.samplers.External", "target": "mine.euler"}
    with pytest.raises(ConfigError, match=r"sampler\.target: a checkpoint may name no function"):
        build_from_checkpoint(settings, "sampler", [])
    for plugins, target in (
        (["min"], "mine.euler"), (["mine"], "mine.elsewhere"), (["mine"], "mine._euler"),
        (["mine", "shutil"], "shutil.move.nothing"), ([""], None), ([], "ncsn_cli.datasets.ring"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="a checkpoint may name no function"):
            build_from_checkpoint({**settings, "target": target}, "sampler", plugins)
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
