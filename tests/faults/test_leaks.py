"""What a run's files tell of where it was made: nothing."""

import os
import shlex

import pytest

from tests.helpers.commands import read

pytestmark = pytest.mark.slow  # minutes

CANARY = "canary5f2c9e"
TRAIN = [
    "trainer.steps=4", "trainer.batch_size=8", "trainer.checkpoint_every=2",
    "schedule.num_levels=2", "dataset.num_samples=20", "model=mlp", "model.hidden=[8]",
    "plot=[loss]", "device=cpu",
]  # fmt: skip
SAMPLE = ["num_samples=20", "metric=[moments]", "plot=[samples]", "++sampler.steps_per_level=2"]


def move_in(environment):
    """For the ``before`` of ``helpers.forked``."""
    os.environ.update(environment)


def test_no_file_holds_the_home_folder_or_an_environment_variable(forked, tmp_path, trials):
    trials("E6", 5, 5)
    home = tmp_path / f"home{CANARY}"
    folder = home / "work"
    folder.mkdir(parents=True)
    environment = {"HOME": str(home), "TOKEN": f"token{CANARY}"}

    def call(command, *arguments):
        before = [__name__, "move_in", environment]
        return forked.call(command, arguments, folder, before=before)

    for code, command, *arguments in [
        [0, "train", *TRAIN, f"hydra.run.dir={folder}/trained"],
        [0, "train", *TRAIN, f"trainer.resume={folder}/trained", "hydra.run.dir=resumed"],
        [0, "sample", *SAMPLE, f"checkpoint={folder}/trained", f"hydra.run.dir={home}/sampled"],
        [0, "train", "-m", "seed=0,1", *TRAIN, f"hydra.sweep.dir={folder}/sweep"],
        # One that fails, with the traceback in its log.
        [66, "sample", *SAMPLE, f"checkpoint={folder}/nowhere", "hydra.run.dir=failed"],
    ]:
        result = call(command, *arguments)
        assert result.returncode == code, result.stderr
    refused = call("train", *TRAIN, "dataset.seed=${oc.env:TOKEN}")
    assert refused.returncode == 2
    assert "dataset.seed" in refused.stderr
    assert CANARY not in refused.stderr
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 50
    telling = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert not telling
    # What is written instead is understood.
    again = shlex.split(read(home / "sampled" / "run.json")["command"])
    assert "checkpoint=$HOME/work/trained" in again
    again = [word.replace("$HOME", str(home)) for word in again[1:]]  # as a shell would
    result = call("sample", *again, "hydra.run.dir=again")
    assert result.returncode == 0, result.stderr
