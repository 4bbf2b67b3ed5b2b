import pytest
import torch
from pydantic import ValidationError

from ncsn_cli.models import MLP, EmbeddingMLP


def networks(dim):
    return [
        MLP(dim, hidden=[8, 5], activation="silu", conditional=True),
        EmbeddingMLP(dim, embedding=4, hidden=[8], activation="relu"),
    ]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_sigma_for_all_equals_the_same_sigma_for_each(dim, device):
    x = torch.randn(7, dim, device=device)
    for network in networks(dim):
        network.to(device)
        score = network(x, torch.tensor(0.3, device=device))
        assert score.shape == (7, dim)
        torch.testing.assert_close(score, network(x, torch.full((7,), 0.3, device=device)))


def test_conditional_networks_see_sigma_and_others_do_not():
    x, low, high = torch.randn(7, 2), torch.tensor(0.1), torch.tensor(5.0)
    for network in networks(2):
        assert not torch.allclose(network(x, low), network(x, high))
    blind = MLP(2, hidden=[8], activation="relu", conditional=False)
    assert torch.equal(blind(x, low), blind(x, high))


def test_published_sizes():
    # 257 parameters: Random notes, "Multiple denoising score matching", prints this number.
    network = MLP(1, hidden=[64], activation="relu", conditional=True)
    assert sum(p.numel() for p in network.parameters()) == 257


@pytest.mark.parametrize("values", [{"hidden": [0]}, {"activation": "Relu"}, {"width": 3}])
def test_impossible_networks_are_refused(values):
    with pytest.raises(ValidationError):
        MLP(1, **{"hidden": [8], "activation": "relu", "conditional": True, **values})
