import math

import pytest
import torch
from scipy.stats import binom

from ncsn_cli.datasets import Checkerboard, Denoised, GaussianMixture, Sampled
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.metrics import Memorisation
from ncsn_cli.schedules import Geometric
from ncsn_cli.training.history import COLUMNS, MEMORISING, history_csv, read_history
from ncsn_cli.training.memorising import Memorising, memorising, times
from tests.helpers.problems import stream, two_modes_1d, two_modes_2d
from tests.helpers.training import start

CPU = torch.device("cpu")
SIGMAS = Geometric(2.0, 0.2, 4).sigmas


def share(samples, law):
    return Memorisation().distance(law, 0.0, len(samples))(samples, stream())


def test_the_share_is_that_of_samples_far_nearer_to_one_training_point():
    class Two(GaussianMixture):
        def training_set(self, generator=None):
            return torch.tensor([[0.0], [1.0]])

    law = Two([1.0], [[0.0]], num_samples=2)
    # Ratios of the distances: 0, 1/9, .32, .35 and 1.
    samples = torch.tensor([[0.0], [0.1], [0.2424], [0.26], [0.5]])
    assert share(samples, law) == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [
        (two_modes_1d(num_samples=1000), 0.326, 0.338),
        (two_modes_2d(num_samples=1000), 0.105, 0.115),
        (Checkerboard(num_samples=4000), 0.106, 0.116),
    ],
)
def test_the_floor_is_about_a_third_to_the_power_of_the_dimension(law, low, high):
    assert low < noise_floor(Memorisation(), law, 0.0, 5000)["floor"] < high


@pytest.mark.slow
def test_the_band_of_exact_sets_is_wider_than_that_of_their_draws():
    # 400 exact sets, each with a training set of its own: at most 1 % of them, and 5 standard
    # errors, lie outside. The draws alone would scatter by the binomial law, whose band is
    # narrower: with it 400 sets would lie outside far more often.
    law = two_modes_1d(num_samples=200)
    floor = noise_floor(Memorisation(), law, 0.0, 4000)
    low, high = floor["floor_quantiles"]
    g, found = stream(5), []
    for _ in range(400):
        x = law.sample(4000, generator=g)
        found.append(Memorisation().floor_distance(law, 0.0, 4000)(x, g))
    outside = sum(not low <= value <= high for value in found)
    assert outside <= 400 * (0.01 + 5 * math.sqrt(0.01 * 0.99 * (1 / 400 + 1 / 200)))
    narrow = [limit / 4000 for limit in binom.interval(0.99, 4000, floor["floor"])]
    assert sum(not narrow[0] <= value <= narrow[1] for value in found) > 40


def test_endless_data_are_not_memorised_and_copies_are():
    endless = two_modes_2d()
    metrics = {"memorisation": Memorisation()}
    samples = endless.sample(1000, generator=stream())
    entry = evaluate_samples(samples, endless, 0.0, metrics, noise_floor, 0)["memorisation"]
    assert (entry["value"], entry["floor"], entry["verdict"]) == (0.0, 0.0, None)
    law = two_modes_2d(num_samples=50)
    data = law.training_set()
    copies = data.repeat(20, 1) + 1e-4 * torch.randn(1000, 2, generator=stream(1))
    entry = evaluate_samples(copies, law, 0.0, metrics, noise_floor, 0)["memorisation"]
    assert entry["value"] == 1.0
    assert entry["verdict"] == "wrong"
    fresh = law.sample(1000, generator=stream(9))
    entry = evaluate_samples(fresh, law, 0.0, metrics, noise_floor, 0)["memorisation"]
    assert entry["verdict"] == "as good as exact draws"


def test_a_denoised_law_and_one_known_by_its_draws_have_training_sets():
    law = two_modes_2d(num_samples=30)
    assert torch.equal(Denoised(law).training_set(), law.training_set())
    another = law.training_set(stream(3))
    assert another.shape == (30, 2)
    assert not torch.equal(another, law.training_set())
    draws = Sampled(two_modes_2d(), num_samples=30)
    assert noise_floor(Memorisation(), draws, 0.0, 500)["floor"] == pytest.approx(1 / 9, abs=0.05)


