"""The table over runs, from folders written as the commands write them."""

import csv
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
import yaml

from ncsn_cli.commands import cli
from ncsn_cli.commands.compare import compare
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.plots import canvas, comparison
from ncsn_cli.runs.files import to_npz


def write(
    folder, config=None, metrics=None, state="done", error=None,
    overrides=None, choices=None, asked=None, cwd="/",
):  # fmt: skip
    (folder / ".hydra").mkdir(parents=True)
    runtime = {"cwd": str(cwd), "choices": choices}
    task = {"task": overrides}
    for name, values in (
        ("overrides", overrides),
        ("config", asked),
        ("hydra", choices and {"hydra": {"runtime": runtime, "overrides": task}}),
    ):
        if values is not None:
            (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(values))
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


def tables(text):
    """The tables of an output: for each its title, and its lines from the header on."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if line and not line.strip("-")]
    found = []
    for rule in rules:
        end = next(i for i in range(rule, len(lines)) if not lines[i])
        first = rule - 3  # a blank line is between the lines about the table and its header
        while first > 0 and lines[first - 1]:
            first -= 1
        title = lines[first].partition(" run")[0].rpartition(", ")[0]
        found.append((title, [lines[rule - 1], *lines[rule + 1 : end]]))
    return found


def the_table(text):
    """The header, and the rows, of the only table of an output."""
    ((_, lines),) = tables(text)
    return lines


def test_seeds_are_averaged_and_the_best_is_marked(sweep, capsys):
    compare(["sweep"])
    out = the_table(capsys.readouterr().out)
    assert out[0].split() == ["optimizer.lr", "runs", "excess_loss", "score_error"]
    assert [line.split()[0] for line in out[1:]] == ["0.01", "0.001", "0.1"]  # best first
    assert out[1].split() == ["0.01", "3", "0.21", "±", "0.01", "*", "0.42", "±", "0.02", "*"]
    assert "*" not in out[2] + out[3]


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


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_summary_has_mean_and_deviations_over_seeds(sweep):
    write(sweep / "sweep" / "11", *training(1.0, 0, 0.7))
    compare(["sweep", "--output", "out"])
    table, runs = (read_csv(sweep / "out" / f"{name}.csv") for name in ("summary", "compare"))
    assert list(table[0])[:6] == [
        "optimizer.lr", "runs", "excess_loss_mean", "excess_loss_std",
        "excess_loss_standard_error", "excess_loss_count",
    ]  # fmt: skip
    assert [row["optimizer.lr"] for row in table] == ["0.01", "0.001", "0.1", "1.0"]  # as shown
    for row in table:
        values = [
            float(run["score_error"])
            for run in runs
            if run["optimizer.lr"] == row["optimizer.lr"] and run["state"] == "done"
        ]
        assert int(row["runs"]) == int(row["score_error_count"]) == len(values)
        assert float(row["score_error_mean"]) == pytest.approx(np.mean(values), rel=1e-12)
        if len(values) == 1:
            assert row["score_error_std"] == row["score_error_standard_error"] == ""
            continue
        std = np.std(values, ddof=1)
        assert float(row["score_error_std"]) == pytest.approx(std, rel=1e-12)
        error = float(row["score_error_standard_error"])
        assert error == pytest.approx(std / np.sqrt(len(values)), rel=1e-12)


def test_the_csv_files_hold_values_that_other_programs_read_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (hidden, denoise, clip) in enumerate([([8], True, None), ([8, 9], False, 0.5)]):
        config, metrics = training(0.1, seed, 0.25)
        config["model"]["hidden"] = hidden
        config["sampler"] = {"denoise": denoise}
        config["trainer"] = {"grad_clip": clip}
        metrics |= {"missing": None, "score_evaluations": 7, "seed_of": {"x": 1e-300}}
        words = ["model.hidden=x", "sampler.denoise=x", "trainer.grad_clip=x"]
        write(tmp_path / "runs" / str(seed), config, metrics, overrides=words, asked=config,
              choices={"model": "mlp"})  # fmt: skip
    write(tmp_path / "runs" / "9", state="failed", error="no, really")
    compare(["runs", "--output", "out"])
    first, second, failed = read_csv(tmp_path / "out" / "compare.csv")
    assert len(first) == len({*first})  # no name appears twice
    assert [json.loads(row["model.hidden"]) for row in (first, second)] == [[8], [8, 9]]
    assert [row["sampler.denoise"] for row in (first, second)] == ["True", "False"]
    assert [row["trainer.grad_clip"] for row in (first, second)] == ["", "0.5"]
    assert "missing" not in first
    assert (first["score_evaluations"], float(first["seed_of.x"])) == ("7", 1e-300)
    assert (failed["error"], failed["excess_loss"]) == ("no, really", "")
    summary = read_csv(tmp_path / "out" / "summary.csv")
    assert [json.loads(row["model.hidden"]) for row in summary] == [[8], [8, 9]]


def test_rows_differ_in_more_than_the_digits_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, lr in enumerate((0.123412, 0.123414)):
        write(tmp_path / "runs" / str(i), *training(lr, 0, 0.5 + i))
    compare(["runs"])
    rows = [line.split() for line in the_table(capsys.readouterr().out)[1:]]
    assert [row[:3] for row in rows] == [["0.1234", "1", "0.5"], ["0.1234", "1", "1.5"]]


def test_samples_of_networks_that_differ_in_their_seed_are_averaged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, (lr, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1), (0.2, 1)]):
        asked = training(lr, seed, 0.0)[0]
        write(tmp_path / "trained" / str(i), asked=asked, overrides=["optimizer.lr=x"],
              choices={"optimizer": "adam"})  # fmt: skip
        config, metrics = sampling("checkpoint", lr + 0.01 * i)
        config["checkpoint"] = f"trained/{i}"
        write(tmp_path / "sampled" / str(i), config, metrics, choices={"sampler": "langevin"},
              overrides=["checkpoint=x"], cwd=tmp_path)  # fmt: skip
    four = [f"sampled/{i}" for i in range(4)]
    compare([*four, "--output", "out"])
    out = the_table(capsys.readouterr().out)
    assert out[0].split()[:2] == ["optimizer.lr", "runs"]
    assert [line.split()[:2] for line in out[1:]] == [["0.1", "2"], ["0.2", "2"]]
    rows = read_csv(tmp_path / "out" / "compare.csv")
    assert [row["checkpoint.seed"] for row in rows] == ["0", "1", "0", "1"]
    # With the exact score nothing was trained: the rate tells no runs apart.
    write(tmp_path / "exact", *sampling("exact", 0.01), choices={"sampler": "langevin"},
          overrides=["score=exact"])  # fmt: skip
    compare(["sampled/0", "sampled/1", "exact"])
    assert the_table(capsys.readouterr().out)[0].split()[:2] == ["score", "runs"]
    compare(["sampled/3", "sampled/4"])  # the same seed: other networks
    assert the_table(capsys.readouterr().out)[0].split()[:2] == ["checkpoint", "runs"]


def test_sort_metric_and_group_by(sweep, capsys):
    compare(["sweep", "--sort", "optimizer.lr", "--metric", "score_error"])
    out = the_table(capsys.readouterr().out)
    assert out[0].split() == ["optimizer.lr", "runs", "score_error"]
    assert [line.split()[0] for line in out[1:]] == ["0.001", "0.01", "0.1"]
    write(sweep / "more", *training(0.1, 0, 0.05, model="FourierMLP"))
    compare(["sweep", "more", "--group-by", "model._target_"])
    out = the_table(capsys.readouterr().out)
    assert out[1].split()[:3] == ["FourierMLP", "1", "0.05"]
    assert out[2].split()[:2] == ["MLP", "9"]


def test_an_option_stands_for_its_values(sweep, capsys):
    config, metrics = training(0.1, 0, 0.5, model="FourierMLP")
    config["model"]["features"] = 16
    write(sweep / "other", config, metrics)
    compare(["sweep/0", "other"])
    assert the_table(capsys.readouterr().out)[0].split()[:2] == ["model", "runs"]


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
        (["sweep", "--sort", "nosuch"], 2, "--sort: no run has nosuch; choose from "),
        (["sweep", "--sort", "optimiser.lr"], 2, "did you mean optimizer.lr?"),
        (
            ["sweep", "--metric", "scor_error"],
            2,
            "no run has scor_error; did you mean score_error?",
        ),
        (
            ["sweep", "--group-by", "optimizer.rl"],
            2,
            "no run has optimizer.rl; did you mean optim",
        ),
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


def test_a_run_that_was_resumed_in_another_folder_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config, metrics = training(0.1, 0, 0.5)
    write(tmp_path / "old", config, state="interrupted", error="stopped")
    resumed = {**config, "trainer": {"resume": "old"}}
    write(tmp_path / "new", resumed, metrics, choices={"dataset": "two_modes_1d"}, cwd=tmp_path)
    compare(["old", "new"])
    assert "old: interrupted: stopped; continued in new\n" in capsys.readouterr().out


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


PRESETS = {
    "two_modes_2d": ("GaussianMixture", {"weights": [0.95, 0.05], "num_samples": 1000}),
    "three_modes_2d": ("GaussianMixture", {"weights": [0.4, 0.4, 0.2], "num_samples": 2000}),
    "grid_2d": ("grid", {"std": 0.1, "num_samples": None}),
    "_my_ring": ("ring", {"std": 0.3, "num_samples": None}),
}


def write_preset(
    folder, dataset, *, seed=0, levels=10, lr=0.1, num=None, overrides=None, **keywords
):
    target, values = PRESETS[dataset]
    values = values | ({"num_samples": num} if num else {})
    config = {
        "dataset": {"_target_": f"ncsn_cli.datasets.{target}", **values},
        "schedule": {"_target_": "ncsn_cli.schedules.Geometric", "num_levels": levels},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr},
        "seed": seed,
    }
    settings = {
        "overrides": [f"dataset={dataset}", f"schedule.num_levels={levels}", f"seed={seed}"],
        "choices": {"dataset": dataset, "schedule": "geometric", "optimizer": "adam"},
        "asked": config,
    }
    if overrides is not None:
        settings["overrides"] = overrides
    excess = (1 + list(PRESETS).index(dataset)) * (levels + seed) * lr / 1000
    write(folder, config, {"excess_loss": excess}, **settings | keywords)


@pytest.fixture
def presets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dataset in PRESETS:
        for levels in (10, 20):
            write_preset(tmp_path / "sweep" / f"{dataset}{levels}", dataset, levels=levels)
    return tmp_path


def test_rows_and_pictures_are_of_the_options_that_were_chosen(presets, capsys):
    compare(["sweep", "--output", "out"])
    found = tables(capsys.readouterr().out)
    assert [title for title, _ in found] == [
        f"training of {dataset}" for dataset in sorted(PRESETS)
    ]
    for _, lines in found:
        assert lines[0].split() == ["schedule.num_levels", "runs", "excess_loss"]
        assert [line.split()[:2] for line in lines[1:]] == [["10", "1"], ["20", "1"]]
    (picture,) = (presets / "out" / "plots").iterdir()
    assert picture.name == "excess_loss_schedule.num_levels.png"  # not along dataset.num_samples
    header, row = (presets / "out" / "compare.csv").read_text().splitlines()[:2]
    assert header == "folder,state,error,seed,dataset,schedule.num_levels,excess_loss"
    assert ",_my_ring,10," in row


def test_runs_are_grouped_by_an_option_or_by_a_value_that_it_sets(presets, capsys):
    for key in ("dataset", "dataset._target_"):
        compare(["sweep", "--group-by", key])
        found = tables(capsys.readouterr().out)
        assert {title.split()[-1] for title, _ in found} == set(PRESETS)
        assert [line.split()[0] for _, lines in found for line in lines[1:]] == ["2"] * 4
    for levels in (10, 20):  # the same law, other points
        write_preset(presets / "sweep" / f"more{levels}", "grid_2d", levels=levels, num=500)
    compare(["sweep", "--group-by", "dataset.num_samples"])
    found = dict(tables(capsys.readouterr().out))
    assert [line.split()[:2] for line in found["training of grid_2d"][1:]] == [
        ["-", "2"], ["500", "2"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="optimizer is the same in all runs"):
        compare(["sweep", "--group-by", "optimizer"])


def test_single_runs_are_told_apart_by_their_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, dataset in enumerate(("two_modes_2d", "three_modes_2d")):
        for seed in (0, 1):
            write_preset(tmp_path / "runs" / f"{i}{seed}", dataset, seed=seed, overrides=[])
    compare(["runs"])
    found = tables(capsys.readouterr().out)
    assert [(title, lines[0].split(), lines[1].split()[0]) for title, lines in found] == [
        (f"training of {dataset}", ["runs", "excess_loss"], "2")
        for dataset in ("two_modes_2d", "three_modes_2d")
    ]


def test_an_experiment_stands_for_all_that_it_sets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, dataset, levels in (("one", "grid_2d", 10), ("other", "two_modes_2d", 20)):
        for lr in (0.1, 0.2):
            choices = {"experiment": name, "dataset": dataset, "schedule": name}
            words = [f"experiment={name}", f"optimizer.lr={lr}"]
            write_preset(
                tmp_path / "runs" / f"{name}{lr}", dataset, levels=levels, lr=lr,
                overrides=words, choices=choices,
            )  # fmt: skip
    compare(["runs", "--output", "out"])
    found = tables(capsys.readouterr().out)
    assert {lines[0] for _, lines in found} == {"optimizer.lr  runs  excess_loss"}
    summary = read_csv(tmp_path / "out" / "summary.csv")
    assert [*summary[0]][:3] == ["experiment", "optimizer.lr", "runs"]
    assert [p.name for p in (tmp_path / "out/plots").iterdir()] == ["excess_loss_optimizer.lr.png"]


def test_what_the_data_decided_keeps_no_seeds_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = {"schedule": {"_target_": "ncsn_cli.schedules.FromData", "sigma_min": 0.1}}
    for seed in (0, 1):
        fitted = {"_target_": "ncsn_cli.schedules.Geometric", "sigma_max": 10.0 + seed}
        config = {"schedule": fitted, "seed": seed}
        write(tmp_path / "runs" / str(seed), config, {"excess_loss": 1.0 + seed}, asked=asked)
    compare(["runs", "--output", "out"])
    assert the_table(capsys.readouterr().out)[1].split()[:3] == ["2", "1.5", "±"]
    assert not (tmp_path / "out" / "plots").exists()


@pytest.mark.parametrize("named", ["run", "file", "absolute", "gone"])
def test_what_a_checkpoint_supplied_has_the_name_of_its_run(named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, dataset in enumerate(("two_modes_2d", "three_modes_2d")):
        write_preset(tmp_path / "trained" / str(i), dataset, overrides=[])
        config, metrics = sampling("checkpoint", 0.1 * (1 + i))
        target, values = PRESETS[dataset]
        config["dataset"] = {"_target_": f"ncsn_cli.datasets.{target}", **values}
        config["checkpoint"] = {
            "run": f"trained/{i}",
            "file": f"trained/{i}/checkpoints/step_000000001.safetensors",
            "absolute": str(tmp_path / "trained" / str(i)),
            "gone": f"elsewhere/{i}",
        }[named]
        choices = {"dataset": None, "experiment": None, "sampler": "langevin"}
        overrides = [f"checkpoint={config['checkpoint']}"]
        write(tmp_path / "sampled" / str(i), config, metrics, overrides=overrides, choices=choices,
              asked={**config, "dataset": None}, cwd=tmp_path)  # fmt: skip
    monkeypatch.chdir(tmp_path / "sampled")  # not where they were run
    compare([".", "--metric", "perturbed.w.ratio", "--output", "out"])
    assert not (tmp_path / "sampled" / "out" / "plots").exists()
    titles = [title for title, _ in tables(capsys.readouterr().out)]
    if named == "gone":  # then values tell, which nobody swept
        law = "samples of GaussianMixture, dataset.weights="
        assert titles == [f"{law}[0.95, 0.05]", f"{law}[0.4, 0.4, 0.2]"]
    else:
        assert titles == ["samples of two_modes_2d", "samples of three_modes_2d"]


def test_what_was_swept_in_training_has_a_picture_of_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for levels in (10, 20):
        write_preset(tmp_path / "trained" / str(levels), "grid_2d", levels=levels)
        config, metrics = sampling("checkpoint", 1 / levels)
        config |= {"checkpoint": f"trained/{levels}", "schedule": {"num_levels": levels}}
        choices, words = {"schedule": None, "init": "prior"}, [f"checkpoint=trained/{levels}"]
        write(tmp_path / "sampled" / str(levels), config, metrics, overrides=words,
              choices=choices, cwd=tmp_path)  # fmt: skip
    compare(["sampled", "--output", "out"])
    (picture,) = (tmp_path / "out" / "plots").iterdir()
    assert picture.name == "perturbed.w.ratio_schedule.num_levels.png"


def test_a_damaged_record_of_options_costs_their_names_alone(presets, capsys):
    for path in presets.glob("sweep/*/.hydra/hydra.yaml"):
        path.write_text("hydra: {runtime: {choices: [1, 2], cwd: {a: 1}}}")
    (presets / "sweep/grid_2d10/.hydra/hydra.yaml").write_text("a: &x [1]\nb: *x")
    compare(["sweep", "--group-by", "dataset"])
    titles = [title.split(", ")[0] for title, _ in tables(capsys.readouterr().out)]
    names = ("GaussianMixture", "GaussianMixture", "grid", "ring")
    assert sorted(titles) == [f"training of {name}" for name in names]


def drawn_by(monkeypatch):
    """The figures that are drawn from here on."""
    figures = []

    def to_png(figure):
        figures.append(figure)
        return original(figure)

    original = canvas.to_png
    monkeypatch.setattr(canvas, "to_png", to_png)
    return figures


def test_legends_are_whole_and_inside_the_picture(presets, monkeypatch):
    long = "a_name_that_somebody_has_chosen_" * 4
    monkeypatch.setitem(PRESETS, long, PRESETS["grid_2d"])
    monkeypatch.setitem(PRESETS, r"$\no_such_letter$", PRESETS["grid_2d"])
    for dataset in list(PRESETS)[-2:]:
        for levels in (10, 20):
            write_preset(presets / "sweep" / f"{dataset}{levels}", dataset, levels=levels)
    figures = drawn_by(monkeypatch)
    compare(["sweep"])
    (figure,) = figures
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "dataset"
    texts = ["".join(text.get_text().split()) for text in legend.get_texts()]
    assert sorted(texts) == sorted("".join(name.split()) for name in PRESETS)
    box, axes = legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height
    assert axes.x1 <= box.x0
    assert axes.width > 6 * figure.dpi  # what it has beside a short legend


def test_lines_are_told_apart_or_averaged_with_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = [0.1, 0.2, 0.3, 0.4]
    for number, expected in ((3, (12, "")), (4, (4, "mean over optimizer.lr"))):
        for dataset in PRESETS:
            for levels in (10, 20):
                for lr in rates[:number]:
                    write_preset(
                        tmp_path / str(number) / f"{dataset}{levels}{lr}", dataset, levels=levels,
                        lr=lr, overrides=[f"optimizer.lr={lr}", f"schedule.num_levels={levels}"],
                    )  # fmt: skip
        with monkeypatch.context() as changed:
            figures = drawn_by(changed)
            compare([str(number)])
        (axes,) = next(f for f in figures if "num_levels" in f.axes[0].get_xlabel()).axes
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert (len(lines), axes.get_title()) == expected
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
        assert len(looks) == len(lines)


def test_a_picture_that_fails_is_named_and_the_others_are_written(sweep, monkeypatch, caplog):
    def broken(key, metric, *_, **__):
        if metric == "score_error":
            raise ValueError("no such colour")
        return original(key, metric, *_, **__)

    original = comparison.metric_against
    monkeypatch.setattr(comparison, "metric_against", broken)
    compare(["sweep", "--output", "out"])
    why = "score_error_optimizer.lr could not be drawn (ValueError: no such colour)"
    assert why in caplog.text
    assert why in (sweep / "out" / "report.html").read_text()
    assert [path.name for path in (sweep / "out" / "plots").iterdir()] == [
        "excess_loss_optimizer.lr.png"
    ]


def test_pictures_of_runs_are_drawn_as_the_program_says(sweep):
    compare(["sweep", "--output", "plain"])
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "red", "figure.dpi": 7}):
        compare(["sweep", "--output", "own"])
    for path in (sweep / "plain" / "plots").iterdir():
        assert path.read_bytes() == (sweep / "own" / "plots" / path.name).read_bytes()


def write_samples(
    folder, law="ring_2d", sigma_min=0.1, *, seed=0, points=0, state="done", **settings
):
    """A run of ncsn-sample, whose numbers are all 1 and whose samples are exact draws of p."""
    target, values, draw = {
        "ring_2d": ("ring", {"num_modes": 8, "radius": 4.0, "std": 0.3}, ring_draws),
        "one_1d": ("GaussianMixture", {"weights": [1], "means": [[0.0]], "stds": 1.0}, line_draws),
    }[law]
    config = {
        "dataset": {"_target_": f"ncsn_cli.datasets.{target}", **values, "seed": points},
        "schedule": {"_target_": "ncsn_cli.schedules.Geometric", "sigma_min": sigma_min},
        "sampler": {"_target_": "ncsn_cli.samplers.AnnealedLangevin", **settings},
        "score": "exact", "num_samples": 500, "seed": seed,
    }  # fmt: skip
    entry = {"value": 0.1, "floor": 0.1, "floor_quantiles": [0.05, 0.16], "ratio": 1.0}
    metrics = {"num_samples": 500, "score_evaluations": 7, "clean": {"w": entry},
               "perturbed": {"w": entry | {"ratio": 2 + seed}}}  # fmt: skip
    words = [f"dataset={law}", f"schedule.sigma_min={sigma_min}", f"seed={seed}",
             *(f"sampler.{key}={value}" for key, value in settings.items())]  # fmt: skip
    choices = {"dataset": law, "schedule": "geometric", "sampler": "annealed_langevin"}
    write(folder, config, metrics if state == "done" else None, state=state, overrides=words,
          choices=choices, asked=config)  # fmt: skip
    if state == "done":
        points = draw(np.random.default_rng(seed)).astype(np.float32)
        (folder / "samples.npz").write_bytes(to_npz({"samples": points}))


def ring_draws(random):
    angles = random.integers(8, size=500) * np.pi / 4
    centres = 4 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return centres + 0.3 * random.normal(size=(500, 2))


def line_draws(random):
    return random.normal(size=(500, 1))


def test_where_targets_move_the_ranking_is_against_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for sigma in (0.05, 1, 0.3):
        for seed in (0, 1):
            write_samples(tmp_path / "runs" / f"{sigma}_{seed}", sigma_min=sigma, seed=seed)
    figures = drawn_by(monkeypatch)
    compare(["runs", "--output", "out"])
    out = capsys.readouterr().out
    assert "ranked against p itself (clean), because perturbed targets move with sigma_min" in out
    assert the_table(out)[0].split() == ["schedule.sigma_min", "runs", "clean.w.ratio"]
    assert "score_evaluations=7" in out.splitlines()[0]
    assert not {"*", "~"} & {*"".join(the_table(out)[1:])}  # all rows are the same
    page = (tmp_path / "out" / "report.html").read_text()
    assert "because perturbed targets move" in page and "clean.w.ratio" in page
    # Samples of each run, with what differs above, on the same axes.
    panels = figures[-1].axes
    assert [axes.get_title() for axes in panels] == [
        f"sigma_min={sigma}, seed={seed}" for sigma in ("0.05", "0.3", "1") for seed in (0, 1)
    ]
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in panels}) == 1
    compare(["runs", "--metric", "perturbed.w.ratio"])
    out = capsys.readouterr().out
    assert "not ranked by perturbed.w.ratio: what they measure changes with sigma_min" in out
    assert not {"*", "~"} & {*"".join(the_table(out)[1:])}


def test_where_targets_stay_the_ranking_is_against_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for step in (0.1, 0.2):
        write_samples(tmp_path / "runs" / str(step), step_size=step)
    compare(["runs"])
    out = capsys.readouterr().out
    assert the_table(out)[0].split() == ["sampler.step_size", "runs", "perturbed.w.ratio"]
    assert "ranked against" not in out


def test_each_law_and_each_kind_of_run_has_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for law in ("ring_2d", "one_1d"):
        for step in (0.1, 0.2):
            write_samples(tmp_path / "runs" / f"{law}{step}", law, step_size=step)
    write_preset(tmp_path / "runs" / "train", "grid_2d")
    write_samples(tmp_path / "runs" / "other", points=1, step_size=0.1)  # the same law
    compare(["runs", "--output", "out"])
    found = dict(tables(capsys.readouterr().out))
    assert {*found} == {"training of grid_2d", "samples of ring_2d", "samples of one_1d"}
    assert found["training of grid_2d"][0].split() == ["runs", "excess_loss"]
    ring = found["samples of ring_2d"]
    assert ring[0].split() == ["dataset.seed", "sampler.step_size", "runs", "clean.w.ratio"]
    assert len(ring[1:]) == 3
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert {"samples_ring_2d.png", "samples_one_1d.png"} <= names
    rows = read_csv(tmp_path / "out" / "summary.csv")
    assert [row["dataset"] for row in rows].count("ring_2d") == 3


def test_the_table_keeps_the_width_of_the_terminal(sweep, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for width in (40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        compare(["sweep", "--metric", "excess_loss", "--metric", "score_error"])
        text = capsys.readouterr().out.partition("runs have no result")[0]
        assert max(map(len, text.splitlines())) <= width
        assert "0.21 ± 0.01 *" in text and "0.42 ± 0.02 *" in text


def test_a_word_among_numbers_has_its_place_and_samples_their_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (0.01, 0.1, "auto"):
        for steps in (1, 5):
            state = "diverged" if step == 0.1 and steps == 5 else "done"
            write_samples(tmp_path / "runs" / f"{step}_{steps}", "one_1d", step_size=step,
                          steps_per_level=steps, state=state)  # fmt: skip
    figures = drawn_by(monkeypatch)
    compare(["runs"])
    along = next(f for f in figures if f.axes[0].get_xlabel() == "sampler.step_size")
    numbers, words = along.axes
    assert [text.get_text() for text in words.get_xticklabels()] == ["auto"]
    drawn = [*words.lines[0].get_xdata(), *words.lines[0].get_ydata()]
    assert drawn == [0, 2.0] and numbers.get_ylim() == words.get_ylim()
    heat = next(f for f in figures if f.axes[0].images)
    assert [text.get_text() for text in heat.axes[0].get_xticklabels()] == ["0.01", "0.1", "auto"]
    cells = np.reshape(figures[-1].axes, (2, 3))
    assert [axes.get_title() for axes in cells[0]] == ["0.01", "0.1", "auto"]
    assert [axes.get_ylabel() for axes in cells[:, 0]] == ["1", "5"]
    assert [text.get_text() for text in cells[1, 1].texts] == ["diverged"]
    x, density = cells[0, 0].lines[0].get_data()  # N(0, 1)
    np.testing.assert_allclose(density, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), rtol=1e-6)
    heights, edges, _ = cells[0, 0].patches[0].get_data()
    inside = np.abs(np.random.default_rng(0).normal(size=(500, 1)).astype("f4")) < edges[-1]
    assert (heights * np.diff(edges)).sum() == pytest.approx(inside.mean())


@pytest.mark.slow
def test_too_many_samples_are_one_of_each_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in range(1, 8):
        for seed in (0, 1):
            write_samples(
                tmp_path / "runs" / f"{step}_{seed}", "one_1d", seed=seed, step_size=step
            )
    figures = drawn_by(monkeypatch)
    compare(["runs"])
    titles = [axes.get_title() for axes in figures[-1].axes]
    assert titles == [f"step_size={step}, seed=0" for step in range(1, 8)]
    assert "one run of each setting" in figures[-1].get_suptitle()


@pytest.mark.slow
def test_samples_of_an_unknown_law_are_shown_without_a_truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        write_samples(tmp_path / "runs" / str(step), "one_1d", step_size=step)
        path = tmp_path / "runs" / str(step) / "config.yaml"
        path.write_text(path.read_text().replace("ncsn_cli.datasets.", "os.system."))
    figures = drawn_by(monkeypatch)
    compare(["runs"])
    assert [len(axes.lines) for axes in figures[-1].axes] == [0, 0]
    assert all(axes.patches for axes in figures[-1].axes)


def part(value):
    return {"value": value, "standard_error": 0.01}


def sampling_with_budget(nats):
    # With one mode, the mode weights are right whatever the samples are.
    splits = {"mode_weights": (0, 0.0), "moments": (0.2, 0.1), "width": (0.9, 0.7)}
    budget = {
        "metrics": {
            name: {"parts": {"steps": part(split), "network": part(split)}}
            for name, (_, split) in splits.items()
        },
        "nats": {"value": nats, "parts": {"steps": part(0.2)}},
    }
    if nats is not None:
        budget["nats"]["parts"]["network"] = part(0.1)
    clean = {
        name: {"value": value, "floor_quantiles": [0.0, value and 0.1]}
        for name, (value, _) in splits.items()
    }
    return {"clean": clean, "budget": budget}


@pytest.mark.parametrize(
    ("nats", "shown"), [((0.3, 0.3), "nats"), ((0.3, None), "metrics.width")], ids=str
)
def test_a_budget_is_shown_in_nats_or_where_the_error_is_largest(
    nats, shown, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for job, value in enumerate(nats):
        numbers = sampling_with_budget(value)
        write(tmp_path / "s" / str(job), {"seed": 0, "sampler": {"steps": job}}, numbers)
    del numbers["budget"]  # of a run like the last one
    config = {"seed": 1, "sampler": {"steps": 1}, "budget": False}
    write(tmp_path / "s" / "plain", config, numbers)
    compare(["s"])
    header, *rows = the_table(capsys.readouterr().out)
    assert [name for name in header.split() if name.startswith("budget")] == [
        f"budget.{shown}.parts.steps.value", f"budget.{shown}.parts.network.value",
    ]  # fmt: skip
    assert len(rows) == 2
