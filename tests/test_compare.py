"""The table over runs, from folders written as the commands write them."""

import csv
import json
import re

import pytest
import yaml

from ncsn_cli import cli
from ncsn_cli.compare import compare


def write(folder, config=None, metrics=None, state="done", error=None):
    (folder / ".hydra").mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 1, "error": error}))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))


def training(lr, seed, excess, model="MLP"):
    config = {
        "seed": seed,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr},
        "model": {"_target_": f"ncsn_cli.models.{model}", "hidden": [8]},
        "plot": {"a": seed},
    }
    return config, {"excess_loss": excess, "score_error": 2 * excess, "sigmas": [1.0, 0.1]}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = 0
    for lr, base in ((0.1, 0.4), (0.01, 0.2), (0.001, 0.3)):
        for seed in (0, 1, 2):
            write(tmp_path / "sweep" / str(job), *training(lr, seed, base + 0.01 * seed))
            job += 1
    write(tmp_path / "sweep" / "9", state="diverged", error="the loss is nan at step 7")
    write(tmp_path / "sweep" / "10", training(0.1, 0, 0)[0], state="running")
    return tmp_path


def rows(text):
    return [line.split("  ") for line in text.splitlines()]


def test_seeds_are_averaged_and_the_best_is_marked(sweep, capsys):
    compare(["sweep"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["optimizer.lr", "runs", "excess_loss", "score_error"]
    assert [line.split()[0] for line in out[2:5]] == ["0.01", "0.001", "0.1"]  # best first
    assert out[2].split() == ["0.01", "3", "0.21", "±", "0.01", "*", "0.42", "±", "0.02", "*"]
    assert "*" not in out[3] + out[4]


def test_the_report_has_the_table_with_links_to_the_runs(sweep):
    compare(["sweep", "--output", "out"])
    page = (sweep / "out" / "report.html").read_text()
    links = re.findall(r'<a href="(.*?)">', page)
    # Best first, seed by seed; then the folders of those without a result.
    runs = [f"../sweep/{job}/report.html" for job in (3, 4, 5, 6, 7, 8, 0, 1, 2)]
    assert links == [*runs, "../sweep/9", "../sweep/10"]
    assert "0.21 ± 0.01 *" in page
    assert "the loss is nan at step 7" in page
    assert page.count("data:image/png") == 2


def test_unfinished_and_failed_runs_are_named_with_their_reason(sweep, capsys):
    compare(["sweep"])
    out = capsys.readouterr().out
    assert "2 of 11 runs have no result:" in out
    assert "sweep/9: diverged: the loss is nan at step 7" in out
    assert "sweep/10: running" in out


def test_the_csv_has_every_run_and_every_number(sweep):
    compare(["sweep", "--output", "out"])
    table = list(csv.DictReader((sweep / "out" / "compare.csv").read_text().splitlines()))
    assert len(table) == 11
    assert [row["folder"] for row in table] == [f"sweep/{i}" for i in range(11)]
    assert float(table[4]["excess_loss"]) == pytest.approx(0.21)
    assert (table[4]["seed"], table[4]["optimizer.lr"]) == ("1", "0.01")
    assert table[9]["error"] == "the loss is nan at step 7"
    assert {path.name for path in (sweep / "out" / "plots").iterdir()} == {
        "excess_loss_optimizer.lr.png", "score_error_optimizer.lr.png",
    }  # fmt: skip


def test_sort_metric_and_group_by(sweep, capsys):
    compare(["sweep", "--sort", "optimizer.lr", "--metric", "score_error"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["optimizer.lr", "runs", "score_error"]
    assert [line.split()[0] for line in out[2:5]] == ["0.001", "0.01", "0.1"]
    write(sweep / "more", *training(0.1, 0, 0.05, model="FourierMLP"))
    compare(["sweep", "more", "--group-by", "model._target_"])
    out = capsys.readouterr().out.splitlines()
    assert out[2].split()[:3] == ["FourierMLP", "1", "0.05"]
    assert out[3].split()[:2] == ["MLP", "9"]


def test_an_option_stands_for_its_values(sweep, capsys):
    config, metrics = training(0.1, 0, 0.5, model="FourierMLP")
    config["model"]["features"] = 16
    write(sweep / "other", config, metrics)
    compare(["sweep/0", "other"])
    assert capsys.readouterr().out.split()[:2] == ["model", "runs"]


def sampling(score, value, sampler="Langevin", evaluations=10):
    config = {
        "seed": 0, "score": score, "sampler": {"_target_": f"ncsn_cli.samplers.{sampler}"},
        "checkpoint": "x" if score == "checkpoint" else None,
        "model": {"hidden": [8]} if score == "checkpoint" else None,
    }  # fmt: skip
    entry = {"value": value, "floor": 0.01, "ratio": value / 0.01}
    metrics = {"clean": {"w": entry}, "perturbed": {"w": entry}, "score_evaluations": evaluations}
    return config, metrics


def test_three_scores_split_the_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for score, value in (("checkpoint", 0.1), ("empirical", 0.06), ("exact", 0.03)):
        write(tmp_path / score, *sampling(score, value))
    compare(["checkpoint", "empirical", "exact"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("w "))
    # network .1 - .06, finite data .06 - .03, sampler .03 - .01, floor .01
    assert line.split() == ["w", "0.04", "0.03", "0.02", "0.01", "0.1"]


def test_quality_against_work_and_a_map_of_two_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        config, metrics = sampling("exact", 0.1 / (1 + i), evaluations=10 * (i + 1))
        config["sampler"] |= {"a": i % 2, "b": i // 2}
        write(tmp_path / "sweep" / str(i), config, metrics)
    compare(["sweep", "--output", "out"])
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert names == {
        f"perturbed.w.ratio_{part}.png"
        for part in ("sampler.a", "sampler.b", "map", "evaluations")
    }


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nowhere"], 66, "nowhere"),
        (["."], 66, "no run"),
        (["sweep", "--metric", "nosuch"], 2, "--metric"),
        (["sweep", "--sort", "nosuch"], 2, "--sort"),
        (["sweep", "--group-by", "seed2"], 2, "--group-by"),
        ([], 2, "FOLDER"),
    ],
)
def test_bad_input_is_refused(sweep, monkeypatch, capsys, arguments, code, named):
    if arguments == ["."]:
        (sweep / "empty").mkdir()
        monkeypatch.chdir(sweep / "empty")
    monkeypatch.setattr("sys.argv", ["ncsn-compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.compare()
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error


def test_a_damaged_run_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run", *training(0.1, 0, 0.5))
    (tmp_path / "run" / "metrics.json").write_text("{")
    compare(["run"])
    out = capsys.readouterr().out
    assert "no finished run" in out
    assert "damaged: metrics.json" in out


def test_trainings_and_samplings_together_have_a_table_and_no_wrong_picture(sweep, capsys):
    config = {"seed": 0, "sampler": {"step_size": 0.1}, "score": "checkpoint"}
    write(
        sweep / "sample",
        config,
        {"perturbed": {"moments": {"ratio": 2.0}}, "score_evaluations": 7},
    )
    compare(["sweep", "sample", "--output", "out"])
    out = capsys.readouterr().out
    assert "perturbed.moments.ratio" in out and "excess_loss" in out
    assert {path.stem for path in (sweep / "out" / "plots").iterdir()} == {
        "excess_loss_optimizer.lr", "score_error_optimizer.lr"
    }  # fmt: skip
    assert (sweep / "out" / "report.html").is_file()
