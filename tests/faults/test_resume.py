"""Training stopped after any step goes on as if it had not been, and needs all that is kept."""

import copy
import random
import shutil

import pytest

from ncsn_cli.runs.checkpoints import load_checkpoint, save_checkpoint
from tests.helpers.commands import digest_of_run, newest_checkpoint
from tests.helpers.problems import two_modes_2d
from tests.helpers.training import advance, assert_same, start

pytestmark = pytest.mark.slow  # minutes

STEPS = 200
CASES = {
    "Adam, average": {"ema_decay": 0.99, "lr_decay": "cosine"},
    "SGD with momentum, endless data": {"optimizer": "sgd", "dataset": two_modes_2d()},
    "AdamW, all points": {"optimizer": "adamw", "batch_size": None, "grad_clip": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_training_stopped_after_any_step_is_bit_identical(case, tmp_path, trials):
    stops = random.Random(case).sample(range(1, STEPS + 1), trials("B1", STEPS, 2))
    whole, losses, path = start(steps=STEPS, **CASES[case]), [], tmp_path / "c.safetensors"
    states = {}
    for step in range(1, STEPS + 1):
        losses.append(whole.advance())
        if step in stops:
            states[step] = copy.deepcopy(whole.state())
    for stop in stops:
        save_checkpoint(path, *states[stop])
        resumed = start(steps=STEPS, **CASES[case])
        resumed.restore(*load_checkpoint(path))
        assert advance(resumed, STEPS - stop) == losses[stop:], stop
        assert_same(resumed, whole)


JOB = [
    "trainer.batch_size=16", "trainer.ema_decay=0.9", "trainer.eval_every=1",
    "schedule.num_levels=2", "dataset.num_samples=50", "model=mlp", "model.hidden=[4]",
    "trainer.lr_decay=none", "plot=[]", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(forked, tmp_path_factory):
    """``train(name, steps, *arguments)``: the folder of a run, and its exit code."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name, steps, *arguments):
        out = folder / name
        arguments = [*JOB, f"trainer.steps={steps}", f"hydra.run.dir='{out}'", *arguments]
        return out, forked.call("train", arguments, folder).returncode

    return train


@pytest.fixture(scope="module")
def stopped(runs):
    """A run of 7 steps, within its second epoch."""
    return runs("stopped", 7)[0]


@pytest.fixture(scope="module")
def expected(runs):
    return digest_of_run(runs("whole", 12)[0])


def items(run):
    """The names of all that is kept: tensors, values of the record, and the history."""
    tensors, record = load_checkpoint(newest_checkpoint(run))
    return sorted(tensors) + [f"record.{name}" for name in record] + ["history.csv"]


def without(run, item, copied):
    """A copy of ``run`` that lacks ``item``, its checkpoint valid again."""
    shutil.copytree(run, copied)
    path = newest_checkpoint(copied)
    tensors, record = load_checkpoint(path)
    if item == "history.csv":
        (copied / item).unlink()
    elif item in tensors:
        del tensors[item]
    else:
        del record[item.removeprefix("record.")]
    save_checkpoint(path, tensors, record)
    return copied


def test_nothing_kept_can_be_left_out(runs, stopped, expected, tmp_path, trials):
    resumed, code = runs("resumed", 12, f"trainer.resume={stopped}")
    assert (code, digest_of_run(resumed)) == (0, expected)
    every = items(stopped)
    kinds = {"network", "ema", "optimizer", "generator", "record", "history"}
    assert {item.partition(".")[0] for item in every} == kinds
    number = trials("B3", len(every), 2)
    for item in random.Random(0).sample(every, number):
        rest = without(stopped, item, tmp_path / item)
        out, code = runs(f"without {item}", 12, f"trainer.resume={rest}")
        assert code != 0 or digest_of_run(out) != expected, f"{item} is not needed"
