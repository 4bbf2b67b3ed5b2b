"""``ncsn-train`` from an empty folder."""

import csv
import html
import math
import shlex

import pytest
from omegaconf import OmegaConf

from tests.helpers.commands import QUICK, QUICK_SAMPLE, assert_same_run, only_run, read, run
from tests.helpers.problems import two_modes_1d


def test_a_training_run_writes_its_folder(trained):
    assert read(trained / "status.json") == {"state": "done", "step": 30, "error": None}
    metrics = read(trained / "metrics.json")
    assert list(metrics) == [
        "loss", "loss_standard_error", "loss_floor", "excess_loss", "excess_loss_standard_error",
        "score_error", "score_error_standard_error", "visible_error",
        "visible_error_standard_error", "invisible_error", "invisible_error_standard_error",
        "kl_bound", "kl_bound_standard_error", "sigmas", "score_error_per_level",
        "visible_error_per_level", "invisible_error_per_level", "fisher_divergence_per_level",
        "best_scale_per_level", "recovered_kl_per_level", "target_variance_per_level",
        "tau_gen", "tau_mem", "seconds",
    ]  # fmt: skip
    assert metrics["visible_error_per_level"] == metrics["score_error_per_level"]  # in 1D
    assert metrics["kl_bound"]["visible"] == metrics["kl_bound"]["total"]
    # The widest level dominates: 100 000 draws for each side, of standard deviation 3 loss.
    difference = metrics["loss"] - metrics["loss_floor"] - metrics["excess_loss"]
    assert abs(difference) < 5 * math.sqrt(2) * 3 * metrics["loss"] / math.sqrt(1e5)
    assert len(metrics["score_error_per_level"]) == 4
    rows = (trained / "history.csv").read_text().splitlines()
    assert rows[0] == (
        "step,loss,excess_loss,grad_norm,lr,seconds,clipped_grad_norm,true_distance,"
        "true_distance_seen,empirical_distance_seen"
    )
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "5", "10", "15", "20", "25", "30"]
    assert {p.name for p in (trained / "plots").iterdir()} == {"score.png", "loss.png"}
    record = read(trained / "run.json")
    assert record["command"].startswith("ncsn-train trainer.steps=30")
    assert {"versions", "device", "threads", "seed", "start", "end", "seconds"} <= set(record)
    *_, report, following = (trained / "train.log").read_text().splitlines()
    place = f"outputs/train/runs/{trained.name}"
    assert report.endswith(f"] report: {place}/report.html")
    assert following.endswith(f"] next: ncsn-sample checkpoint={place}")
    assert "paths" not in (trained / "config.yaml").read_text()
    left = {p.name for p in trained.iterdir()} - {
        ".hydra", "train.log", "config.yaml", "run.json", "status.json", "history.csv",
        "checkpoints", "metrics.json", "plots", "report.html", "live.html",
    }  # fmt: skip
    assert not left
    report = (trained / "report.html").read_text()
    assert record["command"] in html.unescape(report)
    assert "<th>trainer.steps</th><td>30</td>" in report
    assert "<th>trainer.grad_clip</th>" not in report  # as by default
    assert report.count("data:image/png") == 2


@pytest.mark.slow
def test_compiled_steps_are_kept_in_the_users_cache_and_written_down(
    tmp_path, monkeypatch, really_succeed
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it for this process
    small = [*QUICK, "model=mlp", "model.hidden=[8]"]  # half the seconds of the default network
    compiled = really_succeed("ncsn-train", *small, "trainer.compile=true", folder=tmp_path)
    assert list((tmp_path / "cache" / "ncsn_cli").iterdir())
    config = OmegaConf.load(compiled / "config.yaml")
    assert (config.trainer.threads, config.trainer.compile) == (1, True)
    assert "compiled in" in (compiled / "train.log").read_text()


@pytest.mark.slow
def test_tensorboard_shows_history_and_pictures(trained, tmp_path, succeed):
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


def test_ones_own_classes_are_named_on_the_command_line(tmp_path, succeed, forked):
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
    result = forked.call("sample", [f"checkpoint={out}", *quick], tmp_path)
    assert result.returncode == 2
    assert "model._target_: my_models.Mine is no class of ncsn_cli" in result.stderr
    pasted = (out / "train.log").read_text().rpartition("next: ncsn-sample ")[2]
    assert "plugins" in pasted
    for known in ([*own, f"checkpoint={out}"], shlex.split(pasted)):
        succeed("ncsn-sample", *known, *quick, folder=tmp_path)


@pytest.mark.slow
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
    assert result.stdout.count("schedule: sigma_min = 0.9 widens the data") == 1
    warnings = read(only_run(tmp_path, "train") / "run.json")["schedule"]["warnings"]
    assert len(warnings) == 2  # sigma_max and sigma_min


@pytest.mark.slow
def test_a_loss_that_differentiates_a_relu_network_warns(forked, tmp_path):
    quick = [*QUICK, "trainer.steps=1", "loss=implicit"]
    for activation, warns in (("relu", True), ("softplus", False)):
        model = ["model=mlp", f"model.activation={activation}"]
        result = forked.call("train", [*quick, *model], tmp_path)
        assert result.returncode == 0, result.stderr
        assert ("it is biased" in result.stdout) == warns
