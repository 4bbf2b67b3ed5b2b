"""The same command in the same folder starts, resumes, and finds its run finished."""

import hashlib
import os
import signal

import pytest

from tests.helpers.commands import (
    QUICK,
    QUICK_SAMPLE,
    assert_same_run,
    digest_of_samples,
    newest_checkpoint,
    read,
)

TRAIN = [*QUICK, "trainer.checkpoint_every=10", "hydra.run.dir=F", "trainer.resume=auto"]
SAMPLE = [
    "score=exact", "dataset=two_modes_1d", "schedule=geometric", "schedule.num_levels=4",
    "sampler=annealed_langevin", *QUICK_SAMPLE, "hydra.run.dir=F", "resume=auto",
]  # fmt: skip


def stop_after_a_checkpoint(number):
    """For the ``before`` of ``helpers.forked``; a signal after the second checkpoint."""
    from ncsn_cli.commands import train

    def save(folder, training, *arguments):
        original(folder, training, *arguments)
        if training.step == 20:
            os.kill(os.getpid(), number)

    original, train.save_training = train.save_training, save


def stop_before_a_checkpoint(number):
    from ncsn_cli.commands import train

    train.fit = lambda *_: os.kill(os.getpid(), number)


def stop_a_chain(number):
    from ncsn_cli.commands import sample_job

    def exact_score(*arguments):
        score, log_prob = original(*arguments)
        calls = iter(range(10**9))

        def stopping(x, sigma):
            if next(calls) == 300:
                os.kill(os.getpid(), number)
            return score(x, sigma)

        return stopping, log_prob

    original, sample_job.exact_score = sample_job.exact_score, exact_score


