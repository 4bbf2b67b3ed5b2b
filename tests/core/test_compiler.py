"""The folder of compiled code: fit for a compiler's command line, and nobody else's."""

import os
import pwd
import shlex
import stat
import string
import tempfile
from pathlib import Path

import pytest
import torch

from ncsn_cli.core.compiling import check_compiler, code_folder, keep_compiled_code
from ncsn_cli.core.errors import ConfigError
from tests.helpers.commands import QUICK

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
NAME = f"ncsn_cli_{os.geteuid()}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Sets the home folder and the one for temporary files to those of these names."""

    def choose(home="home", temporary="tmp"):
        (tmp_path / temporary).mkdir(exist_ok=True)
        monkeypatch.setenv("HOME", str(tmp_path / home))
        monkeypatch.setenv("TMPDIR", str(tmp_path / temporary))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / temporary))
        for name in ("XDG_CACHE_HOME", FOLDER):  # set first, so that its absence is restored
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        return tmp_path / home, tmp_path / temporary

    return choose


def named():
    keep_compiled_code()
    return Path(os.environ[FOLDER])


@pytest.mark.parametrize("letter", [*sorted(set(string.printable) - {"/"}), "é", "\udcff"])
def test_the_home_folder_serves_if_a_command_line_gives_its_name_back(letter, home):
    in_home, temporary = home(f"x{letter}y")
    cache = in_home / ".cache" / "ncsn_cli"
    try:
        serves = shlex.split(f"g++ {cache}/a.cpp".encode().decode()) == ["g++", f"{cache}/a.cpp"]
    except ValueError:  # an open quote, or no Unicode
        serves = False
    assert named() == (cache if serves else temporary / NAME)
    assert not in_home.exists() and not any(temporary.iterdir())  # until something is compiled


def test_the_folder_among_other_users_is_the_users_alone(home):
    _, temporary = home("x y")
    assert named() == temporary / NAME
    code_folder()
    assert stat.S_IMODE((temporary / NAME).stat().st_mode) == 0o700
    code_folder()  # as in the next run


@pytest.mark.parametrize("found", ["writable", "readable", "link", "file", "open parent"])
def test_a_folder_in_which_others_may_have_put_code_is_refused_at_once(found, home):
    _, temporary = home("x y")
    if found == "link":
        (temporary / "other").mkdir(mode=0o700)
        (temporary / NAME).symlink_to("other")
    elif found == "file":
        (temporary / NAME).touch(mode=0o600)
    elif found == "open parent":
        temporary.chmod(0o777)  # without the bit that keeps names their owners'
    else:
        (temporary / NAME).mkdir()
        (temporary / NAME).chmod(0o770 if found == "writable" else 0o755)
    with pytest.raises(ConfigError, match=r"x y.*TORCHINDUCTOR_CACHE_DIR"):
        code_folder()


def test_another_users_folder_is_refused(home, monkeypatch):
    _, temporary = home("x y")
    (temporary / NAME).mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="x y"):
        code_folder()


def test_a_public_folder_that_keeps_names_their_owners_serves(home):
    _, temporary = home("x y")
    temporary.chmod(0o1777)
    code_folder()
    assert (temporary / NAME).is_dir()


def test_without_a_home_folder_the_temporary_one_serves(home, monkeypatch):
    _, temporary = home()
    monkeypatch.delenv("HOME")

    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert named() == temporary / NAME


@pytest.mark.parametrize("own", ["own", "x y", "a file/below"])
def test_the_folder_that_the_user_names_is_kept_or_refused_at_once(
    own, home, tmp_path, monkeypatch
):
    home()
    (tmp_path / "a file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / own))
    assert named() == tmp_path / own
    if own == "own":
        code_folder()
        assert (tmp_path / own).is_dir()
    else:
        with pytest.raises(ConfigError, match=f"{own}.*{FOLDER}"):
            code_folder()


def test_an_empty_name_of_a_folder_is_none(home, monkeypatch):
    in_home, _ = home()
    monkeypatch.setenv(FOLDER, "")  # to torch: the current folder
    assert named() == in_home / ".cache" / "ncsn_cli"


def test_what_cannot_compile_is_said_at_once(home, monkeypatch):
    home()
    with monkeypatch.context() as changed:
        changed.setenv("CXX", "no_such_compiler")
        with pytest.raises(ConfigError, match="no_such_compiler"):
            check_compiler()
    monkeypatch.setattr(torch, "__file__", "/home/a user/torch/__init__.py")
    with pytest.raises(ConfigError, match="/home/a user/torch: "):
        check_compiler()


@pytest.mark.slow
@pytest.mark.parametrize("names", [("x y", "tmp"), ("hé,$;", "t t"), ("x y", "t t")])
def test_steps_are_compiled_or_stay_plain_at_once(
    names, home, tmp_path, monkeypatch, really_succeed
):
    home(*names)
    monkeypatch.setenv("USER", "a user")  # after whom torch names a folder of its own
    monkeypatch.setenv("LOGNAME", "a user")
    small = [*QUICK, "model=mlp", "model.hidden=[8]"]  # half the seconds of the default network
    run = really_succeed("ncsn-train", *small, "trainer.compile=true", folder=tmp_path)
    log = (run / "train.log").read_text()
    if names == ("x y", "t t"):
        assert f"{names[0]}/.cache/ncsn_cli: the compiler" in log and "the steps stay plain" in log
        assert "CppCompileError" not in log  # what torch says after half a minute
    else:
        assert "compiled in" in log
    assert not list((tmp_path / names[1]).glob("torchinductor*"))
