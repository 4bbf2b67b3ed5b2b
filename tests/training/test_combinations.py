"""Every loss learns with every model, in one and two dimensions."""

import pytest
import torch
from hydra.utils import instantiate

from ncsn_cli.metrics import fisher_divergence
from ncsn_cli.schedules import Geometric
from ncsn_cli.training.state import Training
from ncsn_cli.training.trainer import Trainer
from tests.helpers.commands import composed
from tests.helpers.problems import stream
from tests.helpers.slow import slow_but
from tests.helpers.training import DEFAULTS

LOSSES = [
    "denoising", "denoising_continuous", "explicit", "implicit", "implicit_regularized", "sliced",
    "target", "control_variate", "stable_target",
]  # fmt: skip
MODELS = {
    "mlp": ["model.activation=softplus"],
    "embedding_mlp": ["model.activation=softplus"],
    "fourier_mlp": ["model.hidden=[32,32]"],
    "preconditioned_mlp": ["model.hidden=[32,32]"],
    "ncsnv2_mlp": [],
    "energy_mlp": ["model.hidden=[32,32]"],
    "mixture": ["model.weights=[0.4,0.3,0.3]"],
}
DATASETS = ["two_modes_1d", "three_modes_2d"]


@torch.no_grad()
def score_error(score, dataset, sigmas):
    pairs = [fisher_divergence(score, dataset, s, 2000, stream(1)) for s in sigmas.tolist()]
    return sum(found.divergence / found.information for found in pairs) / len(pairs)


@pytest.mark.filterwarnings("ignore:.*does not see sigma")
@pytest.mark.parametrize(
    ("loss_name", "model_name", "dataset_name"),
    slow_but(
        [(loss, model, dataset) for loss in LOSSES for model in MODELS for dataset in DATASETS],
        *range(0, 9 * 7 * 2, 15),  # each loss and each model once
    ),
)
def test_a_short_run_lowers_the_score_error(loss_name, model_name, dataset_name):
    config = composed(
        "train", f"loss={loss_name}", f"model={model_name}", f"dataset={dataset_name}",
        *MODELS[model_name],
    )  # fmt: skip
    dataset, loss = (instantiate(config[k], _convert_="all") for k in ("dataset", "loss"))
    loss = loss.for_dataset(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = instantiate(config["model"], _convert_="all", dim=dataset.dim)
    if hasattr(model, "adapt_to"):
        model.adapt_to(dataset.training_set())
    sigmas = Geometric(4.0, 0.5, 3).sigmas
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(**{**DEFAULTS, "batch_size": 128})
    training = Training(trainer, model, optimizer, loss, dataset, sigmas, seed=0)
    before = score_error(training.score, dataset, sigmas)
    for _ in range(60):
        training.advance()
    assert score_error(training.score, dataset, sigmas) < 0.8 * before
