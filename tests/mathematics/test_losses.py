import math

import numpy as np
import pytest
import torch

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.core.score import derivative_along, score_and_jacobian
from ncsn_cli.datasets import Checkerboard, GaussianMixture
from ncsn_cli.losses import (
    ControlVariate,
    Denoising,
    Explicit,
    Implicit,
    ImplicitRegularized,
    Loss,
    Perturbed,
    Sliced,
    StableTarget,
    TargetScore,
)
from ncsn_cli.models import MLP, EnergyMLP
from ncsn_cli.schedules import Geometric, Single
from ncsn_cli.training.excess import excess_loss
from tests.helpers.problems import correlated_2d, stream, two_modes_1d, two_modes_2d
from tests.helpers.slow import slow_but
from tests.helpers.statistics import LIMIT, assert_mean, kolmogorov_distance


def denoising(levels="all", noise="fresh", weight_power=2.0):
    return Denoising(levels=levels, noise=noise, weight_power=weight_power)


def floor(loss, dataset, sigmas):
    return np.mean(
        [loss.floor(s, dataset.dim, dataset.fisher_information(s)) for s in sigmas.tolist()]
    )


def batches(loss, score, dataset, sigmas, num=60, size=2000, device="cpu"):
    """Independent values of the loss."""
    g = stream(4, device)
    sigmas = sigmas.float().to(device)
    with torch.no_grad():
        return [
            float(
                loss(
                    score,
                    dataset.sample(size, generator=g),
                    sigmas,
                    generator=g,
                    true_score=dataset.score,
                )
            )
            for _ in range(num)
        ]


@pytest.mark.parametrize(
    ("dataset", "schedule", "value"),
    [
        (two_modes_1d(), Geometric(2.0, 0.5, 16), 0.290216),
        (two_modes_1d(), Geometric(2.0, 0.5, 6), 0.291409),
        (two_modes_2d(), Geometric(20.0, 0.1, 100), 0.453413),
    ],
)
def test_floor_has_its_known_value(dataset, schedule, value):
    assert floor(denoising(), dataset, schedule.sigmas) == pytest.approx(value, abs=2e-6)


LOSSES = {
    "denoising": lambda levels, power: Denoising(levels=levels, weight_power=power, noise="fresh"),
    "explicit": lambda levels, power: Explicit(levels=levels, weight_power=power),
    "implicit": lambda levels, power: Implicit(levels=levels, weight_power=power),
    "sliced": lambda levels, power: Sliced(
        levels=levels, weight_power=power, directions="gaussian", variance_reduced=False
    ),
    "sliced, reduced": lambda levels, power: Sliced(
        levels=levels, weight_power=power, directions="rademacher", variance_reduced=True
    ),
    "target": lambda levels, power: TargetScore(levels=levels, weight_power=power),
    "control variate": lambda levels, power: ControlVariate(levels=levels, weight_power=power),
}


@pytest.mark.parametrize(
    ("weight_power", "levels"),
    slow_but([(2.0, "all"), (2.0, "random"), (0.0, "all"), (0.0, "random")], 1),
)
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
@pytest.mark.parametrize("name", LOSSES)
def test_the_true_score_meets_the_floor(name, dataset, levels, weight_power, device):
    loss = LOSSES[name](levels, weight_power).for_dataset(dataset)
    sigmas = Geometric(2.0, 0.5, 5).sigmas
    values = batches(loss, dataset.score, dataset, sigmas, device=device)
    assert_mean(values, floor(loss, dataset, sigmas))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "denoising"])
def test_the_true_score_meets_the_floor_of_the_data_itself(name):
    dataset, sigmas = correlated_2d(), Single(sigma=0.0).sigmas
    loss = LOSSES[name]("all", 2.0).for_dataset(dataset)
    values = batches(loss, dataset.score, dataset, sigmas)
    assert_mean(values, floor(loss, dataset, sigmas))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", slow_but(["scale", "shift", "rotation"], 0))
