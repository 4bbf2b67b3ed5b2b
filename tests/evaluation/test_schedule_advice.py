import logging
import math
import re

import pytest
import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.schedule_advice import examine, predicted_stds, unresolved
from ncsn_cli.samplers import (
    AnnealedLangevin,
    AnnealedMALA,
    ConsistentAnnealed,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
)
from ncsn_cli.schedules import Geometric, Linear, Single
from tests.helpers.commands import only_run, read
from tests.helpers.problems import stream, two_modes_1d, two_modes_2d
from tests.helpers.statistics import assert_variance

ANNEALED = AnnealedLangevin(step_size="auto", steps_per_level=100, denoise=False)


def examined(schedule, sampler=ANNEALED, dataset=None):
    dataset = dataset or two_modes_2d(num_samples=1000)
    return examine(schedule.sigmas, sampler, dataset.training_set(), dataset.smallest_std)


def test_a_good_schedule_draws_no_warning():
    report = examined(Geometric(20.0, 0.1, 20))
    assert report["warnings"] == []
    assert report["technique_0"] == {"smallest_std": 1.0, "widening": math.sqrt(1.01)}
    assert 14 < report["technique_1"]["sigma_max"] < 25  # the modes are 14.1 apart, std 1
    assert report["technique_2"]["num_levels_advised"] == 1 + math.ceil(
        math.log(200) / math.log(2.0978)
    )
    assert report["technique_4"]["steps_per_level"] == 100
    assert len(report["eta_per_level"]) == len(report["std_per_level"]) == 20
    step_size = report["technique_4"]["step_size"]
    assert report["eta_per_level"] == pytest.approx([step_size / 0.01] * 20)


def test_both_ratios_of_technique_2_are_told():
    ten = GaussianMixture(weights=[1.0], means=[[0.0] * 10], stds=1.0, num_samples=100)
    low, high = (examined(Geometric(9.0, 0.5, 5), dataset=data) for data in (None, ten))
    advice = [report["technique_2"] for report in (low, high)]
    assert [found["ratio_of_probability_half"] for found in advice] == [
        None, pytest.approx(3.0379, abs=5e-5)
    ]  # fmt: skip
    halves = [found["ratio_of_overlap_half"] for found in advice]
    assert halves == pytest.approx([2.0985, 1.3600], abs=5e-5)
    assert [found["ratio_advised"] for found in advice] == halves
    assert {found["rule"] for found in advice} == {"overlap 1/2"}
    of_two, of_ten = (" ".join(report["notes"]) for report in (low, high))
    assert "at most 2.098 is advised (overlap 1/2: 2.098; probability 1/2: none)" in of_two
    assert "(overlap 1/2: 1.360; probability 1/2: 3.038, of overlap 0.018)" in of_ten


