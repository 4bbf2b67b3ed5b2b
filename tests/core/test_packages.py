"""Compiled code is kept, found again, and made anew where it is not what was written."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ncsn_cli.core import packages
from ncsn_cli.core.errors import ConfigError

FOLDER = "TORCHINDUCTOR_CACHE_DIR"

X, Y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.ones(3, 2)


def graph(factor=2.0, constant=None):
    def function(x, y):
        made = torch.tanh(factor * (x @ y))
        return (made if constant is None else made + constant,)

    return make_fx(function)(X, Y)


class _Around(torch.nn.Module):
    def __init__(self, traced):
        super().__init__()
        self.traced = traced

    def forward(self, *arguments):
        return self.traced(*arguments)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


@pytest.fixture
def counted(monkeypatch):
    """The names of what was compiled, by a stand-in that writes the name into the package."""
    made = []

    def compile_(program, options, folder, name):
        made.append(name)
        packages._make_room(folder, 4096)
        new = folder / "new"
        new.write_bytes(len(made).to_bytes(2) + bytes(4094))
        return new.rename(folder / packages._file_name(name, new))

    monkeypatch.setattr(packages, "_compile", compile_)
    monkeypatch.setattr(packages, "_load", lambda package: package)
    return made


def found(factor=2.0, constant=None, **changed):
    return packages.compiled(graph(factor, constant), changed.pop("inputs", [X, Y]), **changed)


@pytest.mark.slow
def test_code_from_the_cache_gives_the_same_bits_as_that_just_compiled(cache, monkeypatch):
    first = found()([X, Y])
    torch.testing.assert_close(first[0], torch.tanh(2 * (X @ Y)))
    monkeypatch.setattr(packages, "_compile", None)
    again = found()([X, Y])
    assert torch.equal(again[0], first[0])
    assert {path.suffix for path in cache.iterdir()} == {".pt2", ".lock"}
    # In a new process, too, and without the compiler.
    code = (
        "import sys, torch; from pathlib import Path; from ncsn_cli.core import packages;"
        f"(package,) = Path({str(cache)!r}).glob('*.pt2'); run = packages._load(package);"
        "x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.ones(3, 2);"
        "assert torch.equal(run([x, y])[0], torch.tensor(eval(sys.argv[1])));"
        "assert not {'torch._dynamo', 'torch._inductor'} & set(sys.modules)"
    )
    given = [sys.executable, "-c", code, str(first[0].tolist())]
    subprocess.run(given, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_what_enters_the_code_has_a_package_of_its_own(cache, counted, monkeypatch):
    kept = found()
    assert found() == kept
    assert len(counted) == 1
    others = [
        lambda: found(factor=3.0),
        lambda: found(constant=torch.ones(2)),
        lambda: found(constant=torch.zeros(2)),
        lambda: found(inputs=[X.mT.contiguous().mT, Y]),
        lambda: found(inputs=[X[:2], Y]),
        lambda: found(options={"cpp.simdlen": 0}),
        lambda: found(around=_Around(graph())),
    ]
    for number, other in enumerate(others, 2):
        other()
        assert len(counted) == number
    for name, value in (("__version__", "2.0.0"), ("get_num_threads", lambda: 77)):
        with monkeypatch.context() as changed:
            changed.setattr(torch, name, value)
            found()
    monkeypatch.setattr(packages, "_processor", lambda device: "another")
    found()
    assert len(counted) == len(set(counted)) == len(others) + 4


@pytest.mark.parametrize("what", ["damaged", "truncated", "empty", "foreign"])
def test_a_package_that_is_not_what_was_written_is_made_anew(what, cache, counted):
    kept = found()
    data = kept.read_bytes()
    other = found(factor=3.0)
    changed = {"damaged": data[:50] + b"x" + data[51:], "truncated": data[:-1], "empty": b""}
    kept.write_bytes(changed.get(what, other.read_bytes()))
    again = found()
    assert len(counted) == 3
    assert again.exists() and (again == kept or not kept.exists())
    assert found() == again
    assert len(counted) == 3


def test_the_package_that_was_not_used_for_longest_makes_room(cache, counted, monkeypatch):
    monkeypatch.setattr(packages, "_MOST_BYTES", 3 * 4096)
    for number, factor in enumerate((1.0, 2.0, 3.0)):
        os.utime(found(factor), (number, number))
    os.utime(found(1.0), (10, 10))
    old, new = cache / "tmp-old", cache / "tmp-new"
    for each in (old, new):
        each.mkdir()
    os.utime(old, (0, 0))
    found(4.0)
    assert len(list(cache.glob("*.pt2"))) == 3
    assert not old.exists() and new.exists()  # what a killed process has left; what one works in
    before = len(counted)
    for factor in (1.0, 3.0, 4.0):
        found(factor)
    assert len(counted) == before
    found(2.0)
    assert len(counted) == before + 1


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o755])
@pytest.mark.parametrize("above", [0, 1, 2])
def test_nothing_is_kept_or_found_where_others_could_put_code(mode, above, cache, counted, caplog):
    if above and mode == 0o755:
        pytest.skip("others may read the names of folders")
    found()
    changed = [cache, *cache.parents][above]
    before = changed.stat().st_mode
    changed.chmod(mode)
    for number in (2, 3):
        found()
        assert len(counted) == number
        assert "others may put code there" in caplog.text
    changed.chmod(before)
    found()
    assert len(counted) == 3


def test_a_package_that_is_removed_while_it_is_looked_at_is_made_anew(cache, counted, monkeypatch):
    kept, load = found(), packages._load

    def removed(package):
        if package == kept and len(counted) == 1:
            package.unlink()
            raise FileNotFoundError
        return load(package)

    monkeypatch.setattr(packages, "_load", removed)
    assert found().exists()
    assert len(counted) == 2


def test_another_users_folder_is_none(cache, counted, monkeypatch):
    found()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="another user could put code there"):
        found()  # to this user, the folder for temporary files is another's, too
    assert len(counted) == 1


def test_without_a_compiler_a_package_that_is_kept_serves(cache, counted, monkeypatch):
    kept = found()
    monkeypatch.setenv("CXX", "no_such_compiler")
    assert found() == kept
    with pytest.raises(ConfigError, match="no_such_compiler"):
        found(factor=3.0)


def test_of_two_processes_at_once_one_compiles(cache, counted, monkeypatch):
    """The second waits for the first one's lock, and finds its package."""
    begun = cache / "begun"
    code = packages._compile

    def slow(program, options, folder, name):
        (folder / "begun").touch()
        time.sleep(1)
        return code(program, options, folder, name)

    monkeypatch.setattr(packages, "_compile", slow)
    child = os.fork()
    if child == 0:
        try:
            assert found().exists()
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found().exists()
    assert os.waitpid(child, 0)[1] == 0
    assert not counted  # in this process
    assert len(list(cache.glob("*.pt2"))) == 1
