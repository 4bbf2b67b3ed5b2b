"""Bad input is refused in at most three lines, before any work."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from ncsn_cli.runs.checkpoints import load_checkpoint, save_checkpoint
from tests.helpers.commands import BIN, assert_refused, run
from tests.helpers.slow import slow_but


@pytest.mark.slow
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


BAD_INPUTS = [
    # command, arguments, exit code, what the message names
    ("train", ["trainer.stps=3"], 2, "trainer.stps"),
    ("train", ["nosuchkey=1"], 2, "nosuchkey"),
    ("train", ["+nosuchkey=1"], 2, "nosuchkey"),
    ("train", ["+model.foo=1"], 2, "model.foo"),
    ("train", ["dataset=nosuchset"], 2, "dataset=nosuchset"),
    ("train", ["experiment=nosuch"], 2, "experiment=nosuch"),
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
     "optimizer.momentum"),
    ("train", ["schedule=listed", "schedule.levels.1=11"], 2, "schedule: levels.1 should descend"),
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
    ("train", ["dataset=null"], 2, "dataset=null"),
    ("train", ["dataset.stds=${nosuch}"], 2, "dataset.stds"),
    ("train", ["seed=1,2"], 2, "seed=1,2"),
    ("sample", ["metric=[nosuch]"], 2, "metric=nosuch"),
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
    ("train", ["dataset=mixture", "dataset.stds=1", "dataset.covariances=[[[1]]]"], 2,
     "dataset.stds: give stds or covariances, not both"),
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
    ("sample", ["score=learned", "checkpoint=a_file"], 2, "score"),
    ("sample", ["num_samples=0", "checkpoint=a_file"], 2, "num_samples"),
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
    ("sample", ["score=exact", "dataset=ring_2d", "schedule=karras", "schedule.sigma_max=1e30",
                "sampler=predictor_corrector"], 2, "schedule"),
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


@pytest.mark.parametrize(
    ("command", "arguments", "code", "named"),
    slow_but(BAD_INPUTS, *range(0, len(BAD_INPUTS), 6)),
    ids=lambda value: str(value)[:60],
)
def test_bad_input_is_refused_before_any_work(command, arguments, code, named, inputs, forked):
    result = forked.call(command, arguments, inputs)
    assert_refused(result, command, code, named, inputs)


@pytest.mark.parametrize("code", slow_but([2, 65, 66, 73], 0))
def test_the_real_command_refuses_with_each_exit_code(code, inputs):
    command, arguments, _, named = next(case for case in BAD_INPUTS if case[2] == code)
    result = run(f"ncsn-{command}", *arguments, folder=inputs)
    assert_refused(result, command, code, named, inputs)


def test_the_traceback_is_shown_on_request(tmp_path):
    result = subprocess.run(
        [BIN / "ncsn-train", "trainer.steps=0"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"}, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "ConfigError: trainer.steps" in result.stderr
    assert not list(tmp_path.iterdir())
