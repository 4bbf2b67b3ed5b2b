"""Devices, the server of forked commands, and a run that was trained once."""

import functools
import signal

import pytest
import torch

from ncsn_cli.runs.signals import STOPPING
from tests.helpers.commands import QUICK, Server, run, written_by

# What a script starts by & ignores SIGINT, what nohup starts SIGHUP, and the commands that the
# tests start would do so, too.
for number in STOPPING:
    if signal.getsignal(number) is signal.SIG_IGN:
        is_ctrl_c = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)

torch.set_num_threads(1)  # pytest-xdist runs the files side by side

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_addoption(parser):
    parser.addoption("--all-trials", action="store_true", help="as many faults as docs/ say")


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def forked():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run of the real command."""
    folder = tmp_path_factory.mktemp("trained")
    return written_by(run, "ncsn-train", *QUICK, "plot=[score,loss]", folder=folder)


@pytest.fixture
def succeed(forked):
    """``succeed(command, *arguments, folder=...)`` runs a command, and returns what it wrote."""

    def result_of(command, *arguments, folder):
        shown = ["tests.helpers.forked", "show_warnings", None]
        return forked.call(command.removeprefix("ncsn-"), arguments, folder, shown)

    return functools.partial(written_by, result_of)


@pytest.fixture
def really_succeed():
    """As ``succeed``, by the console script."""
    return functools.partial(written_by, run)
