import copy
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ncsn_cli.commands.train import save_training
from ncsn_cli.core.errors import ConfigError, DivergedError
from ncsn_cli.losses import Denoising
from ncsn_cli.runs.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint
from ncsn_cli.runs.files import write_atomic
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.training.batches import Batches
from ncsn_cli.training.history import COLUMNS, history_csv, read_history
from ncsn_cli.training.loop import fit
from ncsn_cli.training.snapshots import Snapshots
from ncsn_cli.training.state import Training
from tests.helpers.problems import two_modes_1d, two_modes_2d
from tests.helpers.training import OPTIMIZERS, SIGMAS, advance, assert_same, start


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizers_step_is_torchs(optimizer):
    ours, torchs = start(optimizer=optimizer), start(optimizer=optimizer)
    torchs._optimizer_step = torchs.optimizer.step
    assert advance(ours, 5) == advance(torchs, 5)
    assert_same(ours, torchs)


def test_an_optimizer_of_ones_own_keeps_what_is_around_its_step():
    class Own(torch.optim.SGD):
        pass

    training = start()
    training = Training(
        training.trainer, training.model, Own(training.model.parameters(), lr=0.01),
        training.loss, training.dataset, SIGMAS, seed=0,
    )  # fmt: skip
    seen = []
    training.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    advance(training, 2)
    assert seen == [1, 1]


