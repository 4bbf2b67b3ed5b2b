"""``ncsn-sample`` from an empty folder."""

import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.helpers.commands import QUICK, QUICK_SAMPLE, only_run, read
from tests.helpers.problems import two_modes_2d
from tests.helpers.slow import slow_but


def test_samples_from_a_checkpoint(trained, tmp_path, succeed):
    out = succeed("ncsn-sample", f"checkpoint={trained}", "num_samples=300", folder=tmp_path)
    with np.load(out / "samples.npz") as arrays:
        assert arrays["samples"].shape == (300, 1)
        assert arrays["samples"].dtype == np.float32
        assert arrays["trajectories"].shape[1:] == (100, 1)
        assert len(arrays["sigmas"]) == len(arrays["trajectories"])
        assert np.array_equal(arrays["trajectories"][-1], arrays["samples"][:100])
        assert np.array_equal(arrays["trajectories"][0], arrays["init"][:100])
    metrics = read(out / "metrics.json")
    assert metrics["num_samples"] == 300
    assert metrics["score_evaluations"] == 400
    for target in ("clean", "perturbed"):
        for name in ("mode_weights", "width", "wasserstein", "moments"):
            entry = metrics[target][name]
            assert entry["ratio"] == pytest.approx(entry["value"] / entry["floor"])
            assert entry["floor_quantiles"][0] <= entry["floor"] <= entry["floor_quantiles"][1]
    trained_error = read(trained / "metrics.json")["score_error"]
    # 10 000 draws a level, each with a relative deviation below 2, against 100 000.
    assert metrics["score_error"]["value"] == pytest.approx(trained_error, rel=5 * 2 / 100)
    assert {"samples.png", "chains.png", "commitment.png", "score.png"} == {
        p.name for p in (out / "plots").iterdir()
    }
    # The effective configuration holds what the checkpoint supplied.
    config = (out / "config.yaml").read_text()
    assert "num_levels: 4" in config
    assert "ncsn_cli.models.PreconditionedMLP" in config


def test_options_replace_and_values_merge_into_the_checkpoints(trained, tmp_path, succeed):
    quick = ["num_samples=50", "metric=[]", "plot=[]", "trajectories=0"]
    merged = succeed(
        "ncsn-sample", f"checkpoint={trained}", "++sampler.steps_per_level=3",
        "++sampler.denoise=true", "init=normal", *quick, folder=tmp_path,
    )  # fmt: skip
    assert read(merged / "metrics.json")["score_evaluations"] == 13
    replaced = succeed(
        "ncsn-sample", f"checkpoint={trained}", "sampler=langevin", "sampler.steps=5", *quick,
        folder=tmp_path,
    )  # fmt: skip
    assert read(replaced / "metrics.json")["score_evaluations"] == 5
    assert "sampling with Langevin on 1 level, sigma = " in (replaced / "sample.log").read_text()
    with np.load(replaced / "samples.npz") as arrays:
        assert set(arrays) == {"samples", "init", "settled_sigma", "origin", "offsets"}
        unrounded = arrays["origin"] + arrays["offsets"]
        assert np.array_equal(unrounded.astype(np.float32), arrays["samples"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "is_said"),
    [([], False), (["dataset.num_samples=50"], False), (["dataset.std=.5"], True)],
)
def test_a_network_of_another_dataset_is_named(chosen, is_said, tmp_path, succeed):
    run = succeed("ncsn-train", *QUICK, "dataset=ring_2d", folder=tmp_path)
    quick = ["num_samples=20", "metric=[]", "plot=[]", "trajectories=0", "dataset=ring_2d"]
    out = succeed("ncsn-sample", f"checkpoint={run}", *quick, *chosen, folder=tmp_path)
    assert ("trained on another one" in (out / "sample.log").read_text()) is is_said


@pytest.mark.slow
def test_a_training_that_has_not_finished_is_named_with_the_command_that_resumes_it(
    tmp_path, succeed
):
    run = succeed("ncsn-train", *QUICK, "trainer.max_seconds=1e-9", folder=tmp_path)
    quick = ["num_samples=20", "metric=[]", "plot=[]", "trajectories=0"]

    def log_of(checkpoint):
        out = succeed("ncsn-sample", f"checkpoint={checkpoint}", *quick, folder=tmp_path)
        return (out / "sample.log").read_text()

    step = read(run / "status.json")["step"]
    assert 0 < step < 30
    says = f"its newest checkpoint is at step {step} of 30"
    assert f"{says}, trainer.max_seconds ended the training" in log_of(run)
    (run / "status.json").write_text('{"state": "interrupted"}')
    (line,) = (each for each in log_of(run).splitlines() if says in each)
    assert "the training has not finished; resume it: ncsn-train trainer.steps=30" in line
    assert line.endswith(f"trainer.resume={run.relative_to(tmp_path)}")
    assert "of 30" not in log_of(next((run / "checkpoints").iterdir()))


