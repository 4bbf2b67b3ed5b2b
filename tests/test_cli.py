"""The real commands, from an empty folder."""

import csv
import html
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ncsn_cli.runs.checkpoints import load_checkpoint, save_checkpoint

from .conftest import two_modes_1d, two_modes_2d
from .forked import only_run, read

BIN = Path(sys.executable).parent
QUICK = [
    "trainer.steps=30", "trainer.batch_size=64", "trainer.eval_every=10", "trainer.log_every=5",
    "trainer.lr_decay=none", "schedule.num_levels=4", "dataset.num_samples=100", "plot=[]",
]  # fmt: skip


def run(command, *arguments, folder, **kwargs):
    # The warnings ignored are torch's own, at the first torch.func.jvp and torch.compile.
    warnings = "default,ignore:`torch.jit.script:DeprecationWarning"
    environment = {**os.environ, "PYTHONWARNINGS": warnings, "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [BIN / command, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, env=environment, **kwargs,
    )  # fmt: skip


def succeed(command, *arguments, folder):
    """Run a command; returns the folder that it wrote."""
    before = set(folder.glob("outputs/*/*/*"))
    result = run(command, *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    (written,) = set(folder.glob("outputs/*/*/*")) - before
    return written


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return succeed("ncsn-train", *QUICK, "plot=[score,loss]", folder=folder)


def test_a_training_run_writes_its_folder(trained):
    assert read(trained / "status.json") == {"state": "done", "step": 30, "error": None}
    metrics = read(trained / "metrics.json")
    assert list(metrics) == [
        "loss", "loss_standard_error", "loss_floor", "excess_loss", "excess_loss_standard_error",
        "score_error", "score_error_standard_error", "sigmas", "score_error_per_level",
        "fisher_divergence_per_level", "best_scale_per_level", "recovered_kl_per_level", "seconds",
    ]  # fmt: skip
    # The widest level dominates: 100 000 draws for each side, of standard deviation 3 loss.
    difference = metrics["loss"] - metrics["loss_floor"] - metrics["excess_loss"]
    assert abs(difference) < 5 * math.sqrt(2) * 3 * metrics["loss"] / math.sqrt(1e5)
    assert len(metrics["score_error_per_level"]) == 4
    rows = (trained / "history.csv").read_text().splitlines()
    assert rows[0] == "step,loss,excess_loss,grad_norm,lr,seconds,clipped_grad_norm"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "5", "10", "15", "20", "25", "30"]
    assert {p.name for p in (trained / "plots").iterdir()} == {"score.png", "loss.png"}
    record = read(trained / "run.json")
    assert record["command"].startswith("ncsn-train trainer.steps=30")
    assert {"versions", "device", "threads", "seed", "start", "end", "seconds"} <= set(record)
    assert (trained / "train.log").stat().st_size > 0
    assert "paths" not in (trained / "config.yaml").read_text()
    left = {p.name for p in trained.iterdir()} - {
        ".hydra", "train.log", "config.yaml", "run.json", "status.json", "history.csv",
        "checkpoints", "metrics.json", "plots", "report.html",
    }  # fmt: skip
    assert not left
    report = (trained / "report.html").read_text()
    assert record["command"] in html.unescape(report)
    assert "<th>trainer.steps</th><td>30</td>" in report
    assert "<th>trainer.grad_clip</th>" not in report  # as by default
    assert report.count("data:image/png") == 2


def test_samples_from_a_checkpoint(trained, tmp_path):
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
        for name in ("wasserstein", "mode_weights", "moments"):
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


def test_options_replace_and_values_merge_into_the_checkpoints(trained, tmp_path):
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
    with np.load(replaced / "samples.npz") as arrays:
        assert set(arrays) == {"samples", "init", "settled_sigma"}