def test_the_slope_along_a_distortion_changes_sign_at_the_truth(name, kind):
    # s_t = s* + t d(x): slopes at t = -.2 and .2, on the same draws, are t E||d||^2 on average.
    dataset, sigmas = correlated_2d(), Geometric(2.0, 0.5, 3).sigmas.float()
    loss = LOSSES[name]("all", 2.0).for_dataset(dataset)

    def distortion(x, sigma):
        true = dataset.score(x, sigma)
        quarter = torch.stack([-true[:, 1], true[:, 0]], dim=-1)
        return {"scale": true, "shift": torch.ones_like(x), "rotation": quarter}[kind]

    def slopes(at):
        g, found = stream(7), []
        for _ in range(40):
            t = torch.tensor(at, requires_grad=True)

            def score(x, sigma, t=t):
                return dataset.score(x, sigma) + t * distortion(x, sigma)

            x = dataset.sample(2000, generator=g)
            value = loss(score, x, sigmas, generator=g, true_score=dataset.score)
            found.append(float(torch.autograd.grad(value, t)[0]))
        return torch.tensor(found)

    for at in (-0.2, 0.2):
        found = slopes(at)
        assert float(found.mean()) * at > 5 * abs(at) * float(found.std()) / math.sqrt(40)


def faulty(kind, term):
    """A loss whose ``term`` is a mistake that implementations made, with the right floor."""
    return type(f"Faulty{kind.__name__}", (kind,), {"term": term, "floor": kind.floor})


def wrong_sign(loss, score, perturbed):
    x, sigma, z, *_ = perturbed
    return (sigma[:, None] * score(x, sigma) - z).square().sum(-1) / 2


def target_over_sigma_squared(loss, score, perturbed):
    x, sigma, z, *_ = perturbed
    return sigma**2 * (score(x, sigma) + z / sigma[:, None] ** 2).square().sum(-1) / 2


def without_the_half(loss, score, perturbed):
    x, sigma, *_ = perturbed
    s, jacobian = score_and_jacobian(score, x, sigma)
    diagonal = jacobian.diagonal(dim1=1, dim2=2)
    return sigma**2 * (s.square().sum(-1) + diagonal.sum(-1))


def trace_over_dimension(loss, score, perturbed):
    x, sigma, *_ = perturbed
    s, jacobian = score_and_jacobian(score, x, sigma)
    diagonal = jacobian.diagonal(dim1=1, dim2=2)
    return sigma**2 * (s.square().sum(-1) / 2 + diagonal.mean(-1))


def unit_norm_direction(loss, score, perturbed):
    x, sigma, _, v, _ = perturbed
    v = v / v.norm(dim=-1, keepdim=True)
    s, along = derivative_along(v, score, x, sigma)
    return sigma**2 * (s.square().sum(-1) / 2 + (v * along).sum(-1))


@pytest.mark.parametrize(
    "loss",
    [
        faulty(Denoising, wrong_sign)(),
        faulty(Denoising, target_over_sigma_squared)(),
        faulty(Implicit, without_the_half)(),
        faulty(Implicit, trace_over_dimension)(),
        faulty(Sliced, unit_norm_direction)(directions="gaussian"),
    ],
    ids=lambda loss: type(loss).term.__name__,
)
def test_a_known_mistake_misses_the_floor(loss):
    # The test above would see each of them: the value at the truth is far from the floor.
    dataset, sigmas = correlated_2d(), Geometric(2.0, 0.5, 5).sigmas
    values = torch.tensor(batches(loss, dataset.score, dataset, sigmas), dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean()) - floor(loss, dataset, sigmas)) > 20 * error


def test_continuous_levels_are_log_uniform():
    loss, seen = denoising("continuous"), []
    x = torch.zeros(72_544, 1)
    sigmas = torch.tensor([2.0, 1.0, 0.5])
    loss(lambda x, s: seen.append(s) or x, x, sigmas, generator=stream(8))
    assert kolmogorov_distance(seen[0].log(), lambda t: (t - math.log(0.5)) / math.log(4)) < LIMIT