def content(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"  # one that was killed leaves it
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_training_starts_resumes_and_is_done(number, trained, forked, tmp_path):
    stop = [__name__, "stop_after_a_checkpoint", number]
    stopped = forked.call("train", TRAIN, tmp_path, stop)
    folder = tmp_path / "F"
    assert read(folder / "status.json")["state"] != "done"
    assert newest_checkpoint(folder).stem == "step_000000020"
    if number == signal.SIGTERM:
        assert stopped.returncode == 143
        *_, last = stopped.stderr.splitlines()
        assert last.startswith("Resume: ncsn-train ")
        assert last.endswith("trainer.resume=auto hydra.run.dir=F")
        assert (folder / "train.log").read_text().rstrip().endswith(last)
    before = content(folder)
    for other, code in (["optimizer.lr=0.5"], 2), (["trainer.steps=15"], 2), (["device=mps"], 2):
        assert forked.call("train", [*TRAIN, *other], tmp_path).returncode == code
        assert content(folder) == before
    foreign = ["trainer.resume=null"], [*SAMPLE[:-2], "hydra.run.dir=F", "resume=auto"]
    for command, words in (("train", [*TRAIN, *foreign[0]]), ("sample", foreign[1])):
        assert forked.call(command, words, tmp_path).returncode == 73
        assert content(folder).items() >= before.items()
    resumed = forked.call("train", [*TRAIN, "plot=[loss]"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(folder, trained)
    assert read(folder / "status.json") == {"state": "done", "step": 30, "error": None}
    assert "plot=[loss]" in (folder / ".hydra" / "overrides.yaml").read_text()
    before = content(folder)
    again = forked.call("train", [*TRAIN, "plot=[loss]"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "done before: " in again.stdout
    assert again.stdout.splitlines()[-1].endswith("next: ncsn-sample checkpoint=F")
    changed = {path for path, digest in content(folder).items() if before.get(path) != digest}
    assert {path.name for path in changed} == {"train.log"}
    other = forked.call("train", [*TRAIN, "optimizer.lr=0.5"], tmp_path)
    assert other.returncode == 73
    assert "other settings; choose another hydra.run.dir" in other.stderr


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_starts_afresh(trained, forked, tmp_path):
    forked.call("train", TRAIN, tmp_path, [__name__, "stop_before_a_checkpoint", signal.SIGKILL])
    folder = tmp_path / "F"
    assert read(folder / "status.json")["state"] == "running"
    assert newest_checkpoint(folder) is None
    before = content(folder)
    other = forked.call("train", [*TRAIN, "optimizer.lr=0.5"], tmp_path)
    assert other.returncode == 73
    assert content(folder) == before
    result = forked.call("train", TRAIN, tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_run(folder, trained)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_sampling_starts_resumes_and_is_done(number, forked, tmp_path):
    forked.call("sample", SAMPLE, tmp_path, [__name__, "stop_a_chain", number])
    folder = tmp_path / "F"
    assert read(folder / "status.json")["state"] != "done"
    assert (folder / "sampling.safetensors").exists() == (number == signal.SIGTERM)
    before = content(folder)
    changed = forked.call("sample", [*SAMPLE, "num_samples=100"], tmp_path)
    assert changed.returncode == (2 if number == signal.SIGTERM else 73)
    assert content(folder) == before
    result = forked.call("sample", SAMPLE, tmp_path)
    assert result.returncode == 0, result.stderr
    whole = [word for word in SAMPLE if word != "hydra.run.dir=F"]
    assert forked.call("sample", [*whole, "hydra.run.dir=G"], tmp_path).returncode == 0
    assert digest_of_samples(folder) == digest_of_samples(tmp_path / "G")
    again = forked.call("sample", SAMPLE, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "done before: " in again.stdout
    assert again.stdout.splitlines()[-1].endswith("next: ncsn-compare F")


@pytest.mark.slow
def test_of_two_at_once_one_works(forked, tmp_path):
    results = forked.call_at_once("train", [TRAIN, TRAIN], tmp_path)
    assert sorted(result.returncode for result in results) == [0, 75]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_gives_way_to_an_older_one(trained, forked, tmp_path):
    forked.call("train", TRAIN, tmp_path, [__name__, "stop_after_a_checkpoint", signal.SIGKILL])
    newest = newest_checkpoint(tmp_path / "F")
    newest.write_bytes(newest.read_bytes()[:-1])
    result = forked.call("train", TRAIN, tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{newest.name}: damaged" in result.stdout
    assert_same_run(tmp_path / "F", trained)


@pytest.mark.slow
def test_auto_starts_where_no_folder_is_named_and_is_harmless_in_a_sweep(forked, tmp_path):
    anew = [*QUICK, "trainer.resume=auto"]
    for number in (1, 2):
        assert forked.call("train", anew, tmp_path).returncode == 0
        assert len(list(tmp_path.glob("outputs/train/runs/*"))) == number
    sweep = ["-m", "seed=0,1", "hydra.sweep.dir=S", *anew]
    for finished in (0, 2):
        result = forked.call("train", sweep, tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("done before") == finished
        assert result.stdout.count("next: ") == 1  # of the sweep, not of each job


@pytest.mark.slow
def test_the_checkpoint_of_a_sweep_names_what_was_swept_in_training(forked, tmp_path):
    sweep = ["-m", "seed=0,1", "optimizer.lr=0.001,0.01", "hydra.sweep.dir=S", *QUICK]
    assert forked.call("train", sweep, tmp_path).returncode == 0
    result = forked.call("sample", ["checkpoint=S", *QUICK_SAMPLE, "metric=[moments]"], tmp_path)
    assert result.returncode == 0, result.stderr
    (sampled,) = tmp_path.glob("outputs/sample/multiruns/*")
    jobs = sorted(path.parent.name for path in sampled.glob("*/run.json"))
    trained = sorted(path.parent.name for path in tmp_path.glob("S/*/run.json"))
    assert len(jobs) == len(trained) == 4
    for job, source in zip(jobs, trained, strict=True):
        assert job.startswith(f"checkpoint-{source}_")
        record = read(sampled / job / "run.json")
        assert f"checkpoint=S/{source} " in record["command"]
    header, _, *rows = result.stdout.partition("\noptimizer.lr")[2].splitlines()[:4]
    assert header.split()[0] == "runs"
    assert sorted(row.split()[:2] for row in rows) == [["0.001", "2"], ["0.01", "2"]]
