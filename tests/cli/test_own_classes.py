"""Classes of one's own: the example package, plain classes, and what lacks a method."""

import ast
import csv
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ncsn_cli.commands.build import build_from_checkpoint, instantiate
from ncsn_cli.commands.contract import adopted
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.losses import Explicit
from ncsn_cli.samplers import Level, Sampler
from tests.helpers.commands import (
    assert_refused,
    assert_same_run,
    digest_of_samples,
    only_run,
    read,
    run,
    written_by,
)  # fmt: skip
from tests.helpers.problems import stream, two_modes_2d
from tests.helpers.sampling import assert_same, sampling
from tests.helpers.slow import slow_but

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_classes"
PAGE = ROOT / "docs" / "how_to" / "own_classes.md"

OWN = ["--config-dir", str(EXAMPLE / "configs")]
SMALL = [
    "trainer.batch_size=64", "trainer.eval_every=10", "trainer.log_every=5",
    "trainer.lr_decay=none", "schedule.num_levels=4", "dataset.num_samples=100", "plot=[]",
]  # fmt: skip
SAMPLE = ["plugins=[own_classes]", "num_samples=50", "metric=[radii]", "plot=[radii]"]


@pytest.fixture
def call(forked):
    """Run a command in a fork in which the example package can be imported."""

    def call(command, *arguments, folder):
        before = ["site", "addsitedir", str(EXAMPLE)]
        return forked.call(command.removeprefix("ncsn-"), arguments, folder, before)

    return call


def written(call, command, *arguments, folder):
    return written_by(call, command, *arguments, folder=folder)


def test_each_class_of_the_example_has_at_most_15_lines():
    lines = (EXAMPLE / "own_classes" / "__init__.py").read_text().splitlines()
    made = [n for n in ast.parse("\n".join(lines)).body if hasattr(n, "decorator_list")]
    assert len(made) == 7
    for each in made:
        body = [line for line in lines[each.lineno - 1 : each.end_lineno] if line.strip()]
        assert len(body) <= 15, each.name
    options = {path.relative_to(EXAMPLE / "configs") for path in EXAMPLE.glob("configs/*/*.yaml")}
    assert len(options) == 7 + 1  # and the experiment that takes all of them


@pytest.mark.slow
def test_the_example_trains_resumes_and_samples(tmp_path, call):
    words = [*OWN, "experiment=own_classes", *SMALL]
    part = written(call, "ncsn-train", *words, "trainer.steps=10", folder=tmp_path)
    resume = ["trainer.steps=20", f"trainer.resume={part}"]
    resumed = written(call, "ncsn-train", *words, *resume, folder=tmp_path)
    whole = written(call, "ncsn-train", *words, "trainer.steps=20", folder=tmp_path)
    assert_same_run(resumed, whole)
    # The loss states neither floor nor weight.
    metrics = read(whole / "metrics.json")
    assert (metrics["loss_floor"], metrics["excess_loss"]) == (None, None)
    assert "excess_loss_standard_error" not in metrics
    rows = list(csv.DictReader((whole / "history.csv").read_text().splitlines()))
    assert {row["excess_loss"] for row in rows} == {""}
    # Every class comes from the checkpoint; metric and plot are chosen anew.
    sampled = written(call, "ncsn-sample", *OWN, f"checkpoint={whole}", *SAMPLE, folder=tmp_path)
    assert read(sampled / "metrics.json")["clean"]["radii"]["value"] > 0
    assert [path.name for path in sampled.glob("plots/*")] == ["radii.png"]
    refused = call("ncsn-sample", f"checkpoint={whole}", "num_samples=50", folder=tmp_path)
    assert refused.returncode == 2
    assert "own_classes.Cross is no class of ncsn_cli" in refused.stderr


STOPPING = """
import os, signal
from own_classes import Churned

class Stopping(Churned):
    def step_down(self, step, x, memory):
        if step.index == 2 and not os.path.exists("was_stopped"):
            open("was_stopped", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step_down(step, x, memory)
"""


