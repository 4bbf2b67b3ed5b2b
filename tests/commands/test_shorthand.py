"""Short values of the command line are written out before Hydra starts."""

import fcntl
import json
import os

import pytest

from ncsn_cli.commands.names import for_hydra
from ncsn_cli.commands.shorthand import as_sweep, expand, refuse_missing
from ncsn_cli.core.errors import ConfigError, MissingInputError
from tests.helpers.commands import CONFIGS

TRAINED, SAMPLED = "checkpoints/step_000000030.safetensors", "sampling.safetensors"
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("experiment/*.yaml"))
FOR_SAMPLING = {
    "bug_levels_reversed", "bug_linear_steps", "bug_noise_not_annealed", "bug_sigma_replaced",
    "cas_point_mass", "langevin_2d", "song_ermon_annealed", "song_ermon_langevin",
    "versini_annealed", "versini_langevin",
}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """``write(folder, saved, state, start, written)`` writes a run below the current folder."""
    monkeypatch.chdir(tmp_path)

    def write_run(folder, saved=TRAINED, state="done", start=0, written=0):
        file = tmp_path / folder / saved
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (written, written))
        record = {"start": f"2026-01-01T00:00:{start:02}+00:00"}
        (tmp_path / folder / "run.json").write_text(json.dumps(record))
        (tmp_path / folder / "status.json").write_text(json.dumps({"state": state}))

    return write_run


def test_the_newest_run_is_the_one_that_was_started_last(write):
    write("outputs/train/runs/z", start=1, written=9)
    write("outputs/train/multiruns/m/seed-0", start=3, written=7)
    write("outputs/train/multiruns/m/seed-1", start=3, written=8)  # in the same second
    write("outputs/train/runs/a", start=2)
    write("outputs/train/runs/none", "train.log", start=5)
    write("elsewhere/x", start=6)
    newest = "checkpoint=outputs/train/multiruns/m/seed-1"
    assert expand("sample", ["seed=1", "checkpoint=latest"]) == ["seed=1", newest]
    for prefix in ("+", "++"):
        assert expand("sample", [f'{prefix}checkpoint="latest"']) == [f"{prefix}{newest}"]
    assert expand("sample", ["-m", "checkpoint=latest,x"]) == ["-m", f"{newest},x"]
    for unchanged in ("checkpoint=./latest", "checkpoint=latest2", "score=latest"):
        assert expand("sample", [unchanged]) == [unchanged]
    assert expand("train", ["checkpoint=latest"]) == ["checkpoint=latest"]


@pytest.mark.parametrize("place", ["paths.outputs=F", "++paths.outputs='F'", '+paths.outputs="F"'])
def test_runs_are_looked_for_below_the_outputs(write, place):
    write("F/train/runs/x")
    assert expand("sample", ["checkpoint=latest", place])[0] == "checkpoint=F/train/runs/x"
    with pytest.raises(MissingInputError, match=r"checkpoint=latest: .* in or below outputs"):
        expand("sample", ["checkpoint=latest"])


def test_a_path_that_hydra_would_misread_is_quoted(write):
    write("a,b='c/train/runs/x")
    words = expand("sample", ["checkpoint=latest", '''paths.outputs="a,b='c"'''])
    assert words[0] == '''checkpoint="a,b='c/train/runs/x"'''