@pytest.mark.parametrize(
    ("schedule", "sampler", "words"),
    [
        (Geometric(20.0, 0.6, 20), ANNEALED, "sigma_min = 0.6 widens the data by 1.17"),
        (
            Geometric(20.0, 0.6, 20),
            ProbabilityFlow(denoise=True),
            "narrows denoised samples to 0.86",
        ),
        (Geometric(2.0, 0.1, 20), ANNEALED, "sigma_max = 2 is small for this data"),
        (Geometric(20.0, 0.1, 5), ANNEALED, "Try more levels, schedule.num_levels=9"),
        (Linear(20.0, 0.1, 20), ANNEALED, "levels, schedule=geometric schedule.num_levels=9"),
        (Single(1.0), ANNEALED, "Try schedule.sigma=0.5"),
        (
            Geometric(20.0, 0.1, 20),
            AnnealedLangevin(step_size=0.03, steps_per_level=100, denoise=False),
            "chains are stable below 2. Try smaller steps",
        ),
        (
            Geometric(20.0, 0.1, 20),
            AnnealedLangevin(step_size=1e-6, steps_per_level=5, denoise=False),
            "sampler.step_size=",
        ),
        (
            Single(0.1),
            Langevin(step_size=0.7, steps=100, denoise=False),
            "sampler.step_size=",
        ),
        (
            Geometric(20.0, 0.1, 20),
            AnnealedLangevin(step_size="auto", steps_per_level=1, denoise=False),
            "Try more steps per level",
        ),
        (
            Geometric(20.0, 0.1, 20),
            PredictorCorrector(snr=1.5, corrector_steps=1, denoise=False),
            "chains are stable below 2. Try smaller steps",
        ),
        (Single(0.0), ANNEALED, "ncsn-sample will refuse this sampler"),
    ],
)
def test_one_line_names_what_is_bad(schedule, sampler, words, caplog):
    report = examined(schedule, sampler)
    assert words in " ".join(report["warnings"])
    (warned,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned.startswith(f"schedule: {report['warnings'][0]}")


def test_the_step_size_of_a_checkpoint_is_changed_as_hydra_takes_it():
    data = two_modes_2d(num_samples=1000).training_set()
    for is_fixed, key in ((False, " sampler.step_size="), (True, " ++sampler.step_size=")):
        sampler = AnnealedLangevin(step_size=0.03, steps_per_level=100, denoise=False)
        report = examine(Geometric(20.0, 0.1, 20).sigmas, sampler, data, 1.0, is_fixed=is_fixed)
        assert f"Try smaller steps,{key}" in report["warnings"][-1]


def test_a_good_schedule_and_a_published_one_say_so(caplog):
    with caplog.at_level(logging.INFO):
        examined(Geometric(20.0, 0.1, 20))
        data = two_modes_2d(num_samples=1000).training_set()
        examine(Geometric(2.0, 0.9, 2).sigmas, ANNEALED, data, 1.0, is_published=True)
    fine, published = caplog.records
    assert fine.getMessage() == "schedule: fine"
    assert published.levelname == "INFO"
    assert "as published, which is known to be weak: sigma_min = 0.9" in published.getMessage()
    assert published.getMessage().endswith("(report.html has 2 more)")


@pytest.mark.parametrize(
    ("fine", "bad"),
    [
        (Geometric(20.0, 0.5, 20), Geometric(20.0, 0.51, 20)),  # T0: 1.12 at .504
        (Geometric(1.01, 0.1, 20), Geometric(0.99, 0.1, 20)),  # T1: half of 2, see the data
        (Geometric(2.0978**7, 1.0, 8), Geometric(2.0978**7 * 1.03, 1.0, 8)),  # T2
    ],
)
def test_each_warning_has_its_threshold(fine, bad):
    flow = ProbabilityFlow(solver="heun", denoise=True)
    data = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.5]])
    wide = fine.sigma_max > 100
    std = 10.0 if wide else 1.0
    assert examine(fine.sigmas, flow, data, std)["warnings"] == []
    assert len(examine(bad.sigmas, flow, data, std)["warnings"]) == 1


def test_the_remedy_for_chains_too_wide_is_one():
    # As schedule=from_data with its few levels: step_size=auto is for a point mass.
    schedule, dataset = Geometric(12.77, 0.1, 6), two_modes_1d(num_samples=100)
    (complaint,) = examined(schedule, dataset=dataset)["warnings"]
    step_size = float(re.search(r"sampler.step_size=(\S+)", complaint)[1])
    better = AnnealedLangevin(step_size=step_size, steps_per_level=100, denoise=False)
    assert examined(schedule, better, dataset)["warnings"] == []


def test_technique_1_names_the_number_of_points():
    data = two_modes_2d().sample(12_000, generator=stream())
    flow = ProbabilityFlow(solver="heun", denoise=True)
    report = examine(Geometric(20.0, 0.1, 20).sigmas, flow, data, 1.0)
    assert report["technique_1"]["points"] == 10_000
    assert "between 10000 points" in " ".join(report["notes"])


def test_consistent_annealing_reports_eta():
    report = examined(Geometric(20.0, 0.1, 20), ConsistentAnnealed(eta=0.7, denoise=False))
    assert report["eta_per_level"] == pytest.approx([0.7] * 19)


def test_one_level_at_the_data_itself_is_fine():
    report = examined(Single(0.0), Langevin(step_size=0.01, steps=10, denoise=False))
    assert report["warnings"] == []
    assert report["stability_per_level"] == [0.01]


@pytest.mark.parametrize(
    "sampler",
    [
        ProbabilityFlow(solver="heun", denoise=True),
        AnnealedMALA(step_size=5.0, steps_per_level=3, denoise=False),
    ],
)
def test_samplers_without_the_closed_form_get_no_prediction(sampler):
    report = examined(Geometric(20.0, 0.1, 20), sampler)
    assert "std_per_level" not in report
    assert report["warnings"] == []


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_the_predicted_widths_are_those_of_the_chains(std):
    sigmas, num = Geometric(3.0, 0.2, 5).sigmas, 100_000
    dataset = GaussianMixture(weights=[1.0], means=[0.0], stds=std)
    sampler = AnnealedLangevin(step_size=0.01, steps_per_level=4, denoise=False)
    x = dataset.sample(num, sigma=3.0, generator=stream())
    chain = list(sampler.chain(dataset.score, x, sampler.levels(sigmas), generator=stream(1)))
    predicted = predicted_stds(sampler.levels(sigmas), std)
    for state, expected in zip(chain[3::4], predicted, strict=True):
        assert_variance(state.x[:, 0], expected**2)


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "steps", "step_size", "excess"),
    [
        (50, 232, 5, 6.2e-6, 1.062),
        (90, 500, 5, 3.3e-6, 1.059),
        (190, 1086, 3, 1.8e-6, 1.096),
        (348, 2311, 3, 0.9e-6, 1.096),
    ],
)
def test_the_published_settings_end_too_wide(sigma_max, num_levels, steps, step_size, excess):
    # On a point mass; Jolicoeur-Martineau et al. (2020) draw it in their figure 1. The numbers are
    # another program's, good to a unit in the last digit.
    sigmas = Geometric(float(sigma_max), 0.01, num_levels).sigmas
    sampler = AnnealedLangevin(step_size=step_size, steps_per_level=steps, denoise=False)
    last = predicted_stds(sampler.levels(sigmas), 0.0)[-1]
    assert last / 0.01 == pytest.approx(excess, abs=0.001)


