"""The parts of a sampler's error in nats, against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.inits import Normal, Prior
from ncsn_cli.samplers import Langevin, ProbabilityFlow, ReverseDiffusion, plan_of
from ncsn_cli.sampling.nats import split_nats
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import Karras, Single
from tests.helpers.problems import two_modes_2d, two_modes_5d

ONE = GaussianMixture([1.0], [0.0], stds=1.0)


def nats_of(truth: Dataset, sampler, sigmas, init=None, score=None):
    device, plan = torch.device("cpu"), plan_of(sampler, sigmas)
    start = (init or Prior()).law(truth, float(sigmas[0]))
    setup = Setup(
        sampler,
        plan,
        score or truth.score,
        None,
        lambda num, stream, first: None,
        truth,
        0,
        device,
    )
    return split_nats(setup, (truth.score, truth.log_prob), start, is_exact=score is None)


def between(variance):
    """KL(N(0, 1) || N(0, variance))."""
    return (math.log(variance) + 1 / variance - 1) / 2


def test_the_parts_of_gaussian_data_have_closed_forms():
    # Every step is linear, so that all variances are known. The score is 1.2 times the true one.
    sigmas = Karras(10.0, 0.5, 12).sigmas
    found = nats_of(
        ONE, ReverseDiffusion(), sigmas, Normal(std=3.0), lambda x, s: 1.2 * ONE.score(x, s)
    )

    def ends_at(variance, factor):
        for s, lower in pairwise(sigmas.tolist()):
            change = s**2 - lower**2
            variance = (1 - factor * change / (1 + s**2)) ** 2 * variance + change
        return variance

    ideal = [1 + 0.5**2, ends_at(1 + 10.0**2, 1.0), ends_at(9.0, 1.0), ends_at(9.0, 1.2)]
    kls = [0.0, *map(between, ideal)]
    parts = [each["value"] for each in found["parts"].values()]
    assert list(found["parts"]) == ["smallest_level", "steps", "start", "network"]
    assert parts == pytest.approx([b - a for a, b in pairwise(kls)], abs=1e-5)
    assert found["value"] == pytest.approx(kls[-1], abs=1e-5)
    assert (found["target"], found["reason"]) == ("p", "")
    assert max(each["error"] for each in found["parts"].values()) < 1e-4


def test_total_variation_is_that_of_two_gaussians():
    # N(0, 1) and N(0, v) cross at x^2 = v log v/(v - 1).
    sigmas = Single(1.0).sigmas
    found = nats_of(ONE, Langevin(step_size=0.05, steps=200), sigmas)
    variance = 2 / (1 - 0.05 / 2 / 2)  # stationary, of the steps at sigma = 1
    x = torch.tensor(
        math.sqrt(variance * math.log(variance) / (variance - 1)), dtype=torch.float64
    )
    tv = 2 * float(torch.special.ndtr(x) - torch.special.ndtr(x / math.sqrt(variance)))
    assert found["total_variation"] == pytest.approx(tv, abs=1e-4)
    assert found["best_classifier_accuracy"] == pytest.approx(0.5 + tv / 2, abs=1e-4)
    assert list(found["parts"]) == ["smallest_level", "steps", "start"]


def test_without_a_density_the_smallest_level_is_the_target():
    points = GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=0.0)
    found = nats_of(points, ProbabilityFlow(), Karras(10.0, 0.3, 60).sigmas)
    assert found["target"] == "p at the smallest level"
    assert list(found["parts"]) == ["steps", "start"]
    assert found["parts"]["steps"]["value"] == pytest.approx(0, abs=1e-3)


def test_what_is_not_known_says_why():
    found = nats_of(two_modes_2d(), Langevin(), Single(0.1).sigmas)
    assert list(found["parts"]) == ["smallest_level"]
    assert (found["value"], found["reason"]) == (
        None, "of steps with noise, the law is computed for D = 1 alone",
    )  # fmt: skip
    found = nats_of(two_modes_5d(), ProbabilityFlow(), Karras(10.0, 0.3, 20).sigmas)
    assert (found["parts"], found["reason"]) == ({}, "laws are computed for D = 1 and 2")
    narrow = GaussianMixture([0.5, 0.5], [[-5.0, 0.0], [5.0, 0.0]], stds=0.001)
    found = nats_of(narrow, ProbabilityFlow(), Karras(10.0, 0.1, 20).sigmas)
    assert (found["parts"], found["reason"]) == ({}, "p is too narrow for a grid")