@pytest.mark.parametrize(
    ("command", "key", "saved"),
    [("train", "trainer.resume", TRAINED), ("sample", "resume", SAMPLED)],
)
def test_what_is_resumed_is_the_newest_that_was_stopped(write, command, key, saved):
    write("outputs/any/runs/old", saved, "interrupted", start=1)
    write("outputs/any/runs/killed", saved, "running", start=2)
    write("outputs/any/runs/finished", saved, "done", start=3)
    write("outputs/any/runs/working", saved, "running", start=4)
    for other in {TRAINED, SAMPLED} - {saved}:
        write("outputs/any/runs/other", other, "interrupted", start=5)
    with open("outputs/any/runs/working/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert expand(command, [f"{key}=latest"]) == [f"{key}=outputs/any/runs/killed"]
    assert expand(command, [f"{key}=latest"]) == [f"{key}=outputs/any/runs/working"]
    with pytest.raises(MissingInputError, match=f"{key}=latest: there is no stopped run of ncsn-"):
        expand(command, [f"{key}=latest", "paths.outputs=nowhere"])


def test_the_folder_of_a_sweep_stands_for_its_runs(write):
    write("s/b", state="diverged")
    write("s/a=1,c")
    write("s/none", "train.log")
    jobs = 'checkpoint="s/a=1,c",s/b'
    assert expand("sample", ["checkpoint=s", "seed=1"]) == ["-m", jobs, "seed=1"]
    for flag in ("-m", "--multirun"):
        assert expand("sample", [flag, "seed=1,2", "checkpoint=s/"])[:2] == [flag, "seed=1,2"]
        assert expand("sample", [flag, "checkpoint=s,x"]) == [flag, f"{jobs},x"]
    for unchanged in ("s/b", "s/none", f"s/b/{TRAINED}", "nowhere", "", "1", "s,1", "[s]", "{"):
        assert expand("sample", [f"checkpoint={unchanged}"]) == [f"checkpoint={unchanged}"]
    assert expand("sample", ["--cfg", "job", "checkpoint=s"])[-1] == "checkpoint=s"


def test_several_values_of_a_key_are_a_sweep():
    assert as_sweep([for_hydra("file", "a b", "c,d")]) == ["-m", 'file=a b,"c,d"']


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_for_sampling_is_not_trained(name):
    words = [f"experiment={name}", "seed=1"]
    if name in FOR_SAMPLING:
        paste = f"ncsn-sample score=exact experiment={name}"
        with pytest.raises(ConfigError, match=f"^experiment={name}: .*: {paste}$"):
            expand("train", words)
        with pytest.raises(ConfigError, match="for ncsn-sample"):
            expand("train", ["-m", f'+experiment=mdsm_1d,"{name}"'])
        words.append("loss=denoising")  # then there is something to train
    assert expand("train", words) == words
    assert expand("sample", words) == words


def test_an_experiment_that_is_refused_writes_nothing_and_one_s_own_is_trained(forked, tmp_path):
    refused = forked.call("train", ["experiment=song_ermon_langevin"], tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert expand("train", ["experiment=own", "--config-dir=."]) == [
        "experiment=own",
        "--config-dir=.",
    ]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b c.npz", "x=1.csv"):
        (tmp_path / name).touch()
    (tmp_path / "seed=0").mkdir()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.npy", "dataset=ring_2d"], ["file=a.npy", "dataset=ring_2d"]),
        (["dataset=ring_2d", "a.npy"], ["dataset=ring_2d", "file=a.npy"]),
        (["x=1.csv", "seed=0"], ['file="x=1.csv"', "seed=0"]),
        (["./seed=0", "seed=0"], ['file="seed=0"', "seed=0"]),
        (["-", "dataset=ring_2d"], ["file=-", "dataset=ring_2d"]),
        (["a.npy", "b c.npz", "seed=1"], ["-m", "file=a.npy,b c.npz", "seed=1"]),
        (["a.npy", "a.npy", "seed=1"], ["file=a.npy", "seed=1"]),
        (["a.npy", "b c.npz", "--cfg", "job"], ["file=a.npy", "--cfg", "job"]),
        (["file=a.npy", "dataset=ring_2d"], ["file=a.npy", "dataset=ring_2d"]),
        (["--help"], ["--help"]),
    ],
)
def test_names_of_files_to_measure(files, words, expected):
    assert expand("measure", words) == expected


@pytest.mark.parametrize("word", ["ring_2d", "c.npy", "a.npy,b.npy"])
def test_a_word_that_is_no_file_is_refused(files, word):
    with pytest.raises(MissingInputError, match=f"{word}: there is no such file"):
        expand("measure", ["a.npy", word])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sample", ["checkpoint=missing"]), ("sample", ["-m", "checkpoint=here,missing"]),
        ("sample", ["++checkpoint='missing'"]), ("sample", ["score=exact", "resume=missing"]),
        ("train", ["trainer.resume=missing"]), ("sample", ["checkpoint=here/missing"]),
    ],
)  # fmt: skip
def test_a_run_that_does_not_exist_is_refused(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(MissingInputError, match="missing: there is no such file or folder"):
        refuse_missing(name, words)
    for others in ("checkpoint=here", "checkpoint=null", "resume=auto", "seed=missing"):
        refuse_missing("sample", [others])
    refuse_missing("sample", ["checkpoint=${hydra:runtime.cwd}/here"])
    for unread in (["--cfg", "job"], ["--help"], ["--hydra-help"]):
        refuse_missing(name, [*unread, *words])
    refuse_missing("sample", ["checkpoint=missing", "checkpoint=here"])
    refuse_missing("sample", ["checkpoint=a_1,b_2"])  # perhaps one folder, to be quoted