def test_the_regularised_minimum_is_not_the_score():
    # On two_modes_1d with .1, by quadrature: -.3833 at the exact score, -.4022 at .82 times it.
    dataset = two_modes_1d()
    loss = ImplicitRegularized()
    for scale, expected in ((1.0, -0.3833), (0.82, -0.4022)):
        values = batches(loss, lambda x, s, c=scale: c * dataset.score(x, s), dataset,
                         Single(sigma=0.0).sigmas, num=100)  # fmt: skip
        values = torch.tensor(values)
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 10 + 5e-5
    # Along c s* the loss is c^2 (I/2 + .1 E[s'^2]) - c I: smallest at c = I/(I + .2 E[s'^2]).
    penalty = (-0.3833 + 0.489386) / 0.1
    best = 0.978773 / (0.978773 + 0.2 * penalty)
    slopes, g = [], stream(12)
    for _ in range(100):
        c = torch.tensor(best, requires_grad=True)
        value = loss(lambda x, s, c=c: c * dataset.score(x, s), dataset.sample(2000, generator=g),
                     torch.zeros(1), generator=g)  # fmt: skip
        slopes.append(float(torch.autograd.grad(value, c)[0]))
    assert_mean(slopes, 0.0)
    assert best == pytest.approx(0.82, abs=0.005)
    assert loss.without_penalty.floor(0.0, 1, 0.978773) == pytest.approx(-0.489386, abs=1e-6)
    plain = batches(loss.without_penalty, dataset.score, dataset, Single(sigma=0.0).sigmas)
    assert_mean(plain, -0.489386)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_the_weights(name):
    # Central differences of the loss in one weight, in float64 on the same draws.
    dataset, sigmas = correlated_2d(), Geometric(2.0, 0.5, 3).sigmas
    for network in (
        MLP(2, hidden=[8], activation="tanh", conditional=True).double(),
        EnergyMLP(2, 1.5, 4, [8], "tanh").double(),
    ):
        weight = next(p for p in network.parameters() if p.ndim == 2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=stream(9)).double()
        x = dataset.sample(50, generator=stream(10)).double()

        def value(network=network, x=x):
            return LOSSES[name]("all", 2.0).for_dataset(dataset)(
                network, x, sigmas, generator=stream(11), true_score=dataset.score
            )

        (gradient,) = torch.autograd.grad(value(), weight)
        with torch.no_grad():
            weight[0, 0] += 1e-5
            ahead = value()
            weight[0, 0] -= 2e-5
            slope = (ahead - value()) / 2e-5
        assert float(gradient[0, 0]) == pytest.approx(float(slope), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dataset", slow_but([two_modes_1d(), correlated_2d()], 0))
@pytest.mark.parametrize("name", LOSSES)
def test_any_score_exceeds_the_floor_by_its_weighted_fisher_divergence(name, dataset):
    loss = LOSSES[name]("all", 2.0).for_dataset(dataset)
    sigmas = Geometric(2.0, 0.5, 5).sigmas
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(dataset.dim, hidden=[16], activation="tanh", conditional=True)
    measured = excess_loss(dataset, sigmas, loss, 5, torch.device("cpu"), 400_000)
    excess = measured(network)  # its error is below 0.5 %
    values = np.array(batches(loss, network, dataset, sigmas, num=200))
    error = 6 * values.std() / math.sqrt(len(values)) + 0.005 * excess
    assert abs(values.mean() - floor(loss, dataset, sigmas) - excess) < error


def test_fixed_noise_is_drawn_once_for_each_point_and_level():
    dataset, sigmas = two_modes_1d(num_samples=50), Geometric(2.0, 0.5, 3).sigmas.float()
    data = dataset.training_set()
    assert denoising().fixed_noise(data, sigmas, stream()) is None
    for levels in ("all", "random"):
        loss = denoising(levels, noise="fixed")
        noise = loss.fixed_noise(data, sigmas, stream(6))
        assert noise.shape == (50, 3, 1)
        values = {
            float(loss(dataset.score, data, sigmas, generator=stream(k), noise=noise))
            for k in range(3)
        }
        assert len(values) == (1 if levels == "all" else 3)


def test_noise_at_each_level_is_the_one_given():
    # With s = 0 the loss is E||z||^2/2 for weight_power = 2: any mix-up of rows would show.
    loss, sigmas = denoising(noise="fixed"), torch.tensor([2.0, 1.0])
    z = torch.arange(6.0).reshape(3, 2, 1)
    value = loss(lambda x, s: 0 * x, torch.zeros(3, 1), sigmas, generator=stream(), noise=z)
    assert float(value) == pytest.approx(float(z.square().mean() / 2))
    seen = []
    loss(
        lambda x, s: seen.append((x, s)) or x,
        torch.zeros(3, 1),
        sigmas,
        generator=stream(),
        noise=z,
    )
    x_noisy, sigma = seen[0]
    torch.testing.assert_close(x_noisy[:, 0], sigma * z.flatten())


def test_sigma_zero_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        denoising().check(torch.tensor([1.0, 0.0]))
    with pytest.raises(ConfigError, match="above 0"):
        Implicit(levels="continuous").check(torch.tensor([1.0, 0.0]))
    with pytest.raises(ConfigError, match=r"loss\.noise"):
        denoising("continuous", noise="fixed").check(torch.tensor([1.0, 0.5]))


class Replaced(Denoising):
    def term(self, score, perturbed):
        return 3 * super().term(score, perturbed)


class Named(Denoising):
    """Three times the loss, and it says so."""

    def term(self, score, perturbed):
        return 3 * super().term(score, perturbed)

    def weight(self, sigma):
        return 3 * sigma**2


class Floored(Denoising):
    floor = Denoising.floor

    def term(self, score, perturbed):
        return super().term(score, perturbed)


class Mixin:
    def term(self, score, perturbed):
        return perturbed.sigma


class Mixed(Mixin, Explicit):
    pass


class FewerDraws(Sliced):
    def draw(self, x, sigmas, generator, noise=None):
        return super().draw(x, sigmas, generator, noise)


class Renamed(Implicit):
    def __init__(self, levels="random"):
        super().__init__(levels=levels)


class Below(Replaced):
    pass


@pytest.mark.parametrize(
    ("kind", "has_floor", "has_weight"),
    [
        (Denoising, True, True),
        (ImplicitRegularized, True, True),
        (Renamed, True, True),
        (Replaced, False, False),
        (Below, False, False),
        (Named, False, True),
        (Floored, True, False),
        (Mixed, False, False),
        (FewerDraws, False, False),
    ],
)
def test_floor_and_weight_belong_to_the_term_that_they_were_stated_for(
    kind, has_floor, has_weight
):
    loss = kind()
    assert (loss.floor(0.5, 2, 1.0) is not None, loss.weight(0.5) is not None) == (
        has_floor,
        has_weight,
    )
    law, sigmas = correlated_2d(), torch.tensor([0.5])
    found = excess_loss(law, sigmas, loss, 0, torch.device("cpu"))
    assert (found is not None) == has_weight


class Own(Loss):
    """It calls no other ``__init__``, and sets what is a field of this package's losses."""

    def __init__(self, levels, weight_power=1.0):
        self.levels, self.weight_power = levels, weight_power

    def term(self, score, perturbed):
        residual = score(perturbed.x, perturbed.sigma) + perturbed.z / perturbed.sigma[:, None]
        return self.weights(perturbed.sigma) * residual.square().sum(-1) / 2


@pytest.mark.parametrize("most_kept", [0, 10**6])
def test_the_excess_along_the_way_is_from_the_same_draws_each_time(most_kept, monkeypatch):
    monkeypatch.setattr("ncsn_cli.training.excess._MOST_KEPT", most_kept)
    law, sigmas, cpu = correlated_2d(), Geometric(2.0, 0.5, 3).sigmas.float(), torch.device("cpu")
    measured = excess_loss(law, sigmas, Denoising(levels="all", weight_power=1.0), 3, cpu, 5000)

    def wrong(x, sigma):
        return 1.2 * law.score(x, sigma)

    def worse(x, sigma):
        return 1.4 * law.score(x, sigma)

    assert measured(law.score) < 1e-10
    expected = sum(
        sigma * 0.2**2 * float(law.fisher(sigma).matrix.trace()) / 2 / 3
        for sigma in sigmas.tolist()
    )
    first = measured(wrong)
    assert measured(worse) == pytest.approx(4 * first, rel=1e-4)
    assert measured(wrong) == first == pytest.approx(expected, rel=0.05)  # its sd is .012


@pytest.mark.parametrize("levels", ["all", "random", "continuous"])
def test_a_loss_of_ones_own_is_the_same_number(levels):
    dataset, sigmas = correlated_2d(), Geometric(2.0, 0.5, 3).sigmas.float()
    x = dataset.sample(100, generator=stream())
    ours, own = Denoising(levels=levels, weight_power=1.0), Own(levels)
    for loss in (ours, own):
        loss.check(sigmas)
    values = [float(loss(dataset.score, x, sigmas, generator=stream(1))) for loss in (ours, own)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert Renamed().levels == "random"


SONG_ERMON_2D = GaussianMixture(weights=[0.8, 0.2], means=[[5, 5], [-5, -5]], stds=1.0)


def test_variances_of_the_targets_have_their_known_values():
    # By quadrature of I(p_sigma) on a grid; the mix is least by design.
    levels = [0.1, 1.0, 3.0, 10.0]
    known = {
        Denoising: ([1.980, 1.000, 0.334, 0.244], 5e-4),
        TargetScore: ([0.0002, 1.000, 16.33, 198.24], 0.005),
        ControlVariate: ([2e-8, 8.8e-6, 0.1337, 0.2242], 5e-5),
    }
    for kind, (expected, tolerance) in known.items():
        loss = kind().for_dataset(SONG_ERMON_2D)
        found = [loss.target_variance(s, 2, SONG_ERMON_2D.fisher_information(s)) for s in levels]
        assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("kind", [Denoising, TargetScore, ControlVariate])
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_the_mean_square_of_target_minus_score_is_the_variance(kind, dataset, device):
    loss, num = kind().for_dataset(dataset), 40_000
    for sigma in (0.1, 1.0, 4.0):
        g, level = stream(2, device), torch.tensor([sigma], device=device)
        x = dataset.sample(num, generator=g)
        drawn = loss.perturbed(loss.draw(x, level, g), x, level, dataset.score)
        error = loss.target(drawn) - dataset.score(drawn.x, drawn.sigma)
        expected = loss.target_variance(sigma, dataset.dim, dataset.fisher_information(sigma))
        assert_mean(sigma**2 * error.square().sum(-1), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TargetScore, ControlVariate])
def test_gradients_are_unbiased_on_fresh_data(kind):
    # 100 weights and 2 networks and 2 laws: 400 comparisons with the gradient of the explicit
    # loss. Of 400 right ones at 99 %, more than 10 lie outside with probability .003.
    outside = compared = 0
    for seed, dataset in enumerate([correlated_2d(), SONG_ERMON_2D] * 2):
        loss, sigmas = kind().for_dataset(dataset), Geometric(4.0, 0.3, 4).sigmas.float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MLP(2, hidden=[20], activation="tanh")  # 3 * 20 + 20 + 2 * 20 + 2 weights
        generators, rows = [stream(seed), stream(50 + seed)], []
        for _ in range(300):
            row = []
            for each, g in zip((loss, Explicit()), generators, strict=True):
                x = dataset.sample(500, generator=g)
                value = each(network, x, sigmas, generator=g, true_score=dataset.score)
                gradients = torch.autograd.grad(value, list(network.parameters()))
                row.append(torch.cat([part.flatten() for part in gradients])[:100])
            rows.append(torch.stack(row))
        values = torch.stack(rows).double()  # (repeats, 2, weights)
        errors = (values.var(0) / len(rows)).sum(0).sqrt()
        difference = values.mean(0).diff(dim=0)[0] / errors
        outside += int((difference.abs() > 2.576).sum())
        compared += len(difference)
    assert compared == 400
    assert outside <= 10


def test_the_mix_of_targets_is_the_best_one():
    # Any other alpha has a larger variance: both targets as they are, and 10 % beside the best.
    dataset, sigma = correlated_2d(), 0.7
    information, least = dataset.fisher_information(0.0), dataset.fisher_information(sigma)
    best = ControlVariate().for_dataset(dataset).target_variance(sigma, 2, least)
    alpha = (2 / sigma**2) / (information + 2 / sigma**2)
    for other in (0.0, 1.0, 0.9 * alpha, min(1.0, 1.1 * alpha)):
        variance = other**2 * information + (1 - other) ** 2 * 2 / sigma**2 - least
        assert variance * sigma**2 > best
    assert best == pytest.approx(
        sigma**2 * (alpha**2 * information + (1 - alpha) ** 2 * 2 / sigma**2 - least)
    )


@pytest.mark.parametrize("kind", [TargetScore, ControlVariate])
@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (Checkerboard(), "the density jumps"),
        (GaussianMixture(weights=[0.5, 0.5], means=[-1.0, 1.0], stds=[1.0, 0.0]), "is a point"),
    ],
)
def test_without_a_clean_score_these_losses_are_refused(kind, dataset, reason):
    with pytest.raises(ConfigError, match=f"(?s)loss: .*choose another loss.*{reason}"):
        kind().for_dataset(dataset)
    with pytest.raises(ConfigError, match="for_dataset"):
        kind().floor(1.0, 1, 0.5)


