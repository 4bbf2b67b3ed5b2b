"""``ncsn-measure`` from an empty folder."""

import csv

import numpy as np
import pytest
import torch

from tests.helpers.commands import assert_refused, only_run, read, run
from tests.helpers.slow import slow_but
from tests.helpers.statistics import assert_mean

QUICK = ["metric=[moments,mode_weights]", "plot=[]"]


@pytest.fixture
def draws(tmp_path):
    """300 draws of the dataset two_modes_2d, in a file."""
    rng = np.random.default_rng(0)
    centres = np.where(rng.random(300) < 0.05, 5.0, -5.0)
    np.save(tmp_path / "draws.npy", centres[:, None] + rng.standard_normal((300, 2)))
    return tmp_path / "draws.npy"


def test_measures_a_file_as_ncsn_sample_does_its_samples(draws, tmp_path, succeed):
    out = succeed("ncsn-measure", "draws.npy", "dataset=two_modes_2d", folder=tmp_path)
    assert {p.name for p in out.iterdir()} == {
        ".hydra", "config.yaml", "measure.log", "metrics.json", "plots", "report.html", "run.json",
        "status.json",
    }  # fmt: skip
    assert (out / "plots" / "samples.png").is_file()
    assert read(out / "status.json")["state"] == "done"
    command = read(out / "run.json")["command"]
    assert command == "ncsn-measure file=draws.npy dataset=two_modes_2d"
    metrics = read(out / "metrics.json")
    assert metrics["num_samples"] == 300
    assert list(metrics["clean"]) == ["mode_weights", "width", "wasserstein", "moments"]
    assert metrics["perturbed"] == metrics["clean"]
    for entry in metrics["clean"].values():
        low, high = entry["floor_quantiles"]
        assert low <= entry["value"] <= 1.5 * high
    weights = metrics["clean"]["mode_weights"]["weights"]
    assert weights == pytest.approx(np.sort([*weights])[::-1].tolist())  # the mode of .95 is first
    lines = (out / "measure.log").read_text().splitlines()
    assert lines[-1].endswith("next: ncsn-compare outputs/measure/runs")


@pytest.mark.parametrize(
    ("dataset", "denoise", "metrics"),
    slow_but(
        [
            ("song_ermon_2d", False, "mode_weights,moments"),
            ("song_ermon_2d", True, "wasserstein,mode_weights,moments"),
            ("two_modes_1d", False, "wasserstein,mode_weights,moments"),
            ("moons_2d", True, "sliced_wasserstein,energy_distance,mmd"),
            ("two_modes_2d", False, "wasserstein,sliced_wasserstein,energy_distance,mmd"),
        ],
        0,
    ),
)
def test_the_numbers_are_those_of_the_run_that_made_the_samples(
    tmp_path, forked, dataset, denoise, metrics
):
    sampling = [
        "score=exact", f"dataset={dataset}", "schedule=geometric", "schedule.sigma_min=0.2",
        "sampler=probability_flow", f"sampler.denoise={denoise}".lower(), "num_samples=300",
        f"metric=[{metrics}]",
        "plot=[]", "trajectories=0", "seed=5",
    ]  # fmt: skip
    same = [word for word in sampling if word.startswith(("metric", "dataset", "plot", "seed"))]
    level = ["sigma=0.2", f"denoised={denoise}".lower()]
    assert forked.call("sample", sampling, tmp_path).returncode == 0
    made = only_run(tmp_path, "sample")
    for place in (made, made / "samples.npz"):
        words = [str(place.relative_to(tmp_path)), *same, *level]
        done = forked.call("measure", words, tmp_path)
        assert done.returncode == 0, done.stderr
    expected = read(made / "metrics.json")
    for out in tmp_path.glob("outputs/measure/runs/*"):
        found = read(out / "metrics.json")
        for against in ("clean", "denoised" if denoise else "perturbed"):
            assert found[against] == expected[against]


def test_langevin_with_the_wrong_noise_has_twice_the_variance(tmp_path, succeed):
    # x + tau s(x) + sqrt(4 tau) z on N(0, I) settles at N(0, v I), v = (1 - tau)^2 v + 4 tau.
    tau, rng = 0.01, np.random.default_rng(1)
    x = rng.standard_normal((5000, 2)) * np.sqrt(2)
    for _ in range(100):
        x += -tau * x + np.sqrt(4 * tau) * rng.standard_normal(x.shape)
    np.savetxt(tmp_path / "wrong.csv", x, delimiter=",", header="x,y", comments="")
    out = succeed(
        "ncsn-measure", "wrong.csv", "dataset=mixture", "dataset.means=[[0,0]]",
        "metric=[moments]", "plot=[]", folder=tmp_path,
    )  # fmt: skip
    moments = read(out / "metrics.json")["clean"]["moments"]
    variances = np.diagonal(moments["covariance"])
    settled = 4 * tau / (1 - (1 - tau) ** 2)
    assert settled == pytest.approx(2.0, abs=0.02)
    for axis in range(2):
        assert_mean(torch.tensor(x[:, axis] ** 2), settled)
    assert variances == pytest.approx(settled, rel=5 * np.sqrt(2 / len(x)))
    assert moments["value"] > moments["floor_quantiles"][1] * 10


