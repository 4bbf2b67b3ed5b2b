"""Compiled steps are the plain ones, whatever their number in a call."""

import copy
import logging
import math

import pytest
import torch
from hydra.utils import instantiate

from ncsn_cli.core.errors import ConfigError, DivergedError
from ncsn_cli.losses import ControlVariate, Denoising, Explicit, Implicit, Sliced, StableTarget
from ncsn_cli.models import MLP
from ncsn_cli.training import compiled_steps
from ncsn_cli.training.state import Training
from ncsn_cli.training.trainer import Trainer, resolve_auto
from tests.helpers.commands import composed
from tests.helpers.compiling import no_compiler, run_by_torch
from tests.helpers.problems import two_modes_2d
from tests.helpers.slow import slow_but
from tests.helpers.training import DEFAULTS, OPTIMIZERS, SIGMAS, assert_same, start

STEPS, RATE = 12, 0.01

CASES = {
    "average, clipping, cosine": {"ema_decay": 0.9, "grad_clip": 0.5, "lr_decay": "cosine"},
    "decay of weights, all points, noise drawn once": {
        "optimizer": "adamw", "batch_size": None, "loss": Denoising(levels="all", noise="fixed"),
    },
    "directions": {"loss": Sliced(levels="all"), "activation": "silu"},
    "endless data, levels without rows": {
        "loss": Denoising(levels="continuous"), "dataset": two_modes_2d(),
    },
    "the true score": {"loss": Explicit(levels="random")},
    "the clean score": {
        "loss": ControlVariate(levels="random").for_dataset(two_modes_2d()),
        "dataset": two_modes_2d(num_samples=50),
    },
    "a reference batch, lognormal levels": {"loss": StableTarget(levels="lognormal")},
    "derivatives": {"loss": Implicit(levels="random"), "activation": "softplus"},
}  # fmt: skip
MODELS = [
    "mlp",
    "embedding_mlp",
    "fourier_mlp",
    "preconditioned_mlp",
    "ncsnv2_mlp",
    "energy_mlp",
    "mixture",
]


@pytest.fixture
def untranslated(monkeypatch):
    """The traced step in its loop, but run by torch itself: seconds less, a test."""
    monkeypatch.setattr(compiled_steps, "compiled", run_by_torch)


def advance_to(training, step):
    while training.step < step:
        if training.is_to_compile:
            training.compile()
        loss = training.advance(step - training.step)
    return loss


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


def assert_close(plain, compiled):
    """Weights are away by a thousandth of the way that Adam can have taken them, on average.

    Rounding (2^-24 an operation, sums of 48 terms) makes the gradient's relative error 1e-5 at
    most, and Adam's step is the gradient over its size; a mistake changes the step by its size.
    (A gradient that is 0 but for rounding sends its weight anywhere: hence the average.)
    """
    (tensors, record), (others, other_record) = plain.state(), compiled.state()
    assert record == other_record
    assert tensors.keys() == others.keys()
    assert torch.equal(tensors.pop("generator"), others.pop("generator"))
    for name, value in tensors.items():
        size = rms(value) if "exp_avg" in name else STEPS * RATE
        assert rms(others[name] - value) <= 1e-3 * size, name