def test_sampling_with_the_exact_score_needs_no_checkpoint(tmp_path, succeed):
    arguments = [
        "score=exact", "dataset=two_modes_2d", "sampler=langevin", "sampler.steps=20",
        "num_samples=200",
    ]  # fmt: skip
    first = succeed("ncsn-sample", *arguments, "seed=3", folder=tmp_path)
    unmeasured = [*arguments, "plot=[]", "metric=[]"]
    again = succeed("ncsn-sample", *unmeasured, "seed=3", folder=tmp_path)
    other = succeed("ncsn-sample", *unmeasured, "seed=4", folder=tmp_path)
    draws = [np.load(out / "samples.npz")["samples"] for out in (first, again, other)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert read(first / "metrics.json")["score_error"]["value"] < 1e-10
    assert {p.name for p in (first / "plots").iterdir()} == {
        "samples.png", "chains.png", "score_norm.png",
    }  # fmt: skip


@pytest.mark.slow
def test_distances_by_level_and_log_density_on_request(tmp_path, succeed):
    out = succeed(
        "ncsn-sample", "score=exact", "dataset=two_modes_1d", "schedule=geometric",
        "schedule.num_levels=4", "schedule.sigma_max=50", "sampler=probability_flow",
        "num_samples=200", "metric=[wasserstein,moments]", "log_density=true",
        "trajectory_metrics=true", "budget=true", "plot=[budget,distances,log_density]",
        folder=tmp_path,
    )  # fmt: skip
    report = read(out / "metrics.json")
    # The parts of the error add up, from exact draws to the samples.
    for name, found in report["budget"]["metrics"].items():
        parts = sum(part["value"] for part in found["parts"].values())
        assert found["exact_draws"] + parts == pytest.approx(report["clean"][name]["value"])
    assert report["budget"]["nats"]["parts"].keys() == {"smallest_level", "steps", "start"}
    assert "Error budget" in (out / "report.html").read_text()
    assert re.search("cause: the|error budget: all within noise", (out / "sample.log").read_text())
    assert len(report["trajectory"]["sigmas"]) == 4
    for name in ("wasserstein", "moments"):
        entry, last = report["trajectory"][name], report["perturbed"][name]
        for key in ("value", "floor", "ratio"):
            assert len(entry[key]) == 4
            assert entry[key][-1] == last[key]
    assert abs(report["log_density"]["kl"]) < 1e-3
    with np.load(out / "log_density.npz") as arrays:
        assert {k: v.shape for k, v in arrays.items()} == dict.fromkeys(
            ["x1", "log_density", "true_log_density"], (801,)
        )
    assert {p.name for p in (out / "plots").iterdir()} == {
        "budget.png", "distances.png", "log_density.png",
    }  # fmt: skip
    # p and each of the four levels, by two metrics.
    assert len(list((tmp_path / "outputs" / "floors").iterdir())) == 10


ALL_METRICS = (
    "[wasserstein,sliced_wasserstein,energy_distance,mmd,mode_weights,moments,score_error]"
)


ALL_PLOTS = (
    "[density,score,score_norm,score_error,samples,chains,commitment,distances,log_density]"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "num"),
    slow_but(
        [(dataset, num) for dataset in ("two_modes_1d", "two_modes_2d") for num in (1, 2)], 0
    ),
)
def test_few_chains_have_all_numbers_but_those_that_do_not_exist(dataset, num, tmp_path, forked):
    arguments = [
        "score=exact", f"dataset={dataset}", "schedule=geometric", "schedule.num_levels=2",
        "sampler=annealed_langevin", "sampler.steps_per_level=2", f"num_samples={num}",
        f"metric={ALL_METRICS}", f"plot={ALL_PLOTS}", "trajectory_metrics=true",
    ]  # fmt: skip
    result = forked.call("sample", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    out = only_run(tmp_path, "sample")
    metrics = read(out / "metrics.json")
    std = metrics["trajectory"]["std"]["value"]
    assert [value is None for value in std] == [num == 1] * 2
    assert {"samples.png", "chains.png", "commitment.png", "distances.png"} <= {
        path.name for path in (out / "plots").iterdir()
    }
    for name in ("mmd", "energy_distance"):
        assert metrics["clean"][name]["num_points"] == num
    result = forked.call("compare", [str(out), str(out)], tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_mixture_from_the_command_line(tmp_path, succeed):
    out = succeed(
        "ncsn-sample", "score=exact", "dataset=mixture", "dataset.weights=[.3,.7]",
        "dataset.means=[[0,0],[4,1]]",
        "dataset.covariances=[[[1,.5],[.5,1]],[[.2,0],[0,.1]]]", "schedule=geometric",
        "sampler=annealed_langevin", "sampler.steps_per_level=5", "num_samples=100", "plot=[]",
        folder=tmp_path,
    )  # fmt: skip
    moments = read(out / "metrics.json")["perturbed"]["moments"]
    assert moments["expected_mean"] == pytest.approx([2.8, 0.7], abs=1e-12)


@pytest.mark.slow
def test_compiled_sampling_is_written_down_or_refused(trained, tmp_path, forked):
    arguments = [f"checkpoint={trained}", "num_samples=20", "metric=[]", "plot=[]"]
    result = forked.call("train", ["model=mlp", *QUICK], tmp_path)
    assert result.returncode == 0, result.stderr
    small = [f"checkpoint={only_run(tmp_path, 'train')}", *arguments[1:], "compile=true"]
    result = forked.call("sample", small, tmp_path)
    assert result.returncode == 0, result.stderr
    out = only_run(tmp_path, "sample")
    assert OmegaConf.load(out / "config.yaml").compile is True
    assert "compile: " in (out / "sample.log").read_text()
    assert "stay plain" not in (out / "sample.log").read_text()
    for refused in (arguments, [*small, "score=exact"]):
        result = forked.call("sample", [*refused, "compile=true"], tmp_path)
        assert result.returncode == 2
        assert "compile: true needs" in result.stderr


@pytest.mark.parametrize("denoise", slow_but([True, False], 0))
@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        ("langevin", 1000),
        ("annealed_langevin", 3 * 100),
        ("constant_step_langevin", 3 * 50),
        ("consistent_annealed", 2),
        ("predictor_corrector", 2 + 3),
        ("reverse_diffusion", 2),
        ("probability_flow", 2),
        ("annealed_mala", 3 * 101),
    ],
)
def test_every_sampler_by_one_override(sampler, evaluations, denoise, forked, tmp_path):
    exact = [
        "score=exact", "dataset=two_modes_2d", "schedule=geometric", "schedule.num_levels=3",
        "schedule.sigma_min=4", f"sampler={sampler}",
    ]  # fmt: skip
    arguments = [*exact, f"sampler.denoise={denoise}", *QUICK_SAMPLE, "trajectories=3"]
    result = forked.call("sample", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = read(only_run(tmp_path, "sample") / "metrics.json")
    assert metrics["score_evaluations"] == evaluations + denoise
    shares = metrics.get("acceptance_per_level", [])
    assert len(shares) == (3 if sampler == "annealed_mala" else 0)
    assert all(0 < share <= 1 for share in shares)


@pytest.mark.slow
def test_every_metric_by_one_override(forked, tmp_path):
    names = [
        "wasserstein", "sliced_wasserstein", "energy_distance", "mmd", "mode_weights", "moments",
    ]  # fmt: skip
    arguments = [
        "score=exact", "dataset=two_modes_2d", "schedule=geometric", "schedule.sigma_max=50",
        "sampler=probability_flow", "num_samples=203", "trajectories=0", "plot=[]",
        f"metric=[{','.join([*names, 'score_error', 'kl'])}]", "metric.kl.num_points=200",
    ]  # fmt: skip
    result = forked.call("sample", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = read(only_run(tmp_path, "sample") / "metrics.json")
    for target in ("clean", "perturbed"):
        assert list(metrics[target]) == names
        assert all(entry["ratio"] > 0 for entry in metrics[target].values())
    assert metrics["score_error"]["value"] < 1e-10  # float32 against float64
    # With the exact score and a wide prior next to nothing is lost.
    assert abs(metrics["kl"]["value"]) < 5 * metrics["kl"]["standard_error"] + 0.01
    assert set(metrics["kl"]["clean"]) == {"value", "standard_error", "solver_error"}


@pytest.mark.slow
def test_mala_takes_the_density_of_an_energy_model(forked, tmp_path):
    energy = ["model=energy_mlp", "model.hidden=[8]"]
    result = forked.call("train", [*QUICK, *energy, "trainer.steps=2"], tmp_path)
    assert result.returncode == 0, result.stderr
    arguments = [f"checkpoint={only_run(tmp_path, 'train')}", "sampler=annealed_mala"]
    arguments += ["sampler.steps_per_level=3", *QUICK_SAMPLE]
    result = forked.call("sample", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = read(only_run(tmp_path, "sample") / "metrics.json")
    assert len(metrics["acceptance_per_level"]) == 4


def test_the_empirical_score_gives_the_training_points_back(forked, tmp_path):
    arguments = [
        "score=empirical", "dataset=two_modes_2d", "dataset.num_samples=30", "schedule=geometric",
        "schedule.sigma_max=20", "schedule.sigma_min=0.01", "schedule.num_levels=60",
        "sampler=probability_flow", "sampler.denoise=true", *QUICK_SAMPLE,
    ]  # fmt: skip
    result = forked.call("sample", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    samples = np.load(only_run(tmp_path, "sample") / "samples.npz")["samples"]
    data = two_modes_2d(num_samples=30).training_set()
    nearest = torch.cdist(torch.from_numpy(samples), data).min(1).values
    # The flow ends at p_.01 of 30 points; the denoising step takes the points themselves.
    assert float(nearest.max()) < 0.01
    assert len(nearest) == 200
