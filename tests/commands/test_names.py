"""What the program names or prints, Hydra and a shell read as it stands."""

import re
import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ncsn_cli.commands import names
from ncsn_cli.commands.names import for_shell, job_folder, old_study_name, override, study_name
from tests.helpers.commands import digest_of_run, only_run, read
from tests.helpers.sweeps import QUICK, folders

SHORT = [*QUICK, "trainer.steps=20"]
NASTY = """a b's "c=d,e" $HOME [1] (x) \\ {y} é #z!"""
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def read_by_hydra(word):
    """The key and the value of an override that a shell has read, as a job finds it."""
    parsed = OverridesParser.create().parse_override(word)
    return parsed.key_or_group, OmegaConf.create({"value": parsed.value()}).value


@given(TEXTS.filter(lambda text: text != "???"))  # OmegaConf's own word for a missing value
@example("${x}")
@example(r"\\${x}")
@example("null")
@example("1e5")
@example("")
@example(" a,b=c")
def test_any_text_reaches_a_job_as_it_is(text):
    (word,) = shlex.split(override("paths.outputs", text))
    assert read_by_hydra(word) == ("paths.outputs", text)


@pytest.mark.parametrize("value", [None, True, 3, 1e-05, [8, 16], ["a,b", "", None], {"a": [0.5]}])
def test_any_value_reaches_a_job_as_it_is(value):
    (word,) = shlex.split(override("key", value))
    assert read_by_hydra(word)[1] == value


OVERRIDES = st.lists(
    st.tuples(st.sampled_from(["seed", "+a.b", "++model.hidden", "~x", "model@y", "a/b"]), TEXTS),
    max_size=5,
)


@given(OVERRIDES)
def test_a_name_is_one_word_of_hydra_and_of_a_shell(pairs):
    name = study_name([f"{key}={text}" for key, text in pairs])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,88}", name)
    assert read_by_hydra(f"checkpoint={name}")[1] == name
    assert read_by_hydra(f"checkpoint=o/sw/{name}")[1] == f"o/sw/{name}"
    assert shlex.split(f"checkpoint=o/sw/{name} #x") == [f"checkpoint=o/sw/{name}", "#x"]
    assert shlex.quote(name) == name


