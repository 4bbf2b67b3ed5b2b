import math

import numpy as np
import pytest
import torch

from ncsn_cli.datasets import Circle, GaussianMixture
from ncsn_cli.evaluation.floors import Floors, noise_floor
from ncsn_cli.evaluation.network import draws_per_level, evaluate_training, fisher_informations
from ncsn_cli.evaluation.samples import evaluate_samples, evaluate_trajectory
from ncsn_cli.losses import (
    Denoising,
    Explicit,
    Implicit,
    ImplicitRegularized,
    Sliced,
    StableTarget,
)
from ncsn_cli.metrics import Moments, Wasserstein
from ncsn_cli.mistakes import SigmaReplaced
from ncsn_cli.schedules import Geometric, Karras
from tests.helpers.problems import correlated_2d, network_2d, stream, two_modes_1d, two_modes_5d

CPU = torch.device("cpu")


def test_no_ratio_where_exact_draws_have_no_distance():
    point = GaussianMixture(weights=[1.0], means=[1.0], stds=0.0)
    metrics = {"wasserstein": Wasserstein(max_points=1)}
    entry = evaluate_samples(torch.zeros(5, 1), point, 0.0, metrics, noise_floor, 0)["wasserstein"]
    assert entry["value"] == pytest.approx(1)
    assert entry["ratio"] is None


def test_distances_along_the_way_find_the_level_that_is_wrong():
    # Exact draws at every level, but moved by 2 at the second.
    dataset, sigmas = two_modes_1d(), (4.0, 2.0, 1.0)
    states = {s: dataset.sample(400, sigma=s, generator=stream(int(s))) for s in sigmas}
    states[2.0] = states[2.0] + 2
    metrics = {"wasserstein": Wasserstein(max_points=1), "moments": Moments()}
    found = evaluate_trajectory(states, dataset, metrics, Floors(), seed=0)
    assert found["sigmas"] == list(sigmas)
    assert found["std"]["true"] == pytest.approx([math.sqrt(4.24 + s**2) for s in sigmas])
    # The kurtosis of these laws is below 3 plus a rare mode's: three times a Gaussian's error.
    assert found["std"]["value"] == pytest.approx(
        found["std"]["true"], rel=3 * 5 / math.sqrt(2 * 400)
    )
    for name, metric in metrics.items():
        entry = found[name]
        # The samples' own mean errs by std/sqrt(400).
        error = 5 * math.sqrt(4.24 + 4) / 20
        assert entry["value"][1] == pytest.approx(2, abs=error)
        for i in (0, 2):
            distance = metric.distance(dataset, sigmas[i], 400)  # of these two no draws are needed
            assert entry["value"][i] == distance(states[sigmas[i]], stream())
            assert entry["floor"][i] == noise_floor(metric, dataset, sigmas[i], 400)["floor"]
            assert entry["ratio"][i] == entry["value"][i] / entry["floor"][i]


def test_one_chain_has_no_standard_deviation():
    dataset, states = two_modes_1d(), {2.0: torch.ones(1, 1), 1.0: torch.zeros(1, 1)}
    found = evaluate_trajectory(states, dataset, {"moments": Moments()}, Floors(), seed=0)
    assert found["std"]["value"] == [None, None]
    assert found["moments"]["value"][1] == pytest.approx(
        math.sqrt(2.4**2 + 4.24 + 1)  # a Gaussian of mean 2.4 and variance 5.24 from a point at 0
    )
    two = {sigma: torch.cat([x, x + 2]) for sigma, x in states.items()}
    found = evaluate_trajectory(two, dataset, {}, Floors(), seed=0)
    assert found["std"]["value"] == pytest.approx([math.sqrt(2)] * 2)  # unbiased: 2 = (1 + 1)/1


LEVELS = {"levels": "all", "weight_power": 2.0}
EVALUATED_LOSSES = [
    Denoising(**LEVELS, noise="fresh"),
    Denoising(levels="continuous", weight_power=2.0, noise="fresh"),
    Explicit(**LEVELS),
    ImplicitRegularized(**LEVELS, regularization=0.1),
    Sliced(**LEVELS, directions="rademacher", variance_reduced=True),
]