def test_sampling_with_the_exact_score_needs_no_checkpoint(tmp_path):
    arguments = [
        "score=exact", "dataset=two_modes_2d", "sampler=langevin", "sampler.steps=20",
        "num_samples=200",
    ]  # fmt: skip
    first = succeed("ncsn-sample", *arguments, "seed=3", folder=tmp_path)
    again = succeed("ncsn-sample", *arguments, "seed=3", "plot=[]", folder=tmp_path)
    other = succeed("ncsn-sample", *arguments, "seed=4", "plot=[]", folder=tmp_path)
    draws = [np.load(out / "samples.npz")["samples"] for out in (first, again, other)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert read(first / "metrics.json")["score_error"]["value"] < 1e-10
    assert {p.name for p in (first / "plots").iterdir()} == {
        "samples.png", "chains.png", "score_norm.png",
    }  # fmt: skip


def test_distances_by_level_and_log_density_on_request(tmp_path):
    out = succeed(
        "ncsn-sample", "score=exact", "dataset=two_modes_1d", "schedule=geometric",
        "schedule.num_levels=4", "schedule.sigma_max=50", "sampler=probability_flow",
        "num_samples=200", "metric=[wasserstein,moments]", "log_density=true",
        "trajectory_metrics=true", "plot=[distances,log_density]", folder=tmp_path,
    )  # fmt: skip
    report = read(out / "metrics.json")
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
    assert {p.name for p in (out / "plots").iterdir()} == {"distances.png", "log_density.png"}
    # p and each of the four levels, by two metrics.
    assert len(list((tmp_path / "outputs" / "floors").iterdir())) == 10


ALL_METRICS = (
    "[wasserstein,sliced_wasserstein,energy_distance,mmd,mode_weights,moments,score_error]"
)
ALL_PLOTS = (
    "[density,score,score_norm,score_error,samples,chains,commitment,distances,log_density]"
)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("dataset", ["two_modes_1d", "two_modes_2d"])
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


def test_a_mixture_from_the_command_line(tmp_path):
    out = succeed(
        "ncsn-sample", "score=exact", "dataset=mixture", "dataset.weights=[.3,.7]",
        "dataset.means=[[0,0],[4,1]]", "dataset.stds=null",
        "dataset.covariances=[[[1,.5],[.5,1]],[[.2,0],[0,.1]]]", "schedule=geometric",
        "sampler=annealed_langevin", "sampler.steps_per_level=5", "num_samples=100", "plot=[]",
        folder=tmp_path,
    )  # fmt: skip
    moments = read(out / "metrics.json")["perturbed"]["moments"]
    assert moments["expected_mean"] == pytest.approx([2.8, 0.7], abs=1e-12)


def final_tensors(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return load_checkpoint(newest)[0]


def assert_same_run(first, second):
    tensors, others = final_tensors(first), final_tensors(second)
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name
    tables = [
        csv.DictReader((f / "history.csv").read_text().splitlines()) for f in (first, second)
    ]
    rows, others = ([{**row, "seconds": None} for row in table] for table in tables)
    assert rows == others


def test_a_stopped_run_resumes_to_the_same_bits(trained, tmp_path):
    arguments = [*QUICK, "plot=[score,loss]", "animation=[score]", "trainer.snapshots=3"]
    part = succeed("ncsn-train", *arguments, "trainer.steps=20", folder=tmp_path)
    whole = succeed("ncsn-train", *arguments, f"trainer.resume={part}", folder=tmp_path)
    assert_same_run(whole, trained)
    with np.load(part / "snapshots.npz") as before, np.load(whole / "snapshots.npz") as now:
        assert before["steps"].tolist() == [0, 2, 9, 20]
        assert now["steps"].tolist() == [0, 2, 9, 20, 30]
        for name, values in before.items():
            np.testing.assert_array_equal(now[name][:4], values)
    for folder in (part, whole):
        assert [path.name for path in (folder / "animations").iterdir()] == ["score.gif"]
    page = (whole / "report.html").read_text()
    assert page.index("data:image/gif") < page.index("data:image/png")
    changed = run(
        "ncsn-train", *arguments, "optimizer.lr=0.5", f"trainer.resume={part}", folder=tmp_path
    )
    assert changed.returncode == 2
    assert "optimizer.lr=0.003" in changed.stderr


def test_compiled_steps_are_kept_in_the_users_cache_and_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it for this process
    compiled = succeed("ncsn-train", *QUICK, "trainer.compile=true", folder=tmp_path)
    assert list((tmp_path / "cache" / "ncsn_cli").iterdir())
    config = OmegaConf.load(compiled / "config.yaml")
    assert (config.trainer.threads, config.trainer.compile) == (1, True)
    assert "steps a call" in (compiled / "train.log").read_text()


def test_what_would_be_lost_or_wrong_on_resume_is_refused(trained, tmp_path, forked):
    arguments = [*QUICK, f"trainer.resume={trained}"]
    cases = {
        "trainer.steps": ["trainer.steps=5"],
        "trainer.lr_decay=none": ["trainer.lr_decay=cosine"],
        "holds a run": [f"hydra.run.dir={trained}", "trainer.resume=null"],
    }
    for named, change in cases.items():
        result = forked.call("train", [*arguments, *change], tmp_path)
        assert result.returncode == (73 if named == "holds a run" else 2), result.stderr
        assert named in result.stderr
    assert read(trained / "status.json")["state"] == "done"
    assert len(list((trained / "checkpoints").iterdir())) == 1


def test_a_checkpoint_never_runs_code(trained, tmp_path, forked):
    # Its SHA-256 is right: whoever writes a checkpoint can compute it.
    (path,) = (trained / "checkpoints").iterdir()
    tensors, record = load_checkpoint(path)
    canary = tmp_path / "canary"
    payload = {"_target_": "pathlib.Path.write_text", "_args_": [str(canary), "executed"]}
    for group in ("model", "dataset", "schedule", "sampler", "init"):
        settings = record["config"][group]
        for changed in (payload, {**settings, "hidden": payload}, {**settings, "seed": payload}):
            evil = {**record, "config": {**record["config"], group: changed}}
            save_checkpoint(tmp_path / "evil.safetensors", tensors, evil)
            for named in ([], ["model=preconditioned_mlp"]):
                arguments = ["checkpoint=evil.safetensors", *named, "num_samples=2", "plot=[]",
                             "metric=[]", "++sampler.steps_per_level=1"]  # fmt: skip
                result = forked.call("sample", arguments, tmp_path)
                assert not canary.exists()
                assert "Traceback" not in result.stderr
                assert result.returncode in (0, 2)  # 0 where the option named replaces the group


def test_a_signal_ends_sampling_and_it_goes_on_to_the_same_bits(trained, tmp_path):
    quick = [f"checkpoint={trained}", "num_samples=3000", "metric=[]", "plot=[]"]
    arguments = ["ncsn-sample", *quick, "++sampler.steps_per_level=300"]
    process = subprocess.Popen(
        [BIN / arguments[0], *arguments[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"}, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/sample/runs/*/run.json")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130, error
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    (stopped,) = tmp_path.glob("outputs/sample/runs/*")
    assert read(stopped / "status.json")["state"] == "interrupted"
    changed = run(*arguments, f"resume={stopped}", "num_samples=60", folder=tmp_path)
    assert changed.returncode == 2
    assert "num_samples=3000" in changed.stderr
    resumed = succeed(*arguments, f"resume={stopped}", folder=tmp_path)
    whole = succeed(*arguments, folder=tmp_path)
    with np.load(resumed / "samples.npz") as found, np.load(whole / "samples.npz") as expected:
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name
    assert not (resumed / "sampling.safetensors").exists()
    complete = run(*arguments, f"resume={whole}", folder=tmp_path)
    assert complete.returncode == 2
    assert "has all its samples" in complete.stderr


@pytest.mark.slow
def test_compiled_sampling_is_stopped_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it for this process
    trained = succeed("ncsn-train", *QUICK, "model=mlp", folder=tmp_path)
    quick = [f"checkpoint={trained}", "num_samples=3000", "metric=[]", "plot=[]"]
    arguments = ["ncsn-sample", *quick]
    process = subprocess.Popen(
        [BIN / arguments[0], *arguments[1:], "compile=true"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/sample/runs/*/sampling.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)  # it compiles for seconds
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 143, error
    assert "Traceback" not in error
    (stopped,) = tmp_path.glob("outputs/sample/runs/*")
    assert read(stopped / "status.json")["state"] == "interrupted"
    # By its rule it would not compile so few steps; but it goes on as it began.
    resumed = succeed(*arguments, f"resume={stopped}", folder=tmp_path)
    whole = succeed(*arguments, "compile=true", folder=tmp_path)
    plain = succeed(*arguments, folder=tmp_path)
    compiles = [OmegaConf.load(folder / "config.yaml").compile for folder in (resumed, plain)]
    assert compiles == [True, False]
    assert "compiling the Langevin steps" in (resumed / "sample.log").read_text()
    with np.load(resumed / "samples.npz") as found, np.load(whole / "samples.npz") as expected:
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name
        with np.load(plain / "samples.npz") as others:
            assert np.array_equal(others["init"], found["init"])
            assert not np.array_equal(others["samples"], found["samples"])
    changed = run(*arguments, f"resume={stopped}", "compile=false", folder=tmp_path)
    assert changed.returncode == 2
    assert "compile=true" in changed.stderr


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


@pytest.mark.parametrize(
    ("number", "compiled"),
    [
        (signal.SIGINT, "false"),
        (signal.SIGTERM, "false"),
        pytest.param(signal.SIGTERM, "true", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_run_and_it_resumes_to_the_same_bits(tmp_path, number, compiled):
    arguments = ["ncsn-train", *QUICK, "trainer.steps=1500", "trainer.checkpoint_every=100000"]
    arguments.append("trainer.eval_every=500")
    begun = [*arguments, f"trainer.compile={compiled}"]
    process = subprocess.Popen(
        [BIN / begun[0], *begun[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("outputs/train/runs/*/run.json")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    (stopped,) = tmp_path.glob("outputs/train/runs/*")
    state = read(stopped / "status.json")
    assert state["state"] == "interrupted"
    assert 0 < state["step"] < 1500
    # By its rule it would not compile so few steps; but it goes on as it began.
    resumed = succeed(*arguments, f"trainer.resume={stopped}", folder=tmp_path)
    assert_same_run(resumed, succeed(*begun, folder=tmp_path))


def test_a_sweep_runs_every_combination(tmp_path):
    out = succeed(
        "ncsn-train", "-m", "seed=0,1", "loss.levels=all,random", *QUICK, "trainer.steps=2",
        folder=tmp_path,
    )  # fmt: skip
    jobs = [path.parent for path in out.glob("*/run.json")]
    assert len(jobs) == 4
    assert len({read(job / "metrics.json")["excess_loss"] for job in jobs}) == 4
    assert sum("loss.levels=random" in read(job / "run.json")["command"] for job in jobs) == 2


def test_tensorboard_shows_history_and_pictures(trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = succeed(
        "ncsn-train", *QUICK, "plot=[loss]", "trainer.tensorboard=true",
        "trainer.checkpoint_every=10", folder=tmp_path,
    )  # fmt: skip
    assert_same_run(out, trained)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    for name in ("loss", "excess_loss", "grad_norm", "lr", "clipped_grad_norm"):
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected])
    assert events.Images("loss")[-1].step == 30


def test_a_diverging_run_says_so(tmp_path):
    result = run("ncsn-train", *QUICK, "optimizer=sgd", "optimizer.lr=1e30", folder=tmp_path)
    assert result.returncode == 3
    assert "loss is" in result.stderr
    (out,) = tmp_path.glob("outputs/train/runs/*")
    assert read(out / "status.json")["state"] == "diverged"
    assert (out / "history.csv").is_file()


def test_ones_own_classes_are_named_on_the_command_line(tmp_path):
    (tmp_path / "my_models.py").write_text(
        "from ncsn_cli.models import MLP\n"
        "class Mine(MLP):\n"
        "    def __init__(self, dim, hidden):\n"
        "        super().__init__(dim, hidden=[hidden], activation='tanh', conditional=True)\n"
    )
    options = tmp_path / "options" / "model"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("_target_: my_models.Mine\nhidden: 6\n")
    own = ["--config-dir", "options", "model=mine"]
    out = succeed("ncsn-train", *own, *QUICK, folder=tmp_path)
    quick = ["num_samples=20", "metric=[]", "plot=[]", "trajectories=0"]
    result = run("ncsn-sample", f"checkpoint={out}", *quick, folder=tmp_path)
    assert result.returncode == 2
    assert "model._target_: my_models.Mine is no class of ncsn_cli" in result.stderr
    for known in (own, ["plugins=[my_models]"]):
        succeed("ncsn-sample", *known, f"checkpoint={out}", *quick, folder=tmp_path)


@pytest.mark.parametrize(
    "experiment", ["ism_1d", "ism_1d_regularized", "dsm_1d", "dsm_continuous_2d", "manifold_2d"]
)
def test_experiments_train_and_sample(experiment, forked, tmp_path):
    steps = ["trainer.steps=30", "trainer.eval_every=10"]
    quick = [f"experiment={experiment}", *steps, "plot=[]", "animation=[]"]
    result = forked.call("train", quick, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "may not serve" not in result.stdout
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
def test_implicit_matching_learns_with_endless_data(seed, tmp_path):
    # An independent program's 500 steps on 1024 points left an excess of .017 to .081.
    longer = ["trainer.steps=2000", "dataset.num_samples=null", f"seed={seed}", "plot=[]"]
    out = succeed("ncsn-train", "experiment=ism_1d", *longer, folder=tmp_path)
    assert read(out / "metrics.json")["excess_loss"] < 0.01


@pytest.mark.slow
def test_a_curve_has_no_score_to_learn_until_it_is_perturbed(tmp_path):
    errors = [
        read(
            succeed(
                "ncsn-train", "experiment=manifold_2d", f"schedule.sigma={sigma}", "plot=[]",
                folder=tmp_path,
            ) / "metrics.json"
        )["score_error"]
        for sigma in (0.0, 0.1)
    ]  # fmt: skip
    assert errors[0] > 0.5
    assert errors[1] < 0.05


@pytest.mark.slow
def test_implicit_matching_overfits_1024_points(tmp_path):
    longer = ["trainer.steps=4000", "trainer.eval_every=250", "plot=[]"]
    out = succeed("ncsn-train", "experiment=ism_1d", "seed=1", *longer, folder=tmp_path)
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    evaluated = [row for row in rows if row["excess_loss"]]
    excess = [float(row["excess_loss"]) for row in evaluated]
    assert float(evaluated[-1]["loss"]) < float(evaluated[excess.index(min(excess))]["loss"])
    assert excess[-1] > 1.5 * min(excess)


QUICK_SAMPLE = ["num_samples=200", "metric=[]", "plot=[]", "trajectories=0"]


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
def test_every_sampler_by_one_override(sampler, evaluations, forked, tmp_path):
    exact = [
        "score=exact", "dataset=two_modes_2d", "schedule=geometric", "schedule.num_levels=3",
        "schedule.sigma_min=4", f"sampler={sampler}",
    ]  # fmt: skip
    for denoise in (False, True):
        folder = tmp_path / str(denoise)
        folder.mkdir()
        arguments = [*exact, f"sampler.denoise={denoise}", *QUICK_SAMPLE, "trajectories=3"]
        result = forked.call("sample", arguments, folder)
        assert result.returncode == 0, result.stderr
        metrics = read(only_run(folder, "sample") / "metrics.json")
        assert metrics["score_evaluations"] == evaluations + denoise
        shares = metrics.get("acceptance_per_level", [])
        assert len(shares) == (3 if sampler == "annealed_mala" else 0)
        assert all(0 < share <= 1 for share in shares)


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


def test_a_schedule_from_data_is_kept_as_the_levels_it_gave(forked, tmp_path):
    chosen = [a for a in QUICK if not a.startswith("schedule")] + ["schedule=from_data"]
    result = forked.call("train", [*chosen, "trainer.steps=2"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no solution for D = 1" in result.stdout
    out = only_run(tmp_path, "train")
    data = two_modes_1d(num_samples=100).training_set()
    distance = float(data.max() - data.min())
    sigmas = read(out / "metrics.json")["sigmas"]
    assert sigmas[0] == pytest.approx(distance)
    assert sigmas[-1] == 0.1
    assert len(sigmas) == 1 + math.ceil(math.log(distance / 0.1) / math.log(3.133))
    assert "ncsn_cli.schedules.Geometric" in (out / "config.yaml").read_text()
    result = forked.call("sample", [f"checkpoint={out}", *QUICK_SAMPLE], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no solution" not in result.stdout
    # Resuming names the same schedule, and finds the same levels.
    resumed = forked.call("train", [*chosen, "trainer.steps=4", f"trainer.resume={out}"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    fresh = ["score=exact", "dataset=two_modes_1d", "schedule=from_data", *QUICK_SAMPLE]
    result = forked.call("sample", [*fresh, "sampler=reverse_diffusion"], tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_schedule_doctor_writes_into_run_json_and_warns_once(trained, forked, tmp_path):
    report = read(trained / "run.json")["schedule"]
    for technique in ("technique_0", "technique_1", "technique_2", "technique_4"):
        assert technique in report
    assert len(report["eta_per_level"]) == len(report["std_per_level"]) == 4
    arguments = [*QUICK, "trainer.steps=1", "schedule.sigma_max=2", "schedule.sigma_min=0.9"]
    result = forked.call("train", arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("schedule and sampler may not serve") == 1
    warnings = read(only_run(tmp_path, "train") / "run.json")["schedule"]["warnings"]
    assert len(warnings) == 2  # sigma_max and sigma_min


@pytest.mark.parametrize("command", ["ncsn-train", "ncsn-sample"])
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["nosuchkey=1"]])
def test_answers_without_a_job_do_not_import_torch(command, arguments, tmp_path):
    script = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "sys.stderr.write('imported torch' if 'torch' in sys.modules else 'no torch')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(BIN / command), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stderr.endswith("no torch")
    if arguments == ["--help"]:
        for text in (
            "ncsn-train experiment=mdsm_1d",
            "checkerboard_2d, circle_2d",
            "sampler: annealed",
        ):
            assert text in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["ncsn-train", *QUICK, "trainer.steps=1"],
        ["ncsn-sample", "score=exact", "dataset=two_modes_1d", "sampler=langevin",
         "sampler.steps=2", "num_samples=10", "metric=[moments]", "plot=[]"],
    ],
)  # fmt: skip
def test_a_job_imports_nothing_that_it_does_not_use(arguments, tmp_path):
    script = (
        "import sys\nfrom ncsn_cli import cli\n"
        f"sys.argv = {arguments}\n{arguments[0].replace('ncsn-', 'cli.')}()\n"
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    unused = {"matplotlib", "PIL", "tensorboard", "scipy.stats", "scipy.interpolate"}
    assert not unused & set(result.stdout.split())


def stop_drawing(_):
    """For the ``before`` of ``tests.forked``."""
    import matplotlib.figure

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    matplotlib.figure.Figure.__init__ = stop


def test_the_numbers_are_on_disk_before_a_picture_is_drawn(trained, forked, tmp_path):
    source = [f"checkpoint={trained}", "num_samples=10", "metric=[moments]", "plot=[samples]"]
    for command, arguments in (("train", [*QUICK, "trainer.steps=1", "plot=[score]"]),
                               ("sample", source)):  # fmt: skip
        before = ["tests.test_cli", "stop_drawing", None]
        result = forked.call(command, arguments, tmp_path, before)
        assert result.returncode == 130, result.stderr
        assert read(only_run(tmp_path, command) / "metrics.json")["seconds"] > 0


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ncsn-train experiment=mds", ["experiment=mdsm_1d", "experiment=mdsm_1d_fixed_noise"]),
        ("ncsn-train schedule.sig", ["schedule.sigma_max=", "schedule.sigma_min="]),
        ("ncsn-sample sampler=annealed", ["sampler=annealed_langevin", "sampler=annealed_mala"]),
    ],
)
def test_the_tab_key_completes_in_bash(typed, completed, tmp_path):
    # What README says to type, then what bash does at the key.
    command = typed.split()[0]
    script = f"""
        eval "$({command} -sc install=bash)"
        COMP_LINE='{typed}'; COMP_POINT={len(typed)}; COMP_CWORD=1
        hydra_bash_completion; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert result.stdout.split() == completed


BAD_INPUTS = [
    # command, arguments, exit code, what the message names
    ("train", ["trainer.stps=3"], 2, "trainer.stps"),
    ("train", ["nosuchkey=1"], 2, "nosuchkey"),
    ("train", ["+nosuchkey=1"], 2, "nosuchkey"),
    ("train", ["+model.foo=1"], 2, "model.foo"),
    ("train", ["dataset=nosuchset"], 2, "dataset/nosuchset"),
    ("train", ["experiment=nosuch"], 2, "experiment/nosuch"),
    ("train", ["seed"], 2, "seed"),
    ("train", ["+num_samples=-5"], 2, "num_samples"),
    ("train", ["+plot.density.foo=1"], 2, "plot.density.foo"),
    ("train", ["dataset.means=[[],[]]"], 2, "dataset.means"),
    ("train", ["~optimizer", "+optimizer._target_=torch.optim.LBFGS"], 2, "optimizer"),
    ("train", ["~optimizer", "+optimizer._target_=torch.optim.SparseAdam"], 2,
     "optimizer: SparseAdam does not support dense gradients"),
    ("train", ["~optimizer", "+optimizer._target_=torch.optim.Muon"], 2, "optimizer: Muon"),
    ("train", ["+optimizer.differentiable=true"], 2, "optimizer.differentiable"),
    ("train", ["optimizer=sgd", "+optimizer.differentiable=true"], 2, "optimizer.differentiable"),
    ("train", ["+optimizer.fused=true", "+optimizer.foreach=true"], 2, "optimizer.fused"),
    ("train", ["optimizer=sgd", "optimizer.momentum=0", "++optimizer.nesterov=true"], 2,
     "optimizer.nesterov"),
    ("train", ["++optimizer.weight_decay=-1"], 2, "optimizer.weight_decay"),
    ("train", ["~optimizer", "+optimizer._target_=torch.optim.NAdam", "device=cpu",
               "+optimizer.capturable=true"], 2, "optimizer.capturable"),
    ("train", ["hydra.job.chdir=true"], 2, "hydra.job.chdir"),
    ("sample", ["checkpoint=TRAINED", "hydra.job.chdir=true"], 2, "hydra.job.chdir"),
    ("train", ["-m", "seed=0,1", "hydra.job.chdir=true"], 2, "hydra.job.chdir"),
    ("train", ["model.hidden=[10000000,10000000]"], 71, "out of memory"),
    ("sample", ["checkpoint=TRAINED", "sampler.denoise=true"], 2, "++sampler.denoise"),
    ("sample", ["checkpoint=TRAINED", "++model.hidden=[9]"], 2, "model"),
    ("sample", ["checkpoint=TRAINED", "schedule=single", "++dataset.stds=0.0", "sampler=langevin"],
     2, "is a point"),
    ("sample", ["checkpoint=" + 300 * "x"], 66, "xxx"),
    ("sample", ["checkpoint=TRAINED", "schedule=single", "sampler=langevin"], 2, "schedule"),
    ("train", ["model=energy_mlp", "model.activation=relu"], 2, "model.activation"),
    ("train", ["dataset=[a"], 2, "dataset=[a"),
    ("train", ["dataset=null"], 2, "override"),
    ("train", ["dataset.stds=${nosuch}"], 2, "dataset.stds"),
    ("train", ["seed=1,2"], 2, "seed=1,2"),
    ("sample", ["metric=[nosuch]"], 2, "metric/nosuch"),
    ("sample", ["checkpoint=TRAINED", "+metric.own._target_=builtins.dict"], 2, "metric.own"),
    ("train", ["schedule.sigma_min=-1"], 2, "schedule.sigma_min"),
    ("train", ["schedule.sigma_min=30"], 2, "sigma_min (30) must be below sigma_max"),
    ("train", ["schedule.sigma_max=nan"], 2, "schedule.sigma_max"),
    ("train", ["schedule.num_levels=2.5"], 2, "schedule.num_levels"),
    ("train", ["schedule=single"], 2, "schedule"),
    ("train", ["dataset.weights=[.5,.6]"], 2, "dataset.weights"),
    ("train", ["dataset.weights=[1]"], 2, "dataset.weights"),
    ("train", ["dataset.stds=null", "dataset.covariances=[[[1]],[[-1]]]"], 2,
     "dataset.covariances.1"),
    ("train", ["dataset.stds=abc"], 2, "dataset.stds"),
    ("train", ["dataset.num_samples=0"], 2, "dataset.num_samples"),
    ("train", ["dataset.num_samples=null", "trainer.batch_size=null"], 2, "trainer.batch_size"),
    ("train", ["trainer.steps=0"], 2, "trainer.steps"),
    ("train", ["trainer.steps=ten"], 2, "trainer.steps"),
    ("train", ["trainer.ema_decay=1"], 2, "trainer.ema_decay"),
    ("train", ["optimizer.lr=abc"], 2, "optimizer.lr"),
    ("train", ["optimizer.lr=nan"], 2, "optimizer.lr"),
    ("train", ["optimizer.lr=-1"], 2, "optimizer.lr"),
    ("train", ["+optimizer.foo=1"], 2, "optimizer.foo"),
    ("train", ["model.activation=Relu"], 2, "model.activation"),
    ("train", ["model.hidden=[0]"], 2, "model.hidden.0"),
    ("train", ["loss.levels=some"], 2, "loss.levels"),
    ("train", ["sampler.step_size=-1"], 2, "sampler.step_size"),
    ("train", ["seed=1.5"], 2, "seed"),
    ("train", ["seed=-1"], 2, "seed"),
    ("train", ["seed=true"], 2, "seed"),
    ("train", ["device=cuda:99"], 2, "device"),
    ("train", ["device=gpu"], 2, "device"),
    ("train", ["metric=[moments]"], 2, "metric"),
    ("train", ["model._target_=ncsn_cli.models.Nothing"], 2, "model"),
    ("train", ["trainer.resume=nowhere"], 66, "nowhere"),
    ("train", ["paths.outputs=a_file/deeper"], 73, "a_file"),
    ("sample", [], 2, "checkpoint"),
    ("sample", ["score=exact"], 2, "dataset"),
    ("sample", ["score=exact", "dataset=two_modes_1d"], 2, "sampler"),
    ("sample", ["score=exact", "dataset=two_modes_1d", "sampler=annealed_langevin"], 2,
     "schedule"),
    ("sample", ["score=exact", "dataset=two_modes_1d", "dataset.stds=0", "sampler=langevin"], 2,
     "is a point"),
    ("sample", ["score=learned", "checkpoint=x"], 2, "score"),
    ("sample", ["num_samples=0", "checkpoint=x"], 2, "num_samples"),
    ("sample", ["checkpoint=nowhere"], 66, "nowhere"),
    ("sample", ["checkpoint=empty_folder"], 66, "empty_folder"),
    ("sample", ["checkpoint=a_file"], 65, "a_file"),
    ("sample", ["checkpoint=foreign.safetensors"], 65, "foreign.safetensors"),
    ("sample", ["checkpoint=truncated.safetensors"], 65, "truncated.safetensors"),
    ("sample", ["checkpoint=TRAINED", "dataset=two_modes_2d"], 2, "dataset"),
    ("sample", ["checkpoint=TRAINED", "++sampler.nosuch=1"], 2, "sampler.nosuch"),
    ("sample", ["checkpoint=TRAINED", "init=uniform", "init.low=9"], 2, "init"),
    ("sample", ["checkpoint=TRAINED", "sampler=annealed_mala"], 2, "log-density"),
    ("sample", ["checkpoint=TRAINED", "score=empirical", "++dataset.num_samples=null"], 2,
     "dataset.num_samples"),
    ("sample", ["score=empirical", "dataset=two_modes_1d", "sampler=langevin"], 2,
     "score=empirical needs every sigma above 0"),
    ("sample", ["checkpoint=TRAINED", "sampler=consistent_annealed", "sampler.eta=0.01"], 2,
     "sampler.eta"),
    ("sample", ["checkpoint=TRAINED", "schedule=single", "schedule.sigma=1",
                "sampler=probability_flow"], 2, "two levels"),
    ("sample", ["score=exact", "dataset=checkerboard_2d", "sampler=langevin"], 2, "jumps"),
    ("sample", ["checkpoint=TRAINED", "schedule=single", "schedule.sigma=1", "metric=[kl]",
                "sampler=langevin"], 2, "metric.kl"),
    ("sample", ["checkpoint=TRAINED", "log_density=true", "sampler=langevin"], 2, "log_density"),
    ("sample", ["checkpoint=TRAINED", "trajectory_metrics=often"], 2, "trajectory_metrics"),
    ("train", ["schedule=from_data", "schedule.sigma_min=100"], 2, "schedule.sigma_min"),
    ("train", ["schedule=single", "loss=implicit"], 2, "schedule"),
    ("train", ["schedule=single", "loss=implicit", "model=ncsnv2_mlp"], 2, "schedule"),
    ("train", ["schedule=single", "loss=explicit", "model=mlp", "dataset.stds=0"], 2,
     "is a point"),
    ("train", ["schedule=single", "loss=implicit", "model=mlp", "dataset=checkerboard_2d"], 2,
     "jumps"),
    ("train", ["loss=denoising_fixed_noise", "loss.levels=continuous"], 2, "loss.noise"),
]  # fmt: skip


@pytest.fixture
def inputs(trained, tmp_path):
    """A folder of things that are no checkpoints."""
    (tmp_path / "a_file").write_text("no checkpoint\n")
    (tmp_path / "empty_folder").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    whole = sorted((trained / "checkpoints").iterdir())[-1].read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "TRAINED").symlink_to(trained)
    return tmp_path


def assert_refused(result, command, code, named, folder):
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 3, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    for out in folder.glob("outputs/*/*/*"):
        assert {p.name for p in out.iterdir()} <= {".hydra", f"{command}.log", "status.json"}
        assert read(out / "status.json")["state"] == "failed"


@pytest.mark.parametrize(
    ("command", "arguments", "code", "named"), BAD_INPUTS, ids=lambda value: str(value)[:60]
)
def test_bad_input_is_refused_before_any_work(command, arguments, code, named, inputs, forked):
    result = forked.call(command, arguments, inputs)
    assert_refused(result, command, code, named, inputs)


@pytest.mark.parametrize("code", [2, 65, 66, 73])
def test_the_real_command_refuses_with_each_exit_code(code, inputs):
    command, arguments, _, named = next(case for case in BAD_INPUTS if case[2] == code)
    result = run(f"ncsn-{command}", *arguments, folder=inputs)
    assert_refused(result, command, code, named, inputs)


def test_the_traceback_is_shown_on_request_and_always_logged(tmp_path):
    result = subprocess.run(
        [BIN / "ncsn-train", "trainer.steps=0"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"}, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    (log,) = tmp_path.glob("outputs/train/runs/*/train.log")
    assert "Traceback" in log.read_text()


def test_a_loss_that_differentiates_a_relu_network_warns(forked, tmp_path):
    quick = [*QUICK, "trainer.steps=1", "loss=implicit"]
    for activation, warns in (("relu", True), ("softplus", False)):
        model = ["model=mlp", f"model.activation={activation}"]
        result = forked.call("train", [*quick, *model], tmp_path)
        assert result.returncode == 0, result.stderr
        assert ("it is biased" in result.stdout) == warns
