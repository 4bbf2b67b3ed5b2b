"""What the tests share: devices, exact problems, and the statistics of their tolerances."""

import math
import signal

import pytest
import torch

from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.runs.signals import STOPPING

from .forked import Server

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


@pytest.fixture(scope="module")
def forked():
    server = Server()
    yield server
    server.close()


def stream(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def two_modes_1d(**kwargs):
    return GaussianMixture(weights=[0.1, 0.9], means=[-3.0, 3.0], stds=1.0, **kwargs)


def two_modes_2d(**kwargs):
    return GaussianMixture(weights=[0.95, 0.05], means=[[-5, -5], [5, 5]], stds=1.0, **kwargs)


def correlated_2d():
    return GaussianMixture(
        weights=[0.3, 0.7],
        means=[[-2.0, 0.0], [1.0, 1.0]],
        covariances=[[[1.0, 0.8], [0.8, 1.5]], [[0.3, -0.1], [-0.1, 0.2]]],
    )


# Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > LIMIT) < 1e-6 for exact draws, and a law that is
# 2 * LIMIT = 0.02 away in Kolmogorov distance passes with probability below 1e-6.
NUM_DRAWS = 72_544
LIMIT = math.sqrt(math.log(2 / 1e-6) / (2 * NUM_DRAWS))


def kolmogorov_distance(draws, cdf):
    """sup |F_n - F| for draws (n,) and their supposed distribution function."""
    x = draws.double().cpu().sort().values
    values = cdf(x)
    n = len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((steps[1:] - values).max(), (values - steps[:-1]).max()))


def assert_mean(values, expected, standard_errors=5.0):
    """The mean of independent values (n,) is ``expected`` within 5 standard errors (p = 6e-7)."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values)))
    difference = abs(float(values.mean()) - expected)
    assert difference <= standard_errors * error + 1e-12, (
        f"{float(values.mean()):.6g} against {expected:.6g}: {difference / error:.1f} SE"
    )


def assert_variance(values, expected):
    """The variance of Gaussian values (n,) is ``expected`` within 5 standard errors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = expected * math.sqrt(2 / len(values))
    assert abs(float(values.var()) - expected) <= 5 * error


def shaken(network):
    """Weights away from their start, where the residual networks are 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=stream(1)).to(parameter)
    return network
