"""A fault that is planted in one part of a run is that part of its error budget."""

import functools

import pytest
import torch

from ncsn_cli.commands.score import empirical_score
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.floors import noise_floor
from ncsn_cli.evaluation.parts import PARTS, in_words, part_names
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.evaluation.verdict import of_samples
from ncsn_cli.inits import Data, Normal, Prior
from ncsn_cli.metrics import ModeWeights, Moments, Wasserstein, Width
from ncsn_cli.samplers import Langevin, ProbabilityFlow, ReverseDiffusion, plan_of
from ncsn_cli.sampling.budget import Budget
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import Karras, Single
from tests.helpers.problems import two_modes_1d, two_modes_2d

TRUTH = two_modes_1d()
METRICS = {"mode_weights": ModeWeights(), "width": Width(), "moments": Moments()}
LEVELS = Karras(20.0, 0.05, 40).sigmas
floor = functools.cache(noise_floor)


def shrunk(x, sigma):
    return 0.7 * TRUTH.score(x, sigma)


def budget_of(
    sampler=None, *, sigmas=LEVELS, score=None, init=None, num=1280, seed=0, truth=TRUTH,
    empirical=None, metrics=METRICS,
):  # fmt: skip
    """Run the chains, and split their error."""
    init, sampler = init or Prior(), sampler or ProbabilityFlow()
    plan, sigma_max = plan_of(sampler, sigmas), float(sigmas[0])

    def start(num, generator, first):
        return init(num, truth, sigma_max, generator)

    device = torch.device("cpu")
    setup = Setup(sampler, plan, score or truth.score, None, start, truth, seed, device)
    samples = Sampling(setup, num, num_paths=0, keep_by_level=False).run().samples
    clean = evaluate_samples(samples, truth, 0.0, metrics, floor, seed)
    budget = Budget(
        setup,
        (truth.score, truth.log_prob),
        start=init.law(truth, sigma_max),
        has_exact_start=isinstance(init, Data),
        score_name=None if score is None else "network",
        empirical=empirical,
        workers=1,
    )
    return budget.split(samples, metrics, clean), clean


def firsts(budget):
    return {found["first"] for found in budget["metrics"].values()}


def test_the_parts_add_up_to_the_error():
    budget, clean = budget_of(score=shrunk, init=Normal(std=20.0), metrics=METRICS)
    for name, found in budget["metrics"].items():
        assert list(found["parts"]) == list(PARTS)
        total = found["exact_draws"] + sum(part["value"] for part in found["parts"].values())
        assert total == pytest.approx(clean[name]["value"], rel=1e-9)
    shares = budget["metrics"]["mode_weights"]["shares"]
    assert list(shares) == list(PARTS)
    assert sum(map(sum, shares.values())) == pytest.approx(0, abs=1e-6)  # of floats


def test_nothing_is_first_where_nothing_is_wrong():
    budget, _ = budget_of()
    assert firsts(budget) == {None}
    assert in_words(budget, "moments") == "error budget: all within noise"


@pytest.mark.parametrize(
    ("part", "metric", "planted"),
    [
        ("smallest_level", "width", {"sigmas": Karras(20.0, 1.0, 40).sigmas}),
        ("steps", "width", {"sampler": ReverseDiffusion(),
                            "sigmas": Karras(20.0, 0.05, 6).sigmas}),
        # Around 0 instead of around the data, whose mean is 2.4.
        ("start", "mode_weights", {"sigmas": Karras(6.0, 0.05, 40).sigmas,
                                   "init": Normal(std=6.0)}),
        ("network", "width", {"score": shrunk}),
        ("start", "mode_weights", {"sampler": Langevin(step_size=0.02, steps=400),
                                   "sigmas": Single(0.1).sigmas, "init": Normal(std=1.0)}),
    ],
)  # fmt: skip
def test_a_fault_is_first(part, metric, planted):
    budget, _ = budget_of(**planted)
    found = budget["metrics"][metric]
    assert found["first"] == part
    words = in_words(budget, metric)
    assert words.startswith(f"cause: the {part.replace('_', ' ')} ({metric.replace('_', ' ')} +")


def test_a_metric_that_cannot_err_does_not_hide_a_fault():
    # With one mode, the mode weights of any samples are right.
    budget, clean = budget_of(init=Normal(std=90.0), truth=GaussianMixture([1.0], [1.0], stds=1.0))
    assert budget["metrics"]["mode_weights"]["first"] is None
    (sentence,) = of_samples({"budget": budget, "clean": clean, "perturbed": clean}).sentences
    assert sentence.startswith("cause: the start (")


def test_the_metric_with_a_part_beyond_its_noise_is_named():
    def entry(value):
        return {"value": value, "floor_quantiles": [0.0, 1.0], "ratio": 2 * value}

    def found(standard_error):
        part = {"value": 5.0, "standard_error": standard_error}
        first = None if standard_error > 2 else "start"
        return {"visible_above": 1.0, "exact_draws": 0.5, "parts": {"start": part}, "first": first}

    names, clean = part_names(None), {"width": entry(9.0), "moments": entry(6.0)}
    for error, words in ((1.0, "cause: the start (moments"), (4.0, "error budget: no part alone")):
        metrics = {"width": found(4.0), "moments": found(error)}
        report = {"budget": {"parts": names, "metrics": metrics}, "clean": clean}
        (sentence,) = of_samples({**report, "perturbed": clean}).sentences
        assert sentence.startswith(words)


