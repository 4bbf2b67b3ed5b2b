"""Levels fitted to the score: they make the flow's error small, which bounds that of its law."""

import itertools

import pytest
import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.samplers import ProbabilityFlow
from ncsn_cli.sampling.fitted_levels import fit_levels
from ncsn_cli.schedules import Geometric, Karras
from tests.helpers.commands import only_run, read
from tests.helpers.problems import network_2d, stream, two_modes_1d, two_modes_2d

FLOW = ProbabilityFlow()


@pytest.mark.parametrize("solver", ["euler", "heun", "multistep"])
def test_one_level_is_fitted_as_well_as_by_looking_at_all(solver):
    # On N(0, v) the flow multiplies x by ((v + sigma_min^2) / (v + sigma_max^2))^(1/2).
    law, first, last = GaussianMixture([1.0], [[0.0]], stds=0.7), 5.0, 0.2
    sampler, x = ProbabilityFlow(solver=solver), torch.tensor([[3.0], [-7.0]])
    exact = x * ((0.49 + last**2) / (0.49 + first**2)) ** 0.5

    def error(middle):
        sigmas = torch.tensor([first, middle, last], dtype=torch.float64)
        return float((sampler(law.score, x, sigmas, generator=stream()) - exact).abs().mean())

    best = min(error(float(s)) for s in Geometric(first, last, 2001).sigmas[1:-1])
    found = fit_levels(sampler, law.score, x, Geometric(first, last, 3).sigmas)
    assert found.after <= best + 2e-3
    assert found.before == pytest.approx(error(1.0), abs=1e-4)
    assert (float(found.sigmas[0]), float(found.sigmas[2])) == (first, last)


@pytest.mark.parametrize("num", [3, 6, 11, 41])
def test_errors_shrink_and_bound_the_distance_of_the_laws(num):
    law, sigmas = two_modes_1d(), Karras(20.0, 0.3, num).sigmas
    pilots = law.sample(512, sigma=20.0, generator=stream(1))
    found = fit_levels(FLOW, law.score, pilots, sigmas)
    assert len(found.sigmas) == num and bool((found.sigmas.diff() < 0).all())
    assert found.after < found.before / 1.5
    # W1 of coupled samples is at most their mean distance; on other chains that is the same
    # within its scatter, of which 5 standard errors of 512 chains are 5 / 512^(1/2) = .22.
    x = law.sample(5000, sigma=20.0, generator=stream(2))
    exact = FLOW(law.score, x, Karras(20.0, 0.3, 401).sigmas, generator=stream())
    for levels in (sigmas, found.sigmas):
        y = FLOW(law.score, x, levels, generator=stream())
        w1 = float((y.sort(0).values - exact.sort(0).values).abs().mean())
        assert w1 <= float((y - exact).abs().mean()) + 1e-6


def test_a_network_is_fitted_too():
    network = network_2d().requires_grad_(False)
    x = torch.randn(256, 2, generator=stream(1)) * 10
    found = fit_levels(FLOW, network, x, Karras(10.0, 0.1, 6).sigmas)
    assert found.after <= found.before
    assert found.evaluations > 400


def test_nothing_is_fitted_where_there_is_nothing_to_fit():
    law, sigmas = two_modes_2d(), torch.tensor([5.0, 0.5], dtype=torch.float64)
    x = law.sample(64, sigma=5.0, generator=stream(1))
    assert torch.equal(fit_levels(FLOW, law.score, x, sigmas).sigmas, sigmas)
    three = Karras(5.0, 0.5, 3).sigmas
    broken = fit_levels(FLOW, lambda x, sigma: x * torch.nan, x, three)
    assert torch.equal(broken.sigmas, three)


def test_a_run_takes_its_fitted_levels_and_says_so(forked, tmp_path):
    words = [
        "score=exact", "dataset=two_modes_1d", "schedule=karras", "schedule.sigma_max=20",
        "schedule.num_levels=6", "init=prior", "init.quasi_random=true", "num_samples=2000",
        "sampler=probability_flow", "metric=[wasserstein]", "plot=[]",
    ]  # fmt: skip
    reports = {}
    for fits in (True, False):
        folder = tmp_path / str(fits)
        folder.mkdir()
        result = forked.call("sample", [*words, f"sampler.fit_levels={fits}"], folder)
        assert result.returncode == 0, result.stderr
        reports[fits] = read(only_run(folder, "sample") / "metrics.json")
        reports[fits, "said"] = (only_run(folder, "sample") / "sample.log").read_text()
    assert "levels fitted with 512 chains" in reports[True, "said"]
    assert "schedule: fine" in reports[True, "said"]
    fitted = reports[True]["fitted_levels"]
    assert fitted["after"] < fitted["before"] / 3 and "fitted_levels" not in reports[False]
    assert reports[True]["mode_commitment"]["sigmas"] == fitted["sigmas"]
    values = [reports[fits]["perturbed"]["wasserstein"]["value"] for fits in (True, False)]
    assert values[0] < values[1] / 3

    # The levels that the log names give the same samples again, but for their rounding.
    line = next(line for line in reports[True, "said"].splitlines() if "schedule=listed" in line)
    levels = line.partition("'")[2].rstrip("'")
    again = tmp_path / "again"
    again.mkdir()
    named = [w for w in words if not w.startswith("schedule")]
    result = forked.call("sample", [*named, "schedule=listed", levels], again)
    assert result.returncode == 0, result.stderr
    value = read(only_run(again, "sample") / "metrics.json")["perturbed"]["wasserstein"]["value"]
    assert value == pytest.approx(values[0], rel=0.2)


def test_the_first_and_last_levels_stay():
    law = two_modes_2d()
    x = law.sample(128, sigma=7.0, generator=stream(1))
    for num, last in itertools.product((3, 20), (0.01, 1.0)):
        sigmas = fit_levels(FLOW, law.score, x, Karras(7.0, last, num).sigmas).sigmas
        assert (float(sigmas[0]), float(sigmas[-1])) == (7.0, last)