def perturbed_by(batch, x, sigma):
    sigmas = torch.full((len(x),), sigma, dtype=x.dtype)
    return Perturbed(x, sigmas, torch.zeros_like(x), batch, None)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_stable_target_is_the_score_of_the_smoothed_reference_batch(copies):
    batch = two_modes_2d().sample(10, generator=stream()).double()
    x = batch.repeat_interleave(copies, 0) + torch.randn(10 * copies, 2, generator=stream(1))
    for reference, rows in ((10, [(0, 10)]), (100, [(0, 10)]), (4, [(0, 4), (4, 8), (6, 10)])):
        found = StableTarget(reference=reference).target(perturbed_by(batch, x, 0.8))
        parts = []
        for number, (first, last) in enumerate(rows):
            points = GaussianMixture(
                [1 / (last - first)] * (last - first), batch[first:last].tolist(), stds=0.0
            )
            start = number * reference * copies
            parts.append(points.score(x[start : start + reference * copies], 0.8))
        torch.testing.assert_close(found, torch.cat(parts))


def test_the_mean_of_the_stable_target_is_the_score():
    # E<f(x), target - score> = 0 for three functions f, though a batch has four points alone. The
    # functions tell: for the mean over the three other points each is 20 standard errors from 0.
    dataset, sigma, num = two_modes_1d(), torch.tensor([1.0]), 4
    loss, g = StableTarget(reference=num), stream(3)
    x = dataset.sample(num * 40_000, generator=g)
    drawn = loss.perturbed(loss.draw(x, sigma, g), x, sigma, None)
    score = dataset.score(drawn.x, drawn.sigma)
    points, batches_of = drawn.x.view(-1, num, 1), x.view(-1, 1, num)
    square = (points - batches_of) ** 2 + 1e9 * torch.eye(num)
    others = ((-square / 2).softmax(-1) * batches_of).sum(-1).view(-1, 1) - drawn.x
    for function in (torch.ones_like, torch.cos, dataset.score):
        values = function(drawn.x)
        right, wrong = ((values * (t - score)).double() for t in (loss.target(drawn), others))
        right, wrong = (each.view(-1, num).mean(1) for each in (right, wrong))  # independent
        assert_mean(right, 0.0)
        assert abs(float(wrong.mean())) > 20 * float(wrong.std()) / math.sqrt(len(wrong))
    assert loss.floor(1.0, 1, 0.5) is None
    with pytest.raises(ConfigError, match="above 0"):
        loss.check(torch.tensor([1.0, 0.0]))


