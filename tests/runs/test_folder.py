import json
import os
import pickle
import signal
import time
from contextlib import suppress

import pytest

from ncsn_cli.core.errors import DivergedError, InterruptedRun, OutputExistsError
from ncsn_cli.runs.folder import RunFolder, hold, release_all
from ncsn_cli.runs.records import from_here, without_home
from ncsn_cli.runs.signals import collect_stop_signals


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "done"),
        (ValueError("a\n b"), "failed"),
        (DivergedError("the loss is nan"), "diverged"),
        (InterruptedRun("stopped", signal.SIGTERM), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_status_says_how_a_run_ended(tmp_path, error, state):
    def run():
        with RunFolder(tmp_path, "seed: 0\n", "ncsn-train", {"device": "cpu"}) as folder:
            assert status(tmp_path) == {"state": "running", "step": 0, "error": None}
            folder.step = 7
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert status(tmp_path)["state"] == state
    assert status(tmp_path)["step"] == 7
    assert (status(tmp_path)["error"] is None) == (error is None)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["end"] >= record["start"]
    assert record["device"] == "cpu"


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    with RunFolder(tmp_path, "", "first", {}):
        pass
    with pytest.raises(OutputExistsError), RunFolder(tmp_path, "", "second", {}):
        pass
    assert json.loads((tmp_path / "run.json").read_text())["command"] == "first"
    assert status(tmp_path)["state"] == "done"


def test_exit_codes_of_signals():
    assert InterruptedRun("", signal.SIGTERM).exit_code == 143
    assert InterruptedRun("", signal.SIGUSR1).exit_code == 85


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_known_beyond_the_process_of_its_job(number):
    there = InterruptedRun("stopped", number)
    here = pickle.loads(pickle.dumps(there))
    assert (type(here), str(here), here.exit_code) == (InterruptedRun, "stopped", there.exit_code)


def test_the_first_signal_is_a_request_and_the_second_acts():
    with collect_stop_signals() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Signals:
    """Gone, it sends a signal: Python drops what a handler raises then."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def _in_a_destructor():
    del [_Signals()][0]


def _where_all_is_caught():
    with suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("begin", [_in_a_destructor, _where_all_is_caught])
def test_a_signal_ends_work_that_drops_exceptions(begin, capfd):
    def work():
        begin()
        done.append("begun")
        time.sleep(30)
        done.append("all")

    done = []
    with collect_stop_signals() as requests:
        requests.end(lambda: done.append("before"))
        requests.end(work)
        requests.end(work)
    assert done == ["before", "begun"]
    assert requests == [signal.SIGTERM]
    assert capfd.readouterr() == ("", "")


def test_what_fails_in_work_is_raised():
    def work():
        raise ValueError("wrong")

    with collect_stop_signals() as requests, pytest.raises(ValueError, match="wrong"):
        requests.end(work)


def test_a_folder_is_the_same_by_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lock").write_text("123456789")  # of a process that died
    hold(tmp_path / "other" / "..")
    with RunFolder(tmp_path, "", "ncsn-train", {}):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()
    release_all()


def test_only_what_a_run_left_unfinished_is_removed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "plots").mkdir()
    left = [tmp_path / ".a.json.abcd_123.tmp", tmp_path / "plots" / ".b.png.12345678.tmp"]
    others = [tmp_path / ".draft.tmp", tmp_path / "other" / ".c.json.abcd_123.tmp"]
    for path in left + others:
        path.touch()
    with RunFolder(tmp_path, "", "ncsn-train", {}):
        pass
    assert [path.exists() for path in left + others] == [False, False, True, True]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/al/run", "~/run"),
        ("checkpoint=/home/al", "checkpoint=~"),
        ("[/home/al/a,'/home/al/b']", "[~/a,'~/b']"),
        ("/home/alice/run", "/home/alice/run"),
        ("/nfs/home/al/run", "/nfs/home/al/run"),
        ("/home/al.old", "/home/al.old"),
    ],
)
def test_the_home_folder_is_not_told(text, told, monkeypatch):
    monkeypatch.setenv("HOME", "/home/al")
    assert without_home(text) == told
    monkeypatch.setenv("HOME", "/")
    assert without_home(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("everything is in /d/e/f/runs/a", "everything is in runs/a"),
        ("--config-dir=/d/e/f: no file", "--config-dir=.: no file"),
        ("'/d/e/f/a b','/d/e/g'", "'a b','../g'"),
        ("in /d/x and /d.", "in ../../x and ../..."),
        ("/d/e/file.txt, /d/e/f.txt", "../file.txt, ../f.txt"),
        ("/x/d/e/f/a or x/d/e/f/a", "/x/d/e/f/a or x/d/e/f/a"),
        ("/home/al/run", "~/run"),
    ],
)
def test_paths_are_told_as_seen_from_the_current_folder(text, told, monkeypatch):
    monkeypatch.setenv("HOME", "/home/al")
    monkeypatch.setattr(os, "getcwd", lambda: "/d/e/f")
    assert from_here(text) == told
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    assert from_here(text) == without_home(text)
