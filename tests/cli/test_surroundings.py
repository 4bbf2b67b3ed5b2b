"""One's own files, torch's optimizers, other ways of starting: they work, or one line says why."""

import inspect
import os
import shlex
import subprocess
import sys

import pytest
import torch

import ncsn_cli
from tests.helpers.commands import QUICK, assert_refused, only_run, read
from tests.helpers.slow import slow_but


@pytest.fixture(scope="module")
def trained(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = forked.call("train", [*QUICK, "trainer.steps=2"], folder)
    assert result.returncode == 0, result.stderr
    return only_run(folder, "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("plot: []", "plot: in experiment/own this is a list; choose its options in the defaults"),
        ("metric: [moments]", "- override /metric: []"),
        ("plot: score", "plot: choose a list of options"),
        ("animation: [score]", "or in an experiment's defaults list - override /animation:"),
        (
            "sampler: [1]",
            "sampler: in experiment/own this is a list; write its values as key: value",
        ),
        ("hydra: []", "given: "),
    ],
)
def test_an_experiment_that_cannot_be_composed_is_told_what_to_write(
    text, named, forked, tmp_path
):
    """Of ncsn-sample, whose defaults have options of every group that is a list."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}\n")
    exact = ["score=exact", "dataset=two_modes_1d", "schedule=geometric"]
    arguments = [*exact, "sampler=annealed_langevin", "experiment=own", "--config-dir=own"]
    result = forked.call("sample", arguments, tmp_path)
    assert_refused(result, "sample", 2, named, tmp_path)


@pytest.mark.parametrize(
    "text",
    slow_but(["plot: null", "animation: null", "animation: []", "metric: {wasserstein: null}",
              "defaults: [override /plot: [], override /metric: []]"], 0),
)  # fmt: skip
def test_an_experiment_draws_and_measures_less(text, forked, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}\n")
    exact = ["score=exact", "dataset=two_modes_1d", "sampler=langevin", "sampler.steps=2"]
    more = ["num_samples=20", "experiment=own", "--config-dir=own"]
    result = forked.call("sample", [*exact, *more], tmp_path)
    assert result.returncode == 0, result.stderr
    out = only_run(tmp_path, "sample")
    assert (out / "plots").exists() == ("plot" not in text)
    metrics = read(out / "metrics.json")["clean"]
    assert ("wasserstein" in metrics) == ("metric" not in text)
    assert not (out / "animations").exists()


def optimizers():
    """All of torch.optim, by name, and their flags."""
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            parameters = inspect.signature(kind).parameters.values()
            flags = [p.name for p in parameters if isinstance(p.default, bool)]
            nones = [p.name for p in parameters if p.name in ("foreach", "fused")]
            for flag in [None, *sorted({*flags, *nones})]:
                is_quick = name in ("SGD", "LBFGS", "NAdam") and flag in (None, "capturable")
                yield pytest.param(name, flag, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "flag"), list(optimizers()))
def test_every_optimizer_of_torch_works_or_is_refused_before_any_work(
    name, flag, forked, tmp_path
):
    chosen = ["~optimizer", f"+optimizer._target_=torch.optim.{name}"]
    chosen += [] if flag is None else [f"+optimizer.{flag}=true"]
    quick = [*QUICK, "trainer.steps=2", "device=cpu", "schedule.num_levels=2"]
    result = forked.call("train", [*quick, *chosen], tmp_path)
    if result.returncode:
        assert_refused(result, "train", 2, "optimizer", tmp_path)
        assert name in {"LBFGS", "Muon", "SparseAdam", "Optimizer"} or f".{flag}:" in result.stderr
    if flag is None:
        refused = name in {"LBFGS", "Muon", "SparseAdam", "Optimizer"}
        assert (result.returncode == 2) == refused


@pytest.mark.parametrize("command", ["train", "sample", "compare"])
def test_the_version_is_ours(command, forked, tmp_path):
    for word in ("--version", "--vers"):
        result = forked.call(command, [word], tmp_path)
        assert (result.returncode, result.stdout) == (0, f"ncsn_cli {ncsn_cli.__version__}\n")


@pytest.mark.slow
def test_what_is_advised_is_there(trained, forked, tmp_path):
    (tmp_path / "a_file").touch()
    for command, arguments, place in (
        ("compare", [str(trained), "--output", "a_file/x"], "--output"),
        ("train", [*QUICK, "hydra.run.dir=a_file/x"], "hydra.run.dir"),
        ("train", ["-m", "seed=0,1", *QUICK, "hydra.sweep.dir=a_file/x"], "hydra.sweep.dir"),
        ("sample", [f"checkpoint={trained}", "paths.outputs=a_file/x"], "paths.outputs"),
    ):
        result = forked.call(command, arguments, tmp_path)
        assert result.returncode == 73
        assert "choose another place (" in result.stderr
        assert place in result.stderr.partition("choose another place")[2]
    result = forked.call("train", ["trainer.stps=3"], tmp_path)
    assert "++" not in result.stderr  # it has no checkpoint whose values could be changed
    result = forked.call("sample", ["checkpoint=o/a_1,b_2"], tmp_path)
    assert """quote it for Hydra and for the shell: 'checkpoint="o/a_1,b_2"'""" in result.stderr


@pytest.mark.slow
def test_the_package_is_a_program(tmp_path):
    def call(*words):
        return subprocess.run(
            [sys.executable, "-m", "ncsn_cli", *words], cwd=tmp_path, capture_output=True,
            text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    assert call().returncode == call("nosuch").returncode == 2
    assert "{train,sample,measure,compare}" in call("--help").stdout
    assert call("--version").stdout == f"ncsn_cli {ncsn_cli.__version__}\n"
    result = call("train", "-m", "schedule.sigma_min=0.1,0", *QUICK, "trainer.steps=2")
    assert result.returncode == 2
    assert "ncsn-train: schedule.sigma_min" in result.stderr
    assert "for the rest: python -m ncsn_cli train -m" in result.stdout
    again = call(*shlex.split(result.stdout.partition("python -m ncsn_cli ")[2]))
    assert again.stdout.count("done before") == 1, again.stderr
    assert "ncsn-sample: checkpoint: give" in call("sample").stderr
    assert call("compare", "nowhere").returncode == 66
