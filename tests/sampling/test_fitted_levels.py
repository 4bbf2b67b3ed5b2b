"""Levels fitted to the score: they make the flow's error small, which bounds that of its law."""

import itertools
import math

import pytest
import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.samplers import ProbabilityFlow
from ncsn_cli.sampling.fitted_levels import PILOTS, fit_levels
from ncsn_cli.sampling.tile import Counted
from ncsn_cli.schedules import Geometric, Karras
from tests.helpers.commands import only_run, read
from tests.helpers.problems import network_2d, stream, two_modes_1d, two_modes_2d

FLOW = ProbabilityFlow()


def flow(solver):
    return ProbabilityFlow(solver=solver)


@pytest.mark.parametrize("solver", ["euler", "heun", "multistep"])
def test_one_level_is_fitted_as_well_as_by_looking_at_all(solver):
    # On N(0, v) the flow multiplies x by ((v + sigma_min^2) / (v + sigma_max^2))^(1/2).
    law, first, last = GaussianMixture([1.0], [[0.0]], stds=0.7), 5.0, 0.2
    sampler, x = flow(solver), torch.tensor([[3.0], [-7.0], [1.0], [2.0]])
    others = x[2:]  # as good as any: the flow is linear in x
    exact = others * ((0.49 + last**2) / (0.49 + first**2)) ** 0.5

    def error(middle):
        sigmas = torch.tensor([first, middle, last], dtype=torch.float64)
        return float((sampler(law.score, others, sigmas, generator=stream()) - exact).abs().mean())

    best = min(error(float(s)) for s in Geometric(first, last, 2001).sigmas[1:-1])
    found = fit_levels(sampler, law.score, x, Geometric(first, last, 3).sigmas)
    assert found.after <= best + 2e-3
    assert found.before == pytest.approx(error(1.0), abs=1e-4)
    assert (float(found.sigmas[0]), float(found.sigmas[2])) == (first, last)


@pytest.mark.parametrize("num", [3, 6, 11, 41])
@pytest.mark.parametrize("solver", ["heun", "multistep"])
def test_errors_shrink_on_chains_that_nothing_was_fitted_to(num, solver):
    law, sigmas, sampler = two_modes_1d(), Karras(20.0, 0.3, num).sigmas, flow(solver)
    pilots = law.sample(PILOTS, sigma=20.0, generator=stream(1))
    score = Counted(law.score, 0)
    found = fit_levels(sampler, score, pilots, sigmas)
    assert len(found.sigmas) == num and bool((found.sigmas.diff() < 0).all())
    assert found.evaluations == score.evaluations
    x = law.sample(20_000, sigma=20.0, generator=stream(2))
    exact = FLOW(law.score, x, Karras(20.0, 0.3, 801).sigmas, generator=stream())
    errors = {}
    for name, levels in (("before", sigmas), ("after", found.sigmas)):
        error = (sampler(law.score, x, levels, generator=stream()) - exact).norm(dim=1)
        errors[name] = float(error.mean())
        # What is reported is the mean over 512 chains: within 5 standard errors, and the error of
        # float32 and of the 400 levels that count as exact.
        tolerance = 5 * float(error.std()) / math.sqrt(PILOTS / 2) + 2e-5
        assert getattr(found, name) == pytest.approx(errors[name], abs=tolerance)
    assert errors["after"] < errors["before"] / (1.0 if solver == "heun" else 1.4)


def test_the_flow_is_fitted_and_not_what_follows_it():
    law, sigmas = two_modes_1d(), Karras(20.0, 0.3, 8).sigmas
    pilots = law.sample(PILOTS, sigma=20.0, generator=stream(1))
    plain, denoising = (
        fit_levels(ProbabilityFlow(denoise=denoise), law.score, pilots, sigmas)
        for denoise in (False, True)
    )
    assert torch.equal(plain.sigmas, denoising.sigmas)


def test_a_network_is_fitted_too():
    network = network_2d().requires_grad_(False)
    x = torch.randn(512, 2, generator=stream(1)) * 10
    sigmas = Karras(10.0, 0.1, 6).sigmas
    found = fit_levels(FLOW, network, x, sigmas)
    other = torch.randn(2000, 2, generator=stream(2)) * 10
    exact, fitted, own = (
        FLOW(network, other, levels, generator=stream())
        for levels in (Karras(10.0, 0.1, 401).sigmas, found.sigmas, sigmas)
    )
    assert (fitted - exact).norm(dim=1).mean() < (own - exact).norm(dim=1).mean()


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
    assert "fitting 4 levels with 1024 chains" in reports[True, "said"]
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
    assert value == pytest.approx(values[0], rel=0.01)


def test_the_first_and_last_levels_stay():
    law = two_modes_2d()
    x = law.sample(128, sigma=7.0, generator=stream(1))
    for num, last in itertools.product((3, 20), (0.0123456789, 1.0)):
        sigmas = fit_levels(FLOW, law.score, x, Karras(7.0, last, num).sigmas).sigmas
        assert (float(sigmas[0]), float(sigmas[-1])) == (7.0, last)
