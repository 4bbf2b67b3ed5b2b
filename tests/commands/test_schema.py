"""The JSON Schema of --schema: what the commands accept it accepts, and little else."""

import json
import re

import jsonschema
import pytest

from ncsn_cli.commands.schema import described, schema_of
from ncsn_cli.losses import Denoising
from ncsn_cli.samplers import ProbabilityFlow
from tests.helpers.commands import CONFIGS, composed
from tests.helpers.slow import slow_but

COMMANDS = ("train", "sample", "measure")
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("experiment/*.yaml"))


@pytest.fixture(scope="module")
def validators():
    schemas = {command: schema_of(command) for command in COMMANDS}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {name: jsonschema.Draft202012Validator(schema) for name, schema in schemas.items()}


@pytest.mark.parametrize("experiment", slow_but(EXPERIMENTS, 0, 20))
def test_every_experiment_is_valid(experiment, validators):
    validators["train"].validate(composed("train", f"experiment={experiment}"))
    validators["sample"].validate(composed("sample", "score=exact", f"experiment={experiment}"))


@pytest.mark.parametrize("group", ["dataset", "schedule", "loss", "model", "sampler", "init"])
def test_every_option_is_valid(group, validators):
    for option in sorted(path.stem for path in CONFIGS.glob(f"{group}/*.yaml")):
        validators["train"].validate(composed("train", f"{group}={option}"))


@pytest.mark.parametrize(
    "words",
    [
        ["schedule.sigma_max=-1"], ["schedule.num_levels=2.5"], ["loss.levels=some"],
        ["+schedule.sigma=1"], ["trainer.steps=true"], ["model.hidden=wide"], ["seed=-1"],
        ["sampler=probability_flow", "sampler.solver=rk4"], ["init=prior", "init.quasi_random=2"],
    ],
)  # fmt: skip
def test_what_the_commands_refuse_is_not_valid(words, validators):
    with pytest.raises(jsonschema.ValidationError):
        validators["train"].validate(composed("train", *words))


def test_every_key_is_described():
    def undescribed(value, path=()):
        if isinstance(value, dict):
            if "default" in value and "description" not in value:
                yield path
            for key, entry in value.items():
                yield from undescribed(entry, (*path, key))
        elif isinstance(value, list):
            for entry in value:
                yield from undescribed(entry, path)

    assert [*undescribed(schema_of("train"))] == []


def test_descriptions_come_from_the_docstrings_of_class_and_base():
    assert described(ProbabilityFlow)["denoise"].startswith("Whether to end with the posterior")
    assert described(ProbabilityFlow)["solver"].startswith("``euler``, order 1")
    assert "weight_power" in described(Denoising)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_print_it(command, forked, tmp_path):
    result = forked.call(command, ["--schema"], tmp_path)
    assert result.returncode == 0, result.stderr
    ours = json.loads(json.dumps(schema_of(command)).replace("``", "'"))
    assert json.loads(result.stdout) == ours
    assert not re.search(r"``|\b[Ss]ee '", result.stdout)  # nor does it name our own functions
    assert [*tmp_path.iterdir()] == []


def test_a_command_without_a_schema_says_so(forked, tmp_path):
    result = forked.call("compare", ["--schema"], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("ncsn-compare: --schema: this command has flags alone")