def test_plain_steps_do_without_torchs_compiler():
    """Importing it would take a fourth of a short run."""
    code = """
import sys
from ncsn_cli.commands.startup import spare_the_compiler
from tests.helpers.training import OPTIMIZERS, advance, start
spare_the_compiler()
for name in OPTIMIZERS:
    training = start(optimizer=name)
    advance(training, 2)
    training.restore(*training.state())
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 19])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"optimizer": "sgd", "ema_decay": 0.99, "lr_decay": "cosine"},
        {"optimizer": "adamw", "batch_size": None, "grad_clip": 0.1},
        {"optimizer": "nadam", "dataset": two_modes_2d()},
        {"loss": Denoising(levels="all", noise="fixed", weight_power=2.0)},
    ],
)
def test_stopped_and_resumed_training_is_bit_identical(case, stop, tmp_path, device):
    uninterrupted = start(device=device, **case)
    losses = advance(uninterrupted, 20)

    stopped = start(device=device, **case)
    advance(stopped, stop)
    save_checkpoint(tmp_path / "c.safetensors", *stopped.state())
    torch.rand(11)  # the global stream does not matter
    resumed = start(device=device, **case)
    resumed.restore(*load_checkpoint(tmp_path / "c.safetensors"))
    assert advance(resumed, 20 - stop) == losses[stop:]
    assert_same(resumed, uninterrupted)


@pytest.mark.parametrize(
    ("item", "case"),
    [
        ("network.layers.0.weight", {}),
        ("optimizer.0.exp_avg", {}),
        ("optimizer.1.exp_avg_sq", {}),
        ("optimizer.0.step", {}),
        ("optimizer.0.momentum_buffer", {"optimizer": "sgd"}),
        ("ema.module.layers.0.weight", {"ema_decay": 0.99}),
        ("ema.n_averaged", {"ema_decay": 0.99}),
        ("generator", {}),
    ],
)
def test_each_saved_item_is_needed(item, case):
    uninterrupted = start(**case)
    advance(uninterrupted, 6)
    tensors, record = copy.deepcopy(uninterrupted.state())
    advance(uninterrupted, 6)
    tensors[item] = start(**case).state()[0].get(item, torch.zeros_like(tensors[item]))
    resumed = start(**case)
    resumed.restore(tensors, record)
    advance(resumed, 6)
    with pytest.raises(AssertionError):
        assert_same(resumed, uninterrupted)


def test_the_saved_step_is_needed():
    uninterrupted = start()
    advance(uninterrupted, 6)
    tensors, record = copy.deepcopy(uninterrupted.state())
    resumed = start()
    resumed.restore(tensors, {**record, "step": 5})
    assert resumed.advance() != uninterrupted.advance()


def test_another_type_of_device_goes_on_with_other_noise():
    training = start()
    advance(training, 3)
    tensors, record = training.state()
    tensors["generator"] = torch.zeros(16, dtype=torch.uint8)  # the size of a CUDA state
    resumed = start()
    resumed.restore(tensors, {**record, "device_type": "cuda"})
    assert resumed.step == 3
    assert math.isfinite(resumed.advance())


def test_seeds_change_the_run_and_the_global_stream_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, other = start(), start(), start(seed=1)
    for training in (first, second, other):
        advance(training, 3)
    assert_same(first, second)
    with pytest.raises(AssertionError):
        assert_same(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_epoch_holds_every_point_once_and_all_batches_are_of_a_size():
    training = start(batch_size=16)  # 50 points: an epoch ends within the fourth batch
    data = training.dataset.training_set()
    batches = training._draw(range(25))[0]
    assert batches.shape == (25, 16, 1)
    epochs = batches.reshape(-1, 1).split(50)
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, data.sort(0).values)
    assert not torch.equal(*epochs[:2])
    assert torch.equal(start(batch_size=16)._draw(range(17, 19))[0], batches[17:19])


@pytest.mark.parametrize("size", [16, 7, 49])
def test_the_rows_of_a_step_do_not_depend_on_which_were_asked_for_before(size, monkeypatch):
    monkeypatch.setattr("ncsn_cli.training.batches._ROWS_AT_ONCE", 100)
    expected = Batches(50, size, 3, torch.device("cpu")).rows(range(40))
    asked = Batches(50, size, 3, torch.device("cpu"))
    for first, end in [(0, 1), (1, 2), (2, 12), (11, 13), (38, 39), (5, 6), (0, 40), (39, 40)]:
        assert torch.equal(asked.rows(range(first, end)), expected[first:end]), (first, end)


def test_the_norm_of_the_gradient_is_that_of_all_weights_before_and_after_clipping():
    training = start(grad_clip=1e-3)
    training.advance()
    # The gradients that are left are the clipped ones.
    gradients = [weight.grad.double().square().sum() for weight in training.model.parameters()]
    assert training.clipped_grad_norm == pytest.approx(float(sum(gradients).sqrt()), rel=1e-6)
    assert training.clipped_grad_norm == pytest.approx(1e-3, rel=1e-3)
    free = start()
    free.advance()
    gradients = [weight.grad.double().square().sum() for weight in free.model.parameters()]
    assert free.grad_norm == pytest.approx(float(sum(gradients).sqrt()), rel=1e-6)
    assert training.grad_norm == free.grad_norm > 1e-3


def test_fixed_noise_stays_with_its_point():
    training = start(loss=Denoising(levels="all", noise="fixed", weight_power=2.0))
    pairs = {}
    for step in range(12):
        (x,), (draws,) = training._draw(range(step, step + 1))
        for point, z in zip(x[:, 0].tolist(), draws.z, strict=True):
            assert torch.equal(pairs.setdefault(point, z), z)
    assert len(pairs) == 50


def test_average_of_the_weights():
    training = start(ema_decay=0.9)
    expected = None
    for n in range(30):
        training.advance()
        weight = training.model.layers[0].weight.detach()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = weight.clone() if n == 0 else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(training.score.layers[0].weight, expected)
    assert start().score is not training.score


def test_learning_rate_follows_the_cosine():
    training, rates = start(lr_decay="cosine"), []
    for _ in range(20):
        training.advance()
        rates.append(training.optimizer.param_groups[0]["lr"])
    expected = [0.01 * (1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("grad_clip", [None, 1e-3, 1e6])
def test_the_gradients_norm_is_written_before_and_after_clipping(grad_clip):
    free, clipped = start(), start(grad_clip=grad_clip)
    gradients = []
    for training in (free, clipped):
        training.advance()
        gradients.append(torch.cat([p.grad.flatten() for p in training.model.parameters()]))
    # Sums of 33 squares in float32, in another order: a relative error of 33 x 2^-24.
    norms = [float(gradient.double().norm()) for gradient in gradients]
    row = clipped.row(0.0, None, 0.0)
    assert row["grad_norm"] == pytest.approx(norms[0], rel=3e-6)
    assert row["clipped_grad_norm"] == pytest.approx(norms[1], rel=3e-6)
    if grad_clip == 1e-3:  # torch divides by the norm + 1e-6
        assert row["clipped_grad_norm"] == pytest.approx(1e-3 * norms[0] / (norms[0] + 1e-6))
    else:
        assert row["clipped_grad_norm"] == row["grad_norm"]


def test_a_history_of_six_columns_goes_on_with_them(tmp_path):
    path = tmp_path / "history.csv"
    old = (
        "step,loss,excess_loss,grad_norm,lr,seconds\n1,0.5,,1.0,0.003,0.1\n2,0.4,,1.0,0.003,0.2\n"
    )
    path.write_text(old)
    history = read_history(path)
    assert history_csv(history) == old.encode()
    new = {"step": 3, "loss": 0.3, "excess_loss": None, "grad_norm": 7.0, "lr": 0.003,
           "seconds": 0.3, "clipped_grad_norm": 1.0}  # fmt: skip
    assert history_csv([*history, new]) == f"{old}3,0.3,,1.0,0.003,0.3\n".encode()
    path.write_bytes(history_csv([new]))
    assert path.read_text() == f"{','.join(COLUMNS)}\n3,0.3,,7.0,0.003,0.3,1.0\n"
    assert read_history(path) == [new]


def test_fit_keeps_a_history_and_saves_at_the_end():
    training, history, saved = start(checkpoint_every=8), [], []
    fit(training, history, None, lambda: saved.append(training.step))
    assert [row["step"] for row in history] == [1, 5, 10, 15, 20]
    assert [row["excess_loss"] is not None for row in history] == [False, False, True, False, True]
    assert saved == [8, 16, 20]


def test_a_loss_without_an_excess_leaves_its_column_empty(caplog, tmp_path):
    class Own(Denoising):
        def term(self, score, perturbed):
            return super().term(score, perturbed)

    caplog.set_level(logging.INFO)
    history = []
    fit(start(loss=Own()), history, None, lambda: None)
    assert {row["excess_loss"] for row in history} == {None}
    (tmp_path / "history.csv").write_bytes(history_csv(history))
    assert read_history(tmp_path / "history.csv") == history
    assert "step 20/20: loss" in caplog.text
    assert "excess" not in caplog.text


def test_a_finished_run_is_saved_again_when_resumed():
    training, saved = start(steps=20), []
    advance(training, 20)
    fit(training, [], None, lambda: saved.append(training.step))
    assert saved == [20]


def test_fit_stops_when_its_time_is_over():
    training, history, saved = start(max_seconds=1e-9), [], []
    fit(training, history, None, lambda: saved.append(training.step))
    assert saved == [1]
    assert history[-1]["excess_loss"] is not None


@pytest.mark.parametrize(("made", "seconds", "kept"), [
    (0, None, [0, 1, 5, 11, 20]),
    (3, None, [3, 5, 11, 20]),  # resumed from a run that kept none
    (20, None, [20]),
    (0, 1e-9, [0, 1]),
])  # fmt: skip
def test_fit_takes_snapshots_from_where_it_begins_to_where_it_ends(made, seconds, kept):
    training = start(max_seconds=seconds)
    advance(training, made)
    sigmas = training.sigmas.double()
    snapshots = Snapshots(4, 20, training.dataset, sigmas, training.device)
    fit(training, [], snapshots, lambda: None)
    assert snapshots.arrays()["steps"].tolist() == kept


def test_training_learns():
    loss = Denoising(levels="all", noise="fresh", weight_power=2.0)
    training = start(two_modes_1d(num_samples=1000), loss, batch_size=None)
    before = training.excess_loss()
    advance(training, 200)
    assert training.excess_loss() < before


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_are_touched():
    training = start()
    advance(training, 2)
    weights = copy.deepcopy(training.model.state_dict())
    training._data.fill_(math.nan)
    with pytest.raises(DivergedError, match="at step 3"):
        training.advance()
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_gradient_that_is_not_finite_ends_the_run():
    training = start()
    loss = training.advance()
    training.grad_norm = math.nan
    with pytest.raises(DivergedError, match="grad_norm is nan at step 1"):
        training.row(loss, None, 0.0)


def test_weights_that_are_not_finite_are_never_saved():
    training = start()
    with torch.no_grad():
        training.model.layers[0].weight[0, 0] = math.inf
    with pytest.raises(DivergedError, match=r"layers\.0\.weight"):
        training.state()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"dataset": two_modes_1d(), "batch_size": None}, "trainer.batch_size"),
        (
            {
                "dataset": two_modes_1d(),
                "loss": Denoising(levels="all", noise="fixed", weight_power=2.0),
            },
            "loss.noise",
        ),
    ],
)
def test_endless_data_needs_a_batch_size_and_fresh_noise(case, message):
    with pytest.raises(ConfigError, match=message):
        start(**case)


def test_damaged_checkpoints_of_later_steps_do_not_displace_new_ones(tmp_path):
    training = start()
    advance(training, 5)
    later = checkpoint_path(tmp_path, 99)
    write_atomic(later, b"damaged")
    with RunFolder(tmp_path, "", "ncsn-train", {}) as folder:
        save_training(folder, training, {}, [], None)
    assert [path.name for path in later.parent.iterdir()] == ["step_000000005.safetensors"]
