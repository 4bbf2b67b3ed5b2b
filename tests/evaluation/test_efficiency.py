import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.efficiency import data_needed
from ncsn_cli.losses import Implicit
from ncsn_cli.models import MixtureScore


def two_modes(m, weight=0.5):
    return GaussianMixture([weight, 1 - weight], [[-m], [m]], stds=1.0)


@pytest.mark.parametrize(
    ("m", "row"),
    [
        (1.0, [1.66, 1.19, 1.01, 1.05, 1.08]),
        (2.0, [9.42, 2.59, 1.20, 1.04, 1.10]),
        (3.0, [140, 11.7, 2.11, 1.03, 1.03]),
        (4.0, [5540, 118, 5.79, 1.16, 1.01]),
    ],
)
def test_the_data_needed_have_their_known_values(m, row):
    found = [data_needed(two_modes(m), sigma) for sigma in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert found == pytest.approx(row, rel=5e-3)  # they are given with three digits


def by_autograd(m, weight, sigma):
    """The sandwich formula from the loss itself: its derivatives by log w, through the network.

    The noise is averaged by the trapezoid rule and the data by an adaptive one.
    """
    model = MixtureScore(
        1, [weight, 1 - weight], [[-m], [m]], learn_means=False, learn_stds=False
    ).double()
    z = torch.linspace(-8, 8, 641, dtype=torch.float64)
    share = torch.exp(-z * z / 2)
    share = share / share.sum() if sigma > 0 else torch.ones(1).double()
    noise = sigma * z if sigma > 0 else torch.zeros(1).double()
    loss, level = Implicit(), torch.tensor([sigma], dtype=torch.float64)

    def derivatives(x):
        def value(theta):  # w = e^theta/(1 + e^theta)
            logs = torch.stack([torch.nn.functional.logsigmoid(theta),
                                torch.nn.functional.logsigmoid(-theta)])  # fmt: skip

            def score(points, s):
                parameters = {"log_weights": logs}
                return torch.func.functional_call(model, parameters, (points, s))

            points = (x + noise)[:, None]
            draws = loss.draw(points, level * 0, torch.Generator())
            draws = draws._replace(z=draws.z * 0)
            terms = loss.terms(draws, lambda y, s: score(y, level[0]), points, level * 0, None)
            return share @ terms

        theta = torch.tensor(math.log(weight / (1 - weight)), dtype=torch.float64)
        first = torch.func.grad(value)
        return float(first(theta)), float(torch.func.grad(first)(theta))

    def density(x):
        return float(two_modes(m, weight).log_prob(torch.tensor([[x]]).double()).exp())

    def mean(function):
        return quad(lambda x: density(x) * function(x), -m - 9, m + 9, limit=200, epsrel=1e-6)[0]

    def of_likelihood(x):  # d log p/d theta
        terms = [w * math.exp(-((x - c) ** 2) / 2) for w, c in ((weight, -m), (1 - weight, m))]
        return terms[0] / sum(terms) - weight

    spread = mean(lambda x: derivatives(x)[0] ** 2)
    curvature = mean(lambda x: derivatives(x)[1])
    return spread / curvature**2 * mean(lambda x: of_likelihood(x) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "weight", "sigma"),
    [(1.0, 0.5, 0.0), (2.0, 0.5, 0.5), (2.0, 0.2, 1.0), (3.0, 0.5, 2.0)],
)
def test_the_formula_agrees_with_the_derivatives_of_the_loss(m, weight, sigma):
    assert data_needed(two_modes(m, weight), sigma) == pytest.approx(
        by_autograd(m, weight, sigma), rel=1e-4
    )


def test_two_dimensions_are_as_many_as_the_line_through_the_modes():
    # Across the line both components are the same Gaussian, which says nothing of the weights.
    for sigma in (0.0, 1.0):
        stds = [[1.0, 1.0], [1.0, 1.0001]]  # not quite round: on a grid in two dimensions
        turned = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], stds=stds)
        expected = data_needed(two_modes(2.0), sigma)
        assert data_needed(turned, sigma) == pytest.approx(expected, rel=1e-3)


def test_weights_of_far_modes_need_countless_data():
    assert data_needed(two_modes(10.0), 0.0) > 1e20
    assert data_needed(two_modes(10.0), 10.0) < 1.2


def test_what_has_no_answer_is_none():
    one = GaussianMixture([1.0], [[0.0]], stds=1.0)
    points = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], stds=0.0)
    equal = GaussianMixture([0.3, 0.3, 0.4], [[0.0], [0.0], [1.0]], stds=1.0)
    three = GaussianMixture([0.5, 0.5], [[0.0] * 3, [1.0] * 3], stds=[[1.0, 1.0, 2.0]] * 2)
    assert [data_needed(law, 0.0) for law in (one, points, equal, three)] == [None] * 4


def test_modes_that_no_float_joins_need_countless_data():
    assert data_needed(two_modes(38.0), 0.0) == data_needed(two_modes(40.0), 0.0) == 1e300


def test_only_the_line_through_two_modes_matters():
    seven = GaussianMixture([0.5, 0.5], [[-1.0] * 7, [1.0] * 7], stds=1.0)
    for sigma in (0.0, 1.0):
        expected = data_needed(two_modes(math.sqrt(7)), sigma)
        assert data_needed(seven, sigma) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_estimates_scatter_as_foretold(sigma):
    # 400 training sets of 4000 points each; the minimiser is found by Newton's method on counts in
    # bins. The variance of 400 estimates lies within 5 sqrt(2/400) = 35 % (p = 6e-7), and the
    # maximum likelihood's would be 2.6 (9.4) times smaller.
    from benchmarks.why_noise import Counted

    counted, rng = Counted(2.0, sigma), np.random.default_rng(0)
    found = counted.estimates(rng, num=4000, sets=400)
    ratio = 4000 * found.var(ddof=1) * counted.information
    assert ratio == pytest.approx(data_needed(two_modes(2.0), sigma), rel=0.35)