@pytest.mark.parametrize("case", slow_but(CASES, 0, 1))
def test_compiled_steps_do_what_plain_ones_do(case, untranslated, device):
    plain, compiled = (
        start(compile=compiles, steps=STEPS, device=device, **CASES[case])
        for compiles in (False, True)
    )
    before = copy.deepcopy(plain.model.state_dict())
    losses = [advance_to(training, STEPS) for training in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert compiled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-3)
    assert compiled.clipped_grad_norm == pytest.approx(plain.clipped_grad_norm, rel=1e-3)
    is_clipped = compiled.grad_norm > CASES[case].get("grad_clip", math.inf)
    assert (compiled.clipped_grad_norm < compiled.grad_norm) is is_clipped
    assert compiled._compiled is not None
    assert_close(plain, compiled)
    moved = [float((v - before[k]).abs().max()) for k, v in plain.model.state_dict().items()]
    assert max(moved) > 0.3 * STEPS * RATE  # there was something to get wrong
    rates = [training.optimizer.param_groups[0]["lr"] for training in (plain, compiled)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("name", slow_but(MODELS, 0))
def test_every_network_can_be_compiled(name, untranslated):
    def begun(compiles):
        config = composed("train", f"model={name}")["model"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = instantiate(config, _convert_="all", dim=2)
        trainer = Trainer(**{**DEFAULTS, "steps": STEPS, "compile": compiles})
        optimizer = OPTIMIZERS["adam"](model.parameters())
        loss = Denoising(levels="random")
        return Training(
            trainer, model, optimizer, loss, two_modes_2d(num_samples=50), SIGMAS, seed=0
        )

    plain, compiled = begun(False), begun(True)
    advance_to(plain, STEPS)
    advance_to(compiled, STEPS)
    assert compiled._compiled is not None
    assert_close(plain, compiled)


@pytest.fixture(scope="module")
def translated():
    """A training whose steps are compiled for this machine, after its first step."""
    training = start(compile=True, steps=300, ema_decay=0.9)
    training.advance()
    training.compile()
    return training


@pytest.fixture
def after_one_step(translated):
    """That training, put back to where it was after a step."""
    fresh = start(compile=False, steps=300, ema_decay=0.9)
    fresh.advance()
    tensors, record = fresh.state()
    translated.restore({name: value.clone() for name, value in tensors.items()}, record)
    data = translated._data.clone()
    yield translated
    translated._data.copy_(data)


@pytest.mark.slow
def test_the_number_of_steps_in_a_call_changes_no_bit(after_one_step):
    training = after_one_step
    begun = {k: v.clone() for k, v in training.state()[0].items()}, training.state()[1]
    advance_to(training, 101)
    whole = {k: v.clone() for k, v in training.state()[0].items()}
    training.restore(*begun)
    for most in (1, 2, 30, 1, 64, 2):
        training.advance(most)
    assert training.step == 101
    for name, value in training.state()[0].items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.slow
def test_steps_compiled_for_this_machine_do_what_plain_ones_do(after_one_step):
    plain = start(compile=False, steps=300, ema_decay=0.9)
    advance_to(plain, STEPS)
    advance_to(after_one_step, STEPS)
    assert_close(plain, after_one_step)


@pytest.mark.slow
def test_a_number_that_is_not_finite_ends_the_run_at_its_step(after_one_step):
    training, plain = after_one_step, start(compile=False, steps=300, ema_decay=0.9)
    rows = training._batches.rows(range(3))
    training._data[rows[2][5]] = math.nan  # in the third batch
    with pytest.raises(DivergedError, match="at step 3"):
        advance_to(training, 30)
    advance_to(plain, 2)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(training.model.state_dict()[name], value, rtol=0, atol=1e-5)


def test_what_cannot_be_compiled_is_trained_plainly(monkeypatch, caplog):
    monkeypatch.setattr(compiled_steps, "compiled", no_compiler)
    training, plain = start(compile=True), start(compile=False)
    with caplog.at_level(logging.WARNING):
        advance_to(training, 5)
    assert caplog.messages == [
        "trainer.compile: No working C++ compiler found in a text of lines; the steps stay plain"
    ]
    advance_to(plain, 5)
    assert training.state()[1]["compiling_failed"] is True
    training.compiling_failed = False
    assert_same(plain, training)


def settled(optimizer="adam", width=128, points=128, earlier=None, **trainer):
    model = MLP(2, hidden=[width], activation="relu", conditional=True)
    trainer = Trainer(**{**DEFAULTS, "threads": "auto", "compile": "auto", **trainer})
    made = resolve_auto(
        trainer, model, OPTIMIZERS[optimizer](model.parameters()), points, earlier or {}
    )
    return made.threads, made.compile


def test_auto_is_a_rule_of_the_sizes():
    assert settled(steps=300) == (1, False)
    assert settled(steps=10**6) == (1, True)
    assert settled(steps=10**6, optimizer="sgd") == (1, False)
    assert settled(steps=10**6, max_seconds=30.0) == (1, False)
    assert settled(steps=10**6, max_seconds=31.0) == (1, True)
    assert settled(steps=300, points=16_384) == (1, False)  # two jobs would wait for each other
    assert settled(steps=10**6, threads=3, compile=False) == (3, False)


def test_auto_keeps_what_the_run_began_with():
    assert settled(steps=300, earlier={"threads": 2, "compile": True}) == (2, True)
    assert settled(steps=300, threads=1, compile=False, earlier={"threads": 2}) == (1, False)
    assert settled(steps=300, earlier={"threads": None, "compile": None}) == (1, False)


def test_an_optimizer_that_cannot_be_compiled_is_refused():
    with pytest.raises(ConfigError, match=r"trainer\.compile"):
        settled(optimizer="sgd", compile=True)
