import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ncsn_cli.commands.build import known_class
from ncsn_cli.core.errors import BadCheckpointError, ConfigError, MissingInputError
from ncsn_cli.models import MLP
from ncsn_cli.runs.checkpoints import (
    checkpoint_path,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)

RECORD = {"config": {"model": {"_target_": "ncsn_cli.models.MLP"}}, "step": 3}


@pytest.fixture
def network():
    return MLP(2, hidden=[8], activation="relu", conditional=True)


@pytest.fixture
def path(tmp_path, network):
    path = checkpoint_path(tmp_path, 3)
    save_checkpoint(path, network.state_dict(), RECORD)
    return path


def test_a_loaded_network_gives_bit_identical_scores(path, network):
    tensors, record = load_checkpoint(path)
    assert record == RECORD
    known = known_class(record["config"]["model"]["_target_"])
    other = known(dim=2, hidden=[8], activation="relu", conditional=True)
    other.load_state_dict(tensors)
    x, sigma = torch.randn(50, 2), torch.rand(50)
    assert torch.equal(other(x, sigma), network(x, sigma))


def test_all_kinds_of_tensors_survive(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "double": torch.randn(2, 3, dtype=torch.float64).T,
        "half": torch.randn(3).bfloat16(),
    }
    save_checkpoint(tmp_path / "c.safetensors", tensors, RECORD)
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors")
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_every_flipped_bit_and_truncation_is_noticed(path):
    whole, chance = path.read_bytes(), random.Random(0)
    for position in chance.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(BadCheckpointError):
            load_checkpoint(path)
    for length in (0, 1, 7, 8, 9, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpointError):
            load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


def test_a_changed_configuration_is_noticed(path):
    path.write_bytes(path.read_bytes().replace(b"models.MLP", b"models.MLQ"))
    with pytest.raises(BadCheckpointError, match="SHA-256"):
        load_checkpoint(path)


def test_the_folder_of_the_checkpoints_is_answered_with_that_of_the_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000001.safetensors").touch()
    with pytest.raises(MissingInputError, match=f"give the folder of the run, {tmp_path}$"):
        load_newest(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["samples.npy", "weights.pt", "samples.CSV"])
def test_a_file_of_another_kind_is_named_as_such(name, tmp_path):
    (tmp_path / name).write_bytes(b"not a checkpoint at all" * 100)
    with pytest.raises(BadCheckpointError, match=r"checkpoints are \.safetensors files"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"ncsn_cli": "[]"},
        {"ncsn_cli": "{"},
        {"ncsn_cli": "{}"},
        {"ncsn_cli": '{"sha256": "", "x": NaN}'},
        {"ncsn_cli": "[" * 100_000},
    ],
)
def test_foreign_files_are_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(BadCheckpointError):
        load_checkpoint(path)


def test_a_pickle_is_refused_without_being_read(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadCheckpointError):
        load_checkpoint(path)


def test_a_run_means_its_newest_checkpoint(tmp_path, path):
    save_checkpoint(checkpoint_path(tmp_path, 20), {}, json.loads(json.dumps(RECORD)))
    assert load_newest(tmp_path)[0] == checkpoint_path(tmp_path, 20)
    assert load_newest(path)[0] == path
    with pytest.raises(MissingInputError, match="no run is in this folder"):
        load_newest(path.parent)
    with pytest.raises(MissingInputError, match="No such file"):
        load_newest(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="No such file"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path, path, caplog):
    newer = checkpoint_path(tmp_path, 20)
    newer.write_bytes(path.read_bytes()[:-1])
    assert load_newest(tmp_path)[0] == path
    (record,) = caplog.records
    assert str(newer) in record.getMessage()
    with pytest.raises(BadCheckpointError):
        load_newest(newer)
    path.write_bytes(b"")
    with pytest.raises(BadCheckpointError):
        load_newest(tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "pathlib.Path.write_text",
        "ncsn_cli.models.torch.load",
        "ncsn_cli.models.nn",
        "ncsn_cli.models.pairwise",
        "ncsn_cli.models._perceptron",
        "ncsn_cli.models.MLP.__init__",
        "ncsn_cli.datasets.math.exp",
        "ncsn_cli.runs.files.write_atomic",
        "ncsn_cli.models.",
        "MLP",
        "",
        None,
        {"_target_": "os.system"},
    ],
)
def test_only_this_packages_own_classes_are_built(target):
    with pytest.raises(ConfigError, match="no class of ncsn_cli"):
        known_class(target)


def test_a_module_that_the_user_names_may_be_built_from(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from os import system\n"
        "from ncsn_cli.models import MLP\n"
        "class Mine(MLP): ...\n"
        "class _Hidden: ...\n"
        "def call(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert issubclass(known_class("my_models.Mine", ["my_models"]), MLP)
    for name in ("system", "MLP", "_Hidden", "call", "Other", "os.system"):
        with pytest.raises(ConfigError, match="plugins"):
            known_class(f"my_models.{name}", ["my_models"])
    with pytest.raises(ConfigError, match="plugins"):
        known_class("my_models.Mine")


def reframed(path, edit):
    """Write the file ``path`` again with the text of its header edited."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = edit(data[8 : 8 + length].decode().rstrip()).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # A key twice.
        ('{"__metadata__"', '{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
         '"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"__metadata__"'),
        # An absurd shape.
        ('{"__metadata__"', '{"w":{"dtype":"F32","shape":[0,999999999999],'
         '"data_offsets":[0,0]},"__metadata__"'),
        # Many axes.
        ('{"__metadata__"', '{"w":{"dtype":"F32","shape":[' + "1," * 5000 + '0],'
         '"data_offsets":[0,0]},"__metadata__"'),
        # A type of its own.
        ('"dtype":"F32"', '"dtype":"I32"'),
        # A type that no checkpoint has.
        ('"dtype":"F32"', '"dtype":"U32"'),
    ],
)  # fmt: skip
def test_what_safetensors_would_read_is_refused(path, old, new):
    reframed(path, lambda header: header.replace(old, new, 1))
    with pytest.raises(BadCheckpointError):
        load_checkpoint(path)


def test_any_name_of_a_folder_will_do(path, tmp_path):
    folder = os.fsencode(tmp_path) + b"/l\xe4t"
    os.mkdir(folder)
    os.rename(path, folder + b"/c.safetensors")
    assert load_checkpoint(Path(os.fsdecode(folder), "c.safetensors"))[1] == RECORD