@pytest.mark.slow
def test_sampling_with_a_plain_sampler_is_stopped_and_resumes_to_the_same_bits(tmp_path, call):
    (tmp_path / "stopping.py").write_text(STOPPING)
    chosen = ["dataset=cross", "schedule=cosine", "score=exact", "num_samples=50"]
    words = [*OWN, *chosen, "sampler=churned", "sampler._target_=stopping.Stopping", "plot=[]"]
    stopped = call("ncsn-sample", *words, folder=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    place = only_run(tmp_path, "sample")
    resumed = written(call, "ncsn-sample", *words, f"resume={place}", folder=tmp_path)
    whole = written(call, "ncsn-sample", *words, folder=tmp_path)
    assert digest_of_samples(resumed) == digest_of_samples(whole)


def commands_of(page):
    """The commands in the sh blocks of ``page``, one a line."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    return [line.partition(" #")[0] for line in text.splitlines() if line.startswith("ncsn-")]


@pytest.mark.slow
def test_every_command_on_the_page_runs(tmp_path, monkeypatch, call):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{EXAMPLE}")  # for the jobs of a sweep
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = commands_of(PAGE)
    assert len(commands) >= 10
    quick = {"ncsn-train": ["trainer.steps=20", "trainer.log_every=10", "schedule.num_levels=2"]}
    for command in commands:
        newest = max(tmp_path.glob("outputs/train/runs/*"), default=None)
        name, *words = shlex.split(command.replace("RUN", str(newest)))
        start = run if "-m" in words else call
        few = quick.get(name, ["num_samples=100"])
        few = few if "plot=" in command else [*few, "plot=[]"]
        result = start(name, *words, *few, folder=tmp_path)
        assert result.returncode == 0, (command, result.stderr)


PLAIN = """
import torch
from torch import nn
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.inits import Init
from ncsn_cli.losses import Loss
from ncsn_cli.metrics import SampleMetric
from ncsn_cli.samplers import Sampler

class Nothing: ...
class Lost:
    def __call__(self, score, x): return score(x, 1.0).mean()
class Fewer:
    def term(self, score): return score
class SubLoss(Loss): ...
class SubSampler(Sampler): ...
class SubInit(Init): ...
class SubDataset(Dataset): ...
class SubMetric(SampleMetric): ...
class Levels(Loss):
    def __init__(self): self.levels = "some"
    def term(self, score, perturbed): return perturbed.sigma
class Shape:
    def term(self, score, perturbed): return score(perturbed.x, perturbed.sigma)
class Raises:
    def term(self, score, perturbed): return self.nothing
class Slots:
    __slots__ = ("width",)
    def term(self, score, perturbed): return perturbed.sigma
class Up:
    sigmas = [1.0, 2.0]
class NoForward(nn.Module):
    def __init__(self, dim): super().__init__()
class NoDim(nn.Module):
    def __init__(self, width=3): super().__init__()
class Narrow(nn.Module):
    def __init__(self, dim): super().__init__()
    def forward(self, x, sigma): return x[:, 0]
class Plan:
    def levels(self, sigmas): return [3]
class Fails:
    def __init__(self): raise RuntimeError("no file")
    def levels(self, sigmas): ...
class Blind:
    def term(self, score, perturbed): return score(perturbed.x, perturbed.sigma).detach().sum(-1)
class Word:
    def term(self, score, perturbed): return score(perturbed.x, perturbed.sigma).sum(-1)
    def floor(self, sigma, dim, fisher_information): return "low"
class Division:
    def levels(self, sigmas): return [1 / 0]
class Steps:
    def levels(self, sigmas): return [(sigma, 0.1, 5) for sigma in sigmas]
class OneRow(Steps):
    def langevin(self, step, x): yield from [(x[:1], None)] * step.num
class Down(Steps):
    def step_down(self, step, x, memory): return x.numpy(), memory
class Bits:
    def __call__(self, score, truth, sigmas, generator): return {"value": torch.ones(())}
class Far:
    def __call__(self, num, truth, sigma_max, generator): return torch.zeros(num)
class Many:
    def distance(self, truth, sigma, num): return lambda samples, generator: samples
def picture(scene): ...
def make(): return 3
"""
LACKING = [
    ("loss", "Nothing", "loss: plain.Nothing has no method 'term'; see ncsn_cli.losses.base.Loss"),
    ("loss", "Lost", "loss: plain.Lost has no method 'term'; see ncsn_cli.losses.base.Loss"),
    ("loss", "SubLoss", "loss: plain.SubLoss has no method 'term'; see ncsn_cli.losses.base.Loss"),
    ("loss", "make", "loss: what plain.make returns has no method 'term'"),
    ("loss", "Slots", "loss: plain.Slots should be a class that inherits from ncsn_cli.losses"),
    ("schedule", "Nothing", "schedule: plain.Nothing has no attribute 'sigmas'; see ncsn_cli.sch"),
    ("schedule", "Up", "schedule: Up.sigmas.1 should descend"),
    ("loss", "Fewer", "loss: plain.Fewer.term should take the arguments score, perturbed; see"),
    ("metric.own", "Lost", "metric.own: plain.Lost.__call__ should take the arguments score, tr"),
    ("init", "Lost", "init: plain.Lost.__call__ should take the arguments num, truth, sigma_max"),
    ("sampler", "Nothing", "sampler: plain.Nothing has no method 'levels'; see ncsn_cli.samplers"),
    ("sampler", "SubSampler", "sampler: plain.SubSampler has no method 'levels'"),
    ("init", "Nothing", "init: plain.Nothing has no method '__call__'; see ncsn_cli.inits.Init"),
    ("init", "SubInit", "init: plain.SubInit has no method '__call__'; see ncsn_cli.inits.Init"),
    ("dataset", "Nothing", "dataset: plain.Nothing has no method"),
    ("dataset", "SubDataset", "dataset: plain.SubDataset has no method"),
    ("model", "Nothing", "model: plain.Nothing should take an argument 'dim'"),
    ("model", "NoDim", "model: plain.NoDim should take an argument 'dim'"),
    ("model", "NoForward", "model: plain.NoForward has no method 'forward'"),
    ("trainer", "Nothing", "trainer: plain.Nothing should be a ncsn_cli.training.trainer.Trainer"),
    ("metric.own", "Nothing", "metric.own: plain.Nothing has no method 'distance'; see ncsn_cli"),
    ("metric.own", "SubMetric", "metric.own: plain.SubMetric has no method 'distance'"),
    ("plot.own", "Nothing", "plot.own: plain.Nothing has no method '__call__'; see ncsn_cli.core"),
    (
        "plot.own",
        "picture",
        "plot.own: plain.picture should be a function of 1 argument, with _partial_: true",
    ),
    ("animation.own", "Nothing", "animation.own: plain.Nothing has no method '__call__'"),
]


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A folder with the module ``plain``, from which it can be imported."""
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("plain", None)


@pytest.mark.parametrize(("key", "name", "line"), LACKING)
def test_what_lacks_a_method_is_refused_by_its_name(key, name, line, plain):
    settings, runtime = {"_target_": f"plain.{name}"}, {"dim": 1} if key == "model" else {}
    with pytest.raises(ConfigError, match=re.escape(line)):
        instantiate({key: settings}, key, **runtime)
    if name[0].isupper():
        with pytest.raises(ConfigError, match=re.escape(line)):
            build_from_checkpoint(settings, key, ["plain"], **runtime)


REFUSED = [
    (
        "train",
        "loss",
        "Lost",
        "loss: plain.Lost has no method 'term'; see ncsn_cli.losses.base.Loss",
    ),
    ("sample", "metric.own", "Nothing", "metric.own: plain.Nothing has no method 'distance'"),
    ("train", "loss", "Levels", "loss.levels: choose from all, random, continuous"),
    ("train", "loss", "Shape", "loss: plain.Shape.term should return a tensor (6,), got"),
    ("train", "loss", "Raises", "loss: plain.Raises.term failed: AttributeError"),
    ("train", "model", "Narrow", "model: plain.Narrow.forward should return a tensor (3, 1)"),
    ("train", "optimizer", "Nothing", "optimizer: plain.Nothing should take an argument 'params'"),
    ("sample", "metric.own", "Many", "metric.own: plain.Many.distance should return a number"),
    ("sample", "init", "Far", "init: plain.Far should return a tensor (1000, 1), got"),
    ("train", "loss", "Fails", "loss: plain.Fails failed: RuntimeError: no file"),
    ("train", "loss", "Blind", "loss: its term has no gradient by the score"),
    ("train", "loss", "Word", "loss: plain.Word.floor should return a number, got"),
    ("sample", "sampler", "Division", "sampler: Division.levels failed: ZeroDivisionError"),
    ("sample", "sampler", "OneRow", "sampler: plain.OneRow.langevin should return a tensor (3, 1"),
    ("sample", "sampler", "Down", "sampler: plain.Down.step_down should return a tensor (3, 1)"),
    ("sample", "metric.own", "Bits", "metric.own: plain.Bits failed: TypeError"),
    ("sample", "sampler", "Plan", "sampler: Plan.levels should return a list of Level"),
]


@pytest.mark.parametrize(("command", "key", "name", "line"), slow_but(REFUSED, 0, 1))
def test_what_is_refused_is_refused_before_any_work(command, key, name, line, plain, forked):
    words = ["plot=[]", "trainer.steps=1"]
    if command == "sample":
        words = ["score=exact", "metric=[]", "plot=[]"]
        chosen = {"dataset": "two_modes_1d", "schedule": "geometric", "sampler": "langevin"}
        words += [f"{group}={option}" for group, option in chosen.items() if group != key]
    group = [] if "." in key else [f"~{key}"]
    result = forked.call(command, [*words, *group, f"+{key}._target_=plain.{name}"], plain)
    assert_refused(result, command, 2, line, plain)


class PlainLangevin:
    """As ``AnnealedLangevin`` with its own settings, but of no base class."""

    def levels(self, sigmas):
        return [(sigma, 0.05 * sigma**2, 3) for sigma in sigmas]  # tensors, no ``Level``


def test_a_plain_sampler_makes_the_chains_of_the_same_plan():
    class Inheriting(Sampler):
        def levels(self, sigmas):
            return [Level(sigma, 0.05 * sigma**2, 3) for sigma in sigmas.tolist()]

    made = adopted("sampler", PlainLangevin(), {"_target_": "here.PlainLangevin"})
    assert isinstance(made, Sampler)
    assert isinstance(made, PlainLangevin)
    assert (made.denoise, made.descends) == (False, False)
    assert_same(sampling(made).run(), sampling(Inheriting()).run())


@pytest.mark.slow
def test_a_search_for_a_number_that_is_null_is_refused_before_training(tmp_path, call):
    words = [*OWN, "experiment=own_classes", *SMALL, "trainer.steps=2"]
    search = ["hparams_search=optuna", "hydra.sweeper.n_trials=1"]
    result = call("ncsn-train", *words, *search, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    line = "objective: excess_loss is null for this loss; choose loss or score_error"
    assert result.stderr.strip().splitlines()[-1] == f"ncsn-train: {line}"
    assert not list(tmp_path.glob("outputs/train/multiruns/**/history.csv"))
    result = call("ncsn-train", *words, *search, "objective=score_error", folder=tmp_path)
    assert result.returncode == 0, result.stderr


def test_noise_floors_of_a_plain_metric_are_known_again():
    class Mine:
        def __init__(self, power=2):
            self.power = power

        def distance(self, truth, sigma, num):
            return lambda samples, generator: np.float64(0.5)

    first, second = (adopted("metric.mine", Mine(), {"_target_": "here.Mine"}) for _ in range(2))
    assert repr(first) == repr(second)
    assert "power=2" in repr(first)


def start(num, truth, sigma_max, generator, scale=1.0):
    return scale * sigma_max * torch.randn(num, truth.dim, generator=generator)


def test_an_init_may_be_a_function():
    settings = {"_target_": f"{__name__}.start", "_partial_": True, "scale": 0.5}
    truth = two_modes_2d()
    given = 7, truth, 10.0
    expected = start(*given, stream(0), scale=0.5)
    chosen = instantiate({"init": settings}, "init")
    loaded = build_from_checkpoint(settings, "init", [__name__])
    for made in (chosen, loaded):
        assert torch.equal(made(*given, stream(0)), expected)
    with pytest.raises(ConfigError, match="no class of ncsn_cli"):
        build_from_checkpoint({**settings, "_partial_": False}, "init", [__name__])


def test_a_loss_with_other_weights_states_no_weight():
    class Flat(Explicit):
        def weights(self, sigma):
            return torch.ones_like(sigma)

    assert Explicit().weight(2.0) == 4.0
    assert Flat().weight(2.0) is None
    assert Flat().floor(2.0, 1, 1.0) is None