def test_hybrids_share_their_random_numbers():
    # The exact score in place of the network changes nothing, to the last bit.
    budget, _ = budget_of(ReverseDiffusion(), score=lambda x, sigma: TRUTH.score(x, sigma))
    for found in budget["metrics"].values():
        assert found["parts"]["network"] == {"value": 0, "standard_error": 0}


@pytest.mark.parametrize("sampler", [ProbabilityFlow(), ReverseDiffusion()])
def test_starts_share_their_noise_and_that_of_the_chains(sampler):
    # Beside sigma_max = 1000 the data are small, so that prior and exact start are the same z. The
    # flow remembers its start, the diffusion forgets it.
    budget, _ = budget_of(sampler, sigmas=Karras(1000.0, 0.05, 40).sigmas)
    parts = budget["metrics"]["moments"]["parts"]
    assert parts["start"]["standard_error"] < 0.2 * parts["steps"]["standard_error"]


def test_an_exact_start_has_no_part():
    budget, _ = budget_of(init=Data())
    assert budget["metrics"]["width"]["parts"]["start"] == {"value": 0, "standard_error": 0}
    assert list(budget["parts"]) == ["smallest_level", "steps", "start"]


@pytest.mark.slow
def test_denoised_samples_have_the_denoised_law():
    # N(0, 1) denoised has the variance 1/(1 + sigma^2): for the exact score and many steps this
    # narrower law is the smallest level's part, and no other.
    truth, sampler = GaussianMixture([1.0], [0.0], stds=1.0), ProbabilityFlow(denoise=True)
    sigmas, metrics = Karras(20.0, 2.0, 40).sigmas, {"width": Width()}
    budget, _ = budget_of(sampler, truth=truth, sigmas=sigmas, metrics=metrics)
    parts = budget["metrics"]["width"]["parts"]
    # The standard deviation of 1280 draws errs by 2 %: five of these.
    assert parts["smallest_level"]["value"] == pytest.approx(1 - 5**-0.5, abs=0.1)
    for part in ("steps", "start"):
        assert abs(parts[part]["value"]) < 5 * parts[part]["standard_error"]


@pytest.mark.slow
def test_standard_errors_are_those_of_repeated_runs():
    # Each error comes from 10 parts and errs by a quarter; the mean of 30 by a twentieth. The
    # scatter of 30 runs errs by 13 %. Five of these together: a factor of 2 either way.
    metrics = {"moments": Moments(), "wasserstein": Wasserstein()}
    found = [
        budget_of(ReverseDiffusion(), sigmas=LEVELS[::4], num=500, seed=s, metrics=metrics)[0]
        for s in range(30)
    ]
    for metric in metrics:
        parts = [each["metrics"][metric]["parts"] for each in found]
        for part in ("smallest_level", "steps", "start"):
            values = torch.tensor([each[part]["value"] for each in parts])
            errors = torch.tensor([each[part]["standard_error"] for each in parts])
            assert 0.5 < float(errors.square().mean().sqrt() / values.std()) < 2


def test_a_network_that_memorises_is_named_finite_data():
    truth = two_modes_2d(num_samples=20)
    score, _ = empirical_score(truth, torch.zeros(2))
    empirical = score, truth.training_set()
    sigmas = Karras(20.0, 0.03, 30).sigmas
    budget, _ = budget_of(sigmas=sigmas, score=score, truth=truth, empirical=empirical)
    assert budget["parts"]["network"] == "finite data"
    assert in_words(budget, "width").startswith("cause: finite data (width +")
    assert budget["distance_to_empirical_score"] < 1e-6 * budget["distance_to_true_score"]
    for found in budget["metrics"].values():
        # The chain with the empirical score is the run's own.
        assert found["finite_data"]["value"] == pytest.approx(found["parts"]["network"]["value"])
    # With the true score it is not.
    exact, _ = budget_of(sigmas=sigmas, score=lambda x, s: truth.score(x, s), truth=truth,
                         empirical=empirical)  # fmt: skip
    assert exact["parts"]["network"] == "network"


def test_chains_that_diverge_with_the_exact_score_are_named():
    sampler = Langevin(step_size=3.0, steps=1000)
    samples = torch.zeros(50, 1)
    sigmas = Single(0.1).sigmas
    setup = Setup(
        sampler, plan_of(sampler, sigmas), lambda x, s: 0 * x, None,
        lambda num, generator, first: torch.zeros(num, 1), TRUTH, 0, torch.device("cpu"),
    )  # fmt: skip
    budget = Budget(setup, (TRUTH.score, TRUTH.log_prob), None, False, "network", None, 1)
    clean = evaluate_samples(samples, TRUTH, 0.0, METRICS, floor, 0)
    found = budget.split(samples, METRICS, clean)
    assert (found["diverged"], found["metrics"]) == ("steps", {})
    assert in_words(found, None).startswith("cause: the steps (with the exact score, ")


def test_few_samples_have_no_standard_error():
    budget, _ = budget_of(num=15)
    assert budget["metrics"]["width"]["parts"]["steps"]["standard_error"] is None


@pytest.mark.slow
def test_only_as_many_chains_as_take_seconds(monkeypatch):
    monkeypatch.setattr("ncsn_cli.sampling.budget._MOST_TERMS", 1)
    budget, _ = budget_of(num=2000)
    assert budget["num_samples"] == 1280
