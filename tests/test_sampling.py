import math
from itertools import pairwise

import pytest
import torch

from ncsn_cli.samplers import AnnealedLangevin, Langevin, ProbabilityFlow
from ncsn_cli.sampling import run_chains
from ncsn_cli.schedules import Geometric

from .conftest import stream, two_modes_1d

ANNEALED = AnnealedLangevin(step_size=0.01, steps_per_level=3, denoise=False)


def run(sampler, num_levels, keep_by_level=True, num=30):
    sigmas = Geometric(10.0, 0.1, num_levels).sigmas
    dataset, g = two_modes_1d(), stream()
    x = dataset.sample(num, sigma=10.0, generator=g)
    chains = run_chains(sampler, dataset.score, None, x, sigmas, dataset, 4, keep_by_level, g)
    return chains, sigmas.tolist()


@pytest.mark.parametrize("sampler", [ANNEALED, ProbabilityFlow(solver="multistep", denoise=True)])
def test_chains_are_kept_as_they_leave_each_level(sampler):
    chains, sigmas = run(sampler, 5)
    assert list(chains.by_level) == pytest.approx(sigmas)
    assert bool((list(chains.by_level.values())[-1] == chains.samples).all())
    # The first kept chains' paths pass through the same points.
    for sigma, x in chains.by_level.items():
        last = max(i for i, s in enumerate(chains.path_sigmas) if s == sigma)
        assert bool((torch.from_numpy(chains.paths[last]) == x[:4]).all())


def test_of_many_levels_twenty_are_kept_evenly():
    chains, sigmas = run(ANNEALED, 77)
    kept = list(chains.by_level)
    assert len(kept) == 20
    assert (kept[0], kept[-1]) == pytest.approx((sigmas[0], sigmas[-1]))
    steps = [math.log(a / b) for a, b in pairwise(kept)]
    assert steps == pytest.approx([math.log(100) * 4 / 76] * 19)  # every fourth of 76 steps


def test_the_level_from_which_a_chain_keeps_its_mode():
    # Modes meet at 0; from that level on the chain's sign is its end's, and before it was not.
    chains, sigmas = run(ANNEALED, 12, num=200)
    signs = torch.stack([x[:, 0] > 0 for x in chains.by_level.values()])  # (12, 200)
    assert len(set(chains.settled_sigma.tolist())) > 2
    for i, settled in enumerate(chains.settled_sigma.tolist()):
        level = min(range(12), key=lambda j: abs(sigmas[j] - settled))
        assert bool((signs[level:, i] == signs[-1, i]).all())
        assert level == 0 or signs[level - 1, i] != signs[-1, i]


def test_nothing_is_kept_unless_asked_for():
    assert run(ANNEALED, 5, keep_by_level=False)[0].by_level == {}
    chains, _ = run(Langevin(step_size=0.01, steps=4, denoise=False), 5)
    assert list(chains.by_level) == pytest.approx([0.1])
