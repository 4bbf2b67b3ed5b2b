"""Which requests ask for the same run."""

import json

import pytest

from ncsn_cli.commands.resume import MAY_CHANGE_IN_TRAINING, check_same_request, digest_of
from ncsn_cli.core.errors import ConfigError
from tests.helpers.commands import composed


def with_value(config, group, key, value):
    return {**config, group: {**config[group], key: value}}


def test_auto_asks_for_the_same_run_as_null():
    for command, key in (("train", "trainer.resume"), ("sample", "resume")):
        plain, own = composed(command), composed(command, f"{key}=auto")
        assert plain != own
        assert digest_of(plain) == digest_of(own)
        assert digest_of(plain) != digest_of(composed(command, f"{key}=folder"))


def test_the_default_width_of_a_mixture_is_that_of_earlier_versions(tmp_path):
    matrix = "dataset.covariances=[[[1.0]]]"
    now = composed("train", "dataset=mixture")
    before = with_value(now, "dataset", "stds", 1.0)
    assert now != before
    assert digest_of(now) == digest_of(before)
    check = (MAY_CHANGE_IN_TRAINING, "trainer.resume", tmp_path)
    check_same_request(before, now, *check)
    check_same_request(now, before, *check)
    for other in (
        composed("train", "dataset=mixture", matrix),
        composed("train", "dataset=mixture", "dataset.stds=2.0"),
    ):
        assert digest_of(other) != digest_of(now)
        with pytest.raises(ConfigError, match="dataset"):
            check_same_request(before, other, *check)


@pytest.mark.parametrize(
    "command",
    [
        "ncsn-sample --config-dir /evil sampler=mine",
        "ncsn-sample -cd=/evil sampler=mine",
        "ncsn-sample sampler._target_=os.system '+sampler.command=ls'",
        "ncsn-sample hydra/launcher=evil",
        "ncsn-sample hydra.searchpath=[/evil]",
        "rm -rf x",
    ],
)
def test_a_record_from_elsewhere_puts_no_code_into_the_users_hands(tmp_path, command):
    (tmp_path / "run.json").write_text(json.dumps({"command": command}))
    now = composed("train")
    before = with_value(now, "trainer", "steps", 7) | {"dataset": {"_target_": "os.system"}}
    with pytest.raises(ConfigError) as refused:
        check_same_request(before, now, set(), "trainer.resume", tmp_path)
    assert not any(word in str(refused.value) for word in ("evil", "_target_", "os.system", "rm"))
    assert "trainer.steps=7" in str(refused.value)