@pytest.mark.parametrize("loss", EVALUATED_LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_evaluation_of_a_score_that_is_off_by_a_constant(loss):
    # ||s - s*||^2 is |c|^2 everywhere, so each number but the loss is exact at any draws.
    dataset, c = correlated_2d(), torch.tensor([0.3, -0.4])
    sigmas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = evaluate_training(
        lambda x, sigma: dataset.score(x, sigma) + c, dataset, sigmas, loss, 0, CPU
    )
    # E sigma^2 over the levels, or over log sigma, which is uniform from log .5 to 0.
    mean_square = (1 - 0.25) / (2 * math.log(2)) if loss.levels == "continuous" else 1.25 / 2
    excess = mean_square * 0.25 / 2
    assert found["fisher_divergence_per_level"] == pytest.approx([0.25, 0.25], rel=1e-5)
    assert found["excess_loss"] == pytest.approx(excess, rel=1e-5)
    information = [dataset.fisher_information(s) for s in sigmas.tolist()]
    # E<s, s*>/E||s||^2, as E s* = 0; errors of E||s*||^2 and E s* with 100 000 draws.
    scales = [i / (i + 0.25) for i in information]
    assert found["best_scale_per_level"] == pytest.approx(scales, abs=0.01)
    if isinstance(loss, Explicit):
        assert found["loss"] == pytest.approx(excess, rel=1e-5)
    # A term's variance is of order 1: five standard errors at 200 000 draws.
    error = 5 * 2 / math.sqrt(200_000)
    assert found["loss"] - found.get("penalty", 0.0) == pytest.approx(
        found["loss_floor"] + excess, abs=error
    )
    assert ("penalty" in found) == isinstance(loss, ImplicitRegularized)


@pytest.mark.parametrize("levels", ["all", "continuous"])
def test_the_bound_in_nats_of_a_score_that_is_too_long(levels):
    # s = 1.3 grad log p_sigma on N(0, 1), sigma from 10 to .1. With u = sigma^2 it is
    # E||e||^2 = .09/(1 + u), and half the integral is .045 log(101/1.01) = .20723. The trapezoid
    # rule at 100 levels errs by less than h^2/12, h = 2 log(100)/99.
    dataset, sigmas = GaussianMixture([1.0], [0.0], stds=1.0), Geometric(10.0, 0.1, 100).sigmas

    def score(x, sigma):
        return 1.3 * dataset.score(x, sigma)

    found = evaluate_training(score, dataset, sigmas, Denoising(levels=levels), 0, CPU)
    # Each level's mean of n squares of a Gaussian has the relative error sqrt(2/n).
    error = 5 * math.sqrt(2 / 500_000) + (2 * math.log(100) / 99) ** 2 / 12
    assert found["kl_bound"]["total"] == pytest.approx(0.045 * math.log(100), rel=error)
    assert found["kl_bound"]["visible"] == found["kl_bound"]["total"]  # in 1D all is visible
    assert found["visible_error_per_level"] == found["score_error_per_level"]
    assert found["visible_error_standard_error"] == found["score_error_standard_error"]
    assert found["invisible_error_per_level"] == [0.0] * 100
    # The same relative error at each level, of independent draws: sqrt(2/n) of a mean of n levels.
    spread = found["kl_bound_standard_error"] / found["kl_bound"]["total"]
    assert math.sqrt(2 / 500_000) / 2 < spread < 2 * math.sqrt(2 / 500_000)
    one = evaluate_training(score, dataset, sigmas[:1], Denoising(), 0, CPU)
    assert one["kl_bound"] is None


def turned(field):
    """J times the field, a quarter turn."""
    return torch.stack([-field[:, 1], field[:, 0]], dim=-1)


def test_the_bounds_in_nats_of_an_error_of_which_a_part_does_not_show():
    # e = .3 s* + .4 J s* on N(0, I) in 2D: E||e||^2 = .25 * 2/(1 + u), and 36 % of it is visible.
    # Of 25 levels 20 are split; between these the shares are interpolated.
    num_levels = 25
    dataset = GaussianMixture([1.0], [[0.0, 0.0]], stds=1.0)
    sigmas = Geometric(2.0, 0.5, num_levels).sigmas

    def score(x, sigma):
        true = dataset.score(x, sigma)
        return 1.3 * true + 0.4 * turned(true)

    found = evaluate_training(score, dataset, sigmas, Denoising(), 0, CPU)
    for level in range(num_levels):
        error = found["score_error_per_level"][level]
        assert found["visible_error_per_level"][level] == pytest.approx(0.36 * error, rel=1e-3)
        assert found["invisible_error_per_level"][level] == pytest.approx(0.64 * error, rel=1e-3)
    for name, true in (("visible", 0.09), ("invisible", 0.16)):
        error = found[f"{name}_error_standard_error"]
        assert found[f"{name}_error"] == pytest.approx(true, abs=5 * error)
        assert error < 1e-3 * true
    step = 2 * math.log(4) / (num_levels - 1)
    error = 5 * math.sqrt(1 / 50_000) / math.sqrt(num_levels) + step**2 / 12
    total, visible = (found["kl_bound"][name] for name in ("total", "visible"))
    assert total == pytest.approx(0.25 * math.log(5 / 1.25), rel=error)
    assert visible == pytest.approx(0.36 * total, rel=1e-3)


def test_what_does_not_show_changes_neither_visible_number_of_a_network():
    dataset, network = correlated_2d(), network_2d()
    sigmas = Geometric(2.0, 0.5, 3).sigmas
    before, after = (
        evaluate_training(
            lambda x, s, c=c: network(x, s) + c * turned(dataset.score(x, s)),
            dataset, sigmas, Denoising(), 0, CPU,
        )
        for c in (0.0, 3.0)  # outweighs what the network itself turns
    )  # fmt: skip
    assert after["score_error"] > before["score_error"] + 0.5
    assert after["kl_bound"]["total"] > before["kl_bound"]["total"] + 0.5
    assert after["visible_error"] == pytest.approx(before["visible_error"], rel=1e-3)
    # The bound takes the whole error from draws, whose standard error is known.
    error = 5 * (before["kl_bound_standard_error"] + after["kl_bound_standard_error"])
    assert after["kl_bound"]["visible"] == pytest.approx(before["kl_bound"]["visible"], abs=error)
    assert error < 0.2 * (after["kl_bound"]["total"] - before["kl_bound"]["total"])


@pytest.mark.parametrize(
    "dataset, named",
    [
        (two_modes_5d(), "known for D = 1 and 2 alone"),
        (Circle(2.0, 0.001), "at 1 of 2 levels, because the grid would have more than"),
    ],
)
def test_where_the_visible_error_is_not_known_it_is_null_and_the_log_says_why(
    dataset, named, caplog
):
    sigmas = torch.tensor([1.0, 0.001], dtype=torch.float64)
    with caplog.at_level("INFO"):
        found = evaluate_training(dataset.score, dataset, sigmas, Denoising(), 0, CPU)
    lines = [record.message for record in caplog.records if "visible" in record.message]
    assert len(lines) == 1
    assert named in lines[0]
    assert found["kl_bound"]["total"] is not None
    assert found["kl_bound"]["visible"] is None
    assert found["visible_error"] is found["invisible_error"] is None
    known = found["visible_error_per_level"][0] is not None
    assert known == (dataset.dim == 2)
    assert found["visible_error_per_level"][1] is found["invisible_error_per_level"][1] is None


def test_the_evaluation_asks_a_network_once_a_draw_and_in_parts():
    dataset = GaussianMixture(weights=[1.0], means=[[0.0, 0.0, 0.0]], stds=1.0)
    sizes = []

    def score(x, sigma):
        sizes.append(len(x))
        return dataset.score(x, sigma)

    sigmas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    evaluate_training(score, dataset, sigmas, EVALUATED_LOSSES[0], 0, CPU)
    assert sum(sizes) == 2 * 100_000
    assert max(sizes) <= 4096


@pytest.mark.parametrize(
    ("sigmas", "power", "floor"),
    [
        (Karras(10.0, 0.1, 20, rho=7.0).sigmas, 2.0, 0.2833),
        (Karras(10.0, 0.1, 2, rho=7.0).sigmas, 1.0, 0.9429),
    ],
)
def test_the_loss_of_continuous_levels_is_an_integral_over_log_sigma(sigmas, power, floor):
    # Values found independently; loss and excess of a score that is off by a tenth.
    truth = two_modes_1d()
    loss = Denoising(levels="continuous", weight_power=power, noise="fresh")
    found = evaluate_training(lambda x, s: 1.1 * truth.score(x, s), truth, sigmas, loss, 0, CPU)
    assert found["loss_floor"] == pytest.approx(floor, abs=5e-5)
    assert "loss_floor_standard_error" not in found
    t = np.linspace(0, 1, 401)
    levels = 10.0 * 0.01**t
    information = np.array([truth.fisher_information(s) for s in levels.tolist()])
    excess = np.trapezoid(levels**power / 2 * 0.01 * information, t)
    error = found["excess_loss_standard_error"]
    assert abs(found["excess_loss"] - excess) <= 5 * error + 1e-5
    assert error < 0.05 * excess
    error = math.hypot(error, found["loss_standard_error"])
    assert abs(found["loss"] - found["loss_floor"] - found["excess_loss"]) <= 5 * error


def test_continuous_levels_without_a_range_are_the_one_level():
    truth, sigmas = two_modes_1d(), torch.tensor([0.7], dtype=torch.float64)
    each = (
        Denoising(levels=levels, weight_power=1.7, noise="fresh")
        for levels in ("all", "continuous")
    )
    one, same = (evaluate_training(truth.score, truth, sigmas, loss, 0, CPU) for loss in each)
    assert same["loss_floor"] == pytest.approx(one["loss_floor"], rel=1e-12)
    error = math.hypot(one["loss_standard_error"], same["loss_standard_error"])
    assert abs(same["loss"] - one["loss"]) <= 5 * error


def test_standard_errors_are_those_of_repeated_evaluations():
    # Of 40 evaluations with other draws the standard deviation errs by a ninth: five of those.
    truth, sigmas = two_modes_1d(), torch.tensor([2.0, 0.5], dtype=torch.float64)
    loss = Denoising(levels="all", weight_power=2.0, noise="fresh")
    found = [
        evaluate_training(
            lambda x, s: 1.1 * truth.score(x, s) + 0.3, truth, sigmas, loss, seed, CPU
        )
        for seed in range(40)
    ]
    for name in ("loss", "excess_loss", "score_error"):
        values = np.array([each[name] for each in found])
        error = np.mean([each[f"{name}_standard_error"] for each in found])
        assert values.std(ddof=1) == pytest.approx(error, rel=5 / math.sqrt(2 * 39))


def test_a_mistake_is_measured_against_the_truth():
    # Its own score and Fisher information would give it no error and a floor of -12.97.
    mistake = SigmaReplaced([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], 1.0)
    truth = GaussianMixture([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], 1.0)
    sigmas = Geometric(10.0, 0.1, 20).sigmas
    loss = Denoising(levels="all", weight_power=2.0, noise="fresh")
    found = evaluate_training(mistake.score, mistake, sigmas, loss, 0, CPU)
    assert found["loss_floor"] == pytest.approx(0.5404, abs=5e-5)
    # Near one mode s* = -y/(1 + sigma^2) and s = -y/sigma^2: at sigma = .1 100 times as long.
    assert found["score_error_per_level"][-1] == pytest.approx(100**2, rel=0.01)
    x = truth.sample(100, generator=stream()).double()
    torch.testing.assert_close(mistake.truth.score(x, 0.5), truth.score(x, 0.5))


@pytest.mark.parametrize("truth", [two_modes_1d(), correlated_2d()], ids=["1d", "2d"])
def test_informations_at_many_levels_lie_on_a_curve_through_a_hundred(truth):
    levels = np.geomspace(20, 0.01, 301).tolist()
    found = fisher_informations(truth, levels)
    for sigma, (value, error) in list(zip(levels, found, strict=True))[::30]:
        assert sigma**2 * value == pytest.approx(
            sigma**2 * truth.fisher_information(sigma), abs=2e-5
        )
        assert error == 0


@pytest.mark.parametrize(
    ("num_levels", "num_components", "num"),
    [(1, 2, 100_000), (10, 2, 50_000), (100, 25, 10_000), (2311, 2, 500), (10, 1024, 9765)],
)
def test_the_more_levels_and_components_the_fewer_draws_on_each(num_levels, num_components, num):
    assert draws_per_level(num_levels, num_components) == num


class Tripled(Denoising):
    """A loss with a term of its own: it inherits neither floor nor lambda."""

    def term(self, score, perturbed):
        return 3 * super().term(score, perturbed)


class TripledAndNamed(Tripled):
    def term(self, score, perturbed):
        return super().term(score, perturbed)

    def weight(self, sigma):
        return 3 * sigma**2


@pytest.mark.parametrize(("kind", "excess"), [(Tripled, None), (TripledAndNamed, 0.234375)])
def test_what_a_loss_does_not_state_is_null(kind, excess):
    # ||s - s*||^2 = .25, and the mean of 3 sigma^2/2 over sigma = 1 and .5 is .9375.
    dataset, c = correlated_2d(), torch.tensor([0.3, -0.4])
    sigmas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = evaluate_training(
        lambda x, s: dataset.score(x, s) + c.to(x), dataset, sigmas, kind(), 0, CPU
    )
    assert found["loss_floor"] is None
    assert not [name for name in found if name.startswith("loss_floor_")]
    assert found["excess_loss"] == (None if excess is None else pytest.approx(excess, rel=1e-5))
    assert ("excess_loss_standard_error" in found) == (excess is not None)
    assert found["loss"] > 0
    assert found["score_error"] > 0


def test_the_loss_at_lognormal_levels_is_evaluated_at_each_node():
    law, sigmas = two_modes_1d(), torch.tensor([1.0], dtype=torch.float64)
    loss = Denoising(levels="lognormal", log_std=0.8)
    found = evaluate_training(law.score, law, sigmas, loss, 0, CPU)
    difference = found["loss"] - found["loss_floor"]
    assert abs(difference) < 5 * found["loss_standard_error"]
    assert found["loss_standard_error"] < 0.01 * found["loss_floor"]
    assert found["excess_loss"] < 1e-9


def test_the_variance_of_a_target_without_a_floor_is_estimated():
    # A reference batch of one point leaves denoising's target, -z/sigma.
    law, sigmas = two_modes_1d(), Geometric(2.0, 0.5, 3).sigmas
    stable, plain = (
        evaluate_training(law.score, law, sigmas, loss, 0, CPU)["target_variance_per_level"]
        for loss in (StableTarget(reference=1, levels="lognormal"), Denoising())
    )
    # 100 000 draws of a square that scatters by less than 3 times its mean
    assert stable == pytest.approx(plain, rel=5 * 3 / math.sqrt(100_000))
    found = evaluate_training(law.score, law, sigmas, Implicit(), 0, CPU)
    assert "target_variance_per_level" not in found


def test_the_error_of_a_loss_whose_terms_share_a_batch_is_that_of_repetitions():
    law, sigmas = two_modes_1d(), torch.tensor([3.0], dtype=torch.float64)
    runs = [
        evaluate_training(law.score, law, sigmas, StableTarget(), seed, CPU) for seed in range(30)
    ]
    scatter = np.std([run["loss"] for run in runs], ddof=1)
    said = np.mean([run["loss_standard_error"] for run in runs])
    # The standard deviation of 30 values errs by 1/sqrt(58); unshared it would be 3 times smaller.
    assert scatter == pytest.approx(said, rel=5 / math.sqrt(58))


def test_the_bound_in_nats_ends_with_the_schedule_whatever_the_levels_of_the_loss():
    law, sigmas = two_modes_1d(), Geometric(4.0, 0.5, 4).sigmas

    def score(x, sigma):  # wrong where the schedule has no level
        return law.score(x, sigma) + (sigma > 4.1) * 0.3

    loss = Denoising(levels="lognormal")
    found = evaluate_training(score, law, sigmas, loss, 0, CPU)
    assert found["kl_bound"]["total"] < 1e-9
    assert found["excess_loss"] > 1e-3
