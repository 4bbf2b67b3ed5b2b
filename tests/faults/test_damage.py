"""Damaged checkpoints of a real run: none is taken for whole, and an older one serves instead."""

import os
import random
import shutil

import numpy as np
import pytest

from ncsn_cli.core.errors import BadCheckpointError
from ncsn_cli.runs.checkpoints import load_checkpoint
from tests.helpers.commands import digest_of_run, newest_checkpoint

JOB = [
    "trainer.steps=6", "trainer.batch_size=16", "trainer.checkpoint_every=2",
    "trainer.ema_decay=0.9", "schedule.num_levels=2", "dataset.num_samples=50", "model=mlp",
    "model.activation=softplus", "plot=[]", "device=cpu", "sampler.steps_per_level=2",
]  # fmt: skip
PAGE = 4096


def trained(forked, folder, *arguments):
    run = folder / "run"
    result = forked.call("train", [*JOB, *arguments, f"hydra.run.dir={run}"], folder)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def small(forked, tmp_path_factory):
    return trained(forked, tmp_path_factory.mktemp("small"), "model.hidden=[4]")


@pytest.fixture(scope="module")
def large(forked, tmp_path_factory):
    return trained(forked, tmp_path_factory.mktemp("large"), "model.hidden=[300,300]")


def header_length(whole):
    return 8 + int.from_bytes(whole[:8], "little")


def assert_refused(path, damaged, what):
    path.write_bytes(damaged)
    try:
        load_checkpoint(path)
    except BadCheckpointError as error:
        assert str(path) in str(error)
    else:
        raise AssertionError(f"taken for whole: {what}")


def flip(whole, position, bit):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << bit
    return damaged


def test_every_flipped_bit_is_noticed(large, tmp_path, trials):
    whole, chance = newest_checkpoint(large).read_bytes(), random.Random(0)
    number, path = trials("A6", 2000, 60), tmp_path / "damaged.safetensors"
    for position in [chance.randrange(len(whole)) for _ in range(number)]:
        bit = chance.randrange(8)
        assert_refused(path, flip(whole, position, bit), f"bit {bit} of byte {position}")


def test_every_flipped_bit_of_the_header_is_noticed(small, tmp_path, trials):
    whole, path = newest_checkpoint(small).read_bytes(), tmp_path / "damaged.safetensors"
    bits = [(place, bit) for place in range(header_length(whole)) for bit in range(8)]
    for place, bit in random.Random(0).sample(bits, trials("A6", len(bits), 400)):
        around = whole[max(place - 20, 0) : place + 20]
        assert_refused(path, flip(whole, place, bit), f"bit {bit} of byte {place}: {around}")


def test_every_truncation_is_noticed(large, tmp_path, trials):
    whole, chance = newest_checkpoint(large).read_bytes(), random.Random(1)
    number, path = trials("A6", 512, 20), tmp_path / "damaged.safetensors"
    lengths = [0, 1, 7, 8, 9, header_length(whole), len(whole) - 1]
    lengths += [chance.randrange(len(whole)) for _ in range(number - len(lengths))]
    for length in lengths:
        assert_refused(path, whole[:length], f"the first {length} bytes")


def test_every_zeroed_page_is_noticed(large, tmp_path, trials):
    whole, path = newest_checkpoint(large).read_bytes(), tmp_path / "damaged.safetensors"
    pages = [n for n in range(0, len(whole), PAGE) if any(whole[n : n + PAGE])]
    assert len(pages) >= 256
    for start in random.Random(2).sample(pages, trials("A6", 256, 20)):
        zeros = bytes(len(whole[start : start + PAGE]))
        damaged = whole[:start] + zeros + whole[start + PAGE :]
        assert_refused(path, damaged, f"a page of zeros at {start}")


DAMAGES = {
    "a flipped bit": lambda whole: flip(whole, len(whole) - 10, 3),
    "half of it": lambda whole: whole[: len(whole) // 2],
    "nothing": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.fixture
def damaged(small, tmp_path):
    """``damaged(how, number)``: a copy of the run whose ``number`` newest checkpoints are so."""

    def of(how, number):
        run = tmp_path / f"damaged {number} {how}"
        shutil.copytree(small, run)
        for path in sorted(run.glob("checkpoints/*"))[-number:]:
            path.write_bytes(DAMAGES[how](path.read_bytes()))
        return run

    return of


def commands(run, out):
    return [
        ("train", [*JOB, "model.hidden=[4]", f"trainer.resume='{run}'", f"hydra.run.dir={out}"]),
        ("sample", [f"checkpoint='{run}'", "num_samples=20", "plot=[]", "metric=[]",
                    f"hydra.run.dir={out}"]),
    ]  # fmt: skip


@pytest.mark.parametrize("which", [0, 1], ids=["train", "sample"])
def test_the_newest_valid_checkpoint_serves(which, small, damaged, forked, tmp_path, trials):
    hows = list(DAMAGES)[: trials("A6", len(DAMAGES), 1)]
    expected = None
    for number, how in enumerate(hows, start=1):
        run, out = damaged(how, 1 + number % 2), tmp_path / f"out{number}"
        *_, older, newer, newest = sorted(run.glob("checkpoints/*"))
        broken, valid = ([newer, newest], older) if number % 2 else ([newest], newer)
        command, arguments = commands(run, out)[which]
        result = forked.call(command, arguments, tmp_path)
        said = result.stdout + result.stderr
        assert result.returncode == 0, said
        for path in broken:
            shown = os.path.relpath(path, tmp_path)
            assert sum(shown in line for line in said.splitlines()) == 1, said
        if command == "train":
            assert digest_of_run(out) == digest_of_run(small)
            continue
        command, arguments = commands(valid, tmp_path / f"expected{number}")[which]
        assert forked.call(command, arguments, tmp_path).returncode == 0
        expected, found = (
            np.load(folder / "samples.npz") for folder in (tmp_path / f"expected{number}", out)
        )
        assert expected.files == found.files
        assert all(np.array_equal(expected[name], found[name]) for name in expected.files)


@pytest.mark.parametrize("which", [0, 1], ids=["train", "sample"])
def test_a_run_without_a_valid_checkpoint_is_refused(which, damaged, forked, tmp_path, trials):
    for how in list(DAMAGES)[: trials("A6", len(DAMAGES), 1)]:
        run, out = damaged(how, 3), tmp_path / f"out of {how[:4]}"
        command, arguments = commands(run, f"'{out}'")[which]
        result = forked.call(command, arguments, tmp_path)
        assert result.returncode == 65, result.stderr
        assert f"ncsn-{command}: " in result.stderr and "Traceback" not in result.stderr
        assert not list(out.glob("checkpoints/*"))
