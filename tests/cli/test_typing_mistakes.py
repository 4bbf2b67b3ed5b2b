"""Each mistake of typing gets one line, which says what to type, and leaves nothing behind."""

import os
import shlex
import signal

import pytest

from ncsn_cli.commands.mistyped import refuse_mistyped
from ncsn_cli.commands.suggestions import known_keys, nearest, nearest_key
from ncsn_cli.core.errors import ConfigError
from tests.helpers.commands import QUICK, only_run, read
from tests.helpers.slow import slow_but

ONE_WORD = "{}: an override is one word, key=value; type {}"


# The words as the shell hands them on, and what to type.
SPLIT = [
    ("train", "model.hidden=[128, 128]", "'model.hidden=[128,128]'"),
    ("train", "model.hidden = [128, 128]", "'model.hidden=[128,128]'"),
    ("train", "dataset.means=[[0, 0], [4, 1]]", "'dataset.means=[[0,0],[4,1]]'"),
    ("train", "+dataset.own={a: 1, b: [2, 3]}", "'+dataset.own={a:1,b:[2,3]}'"),
    ("train", "-m seed=0, 1, 2", "seed=0,1,2"),
    ("train", "-m seed=range(0, 3)", "'seed=range(0,3)'"),
    ("train", "trainer.steps = 100", "trainer.steps=100"),
    ("train", "trainer.steps =100", "trainer.steps=100"),
    ("train", "trainer.steps= 100", "trainer.steps=100"),
    ("train", "trainer.steps == 100", "trainer.steps=100"),
    ("train", "trainer.steps 100", "trainer.steps=100"),
    ("train", "seed -1", "seed=-1"),
    ("train", "--steps 100", "trainer.steps=100"),
    ("train", "--steps=100", "trainer.steps=100"),
    ("train", "--trainer.steps=100", "trainer.steps=100"),
    ("train", "-trainer.steps=100", "trainer.steps=100"),
    ("train", "--step 100", "trainer.steps=100"),
    ("train", "--batch-size 64", "trainer.batch_size=64"),
    ("train", "--hidden [64, 64]", "'model.hidden=[64,64]'"),
    ("train", "--experiment mdsm_1d", "experiment=mdsm_1d"),
    ("train", "-model.hidden=[64]", "'model.hidden=[64]'"),
    ("train", "-metric=[kl]", "'metric=[kl]'"),
    ("train", "-seed 3", "seed=3"),
    ("train", "--resume", "trainer.resume=VALUE"),
    ("train", "--dataset ring_2d --lr .01", "dataset=ring_2d optimizer.lr=.01"),
    ("train", "seed:3", "seed=3"),
    ("train", "dataset:ring_2d", "dataset=ring_2d"),
    ("train", "dataset ring_2d", "dataset=ring_2d"),
    ("train", "seed", "seed=VALUE"),
    ("train", "mdsm_1d", "experiment=mdsm_1d"),
    ("train", "moments", "'metric=[moments]'"),
    ("sample", "checkpoint run", "checkpoint=run"),
    ("sample", "a_run", "checkpoint=a_run"),
    ("sample", "--num-samples 10", "num_samples=10"),
    ("sample", "--denoise true", "++sampler.denoise=true"),
    ("sample", "checkpoint=my run", "'checkpoint=my run'"),
]


@pytest.mark.parametrize(("command", "words", "meant"), SPLIT, ids=lambda value: value)
def test_words_that_are_no_overrides_are_answered_by_what_to_type(
    command, words, meant, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_run").mkdir()
    (tmp_path / "my run").mkdir()
    with pytest.raises(ConfigError) as error:
        refuse_mistyped(command, words.split())
    assert str(error.value) == ONE_WORD.format(words.removeprefix("-m "), meant)
    refuse_mistyped(command, shlex.split(meant))  # which is accepted


def test_a_value_is_changed_with_a_plus_only_where_a_checkpoint_may_hold_it():
    for words in (["score=exact", "--denoise", "true"], ["sampler=langevin", "--denoise", "true"]):
        with pytest.raises(ConfigError, match=r"type sampler\.denoise=true$"):
            refuse_mistyped("sample", words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--hlep", "--hlep: there is no such flag; did you mean --help?"),
        ("--zzz 3", "--zzz: there is no such flag, and no key near it; --help lists the keys"),
        ("ring2d", "ring2d: an override is key=value; did you mean dataset=ring_2d?"),
        ("sed", "sed: an override is key=value; did you mean seed?"),
        ("zzz", "zzz: an override is key=value; --help lists the keys"),
        ("model.hidden=[64, 64", "model.hidden=[64, 64: a bracket is not closed"),
    ],
)
def test_words_that_mean_nothing_known_are_named(words, line):
    with pytest.raises(ConfigError) as error:
        refuse_mistyped("train", words.split())
    assert str(error.value) == line


