"""The same bits in any surroundings, and for any number of chains."""

import os
import random
import subprocess

import numpy as np
import pytest

from tests.helpers.commands import BIN, digest_of_run, digest_of_samples

pytestmark = pytest.mark.slow  # minutes

TRAIN = [
    "trainer.steps=30", "trainer.batch_size=64", "trainer.ema_decay=0.9", "trainer.eval_every=10",
    "schedule.num_levels=4", "dataset=two_modes_2d", "dataset.num_samples=100", "plot=[]",
    "device=cpu",
]  # fmt: skip
SAMPLE = [
    "num_samples=1100", "metric=[moments,mode_weights]", "plot=[]", "++sampler.steps_per_level=5",
    "device=cpu",
]  # fmt: skip


def surroundings(chance):
    return {
        "PYTHONHASHSEED": str(chance.randrange(1000)),
        "TZ": chance.choice(["UTC", "Asia/Kathmandu", "America/St_Johns"]),
        "LC_ALL": chance.choice(["C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"]),
        "OMP_NUM_THREADS": chance.choice(["1", "2", "4"]),
        "MKL_NUM_THREADS": chance.choice(["1", "2"]),
        "COLUMNS": chance.choice(["20", "200"]),
    }


def test_surroundings_change_no_bit(tmp_path, trials):
    chance, found = random.Random(1), set()
    for trial in range(trials("F1", 30, 2)):
        folder = (
            tmp_path
            / chance.choice(["a", "deep/er", "with space", "\u00fcml\u00e4ut"])
            / str(trial)
        )
        folder.mkdir(parents=True)
        environment, mask = {**os.environ, **surroundings(chance)}, chance.choice([0o22, 0o77])
        for command in (
            ["ncsn-train", *TRAIN, "hydra.run.dir=train"],
            ["ncsn-sample", "checkpoint=train", *SAMPLE, "hydra.run.dir=sample"],
        ):
            ended = subprocess.run(
                [BIN / command[0], *command[1:]], cwd=folder, env=environment, umask=mask,
                capture_output=True, text=True,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr
        bits, metrics = digest_of_samples(folder / "sample")
        found.add((digest_of_run(folder / "train"), *bits.values(), str(metrics)))
        assert (folder / "train" / "run.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert len(found) == 1


@pytest.fixture(scope="module")
def trained(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = forked.call("train", [*TRAIN, "hydra.run.dir=run"], folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.parametrize(
    "sampler", ["annealed_langevin", "predictor_corrector", "probability_flow", "annealed_mala"]
)
def test_the_first_samples_are_the_same_of_any_number(sampler, trained, forked, tmp_path, trials):
    numbers = [1, 2, 7, 64, 1000, 2500]
    trials("F2", len(numbers), len(numbers))
    source = [f"checkpoint={trained}"]
    if sampler == "annealed_mala":
        source = ["score=exact", "dataset=two_modes_2d", "schedule=geometric"]
    quick = ["metric=[]", "plot=[]", "device=cpu", "trajectories=0", f"sampler={sampler}"]
    if sampler.startswith("annealed"):
        quick.append("sampler.steps_per_level=5")
    found = {}
    for number in numbers:
        arguments = [*source, *quick, f"num_samples={number}", f"hydra.run.dir=of{number}"]
        result = forked.call("sample", arguments, tmp_path)
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / f"of{number}" / "samples.npz") as arrays:
            found[number] = {name: arrays[name] for name in arrays if name != "origin"}
    for number in numbers:
        for name, values in found[number].items():
            assert np.array_equal(values, found[numbers[-1]][name][:number]), (name, number)