def test_distances_are_those_from_the_true_and_the_empirical_score():
    law = two_modes_1d(num_samples=40)
    data = law.training_set()
    points = GaussianMixture([1 / 40] * 40, data.tolist(), stds=0.0)
    measured = Memorising(law, data, SIGMAS, 1000, 0, CPU)
    true = measured.distances(law.score)
    empirical = measured.distances(points.score)
    assert true["true_distance"] < 1e-9
    assert true["true_distance_seen"] < 1e-9
    assert empirical["empirical_distance_seen"] < 1e-9
    # The distance between both scores, by quadrature over p_sigma, and over the smoothed points.
    x = torch.linspace(-15, 15, 30_001).double()[:, None]
    fresh = seen = 0.0
    for sigma in SIGMAS.tolist():
        square = (law.score(x, sigma) - points.score(x, sigma)).square()[:, 0]
        fresh += float(sigma**2 * (law.log_prob(x, sigma).exp() @ square)) * 1e-3 / 4
        seen += float(sigma**2 * (points.log_prob(x, sigma).exp() @ square)) * 1e-3 / 4
    # Means of 4 x 1000 draws, whose squares scatter by less than 4 times their mean.
    assert empirical["true_distance"] == pytest.approx(fresh, rel=5 * 4 / math.sqrt(4000))
    assert empirical["true_distance_seen"] == pytest.approx(seen, rel=5 * 4 / math.sqrt(4000))
    assert true["empirical_distance_seen"] == pytest.approx(empirical["true_distance_seen"])


def rows_of(true, seen, empirical):
    values = zip(true, seen, empirical, strict=True)
    return [
        {"step": 10 * i, **dict(zip(MEMORISING, each, strict=True))}
        for i, each in enumerate(values, start=1)
    ]


def test_times_are_the_first_steps_of_generalising_and_memorising():
    rows = rows_of([4.0, 1.9, 1.0, 1.5], [3.0, 1.0, 0.9, 0.9], [5.0, 2.0, 1.0, 0.8])
    assert times(rows) == {"tau_gen": 20, "tau_mem": 40}
    assert times(rows[:3]) == {"tau_gen": 20, "tau_mem": None}
    assert times([{"step": 1, "loss": 0.3}]) == {}
    assert times([dict.fromkeys(MEMORISING), *rows]) == times(rows)
    assert times([{"step": 5, "excess_loss": 1.0}, *rows]) == {}  # an earlier version's


def test_what_is_not_known_is_not_measured(caplog):
    caplog.set_level("INFO")
    assert memorising(two_modes_1d(), SIGMAS, 0, CPU) is None
    assert memorising(Sampled(two_modes_1d(), num_samples=9), SIGMAS, 0, CPU) is None
    assert memorising(two_modes_1d(num_samples=9), torch.tensor([1.0, 0.0]), 0, CPU) is None
    assert memorising(two_modes_1d(num_samples=10**6), SIGMAS, 0, CPU) is None
    assert caplog.text.count("not measured") == 1
    assert memorising(two_modes_1d(num_samples=9), SIGMAS, 0, CPU) is not None


def test_the_history_holds_the_distances_at_each_evaluation(tmp_path, device):
    training, path = start(device=device), tmp_path / "history.csv"
    rows = [training.row(training.advance(), None, 0.1, is_evaluated=step == 1) for step in (0, 1)]
    path.write_bytes(history_csv(rows))
    assert path.read_text().splitlines()[0] == ",".join([*COLUMNS, *MEMORISING])
    assert read_history(path) == rows
    assert [row["true_distance"] is None for row in rows] == [True, False]
    score, truth = training.score, training.dataset
    sigmas = training.sigmas.double().cpu()
    expected = memorising(truth, sigmas, training.seed, training.device).distances(score)
    assert {name: rows[1][name] for name in MEMORISING} == expected
    before = [{name: rows[0][name] for name in COLUMNS}]
    assert history_csv([*before, rows[1]]).startswith(",".join(COLUMNS).encode() + b"\n")
