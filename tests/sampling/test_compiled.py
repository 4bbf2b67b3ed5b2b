"""Compiled Langevin steps are the plain ones, at any level, whatever their number."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

from ncsn_cli.core.compiling import resolve_compile
from ncsn_cli.core.errors import ConfigError, InterruptedRun
from ncsn_cli.core.score import score_at
from ncsn_cli.models import MLP, EmbeddingMLP, FourierMLP, NCSNv2MLP
from ncsn_cli.samplers import AnnealedLangevin, AnnealedMALA, Level, ProbabilityFlow
from ncsn_cli.sampling import compiled_langevin
from ncsn_cli.sampling.compiled_langevin import CompiledLangevin, gain_of_compiling
from ncsn_cli.sampling.tile import TILE
from ncsn_cli.schedules import Geometric
from tests.helpers.compiling import no_compiler, run_by_torch
from tests.helpers.problems import shaken, stream
from tests.helpers.sampling import ask_to_stop, assert_same, sampling
from tests.helpers.slow import slow_but

NUM, WIDTH = 48, 33
SIGMAS = Geometric(10.0, 0.1, 5).sigmas  # of test_sampling's chains


def networks(dim):
    shape = {"hidden": [WIDTH], "activation": "relu"}
    return [
        MLP(dim, **shape, conditional=True),
        MLP(dim, **shape, conditional=False),
        EmbeddingMLP(dim, embedding=4, **shape),
        NCSNv2MLP(dim, **shape),
    ]


def points(dim, num=NUM):
    return 3 * torch.randn(dim, num, generator=stream()).mT


@pytest.fixture
def untranslated(monkeypatch):
    monkeypatch.setattr(compiled_langevin, "compiled", run_by_torch)


@torch.no_grad()
def assert_langevin(network, compiled, x, num):
    """Each state follows from the one before it, in double precision but for rounding.

    The score sums W terms, whose sizes add up to ``terms``: each rounds by 2^-24 some times.
    """
    exact, positive = copy.deepcopy(network).double(), copy.deepcopy(network).double()
    for parameter in positive.parameters():
        parameter.data.abs_()
    for sigma, tau in ((0.1, 1e-3), (5.0, 0.2)):
        z = torch.randn(num, *x.mT.shape, generator=stream(1)).mT  # (T, B, D)
        here = compiled.at(torch.tensor(sigma))
        states = list(here.steps(x, z, torch.tensor(tau)))
        assert len(states) == num
        before = x
        for after, draw in zip(states, z.double(), strict=True):
            begin, level = before.double(), torch.tensor(sigma).double()
            noise = math.sqrt(2 * tau) * draw
            expected = begin + tau * exact(begin, level) + noise
            terms = float((begin.abs() + tau * positive(begin.abs(), level) + noise.abs()).max())
            rounding = 5 * torch.finfo(torch.float32).eps * terms
            torch.testing.assert_close(after.double(), expected, rtol=0, atol=rounding)
            before = after


@pytest.mark.parametrize(
    ("dim", "num"), slow_but([(1, 1), (1, 8), (1, 19), (2, 1), (2, 8), (2, 19)], 0)
)
def test_traced_steps_are_langevins(dim, num, untranslated):
    for network in map(shaken, networks(dim)):
        x = points(dim)
        with torch.no_grad():
            compiled = CompiledLangevin(network, x)
            sigma = torch.tensor(0.3)
            assert torch.equal(compiled(x, sigma), network(x, sigma))
            assert torch.equal(compiled.at(sigma)(x), score_at(network, sigma)(x))
        assert_langevin(network, compiled, x, num)


@pytest.fixture(scope="module")
def translated():
    """A network, and its steps compiled for this machine."""
    network = shaken(MLP(1, hidden=[WIDTH], activation="relu", conditional=True))
    with torch.no_grad():
        return network, CompiledLangevin(network, points(1))


@pytest.mark.slow
def test_steps_compiled_for_this_machine_are_langevins(translated):
    assert_langevin(*translated, points(1), 19)


SAMPLER = AnnealedLangevin(step_size=1e-6, steps_per_level=11, denoise=True)


def chains(score, **changed):
    """Four tiles at 5 levels, with a score of their own."""
    return sampling(SAMPLER, num=150, score=score, **changed)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(TILE, "cpu", NUM)


@pytest.mark.slow
def test_chains_by_compiled_steps_are_the_networks(translated, small_tiles, monkeypatch):
    network, compiled = translated
    monkeypatch.setattr("ncsn_cli.sampling.run.CompiledLangevin", lambda score, x: compiled)
    plain = chains(network).run()
    one, several = (chains(network, compile=True, workers=workers).run() for workers in (1, 3))
    assert_same(one, several)
    assert one.score_evaluations == plain.score_evaluations == 5 * 11 + 1
    assert not torch.equal(one.samples, plain.samples)
    # Each of 56 steps rounds by 1e-6 |x| at most, and what it rounded grows by 1 + tau L at each
    # later one, with the network's Lipschitz constant L.
    weights = [layer.weight for layer in network.layers if isinstance(layer, nn.Linear)]
    lipschitz = math.prod(
        float(torch.linalg.matrix_norm(weight.detach(), 2)) for weight in weights
    )
    way = sum(level.steps * level.tau for level in SAMPLER.levels(SIGMAS)) + SIGMAS[-1] ** 2
    largest = max(float(x.abs().max()) for x in [plain.init, *plain.by_level.values()])
    limit = 56 * 1e-6 * largest * math.exp(float(way) * lipschitz)
    assert limit < 0.1
    torch.testing.assert_close(one.samples, plain.samples, rtol=0, atol=limit)


def test_chains_are_saved_before_and_a_signal_ends_compiling(small_tiles, monkeypatch):
    network = shaken(MLP(1, hidden=[WIDTH], activation="relu", conditional=True))
    whole, states = chains(network).run(), []

    def compiling(score, x):
        assert len(states) == 1
        ask_to_stop()
        raise AssertionError("it went on")

    monkeypatch.setattr("ncsn_cli.sampling.run.CompiledLangevin", compiling)
    with pytest.raises(InterruptedRun, match="between tiles"):
        chains(network, compile=True).run(states.append)
    assert len(states) == 1
    assert_same(chains(network).run(saved=states[0]), whole)


def test_what_cannot_be_compiled_is_sampled_plainly(small_tiles, monkeypatch, caplog):
    monkeypatch.setattr(compiled_langevin, "compiled", no_compiler)
    network = shaken(MLP(1, hidden=[WIDTH], activation="relu", conditional=True))
    with caplog.at_level(logging.WARNING):
        found = chains(network, compile=True).run()
    assert caplog.messages == [
        "compile: No working C++ compiler found in a text of lines; the steps stay plain"
    ]
    assert_same(found, chains(network).run())


def settled(setting="auto", *, width=128, steps=1000, levels=100, num=5000, **changed):
    """The rule for P3 of docs/results/performance.md, but for what is changed."""
    score = changed.get("score", MLP(2, hidden=[width], activation="relu", conditional=True))
    sampler = changed.get("sampler", SAMPLER)
    plan = [Level(1.0, 0.01, steps)] * levels
    device = torch.device(changed.get("device", "cpu"))
    gain = gain_of_compiling(score.to(device), sampler, plan, num, device)
    return resolve_compile(setting, changed.get("earlier"), *gain)


def test_the_rule_knows_sizes_alone():
    # .3 ns a step, chain and hidden unit: P3 saves 19 s, and a quarter of it less than 5.
    assert settled()
    assert not any(settled(**{key: quarter}) for key, quarter in
                   {"width": 32, "steps": 250, "levels": 25, "num": 1250}.items())  # fmt: skip
    assert not settled(steps=4, levels=10**6)  # a call costs what 8 do
    assert settled(steps=8, levels=12_500)
    assert not settled(device="meta")
    for setting in (True, False):
        assert settled(setting, num=1) is setting
        assert settled(earlier=setting) is setting
        assert settled(setting, earlier=not setting) is setting
    assert settled(earlier=None)


@pytest.mark.parametrize(
    "changed",
    [
        {"score": MLP(2, hidden=[128, 128], activation="relu", conditional=True)},
        {"score": MLP(2, hidden=[128], activation="silu", conditional=True)},
        {"score": MLP(3, hidden=[128], activation="relu", conditional=True)},
        {"score": FourierMLP(2, features=4, hidden=[8], activation="relu")},
        {"sampler": AnnealedMALA(step_size=0.01, steps_per_level=3, denoise=True)},
        {"sampler": ProbabilityFlow(solver="heun", denoise=True), "steps": 0},
    ],
)
def test_what_is_not_quicker_compiled_stays_plain(changed):
    assert settled(**changed) is False
    assert settled(False, **changed) is False
    with pytest.raises(ConfigError, match="compile: true needs"):
        settled(True, **changed)