@given(OVERRIDES, OVERRIDES)
def test_what_differs_has_names_that_differ_in_capitals_too(some, others):
    some, others = ([f"{key}={text}" for key, text in pairs] for pairs in (some, others))
    same = sorted(some) == sorted(others)
    assert (study_name(some).lower() == study_name(others).lower()) == same


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The folder of a sweep over seed and loss.levels."""
    (tmp_path / names.SWEPT).write_text("seed\nloss.levels")
    monkeypatch.setenv(names.ROSTER, str(tmp_path))
    return str(tmp_path)


def test_a_name_says_what_was_swept_and_not_where(sweep):
    constant = ["trainer.steps=20", "plot=[]"]
    swept = ["loss.levels=all", "seed=0"]
    name = job_folder(sweep, [*constant, *swept])
    assert re.fullmatch(r"loss\.levels-all_seed-0_[0-9a-f]{8}", name)
    for places in (["paths.outputs=o/ag"], ["paths.outputs=./o/ag", "hparams_search=seeds"],
                   ["++paths.outputs=o", "paths=mine"]):  # fmt: skip
        assert job_folder(sweep, [*reversed(swept), *places, *constant]) == name
    for changed in (["trainer.steps=21", "plot=[]"], constant[:1], [*constant, "+path=o"]):
        other = job_folder(sweep, [*changed, *swept])
        assert other != name
        assert other.startswith("loss.levels-all_seed-0_")


def test_only_what_a_digest_follows_is_cut(sweep):
    long = [f"loss.levels={','.join(['all'] * 100)}{end}" for end in "ab"]
    short, other = (job_folder(sweep, [word]) for word in long)
    assert short != other
    assert len(short) == len(other) == 80 + 1 + 8
    assert short[:80] == other[:80]


def under_old_names(sweep):
    """Rename the jobs of a sweep as they were named before."""
    for job in folders(sweep):
        words = OmegaConf.to_object(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
        job.rename(sweep / old_study_name(",".join(sorted(words))))
    return folders(sweep)


@pytest.mark.slow
def test_a_sweep_under_old_names_goes_on(forked, tmp_path):
    command = ["hparams_search=seeds", "seed=0,1,2", *SHORT, "trainer.checkpoint_every=10"]
    sweep = tmp_path / "o/ag/train/multiruns/seeds"
    result = forked.call("train", [*command, "paths.outputs=o/ag"], tmp_path)
    assert result.returncode == 0, result.stderr
    whole = {read(job / "run.json")["seed"]: digest_of_run(job) for job in folders(sweep)}
    stopped, lost, _ = old = under_old_names(sweep)
    assert all("paths.outputs=o_ag" in job.name for job in old)
    (stopped / "status.json").write_text('{"state": "interrupted", "step": 10, "error": null}')
    sorted(stopped.glob("checkpoints/*"))[-1].unlink()
    (lost / ".hydra" / "overrides.yaml").write_text("- &a x\n- *a\n")  # not what we write
    result = forked.call("train", [*command, "paths.outputs=./o/ag"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done before") == 1
    (new,) = set(folders(sweep)) - set(old)
    assert re.fullmatch(r"seed-[012]_[0-9a-f]{8}", new.name)
    for job in (*old, new):
        assert digest_of_run(job) == whole[read(job / "run.json")["seed"]]
    assert (stopped / "train.log").read_text().count("everything is in") == 2
    result = forked.call("train", [*command, "paths.outputs=o/ag"], tmp_path)
    assert result.stdout.count("done before") == 3, result.stderr


@pytest.mark.slow
def test_options_stay_apart_from_the_folder_in_the_command_for_the_rest(forked, tmp_path):
    (tmp_path / "own").mkdir()
    refused = ["-m", "schedule.sigma_min=0.1,0", *SHORT, "++hydra.sweep.dir=a", "--config-dir=own"]
    result = forked.call("train", [*refused, "--config-name", "train"], tmp_path)
    assert result.returncode == 2, result.stderr
    command = result.stdout.partition("for the rest: ")[2]
    again = forked.call("train", shlex.split(command)[1:], tmp_path)
    assert "done before" in again.stdout, again.stderr


@pytest.mark.slow
def test_a_search_under_its_old_name_goes_on(forked, tmp_path):
    old = old_study_name(",".join(sorted(SHORT)))
    search = ["hparams_search=optuna", *SHORT]
    named = shlex.split(override("hydra.sweeper.study_name", old))
    first = forked.call("train", [*search, *named, "hydra.sweeper.n_trials=2"], tmp_path)
    assert first.returncode == 0, first.stderr
    sweep = tmp_path / "outputs/train/multiruns/optuna"
    made = under_old_names(sweep)
    result = forked.call("train", [*search, "hydra.sweeper.n_trials=3"], tmp_path)
    assert result.returncode == 0, result.stderr
    (new,) = set(folders(sweep)) - set(made)
    assert re.fullmatch(r"optimizer\.lr-[0-9.e-]+_[0-9a-f]{8}", new.name)
    assert [path.name for path in (sweep / ".jobs").iterdir()] == [old]


def test_a_command_shown_finds_the_home_folder_of_whoever_runs_it(monkeypatch):
    words = ["checkpoint=/home/al/my $runs/`x`", "seed=0", "it's"]
    monkeypatch.setenv("HOME", "/home/al")
    shown = for_shell(words)
    assert "/home/al" not in shown
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {shown}"], capture_output=True, text=True, check=True
    )
    assert printed.stdout.splitlines() == words


@pytest.mark.slow
def test_a_job_s_folder_is_named_as_it_stands_and_an_old_one_in_quotes(forked, tmp_path):
    command = ["-m", "seed=0,1", "loss.levels=all", *SHORT, "hydra.sweep.dir=o/sw"]
    assert forked.call("train", command, tmp_path).returncode == 0
    quick = ["num_samples=20", "metric=[]", "plot=[]", "trajectories=0"]
    for job in folders(tmp_path / "o/sw"):
        result = forked.call("sample", [f"checkpoint=o/sw/{job.name}", *quick], tmp_path)
        assert result.returncode == 0, result.stderr
    old = under_old_names(tmp_path / "o/sw")[0].relative_to(tmp_path)
    result = forked.call("sample", [f"checkpoint={old}", *quick], tmp_path)
    assert result.returncode == 2
    assert "mismatched input" in result.stderr
    (advice,) = re.findall("quote it for Hydra and for the shell: (.*)", result.stderr)
    assert advice == f"""'checkpoint="{old}"'"""
    result = forked.call("sample", [*shlex.split(advice), *quick], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "folder"),
    [("hydra.sweep.dir", NASTY), ("paths.outputs", NASTY), ("hydra.sweep.dir", "--sort")],
)
def test_the_command_for_the_rest_runs_as_it_stands(key, folder, forked, tmp_path):
    refused = ["-m", "schedule.sigma_min=0.1,0", *SHORT]
    first = [*refused, *shlex.split(override(key, folder))]
    result = forked.call("train", first, tmp_path)
    assert result.returncode == 2, result.stderr
    sweeps = {path.parents[1] for path in tmp_path.rglob("metrics.json")}
    command = result.stdout.partition("for the rest: ")[2]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    )
    program, *words, _ = shown.stdout.split("\0")
    assert program == "ncsn-train"
    again = forked.call("train", words, tmp_path)
    assert again.returncode == 2, again.stderr
    assert again.stdout.count("done before") == 1
    assert {path.parents[1] for path in tmp_path.rglob("metrics.json")} == sweeps
    assert folder in str(*sweeps)
    assert len(list(tmp_path.rglob("compare.csv"))) == 1


def test_a_folder_that_hydra_would_take_for_a_value_is_refused(forked, tmp_path):
    for command in (["-m", "seed=0,1"], []):
        words = [*command, *SHORT, *shlex.split(override("paths.outputs", "o${b}"))]
        result = forked.call("train", words, tmp_path)
        assert result.returncode == 2
        assert "Hydra reads ${ in this path as a reference" in result.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_in_a_report_runs_where_options_and_name_are_one_s_own(forked, tmp_path):
    options = tmp_path / "my options" / "trainer"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("defaults: [default@_here_, _self_]\nsteps: 3\n")
    own = ["trainer=mine", "hydra.job.name=mine", "--config-dir", "my options"]
    quick = [word for word in QUICK if not word.startswith("trainer")]
    assert forked.call("train", ["-m", "seed=1,2", *quick, *own], tmp_path).returncode == 0
    records = [read(path) for path in tmp_path.glob("outputs/mine/multiruns/*/*/run.json")]
    assert len(records) == 2
    for record in records:
        program, *words = shlex.split(record["command"])
        assert program == "ncsn-train"
        place = f"paths.outputs=o{record['seed']}"
        result = forked.call("train", [*words, place], tmp_path)
        assert result.returncode == 0, result.stderr
        (run,) = tmp_path.glob(f"o{record['seed']}/train/runs/*")
        assert read(run / "status.json")["step"] == 3


@pytest.mark.slow
def test_what_a_run_was_made_with_can_be_pasted(forked, tmp_path):
    short = [*SHORT, "trainer.lr_decay=none"]
    assert forked.call("train", [*short, "trainer.grad_clip=null"], tmp_path).returncode == 0
    run = only_run(tmp_path, "train")
    changed = ["model.hidden=[8,8]", "trainer.grad_clip=1", f"trainer.resume={run}"]
    result = forked.call("train", [*short, *changed], tmp_path)
    assert result.returncode == 2
    assert "was made with another model.hidden, trainer.grad_clip; type" in result.stderr
    (shown,) = re.findall("; type ncsn-train (.*)", result.stderr)
    words = [*shlex.split(shown), "trainer.steps=30"]
    assert forked.call("train", words, tmp_path).returncode == 0
    # Where the command is not recorded, the values are.
    (run / "run.json").write_text('{"command": "rm -r ~"}')
    result = forked.call("train", [*short, "dataset=ring_2d", *changed], tmp_path)
    (shown,) = re.findall("was made with (.*); repeat", result.stderr)
    values = ["dataset=two_modes_1d", "dataset.num_samples=100"]
    assert shlex.split(shown) == [*values, "model.hidden=[8]", "trainer.grad_clip=null"]
    more = [*short, *shlex.split(shown), "trainer.steps=30", f"trainer.resume={run}"]
    result = forked.call("train", more, tmp_path)
    assert result.returncode == 0, result.stderr