def test_what_float32_does_not_resolve_is_named():
    # Near 5 float32 numbers are 4.8e-7 apart.
    data, sigmas = torch.full((10, 1), 5.0), torch.tensor([1e-5, 1e-7], dtype=torch.float64)
    line = unresolved(data, sigmas, 1e-16, 0.0)
    assert "near 5" in line and "4.8e-07 apart" in line
    assert "sigma_min = 1e-07" in line and "sqrt(2 tau) = 1.41e-08" in line
    assert "narrowest width = 1e-07" in line
    assert unresolved(data - 5, sigmas, 1e-16, 0.0) is None  # around its mean it is resolved
    wide = unresolved(data, sigmas, 0.0, 1.0)
    assert "sigma_min" in wide and "width" not in wide and "tau" not in wide
    assert unresolved(data, torch.tensor([1.0, 0.01]), 1e-4, 1.0) is None
    complaints = examine(sigmas, ANNEALED, data, 0.0)["warnings"]
    assert any("near 5" in each for each in complaints)


@pytest.mark.slow
def test_both_commands_give_the_same_advice(forked, tmp_path):
    narrow = ["dataset=two_modes_2d", "schedule=geometric", "schedule.sigma_max=3",
              "schedule.sigma_min=1", "schedule.num_levels=2", "sampler=annealed_langevin",
              "sampler.steps_per_level=3", "plot=[]", "metric=[]"]  # fmt: skip
    said, kept = {}, {}
    for command, own in (
        ("train", ["trainer.steps=1"]),
        ("sample", ["score=exact", "num_samples=10", "trajectories=0"]),
    ):
        result = forked.call(command, [*narrow, *own], tmp_path)
        assert result.returncode == 0, result.stderr
        run = only_run(tmp_path, command)
        lines = (line[11:] for line in (run / f"{command}.log").read_text().splitlines())
        said[command] = [line for line in lines if line.startswith("schedule: ")]
        assert "Technique 1" in (run / "report.html").read_text()
        kept[command] = read(run / "run.json")["schedule"]
    assert said["sample"] == said["train"]
    assert kept["sample"] == kept["train"]
    assert len(said["train"]) == 1 and len(kept["train"]["warnings"]) == 4


def at_zero(law):
    sampler = Langevin(step_size=0.1, steps=100)
    return examine(Single(0.0).sigmas, sampler, law.training_set(), 1.0, law=law, learns=True)


def test_training_without_noise_is_said_to_waste_data(caplog):
    caplog.set_level(logging.INFO)
    law = GaussianMixture([0.5, 0.5], [[-4.0], [4.0]], stds=1.0, num_samples=1000)
    report = at_zero(law)
    assert report["data_needed"]["without_noise"] == pytest.approx(5540, rel=5e-3)
    (note,) = (note for note in report["notes"] if note.startswith("Weights: "))
    assert "needs 5,542 times the data of maximum likelihood for the weights" in note
    assert "of the modes; at sigma = 4, 1.02 times. Try schedule=geometric, or for" in note
    assert note.endswith("the weights alone schedule.sigma=4")
    assert note.removeprefix("Weights: ") in caplog.text
    near = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], stds=1.0, num_samples=1000)
    report = at_zero(near)
    assert "needs 1.66 times the data" in " ".join(report["notes"])
    assert "1.66" not in caplog.text


def test_the_levels_of_speciation_and_collapse_are_foretold():
    law = two_modes_2d(num_samples=1000)
    report = examine(
        Geometric(20.0, 0.01, 30).sigmas, ANNEALED, law.training_set(), 1.0, law=law,
        num_points=1000,
    )  # fmt: skip
    assert report["speciation"] == pytest.approx(3.08, abs=5e-3)
    assert report["collapse"] == pytest.approx(0.0348, rel=0.01)
    notes = " ".join(report["notes"])
    assert "Speciation: chains should choose a mode near sigma = 3.08" in notes
    assert "Collapse: below sigma = 0.035 the smoothed training set of 1000 points" in notes