@pytest.mark.parametrize(
    "words",
    [
        "-m seed=0,1", "--multirun seed=0,1", "--cfg job", "-c job seed=1", "-cjob",
        "--cfg=job --resolve --package trainer", "-p trainer -c job", "--config-dir DIR seed=1",
        "-cd DIR seed=1", "--config-name train", "-cn train", "--info searchpath", "-i",
        "-sc install=bash", "--shell-completion query=bash", "--help seed", "-h --zzz",
        "--hydra-help", "-r seed=1", "--run", "~optimizer", "~trainer.resume", "+own=1",
        "++sampler.denoise=true", "dataset@other=ring_2d", "+dataset@_here_=ring_2d",
        "hydra/launcher=joblib", "hydra.run.dir=here", "checkpoint= seed=1", "-- seed=1",
        "seed=1 a=[1,2] b={c:1} d=range(0,3)", "experiment=own/deeper", "dataset=rosa_2d",
    ],
)  # fmt: skip
def test_what_hydra_accepts_is_accepted(words):
    refuse_mistyped("train", words.split())


def test_words_that_are_files_are_accepted_where_the_command_takes_files():
    refuse_mistyped("sample", ["a.npy", "seed", "sigma=.5"], has_files=True)
    with pytest.raises(ConfigError, match="type 'metric=\\[kl,mmd\\]'"):
        refuse_mistyped("sample", ["a.npy", "metric=[kl,", "mmd]"], has_files=True)
    for words in (["--dataset", "ring_2d"], ["dataset", "ring_2d"]):
        with pytest.raises(ConfigError, match="type dataset=ring_2d"):
            refuse_mistyped("measure", ["a.npy", *words], has_files=True)


