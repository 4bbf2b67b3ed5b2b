import json
import os
import signal

import pytest

from ncsn_cli.errors import DivergedError, InterruptedRun, OutputExistsError
from ncsn_cli.runs import RunFolder, signals_as_requests


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
