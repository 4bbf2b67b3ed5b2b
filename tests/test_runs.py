import json
import os
import signal

import pytest

from ncsn_cli.errors import DivergedError, InterruptedRun, OutputExistsError
from ncsn_cli.runs import RunFolder, signals_as_requests, to_json, write_atomic


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deeper" / "file.json"
    for data in (b"first", b"second"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    if call == "write":
        data = object()  # no bytes
    else:
        data = b"new"

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, call, fail)
    with pytest.raises((OSError, TypeError)):
        write_atomic(path, data)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def record(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, record)
    write_atomic(tmp_path / "file", b"data")
    assert calls == ["fsync", "replace", "fsync"]


def test_files_have_the_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        to_json({"loss": float("nan")})


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


def test_the_first_signal_is_a_request_and_the_second_acts():
    with signals_as_requests() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
