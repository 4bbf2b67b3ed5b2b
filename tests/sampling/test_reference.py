"""A fault that is planted in one part of a run is found in that part."""

from dataclasses import replace

import pytest
import torch
from pydantic.dataclasses import dataclass

from ncsn_cli.core.settings import STRICT
from ncsn_cli.datasets import Sampled
from ncsn_cli.evaluation.floors import Floors, noise_floor
from ncsn_cli.evaluation.samples import against_truth
from ncsn_cli.inits import Normal, Prior
from ncsn_cli.metrics import ModeWeights, Moments, Width
from ncsn_cli.samplers import Langevin, ProbabilityFlow, plan_of
from ncsn_cli.sampling.reference import Reference
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import Karras, Single
from tests.helpers.problems import stream, two_modes_1d

TRUTH = two_modes_1d()
METRICS = {"mode_weights": ModeWeights(), "width": Width()}
FLOW = ProbabilityFlow()


@dataclass(frozen=True, config=STRICT)
class TwiceTheNoise(Langevin):
    """x + tau score + sqrt(4 tau) z, whose variance is twice the truth's."""

    def langevin(self, step, x):
        def half(x, sigma):
            return step.score(x, sigma) / 2

        return super().langevin(replace(step, score=half, tau=2 * step.tau), x)


def setup(sampler=FLOW, *, sigmas, score=TRUTH.score, init=None):
    init = init or Prior()

    def start(num, generator, first):
        return init(num, TRUTH, float(sigmas[0]), generator)

    plan = plan_of(sampler, sigmas)
    return Setup(sampler, plan, score, None, start, TRUTH, 0, torch.device("cpu"))


def causes(planted, sigmas, score_name=None):
    samples = Sampling(planted, 1280, num_paths=0, keep_by_level=False).run().samples
    sigma = planted.plan[-1].sigma
    report = against_truth(samples, TRUTH, sigma, METRICS, Floors(), 0)
    exact = (TRUTH.score, TRUTH.log_prob)
    reference = Reference(planted, sigmas, TRUTH, METRICS, noise_floor, score_name, exact)
    return reference.causes(samples, report)


def test_nothing_is_named_where_nothing_is_wrong():
    sigmas = Karras(20.0, 0.1, 40).sigmas
    assert causes(setup(sigmas=sigmas), sigmas) == []


def test_the_start():
    # Around 0 instead of around the data, whose mean is 2.4.
    sigmas = Karras(6.0, 0.1, 40).sigmas
    (cause,) = causes(setup(sigmas=sigmas, init=Normal(std=6.0)), sigmas)
    assert cause.startswith("the start (from exact draws of p_sigma_max, ")


def test_a_check_that_takes_long_is_not_made_and_says_so(monkeypatch):
    monkeypatch.setattr("ncsn_cli.sampling.reference._MOST_TERMS", 0)
    sigmas = Karras(6.0, 0.1, 40).sigmas
    assert causes(setup(sigmas=sigmas, init=Normal(std=6.0)), sigmas) == [
        "not looked for: it would take too long (budget=true splits the error)"
    ]


@pytest.mark.parametrize("name", [None, "network"])
def test_the_sampler(name):
    sigmas, sampler = Single(0.5).sigmas, TwiceTheNoise(step_size=0.1, steps=300)
    found = causes(setup(sampler, sigmas=sigmas), sigmas, name)
    assert found[0].startswith("the sampler (with exact score and start, ")


def test_the_network():
    sigmas = Karras(20.0, 0.1, 40).sigmas

    def shrunk(x, sigma):
        return 0.7 * TRUTH.score(x, sigma)

    (cause,) = causes(setup(sigmas=sigmas, score=shrunk), sigmas, "network")
    assert cause.startswith("the network (with the exact score, ")


def test_the_smallest_level():
    sigmas = Karras(20.0, 1.0, 40).sigmas
    (cause,) = causes(setup(sigmas=sigmas), sigmas)
    assert cause.startswith("sigma_min = 1 (it makes the modes 1.4")  # sqrt(2), and leakage


def test_a_score_that_is_not_known_tells_nothing():
    sigmas = Karras(20.0, 0.1, 40).sigmas
    planted = setup(sigmas=sigmas, score=lambda x, sigma: 0 * x)
    samples = Sampling(planted, 300, num_paths=0, keep_by_level=False).run().samples
    report = against_truth(samples, TRUTH, 0.1, METRICS, Floors(), 0)
    reference = Reference(planted, sigmas, TRUTH, METRICS, noise_floor, "network", None)
    assert reference.causes(samples, report) == ["these numbers do not tell"]


def test_the_flow_beside_langevin_dynamics():
    sigmas = Karras(20.0, 0.1, 100).sigmas
    annealed = replace(setup(sigmas=sigmas), sampler=Langevin(step_size=0.01, steps=30))
    reference = Reference(annealed, sigmas, TRUTH, METRICS, noise_floor, None, None)
    found = reference.flow(1000, 3000)
    assert (found["levels"], found["score_evaluations"]) == (20, 19)
    assert found["metrics"]["mode_weights"]["ratio"] < 3
    assert reference.flow(1000, 20) is None
    # The flow ends at sigma_min, wherever the run's own plan ends.
    other = replace(annealed, plan=annealed.plan[::-1])
    same = replace(reference, setup=other).flow(1000, 3000)
    assert same["metrics"]["mode_weights"] == found["metrics"]["mode_weights"]
    assert (
        Reference(setup(sigmas=sigmas), sigmas, TRUTH, METRICS, noise_floor, None, None).flow(
            1000, 3000
        )
        is None
    )


class Draws:
    """A Gaussian of which nothing but draws is known."""

    def sample(self, num, generator):
        return 0.3 * torch.randn(num, 1, generator=generator)


def test_the_smallest_level_of_a_law_known_by_draws():
    # Exact draws of p_sigma, sigma as large as the data's std: as good, and wrong against p.
    truth, sigmas = Sampled(Draws()), Karras(5.0, 0.3, 10).sigmas
    samples = truth.sample(2000, sigma=0.3, generator=stream())
    metrics = {"moments": Moments()}
    report = against_truth(samples, truth, 0.3, metrics, Floors(), 0)
    planted = replace(setup(sigmas=sigmas), truth=truth)
    reference = Reference(planted, sigmas, truth, metrics, noise_floor, "network", None)
    assert reference.causes(samples, report) == ["sigma_min = 0.3"]