NO_OPTION = "there is no such option; did you mean"
NO_KEY = "there is no such key here; did you mean"
SHOULD = "it should"
MISTAKES = [
    # command, words, the line
    ("train", "dataset=ring2d", f"dataset=ring2d: {NO_OPTION} ring_2d?"),
    ("train", "trainer.step=100", f"trainer.step: {NO_KEY} trainer.steps?"),
    ("train", "metric=[wassertein]", f"metric=wassertein: {NO_OPTION} wasserstein?"),
    ("train", "experiment=mdsm1d", f"experiment=mdsm1d: {NO_OPTION} mdsm_1d?"),
    ("train", "loss=denoisng", f"loss=denoisng: {NO_OPTION} denoising?"),
    ("train", "optimizer=Adam", f"optimizer=Adam: {NO_OPTION} adam?"),
    ("train", "hparams_search=sead", f"hparams_search=sead: {NO_OPTION} seeds?"),
    ("train", "dataset=preset/rosa2d", f"dataset=preset/rosa2d: {NO_OPTION} preset/rosa_2d?"),
    ("train", "hydra/launcher=jobli", f"hydra/launcher=jobli: {NO_OPTION} joblib?"),
    ("train", "hparams_search=zzz",
     "hparams_search=zzz: there is no such option; choose from grid_lr, memorisation, optuna,"
     " seeds"),
    ("train", "modle=mlp", f"modle: {NO_KEY} model?"),
    ("train", "sed=1", f"sed: {NO_KEY} seed?"),
    ("train", "SEED=1", f"SEED: {NO_KEY} seed?"),
    ("train", "steps=100", f"steps: {NO_KEY} trainer.steps?"),
    ("train", "trainr.steps=100", f"trainr.steps: {NO_KEY} trainer.steps?"),
    ("train", "trainer/steps=100", f"trainer/steps: {NO_KEY} trainer.steps?"),
    ("train", "experiments=mdsm_1d", f"experiments: {NO_KEY} experiment?"),
    ("train", "sampler.denoize=true", f"sampler.denoize: {NO_KEY} sampler.denoise?"),
    ("train", "~trainer.resum", f"trainer.resum: {NO_KEY} trainer.resume?"),
    ("train", "dataset=mixture dataset.std=1", f"dataset.std: {NO_KEY} dataset.stds?"),
    ("train", "model.hidden=64,64", "model.hidden=64,64: a comma separates values, which -m sweeps"
     " over; for one run with a list, type 'model.hidden=[64,64]'"),
    ("train", "dataset=3", "dataset=3: a group takes the name of an option; --help lists them"),
    ("train", "hydra.run.dir=", "hydra.run.dir: it is empty; give a folder, or leave this out"),
    ("train", "hydra.run.dri=a", f"hydra.run.dri: {NO_KEY} hydra.run.dir?"),
    ("train", "dataset@model=ring_2d",
     "dataset@model: there is no such group here; did you mean dataset?"),
    ("sample", "datset=ring_2d", f"datset: {NO_KEY} dataset?"),
    ("sample", "sampler.denois=true", f"sampler.denois: {NO_KEY} ++sampler.denoise?"),
    ("sample", "sampler.denoise=true", "sampler.denoise: there is no such key here, see --cfg job;"
     " ++sampler.denoise=... changes a checkpoint's value"),
    ("train", "seed=0 -m loss=explicit", "overrides stand side by side, behind the flags;"
     " type ncsn-train -m seed=0 loss=explicit"),
    ("train", "trainer.steps = 100", ONE_WORD.format("trainer.steps = 100", "trainer.steps=100")),
    ("train", "trainer.steps==100", ONE_WORD.format("trainer.steps==100", "trainer.steps=100")),
    ("train", "--config-name trian",
     "--config-name trian: there is no such file in the folders of configs"),
    # A key that another option has, or an option that was not chosen.
    ("sample", "score=exact dataset=ring_2d init=data init.quasi_random=true",
     "init.quasi_random: init=data has no such key; init=prior, normal or uniform has this key"
     " (init=prior init.quasi_random=true)"),
    ("train", "schedule.sigmas=[1,.5]",
     "schedule.sigmas: schedule=geometric has no such key; schedule=listed has a key levels"
     " (schedule=listed 'schedule.levels=[1,.5]')"),
    ("train", "sampler.settings.solver_order=2",
     "sampler.settings.solver_order: sampler=annealed_langevin has no such key; sampler=azula or"
     " diffusers has this key (sampler=azula +sampler.settings.solver_order=2)"),
    ("train", "sampler=diffusers sampler.settings.solver_order=2",
     "sampler.settings.solver_order: sampler.settings takes keys of your own with a +:"
     " +sampler.settings.solver_order=2"),
    ("sample", "score=exact dataset=ring_2d schedule.num_levels=9",
     "schedule.num_levels: no schedule is chosen; schedule=geometric, karras or linear has this"
     " key (schedule=geometric schedule.num_levels=9)"),
    ("sample", "score=exact experiment=song_ermon_annealed sampler.denois=true",
     f"sampler.denois: {NO_KEY} sampler.denoise?"),
    # A key inside of a value, or of a list.
    ("train", "model.foo.bar=1", "model.foo.bar: there is no such key here, see --cfg job"),
    ("train", "schedule.sigma_max.x=3",
     "schedule.sigma_max.x: schedule.sigma_max is one value and has no keys;"
     " schedule.sigma_max=... sets it"),
    ("train", "~schedule.sigma_max.x", "schedule.sigma_max.x: schedule.sigma_max is one value and"
     " has no keys; schedule.sigma_max=... sets it"),
    ("train", "dataset.means.x.y=3", "dataset.means.x.y: dataset.means is a list; dataset.means.0"
     " is its first entry, and dataset.means=[...] sets all"),
    ("train", "dataset.means.0.x.y=3", "dataset.means.0.x.y: dataset.means.0 is a list;"
     " dataset.means.0.0 is its first entry, and dataset.means.0=[...] sets all"),
    ("train", "dataset.weights.0.x=1", "dataset.weights.0.x: dataset.weights.0 is one value and"
     " has no keys; dataset.weights.0=... sets it"),
    ("train", "+dataset.weights.5=1", "dataset.weights.5: dataset.weights is a list;"
     " dataset.weights.0 is its first entry, and dataset.weights=[...] sets all"),
    ("train", "dataset.means.x=[1]", "dataset.means.x: dataset.means is a list; dataset.means.0 is"
     " its first entry, and dataset.means=[...] sets all"),
    ("train", "~dataset.weights.0", "dataset.weights.0: an entry of a list is not removed alone;"
     " dataset.weights=[...] sets all"),
    ("train", "dataset.weights.2=.5", "dataset.weights.2: dataset.weights is a list;"
     " dataset.weights.0 is its first entry, and dataset.weights=[...] sets all"),
    ("train", "model.hidden.1.5=3", "model.hidden.1.5: model.hidden.1 is one value and has no"
     " keys; model.hidden.1=... sets it"),
    ("train", "metric.mmd.bandwidth=3", "metric.mmd.bandwidth: ncsn-train has no samples to"
     " measure; use metric with ncsn-sample"),
    ("sample", "score=exact dataset=ring_2d metric=[] metric.mmd.bandwidth=3",
     "metric.mmd.bandwidth: metric mmd is not chosen; 'metric=[mmd]' adds it"),
    # Found once the job has started.
    ("sample", "score=exact dataset=ring_2d schedule=single sampler=langevin init=prior"
     " ++sampler.fit_levels=true",
     "sampler.fit_levels: there is no such key; sampler=probability_flow has it"),
    ("train", "+sed=1", "sed: there is no such key; did you mean seed?"),
    ("train", "+trainer.step=1", "trainer.step: there is no such key; did you mean steps?"),
    ("train", "+optimizer.wieght_decay=1",
     "optimizer.wieght_decay: there is no such key; did you mean weight_decay?"),
    ("sample", "score=exact experiment=song_ermon_annealed ++sampler.denois=true",
     "sampler.denois: there is no such key; did you mean denoise?"),
    ("train", "loss.levels=al", f"loss.levels: {SHOULD} be 'all', 'random', 'continuous' or"
     " 'lognormal', got 'al'; did you mean all?"),
    ("train", "trainer.lr_decay=cosin",
     f"trainer.lr_decay: {SHOULD} be 'none' or 'cosine', got 'cosin'; did you mean cosine?"),
    ("train", "device=gpu",
     "device: choose auto, cpu, cuda, cuda:N or mps, not 'gpu'; did you mean cuda?"),
    ("train", "device=cdua",
     "device: choose auto, cpu, cuda, cuda:N or mps, not 'cdua'; did you mean cuda?"),
    ("sample", "score=exat", f"score: {SHOULD} be 'checkpoint', 'exact' or 'empirical',"
     " got 'exat'; did you mean exact?"),
    ("train", "trainer.steps=ten", f"trainer.steps: {SHOULD} be a valid integer, got 'ten'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "words", "line"),
    slow_but(MISTAKES, 0, 2, 28, 34, 43),
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(command, words, line, forked, tmp_path):
    result = forked.call(command, words.split(), tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"ncsn-{command}: {line}\n"
    assert not list(tmp_path.iterdir())


def test_names_that_are_far_from_all_known_ones_get_no_suggestion():
    assert nearest("zzz", ["ring_2d", "moons_2d"]) is None
    assert nearest("ring_2d", ["ring_2d"]) is None  # this name is no mistake
    keys = known_keys("train")
    for key in ("zzz", "trainer.zzz", "epochs"):
        assert nearest_key(key, keys) is None
    assert nearest_key("trainer.lr", keys) == "optimizer.lr"
    assert nearest_key("optimzer.zzz", keys) == "optimizer"


def what_is_in(folder):
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    } | {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_dir()}


REFUSED = ["trainer.steps=0", "hydra.run.dir=here/run"]


def test_a_folder_that_was_there_stays_as_it_was_where_a_command_is_refused(forked, tmp_path):
    (tmp_path / "here" / "run" / "empty").mkdir(parents=True)
    (tmp_path / "here" / "run" / "notes.txt").write_text("mine")
    before = what_is_in(tmp_path)
    assert forked.call("train", REFUSED, tmp_path).returncode == 2
    assert what_is_in(tmp_path) == before
    # Files by the names that a run writes are restored, too.
    run = tmp_path / "here" / "run"
    (run / ".hydra").mkdir()
    for name in ("train.log", "status.json", ".hydra/overrides.yaml"):
        (run / name).write_text("older")
    before = what_is_in(tmp_path)
    assert forked.call("train", REFUSED, tmp_path).returncode == 2
    assert what_is_in(tmp_path) == before


def stop_at_the_start(number):
    """Send the signal ``number`` to this process where the job would begin."""
    from ncsn_cli.commands import train

    def stopped(cfg):
        os.kill(os.getpid(), number)

    train.read_request = stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_command_that_is_stopped_before_its_run(number, forked, tmp_path):
    before = [__name__, "stop_at_the_start", int(number)]
    result = forked.call("train", ["hydra.run.dir=a/b/c"], tmp_path, before)
    assert result.returncode == 128 + number, result.stderr
    assert not list(tmp_path.iterdir())


def fail_inside(_):
    """Raise an error of no known kind where the job would begin."""
    from ncsn_cli.commands import train

    def broken(cfg):
        raise LookupError("a bug")

    train.read_request = broken


def test_a_bug_keeps_its_folder_and_names_the_log(forked, tmp_path):
    result = forked.call("train", [], tmp_path, [__name__, "fail_inside", None])
    assert result.returncode == 1
    log = only_run(tmp_path, "train") / "train.log"
    assert result.stderr == (
        "ncsn-train: internal error: LookupError: a bug\n"
        f"{log.relative_to(tmp_path)} has the traceback; HYDRA_FULL_ERROR=1 shows it here.\n"
    )
    assert "Traceback" in log.read_text()


@pytest.mark.slow
def test_a_job_of_a_sweep_keeps_its_log_and_the_others_run(forked, tmp_path):
    words = ["-m", "trainer.steps=0,2", *[w for w in QUICK if "steps" not in w]]
    result = forked.call("train", words, tmp_path)
    assert result.returncode == 2
    states = {}
    for status in tmp_path.glob("outputs/train/multiruns/*/*/status.json"):
        folder = status.parent
        states[read(folder / "status.json")["state"]] = {path.name for path in folder.iterdir()}
    assert set(states) == {"failed", "done"}
    assert states["failed"] == {".hydra", "train.log", "status.json"}
