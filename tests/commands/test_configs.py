"""Every option composes, builds, and lists exactly the parameters of what it builds."""

import collections
import dataclasses
import functools
import inspect
import itertools
import shlex

import pytest
from hydra.utils import get_class, get_method, get_object, instantiate
from omegaconf import OmegaConf

from ncsn_cli.commands import old_names
from ncsn_cli.commands.config import GROUPS, SampleSettings, TrainSettings, run_keys
from tests.helpers.commands import CONFIGS, composed
from tests.helpers.slow import slow_but

RUNTIME = {"dim", "params", "scene", "self"}
OPTIONS = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.glob("*/**/*.yaml")
    if path.relative_to(CONFIGS).parts[0] not in ("experiment", "hparams_search", "hydra", "paths")
)
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("experiment/*.yaml"))


SEVERAL = ("metric", "plot", "animation")


@functools.cache  # composing takes longer than what is tested
def options():
    """Return the settings of every option by its path; one of each group is composed at a time."""
    by_group = {}
    for path in OPTIONS:
        by_group.setdefault(path.split("/")[0], []).append(path)
    settings = {}
    for paths in itertools.zip_longest(*by_group.values()):
        chosen = dict(path.split("/", 1) for path in paths if path is not None)
        words = [f"{g}=[{name}]" if g in SEVERAL else f"{g}={name}" for g, name in chosen.items()]
        config = composed("train", *words)
        for group, name in chosen.items():
            settings[f"{group}/{name}"] = (
                config[group][name] if group in SEVERAL else config[group]
            )
    return settings


def parameters(target):
    try:
        function = get_class(target)
        function = function.__init__ if target.startswith("ncsn_cli.models") else function
    except ValueError:
        function = get_method(target)
    return set(inspect.signature(function).parameters) - RUNTIME


@pytest.mark.parametrize("path", OPTIONS)
def test_an_option_lists_every_parameter(path):
    settings = options()[path]
    keys = {key for key in settings if not key.startswith("_")}
    if settings["_target_"].startswith("ncsn_cli."):
        assert keys == parameters(settings["_target_"])
    else:
        assert keys <= parameters(settings["_target_"])


def dataclass_fields(target):
    return dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()


UNLIKE = ("ncsn_cli.mistakes.", "ncsn_cli.datasets.GaussianMixture")  # needs its weights


def test_an_object_made_without_arguments_is_that_of_an_option():
    by_class = {}
    for values in options().values():
        by_class.setdefault(values["_target_"], []).append(
            {key: value for key, value in values.items() if not key.startswith("_")}
        )
    for target, of_options in by_class.items():
        found = inspect.signature(get_object(target)).parameters
        if target.startswith("ncsn_cli.") and not target.startswith(UNLIKE):
            made = {
                field.name: field.default_factory()
                for field in dataclass_fields(get_object(target))
                if field.default_factory is not dataclasses.MISSING
            }
            defaults = {
                name: list(value.default) if isinstance(value.default, tuple) else value.default
                for name, value in found.items()
                if name not in RUNTIME
            } | made
            assert defaults in of_options, target


@pytest.mark.parametrize("path", [path for path in OPTIONS if not path.startswith("optimizer/")])
def test_an_option_builds(path):
    runtime = {"dim": 2} if path.startswith("model/") else {}
    instantiate(options()[path], _convert_="all", **runtime)


def test_an_option_that_moved_answers_under_its_old_name_with_the_new_words(capsys):
    by_group = {}
    for old in old_names.OPTIONS:
        by_group.setdefault(old.split("/")[0], []).append(old)
        assert not (CONFIGS / f"{old}.yaml").exists()
    for olds in itertools.zip_longest(*by_group.values()):  # one of each group, to compose less
        olds = [old for old in olds if old is not None]
        old_names.say_new_name.cache_clear()
        answer = composed("train", *(old.replace("/", "=") for old in olds))
        said = capsys.readouterr().err.splitlines()
        new = {f"{old.split('/')[0]}={old_names.OPTIONS[old]}" for old in olds}
        assert {line.partition(" is now ")[2].split(",")[0] for line in said} == new
        shown = {line.partition(" is now ")[0]: line.partition(" is now ")[2] for line in said}
        assert set(shown) == {old.replace("/", "=") for old in olds}
        meaning = [word for line in shown.values() for word in line.split(", which is ")[-1:]]
        assert answer == composed("train", *shlex.split(" ".join(meaning)))


def test_the_groups_list_what_a_user_chooses():
    listed = collections.Counter(path.parent.name for path in CONFIGS.glob("*/*.yaml"))
    counts = [listed[group] for group in ("sampler", "schedule", "model", "optimizer")]
    assert counts == [11, 6, 7, 3]


@pytest.mark.parametrize("name", slow_but(EXPERIMENTS, *range(0, len(EXPERIMENTS), 4)))
def test_an_experiment_serves_both_commands_and_names_its_source(name):
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# Source: ")
    for command in ("train", "sample"):
        config = composed(command, f"experiment={name}")
        for group in ("dataset", "schedule", "sampler", "init"):
            instantiate(config[group], _convert_="all")


def test_an_experiment_sets_no_values_of_a_group_other_than_the_trainer():
    # They would leak into another option that the user picks.
    for name in EXPERIMENTS:
        body = OmegaConf.load(CONFIGS / "experiment" / f"{name}.yaml")
        assert set(body) <= {"defaults", "trainer", *run_keys(SampleSettings)}


def test_values_of_an_experiment_give_way_to_the_command_line():
    config = composed("sample", "experiment=ncsn_2d")
    assert config["num_samples"] == 5000
    assert config["sampler"]["step_size"] == 0.0005
    config = composed("sample", "experiment=ncsn_2d", "num_samples=7", "sampler=langevin")
    assert config["num_samples"] == 7
    assert config["sampler"]["step_size"] == 0.01


@pytest.mark.parametrize("command", ["train", "sample"])
def test_both_commands_list_every_group(command):
    defaults = OmegaConf.load(CONFIGS / f"{command}.yaml").defaults
    listed = {key for entry in defaults if entry != "_self_" for key in entry}
    assert set(GROUPS) <= listed
    keys = run_keys(TrainSettings if command == "train" else SampleSettings)
    assert set(keys) <= set(composed(command))
