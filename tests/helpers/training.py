"""A small training."""

import torch

from ncsn_cli.losses import Denoising
from ncsn_cli.models import MLP
from ncsn_cli.schedules import Geometric
from ncsn_cli.training.state import Training
from ncsn_cli.training.trainer import Trainer
from tests.helpers.problems import two_modes_1d

SIGMAS = Geometric(2.0, 0.5, 3).sigmas


DEFAULTS = {
    "steps": 20, "max_seconds": None, "batch_size": 16, "lr_decay": "none", "grad_clip": None,
    "ema_decay": None, "log_every": 5, "eval_every": 10, "checkpoint_every": 100, "keep_last": 2,
    "snapshots": 4, "tensorboard": False, "threads": 1, "compile": False, "resume": None,
}  # fmt: skip


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def start(
    dataset=None, loss=None, optimizer="adam", device="cpu", seed=0, activation="relu", **trainer
):
    dataset = dataset or two_modes_1d(num_samples=50)
    loss = loss or Denoising(levels="random", noise="fresh", weight_power=2.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(dataset.dim, hidden=[8], activation=activation, conditional=True).to(device)
    settings = Trainer(**{**DEFAULTS, **trainer})
    return Training(
        settings, model, OPTIMIZERS[optimizer](model.parameters()), loss, dataset, SIGMAS, seed
    )


def advance(training, steps):
    return [training.advance() for _ in range(steps)]


def assert_same(first, second):
    (tensors, record), (others, other_record) = first.state(), second.state()
    assert record == other_record
    assert tensors.keys() == others.keys()
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name
