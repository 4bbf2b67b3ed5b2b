"""A few chains."""

import os
import signal
import time

import numpy as np
import torch

from ncsn_cli.samplers import plan_of
from ncsn_cli.sampling.run import Sampling
from ncsn_cli.sampling.tile import Setup
from ncsn_cli.schedules import Geometric
from tests.helpers.problems import two_modes_1d


def sampling(sampler, num_levels=5, num=30, score=None, **changed):
    dataset, sigmas = two_modes_1d(), Geometric(10.0, 0.1, num_levels).sigmas
    settings = {"num_paths": 4, "keep_by_level": True}

    def init(num, generator, first):
        return dataset.sample(num, sigma=10.0, generator=generator)

    setup = Setup(
        sampler, plan_of(sampler, sigmas), score or dataset.score, dataset.log_prob, init, dataset,
        seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    return Sampling(setup, num, **settings | changed)


def arrays(chains):
    """All that chains leave, to be compared."""
    left = {**vars(chains), **chains.mode_commitment, **chains.by_level}
    del left["mode_commitment"], left["by_level"]
    return {name: np.asarray(value) for name, value in left.items() if name != "transitions"}


def assert_same(chains, others):
    first, second = arrays(chains), arrays(others)
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def ask_to_stop(process=None):
    """Send SIGTERM, and return once the main thread has heard of it; a worker will be ended."""
    handler = signal.getsignal(signal.SIGTERM)
    os.kill(process or os.getpid(), signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) is handler:
        time.sleep(0.001)