def test_several_files_make_a_table(draws, tmp_path, forked):
    np.savez(tmp_path / "wrong, too.npz", samples=np.load(draws) * 1.5)
    done = forked.call(
        "measure", ["draws.npy", "wrong, too.npz", "dataset=two_modes_2d", *QUICK], tmp_path
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\nfile ")[2]
    assert "score_evaluations" not in table
    assert all(name in table for name in ("draws.npy", "wrong, too.npz"))
    (sweep,) = tmp_path.glob("outputs/measure/multiruns/*")
    with (sweep / "compare.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    names = ["draws.npy", "wrong, too.npz"]
    right, wrong = (float(rows[name]["clean.moments.ratio"]) for name in names)
    assert right < 2 < wrong
    assert (sweep / "report.html").is_file()


def test_a_file_of_several_that_is_refused_gets_one_line(draws, tmp_path, forked):
    np.save(tmp_path / "wide.npy", np.ones((3, 3)))
    done = forked.call(
        "measure", ["wide.npy", "draws.npy", "dataset=two_modes_2d", *QUICK], tmp_path
    )
    assert done.returncode == 65
    assert done.stderr.startswith(
        "ncsn-measure: wide.npy: its shape is (3, 3), but points in D = 2"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_standard_input(draws, tmp_path):
    with draws.open("rb") as file:
        done = run(
            "ncsn-measure", "-", "dataset=two_modes_2d", *QUICK, folder=tmp_path, stdin=file
        )
    assert done.returncode == 0, done.stderr
    assert read(only_run(tmp_path, "measure") / "metrics.json")["num_samples"] == 300


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["missing.npy", "dataset=two_modes_2d"], 66, "missing.npy: there is no such file"),
        (
            ["draws.npy", "ring_2d"],
            66,
            "ring_2d: there is no such file, and an override is key=value; type dataset=ring_2d",
        ),
        (["dataset=two_modes_2d"], 2, "ncsn-measure FILE"),
        (["draws.npy"], 2, "dataset: choose an option"),
        (
            ["draws.npy", "dataset=two_modes_1d"],
            65,
            "(N, 1), a row per point; choose a dataset of D = 2",
        ),
        (["draws.npy", "dataset=ring2d"], 2, "did you mean ring_2d?"),
        (["draws.npy", "dataset=ring_2d", "sigma=-1"], 2, "sigma: it should"),
        (["draws.npy", "dataset=ring_2d", "sigm=1"], 2, "did you mean sigma?"),
        (["draws.npy", "dataset=ring_2d", "metric=[score_error]"], 2, "measures a score"),
        (["draws.npy", "dataset=ring_2d", "metric=[wassertein]"], 2, "mean wasserstein?"),
        (
            ["draws.npy", "dataset=ring_2d", "schedule=geometric"],
            2,
            "schedule=geometric: ncsn-measure takes no schedule",
        ),
        (["draws.npy", "experiment=ncsn_2d", "sampler.denoise=true"], 2, "takes no sampler"),
        (["draws.npy", "dataset=ring_2d", "key=x", "plot=[loss]"], 65, "no array 'x'"),
    ],
)
def test_refusals(draws, tmp_path, forked, words, code, says):
    assert_refused(forked.call("measure", words, tmp_path), "measure", code, says, tmp_path)


def test_any_experiment_gives_the_dataset(draws, tmp_path, succeed):
    np.save(tmp_path / "line.npy", np.linspace(-4, 4, 100))
    out = succeed("ncsn-measure", "line.npy", "experiment=mdsm_1d", *QUICK, folder=tmp_path)
    assert read(out / "metrics.json")["num_samples"] == 100


@pytest.mark.slow
def test_the_law_of_many_draws_is_scaled(tmp_path, succeed):
    num = 160_000
    x = np.random.default_rng(2).standard_normal((num, 1))
    np.save(tmp_path / "many.npy", x)
    out = succeed(
        "ncsn-measure", "many.npy", "dataset=mixture", "dataset.means=[[0]]",
        "metric=[wasserstein,moments]", "plot=[]", folder=tmp_path,
    )  # fmt: skip
    found = read(out / "metrics.json")["clean"]
    # d^2 = (m - m*)^2 + (s - s*)^2, so that E d = E sqrt(z^2 + z'^2/2)/sqrt(n) = 1.077/sqrt(n) for
    # two standard normal z; 500 sets estimate it to .024 of itself.
    assert found["moments"]["floor"] == pytest.approx(1.077 / np.sqrt(num), rel=5 * 0.024)
    assert found["moments"]["floor_scaled_from"] == 10_000
    # W1 has a formula, also for these draws: sqrt(2/pi) integral sqrt(F (1 - F)) dx = 1.288.
    assert "floor_standard_error" not in found["wasserstein"]
    assert found["wasserstein"]["floor"] == pytest.approx(1.288 / np.sqrt(num), rel=0.01)
    for entry in found.values():
        low, high = entry["floor_quantiles"]
        assert low / 1.5 < entry["value"] < 1.5 * high
