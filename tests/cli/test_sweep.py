"""Sweeps end to end: stopped, failing, in other processes, by a search."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ncsn_cli.commands import job as job_module
from ncsn_cli.commands.callbacks import num_jobs, sweep_overrides
from ncsn_cli.runs.checkpoints import load_checkpoint
from tests.helpers.commands import BIN, newest_checkpoint, read
from tests.helpers.sweeps import QUICK, STEPS, folders

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {
    "OMP_NUM_THREADS": "1"
}


def start(*arguments, folder):
    return subprocess.Popen(
        [BIN / "ncsn-train", *arguments], cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(*arguments, folder):
    """The exit code, and what was printed."""
    process = start(*arguments, folder=folder)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def results(sweep):
    """By job the final weights, and the metrics without the time they took."""
    found = {}
    for job in folders(sweep):
        metrics = read(job / "metrics.json")
        del metrics["seconds"]
        assert read(job / "status.json") == {"state": "done", "step": STEPS, "error": None}
        tensors = load_checkpoint(sorted(job.glob("checkpoints/*.safetensors"))[-1])[0]
        found[job.name] = ({name: t.tolist() for name, t in tensors.items()}, metrics)
    return found


def steps_made(sweep):
    return sum(read(path).get("step", 0) for path in sweep.glob("*/status.json"))


@pytest.mark.slow
def test_a_sweep_killed_and_run_again_ends_as_if_nothing_had_been(pytestconfig, forked, tmp_path):
    num_jobs, num_kills = (24, 10) if pytestconfig.getoption("--all-trials") else (3, 2)
    seeds = "seed=" + ",".join(map(str, range(num_jobs)))
    command = ["hparams_search=seeds", seeds, *QUICK]
    (tmp_path / "whole").mkdir()
    undisturbed = forked.call("train", command, tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    whole = results(tmp_path / "whole" / "outputs/train/multiruns/seeds")
    assert len(whole) == num_jobs

    sweep = tmp_path / "outputs/train/multiruns/seeds"
    draws, printed = random.Random(0), ""
    for _ in range(num_kills):
        process = start(*command, folder=tmp_path)
        left = num_jobs * STEPS - steps_made(sweep)
        goal = steps_made(sweep) + draws.uniform(0, 2 / num_kills) * left
        while steps_made(sweep) < goal and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        printed += process.communicate()[0]
    again = forked.call("train", command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert results(sweep) == whole
    assert tables(again.stdout) == tables(undisturbed.stdout)
    # Whatever ended once is not run again.
    ended = re.findall(r"^job \d+ of \d+  done  (\S+)", printed + again.stdout, re.MULTILINE)
    assert len(set(ended)) == len(ended) <= num_jobs


def tables(printed):
    """The table of ncsn-compare."""
    return re.search(r"^runs  excess_loss.*?\n\n", printed, re.DOTALL | re.MULTILINE)[0]


@pytest.mark.slow
def test_a_grown_grid_runs_only_what_is_new(forked, tmp_path):
    sweep = tmp_path / "sweep"
    few = ["-m", "hydra.sweep.dir=sweep", *QUICK, "trainer.steps=20"]
    assert forked.call("train", [*few, "seed=0,1"], tmp_path).returncode == 0
    times = {job.name: (job / "run.json").stat().st_mtime_ns for job in folders(sweep)}
    result = forked.call("train", [*few, "seed=2,1,0"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(folders(sweep)) == 3
    for name, written in times.items():
        assert (sweep / name / "run.json").stat().st_mtime_ns == written
    assert result.stdout.count("done before") == 2
    assert "sweep: 3 of 3 jobs done" in result.stdout
    assert result.stdout.endswith("\nnext: ncsn-sample checkpoint=sweep\n")
    page = (sweep / "report.html").read_text()
    assert "<h1>ncsn-train -m hydra.sweep.dir=sweep" in page
    assert all(f'href="{quote(job.name)}/report.html"' in page for job in folders(sweep))


@pytest.mark.slow
def test_run_json_has_the_command_that_repeats_a_job(forked, tmp_path):
    search = ["hparams_search=seeds", "seed=3", "optimizer.lr=0.01", *QUICK, "trainer.steps=20"]
    assert forked.call("train", search, tmp_path).returncode == 0
    (job,) = folders(tmp_path / "outputs/train/multiruns/seeds")
    program, *words = shlex.split(read(job / "run.json")["command"])
    assert program == "ncsn-train"
    assert forked.call("train", words, tmp_path).returncode == 0
    (again,) = tmp_path.glob("outputs/train/runs/*")
    first, second = (read(folder / "metrics.json") for folder in (job, again))
    assert first.pop("seconds") and second.pop("seconds")
    assert first == second


@pytest.mark.parametrize("place", [2, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 3))])
def test_a_failing_job_is_named_and_the_others_finish(place, forked, tmp_path):
    rates = ["0.001", "0.002", "0.003"]
    rates.insert(place, "1e30")
    rates = f"optimizer.lr={','.join(rates)}"
    result = forked.call("train", ["-m", "optimizer=sgd", rates, *QUICK], tmp_path)
    assert result.returncode == 3
    (sweep,) = tmp_path.glob("outputs/train/multiruns/*")
    states = sorted(read(job / "status.json")["state"] for job in folders(sweep))
    assert states == ["diverged", "done", "done", "done"]
    missing = result.stdout.partition("1 of 4 runs have no result:\n")[2]
    folder, overrides = missing.splitlines()[:2]
    assert ": diverged: the loss is" in folder
    # One line for each job, and what Hydra says besides is left out.
    lines = result.stdout.partition("sweep: 3 of 4 jobs done, 1 failed")[0].splitlines()
    assert lines[0] == f"sweep: 4 jobs in {sweep.relative_to(tmp_path)}"
    for i, (line, rate) in enumerate(
        zip(lines[1:], rates.partition("=")[2].split(","), strict=True)
    ):
        state = "diverged" if rate == "1e30" else "done"
        told = "the loss is" if rate == "1e30" else "excess_loss"
        assert line.startswith(f"job {i + 1} of 4  {state}  optimizer.lr={float(rate):g}  {told} ")
    assert result.stderr.count("\n") == 1
    assert "optimizer.lr=1e+30" in overrides
    assert f"hydra.sweep.dir={sweep.relative_to(tmp_path)}" in missing
    assert "the loss is" in result.stderr


@pytest.mark.slow
def test_a_job_that_is_refused_says_so_in_its_own_folder_every_time(forked, tmp_path):
    command = ["-m", "hydra.sweep.dir=sweep", "schedule.sigma_min=0.1,0", *QUICK]
    for _ in range(2):
        result = forked.call("train", [*command, "trainer.steps=20"], tmp_path)
        assert result.returncode == 2
        assert "schedule.sigma_min" in result.stderr
        assert "1 of 2 runs have no result" in result.stdout
        assert "failed: schedule.sigma_min" in result.stdout


def test_a_job_of_other_settings_in_the_folder_is_no_job_done(forked, tmp_path):
    same = ["-m", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}", *QUICK]
    few = [*same, "seed=0", "trainer.steps=20"]
    assert forked.call("train", few, tmp_path).returncode == 0
    result = forked.call("train", [*few, "optimizer.lr=0.1"], tmp_path)
    assert result.returncode == 73
    assert "holds a run with other settings" in result.stderr
    assert read(tmp_path / "sweep" / "0" / "status.json")["state"] == "done"


def test_an_unknown_objective_is_refused_before_any_work(forked, tmp_path):
    result = forked.call("train", ["-m", "seed=0,1", "objective=nosuch", *QUICK], tmp_path)
    assert result.returncode == 2
    assert "objective: choose from loss" in result.stderr
    assert not list(tmp_path.glob("**/checkpoints"))


@pytest.mark.slow
def test_a_damaged_checkpoint_of_a_stopped_job_gives_way_to_an_older_one(forked, tmp_path):
    command = ["-m", "hydra.sweep.dir=sweep", "seed=0", *QUICK]
    assert forked.call("train", command, tmp_path).returncode == 0
    whole, (job,) = results(tmp_path / "sweep"), folders(tmp_path / "sweep")
    (job / "status.json").write_text('{"state": "running", "step": 400, "error": null}')
    newest, older = sorted(job.glob("checkpoints/*"))[:0:-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    result = forked.call("train", command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{newest.name}: damaged" in (job / "train.log").read_text()
    assert older.name == "step_000000380.safetensors"
    assert results(tmp_path / "sweep") == whole


@pytest.mark.slow
def test_a_search_goes_on_after_trials_that_fail(forked, tmp_path):
    rates = "optimizer.lr=choice(0.001,1e30)"
    search = ["hparams_search=optuna", "hydra.sweeper.n_trials=4", "optimizer=sgd", rates]
    result = forked.call("train", [*search, *QUICK], tmp_path)
    assert result.returncode == 3  # all that failed diverged
    assert re.search(r"ncsn-train: \d of 4 jobs failed; they are named above", result.stderr)
    states = {
        read(p)["state"] for p in tmp_path.glob("outputs/train/multiruns/optuna/*/status.json")
    }
    assert states == {"done", "diverged"}


@pytest.mark.slow
def test_a_sweep_over_all_options_of_a_name(forked, tmp_path):
    command = ["-m", "optimizer=glob(adam*,exclude=adam_*)", *QUICK, "trainer.steps=20"]
    result = forked.call("train", command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sweep: 2 of ? jobs done" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["auto", "joblib", "submitit_local"])
def test_jobs_in_other_processes_end_the_same(launcher, forked, tmp_path):
    command = ["-m", "seed=0,1", *QUICK]
    assert forked.call("train", [*command, "hydra.sweep.dir=basic"], tmp_path).returncode == 0
    at_once = [] if launcher == "submitit_local" else ["hydra.launcher.n_jobs=2"]
    others = [f"hydra/launcher={launcher}", *at_once, "hydra.sweep.dir=others"]
    process = start(*command, *others, folder=tmp_path)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    entries = [read(path) for path in (tmp_path / "others").glob(".jobs/sweep/*/*.json")]
    assert len({entry["pid"] for entry in entries} - {process.pid}) == 2
    assert "sweep: 2 of 2 jobs done" in out
    assert "step 200/400" not in out  # it is in the jobs' own logs
    assert "step 200/400" in next(tmp_path.glob("others/*/train.log")).read_text()
    assert results(tmp_path / "others") == results(tmp_path / "basic")


# A terminal's Ctrl-C reaches every process, what a container sends the first alone.
@pytest.mark.parametrize(
    ("launcher", "number", "to_all", "compiled", "seconds"),
    [
        ("basic", signal.SIGINT, True, "false", 0),
        pytest.param("joblib", signal.SIGINT, True, "auto", 0, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGTERM, False, "false", 0, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGTERM, False, "auto", 0, marks=pytest.mark.slow),
        pytest.param("basic", signal.SIGTERM, False, "false", 0, marks=pytest.mark.slow),
        pytest.param("basic", signal.SIGINT, True, "auto", 8, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGINT, True, "auto", 4, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGTERM, True, "auto", 8, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGUSR1, False, "auto", 12, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_what_runs_and_says_how_to_go_on(
    launcher, number, to_all, compiled, seconds, tmp_path, monkeypatch
):
    """Also while its steps are compiled, which begins with a checkpoint and takes 10 s or more."""
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    long = [*QUICK, "trainer.steps=1000000", f"trainer.compile={compiled}"]
    process = start("-m", "seed=0,1,2", *long, f"hydra/launcher={launcher}", folder=tmp_path)
    sweeps, begun, saved = tmp_path / "outputs/train/multiruns", [], set()
    while not begun or len(saved) < len(begun):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        begun = list(sweeps.glob("*/.jobs/sweep/*/*.json"))
        saved = {path.parent for path in sweeps.glob("*/*/checkpoints/*.safetensors")}
    time.sleep(seconds)
    (os.killpg if to_all else os.kill)(process.pid, number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == (85 if number == signal.SIGUSR1 else 128 + number)
    (sweep,) = tmp_path.glob("outputs/train/multiruns/*")
    states = [read(job / "status.json") for job in folders(sweep)]
    assert {status["state"] for status in states} == {"interrupted"}
    for job, status in zip(folders(sweep), states, strict=True):
        newest = sorted(job.glob("checkpoints/*"))[-1]
        assert load_checkpoint(newest)[1]["step"] == status["step"]
    assert f"hydra.sweep.dir={sweep.relative_to(tmp_path)}" in out
    assert f"; {3 - len(states)} of 3 jobs had not started; for the rest: " in out
    assert "Traceback" not in error
    assert "leaked" not in error


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on(forked, tmp_path):
    # submitit_local stands for submitit_slurm: the same signal, sent by hand.
    command = ["-m", "seed=0", *QUICK]
    assert forked.call("train", [*command, "hydra.sweep.dir=whole"], tmp_path).returncode == 0
    process = start(
        *command, "hydra/launcher=submitit_local", "hydra.sweep.dir=preempted", folder=tmp_path
    )
    while steps_made(tmp_path / "preempted") < STEPS / 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (controller,) = (path.name for path in tmp_path.glob("preempted/.submitit/[0-9]*"))
    task = Path(f"/proc/{controller}/task/{controller}/children").read_text()
    os.kill(int(task), signal.SIGUSR2)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert results(tmp_path / "preempted") == results(tmp_path / "whole")
    logs = "".join(path.read_text() for path in tmp_path.glob("preempted/.submitit/*/*_log.*"))
    assert "Requeued job" in logs
    steps = re.findall(r"step (\d+)/400", next(tmp_path.glob("preempted/*/train.log")).read_text())
    assert steps == ["200", "400"]  # once each: it went on where it was


@pytest.mark.slow
def test_runs_packed_into_tasks_end_the_same_whatever_happens_to_their_tasks(forked, tmp_path):
    """One task is preempted, which is queued again; then all are killed, and started again."""
    seeds = ["-m", "seed=range(6)", *QUICK]
    assert forked.call("train", [*seeds, "hydra.sweep.dir=whole"], tmp_path).returncode == 0
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.runs_per_task=3"]
    command = [*seeds, *launcher, "hydra.sweep.dir=packed"]
    packed = tmp_path / "packed"
    for share in (1 / 4, 1 / 2):
        process = start(*command, folder=tmp_path)
        while steps_made(packed) < share * 6 * STEPS:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        controller = max(packed.glob(".submitit/[0-9]*"), key=lambda path: path.stat().st_mtime)
        task = Path(f"/proc/{controller.name}/task/{controller.name}/children").read_text()
        if share == 1 / 4:
            os.kill(int(task), signal.SIGUSR2)
            while "Requeued job" not in task_logs(packed):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        for path in packed.glob(".submitit/[0-9]*"):  # the tasks are sessions of their own
            with suppress(ProcessLookupError):
                os.killpg(int(path.name), signal.SIGKILL)
        process.communicate()
    code, out, error = run(*command, folder=tmp_path)
    assert code == 0, error
    assert "sweep: 6 of 6 jobs done" in out
    assert results(packed) == results(tmp_path / "whole")


def task_logs(sweep):
    return "".join(path.read_text() for path in sweep.glob(".submitit/*/*_log.*"))


@pytest.mark.slow
def test_a_packed_run_that_fails_fails_no_other(tmp_path):
    words = ["-m", "optimizer.lr=0.001,1e30,0.002", *QUICK, "hydra.sweep.dir=packed"]
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.runs_per_task=3"]
    code, out, _ = run(*words, *launcher, folder=tmp_path)
    assert code not in (0, 70)
    states = [read(path)["state"] for path in tmp_path.glob("packed/*/status.json")]
    assert sorted(states) == ["diverged", "done", "done"]
    assert "1 failed" in out
    code, _, error = run(*words, launcher[0], "hydra.launcher.runs_per_task=0", folder=tmp_path)
    assert code == 2
    assert "hydra.launcher.runs_per_task: it should be 1 or more" in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_no_process_without_a_job_and_the_last_job_saves(number, tmp_path):
    # Two jobs end soon, then one of the two processes has no job.
    words = [word for word in QUICK if not word.startswith("trainer.steps=")]
    steps = "trainer.steps=3,2,1000000"
    process = start("-m", *words, steps, "hydra.launcher.n_jobs=2", folder=tmp_path)
    sweep = tmp_path / "outputs/train/multiruns"
    while [len([*sweep.glob(f"*/*/{name}.json")]) for name in ("run", "metrics")] != [3, 2]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    os.killpg(process.pid, number)
    out, _ = process.communicate()
    (last,) = sweep.glob("*/*1000000*")
    assert read(last / "status.json")["state"] == "interrupted", out
    assert newest_checkpoint(last) is not None
    assert "1 of 3 runs have no result" in out and "interrupted: stopped at step" in out


@pytest.mark.slow
def test_a_search_stopped_and_run_again_makes_as_many_trials_as_asked_for(forked, tmp_path):
    command = ["hparams_search=optuna", "hydra.sweeper.n_trials=6", *QUICK]
    process = start(*command, folder=tmp_path)
    sweep = tmp_path / "outputs/train/multiruns/optuna"
    while len(folders(sweep)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    begun = folders(sweep)
    again = forked.call("train", command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(folders(sweep)) == 6
    assert len(results(sweep)) == 6  # all done, what was stopped too
    assert set(begun) <= set(folders(sweep))
    best = min(metrics["excess_loss"] for _, metrics in results(sweep).values())
    assert f"Best value: {best}" in again.stdout
    once_more = forked.call("train", command, tmp_path)
    assert once_more.returncode == 0
    assert len(folders(sweep)) == 6
    assert f"{best:.4g}" in once_more.stdout


@pytest.mark.slow
def test_the_search_beats_the_grid_twofold(forked, tmp_path):
    quick = ["dataset.num_samples=null", "trainer.steps=300", "plot=[]", "seed=0"]
    quick += ["schedule.num_levels=4", "model.hidden=[32]"]
    values = {}
    for search in ("grid_lr", "optuna"):
        result = forked.call("train", [f"hparams_search={search}", *quick], tmp_path)
        assert result.returncode == 0, result.stderr
        found = folders(tmp_path / "outputs/train/multiruns" / search)
        values[search] = [read(job / "metrics.json")["excess_loss"] for job in found]
    assert len(values["grid_lr"]) == 6
    assert len(values["optuna"]) == 12
    assert 2 * min(values["optuna"]) < max(values["grid_lr"])


@pytest.mark.slow
def test_runs_at_once_have_a_folder_each(forked, tmp_path, pytestconfig):
    num = 50 if pytestconfig.getoption("--all-trials") else 12
    few = [*QUICK, "trainer.steps=1"]
    several = [[*few, f"seed={i}"] for i in range(num)]
    for result in forked.call_at_once("train", several, tmp_path):
        assert result.returncode == 0, result.stderr
    runs = list(tmp_path.glob("outputs/train/runs/*"))
    assert len(runs) == num
    assert {json.loads((run / "run.json").read_text())["seed"] for run in runs} == set(range(num))
    assert all((run / "metrics.json").is_file() for run in runs)


@pytest.mark.parametrize(
    ("params", "task", "expected"),
    [
        ({}, [], 1),
        ({}, ["seed=0,1,2", "optimizer.lr=.1,.2", "plot=[a,b]"], 6),
        ({"seed": "range(5)"}, ["model.hidden=[8],[8,8]"], 10),
        ({"seed": "0,1,2,3"}, ["seed=7"], 1),
        ({"seed": "0,1,2,3"}, ["seed=7,8"], 2),
    ],
)
def test_the_number_of_jobs_is_known_beforehand(params, task, expected):
    sweeper = {"params": params}
    config = OmegaConf.create({"hydra": {"sweeper": sweeper, "overrides": {"task": task}}})
    assert num_jobs(config, sweep_overrides(config)) == expected


def test_jobs_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert job_module.choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(job_module, "in_sweep", lambda: True)
    for number, index in ((0, 0), (4, 1), (5, 2)):
        config = OmegaConf.create({"job": {"num": number}})
        monkeypatch.setattr(HydraConfig, "get", lambda config=config: config)
        assert job_module.choose_device("auto") == torch.device("cuda", index)
    assert job_module.choose_device("cpu") == torch.device("cpu")


def test_a_sweep_runs_every_combination(tmp_path, succeed):
    out = succeed(
        "ncsn-train", "-m", "seed=0,1", "loss.levels=all,random", *QUICK, "trainer.steps=2",
        folder=tmp_path,
    )  # fmt: skip
    jobs = [path.parent for path in out.glob("*/run.json")]
    assert len(jobs) == 4
    assert len({read(job / "metrics.json")["excess_loss"] for job in jobs}) == 4
    assert sum("loss.levels=random" in read(job / "run.json")["command"] for job in jobs) == 2
