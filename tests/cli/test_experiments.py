"""What published experiments give."""

import csv

import pytest

from tests.helpers.commands import QUICK_SAMPLE, only_run, read

UNDRAWN = ["plot=[]", "animation=[]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    ["ism_1d", "ism_1d_regularized", "dsm_1d", "dsm_continuous_2d", "manifold_2d"],
)
def test_experiments_train_and_sample(experiment, forked, tmp_path):
    steps = ["trainer.steps=30", "trainer.eval_every=10"]
    quick = [f"experiment={experiment}", *steps, *UNDRAWN]
    result = forked.call("train", quick, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "schedule: fine" in result.stdout
    out = only_run(tmp_path, "train")
    metrics = read(out / "metrics.json")
    assert metrics["loss"] > metrics["loss_floor"]
    assert ("penalty" in metrics) == (experiment == "ism_1d_regularized")
    for source in ([f"checkpoint={out}"], ["score=exact", f"experiment={experiment}"]):
        result = forked.call("sample", [*source, *QUICK_SAMPLE], tmp_path)
        assert result.returncode == 0, result.stderr
        assert "stable below" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_implicit_matching_learns_with_endless_data(seed, tmp_path, succeed):
    # An independent program's 500 steps on 1024 points left an excess of .017 to .081.
    longer = ["trainer.steps=2000", "dataset.num_samples=null", f"seed={seed}", *UNDRAWN]
    out = succeed("ncsn-train", "experiment=ism_1d", *longer, folder=tmp_path)
    assert read(out / "metrics.json")["excess_loss"] < 0.01


@pytest.mark.slow
def test_a_curve_has_no_score_to_learn_until_it_is_perturbed(tmp_path, succeed):
    errors = [
        read(
            succeed(
                "ncsn-train", "experiment=manifold_2d", f"schedule.sigma={sigma}", *UNDRAWN,
                folder=tmp_path,
            ) / "metrics.json"
        )["score_error"]
        for sigma in (0.0, 0.1)
    ]  # fmt: skip
    assert errors[0] > 0.5
    assert errors[1] < 0.05


@pytest.mark.slow
def test_implicit_matching_overfits_1024_points(tmp_path, succeed):
    longer = ["trainer.steps=4000", "trainer.eval_every=250", *UNDRAWN]
    out = succeed("ncsn-train", "experiment=ism_1d", "seed=1", *longer, folder=tmp_path)
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    evaluated = [row for row in rows if row["excess_loss"]]
    excess = [float(row["excess_loss"]) for row in evaluated]
    assert float(evaluated[-1]["loss"]) < float(evaluated[excess.index(min(excess))]["loss"])
    assert excess[-1] > 1.5 * min(excess)