def test_lognormal_levels_are_normal_in_the_logarithm():
    loss, dataset = Denoising(levels="lognormal", log_mean=0.5, log_std=0.7), two_modes_1d()
    x, seen = dataset.sample(80_000, generator=stream()), []
    loss(lambda y, s: seen.append(s) or 0 * y, x, torch.tensor([9.0]), generator=stream(1))
    standard = (seen[0].double().log() - 0.5) / 0.7
    assert kolmogorov_distance(standard, torch.special.ndtr) < LIMIT


@pytest.mark.parametrize("log_std", [1.2, 2.0])
def test_the_quadrature_reaches_the_levels_where_the_clean_target_is_worst(log_std):
    # For N(0, 1), E sigma^2/2 (1 - 1/(1 + sigma^2)), by another rule with more nodes.
    law = GaussianMixture([1.0], [0.0], stds=1.0)
    loss = TargetScore(levels="lognormal", log_std=log_std).for_dataset(law)
    levels, weights = loss.quadrature(torch.tensor([1.0]))
    floors = [loss.floor(s, 1, 1 / (1 + s**2)) for s in levels]
    t = np.linspace(-12, 12, 20_001)
    square = np.exp(2 * (-1.2 + log_std * t))
    density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    expected = float((density * square * square / (1 + square) / 2).sum() * 24 / 20_000)
    assert np.dot(weights, floors) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight_power", [2.0, 1.0, 4.0])
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()])
def test_the_floor_of_lognormal_levels_is_the_loss_of_the_true_score(dataset, weight_power):
    loss = Denoising(levels="lognormal", weight_power=weight_power, log_std=0.8)
    levels, weights = loss.quadrature(torch.tensor([1.0]))
    assert sum(weights) == pytest.approx(1)
    assert levels == sorted(levels, reverse=True)
    floors = [loss.floor(s, dataset.dim, dataset.fisher_information(s)) for s in levels]
    expected = sum(w * f for w, f in zip(weights, floors, strict=True))
    values = batches(loss, dataset.score, dataset, torch.tensor([1.0]), num=200)
    assert_mean(values, expected)


def test_the_quadrature_of_lognormal_levels_is_exact_for_powers():
    # E sigma^p = exp(p m + p^2 s^2/2) for a lognormal sigma.
    for power in (-1.0, 0.0, 2.0, 3.0):
        loss = Denoising(levels="lognormal", weight_power=2 + power, log_mean=-0.3, log_std=0.9)
        levels, weights = loss.quadrature(torch.tensor([1.0]))
        mean = sum(w * s**power for w, s in zip(weights, levels, strict=True))
        assert mean == pytest.approx(math.exp(-0.3 * power + power**2 * 0.81 / 2), rel=1e-6)


def test_lognormal_levels_that_no_float_holds_are_refused():
    with pytest.raises(ConfigError, match=r"loss\.log_mean"):
        Denoising(levels="lognormal", log_mean=35.0).check(torch.tensor([1.0]))
    with pytest.raises(ConfigError, match=r"loss\.noise"):
        Denoising(levels="lognormal", noise="fixed").check(torch.tensor([1.0]))
