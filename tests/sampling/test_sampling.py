import copy
import io
import json
import math
import multiprocessing
import os
import time
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
import torch

from ncsn_cli.core.errors import BadCheckpointError, DivergedError, InterruptedRun
from ncsn_cli.models import MLP
from ncsn_cli.runs.workers import run_in_processes
from ncsn_cli.samplers import AnnealedLangevin, AnnealedMALA, Langevin, ProbabilityFlow, plan_of
from ncsn_cli.sampling import run as run_module
from ncsn_cli.sampling.tile import TILE, run_tile
from ncsn_cli.schedules import Geometric
from tests.helpers.problems import shaken, two_modes_1d
from tests.helpers.sampling import ask_to_stop, assert_same, sampling
from tests.helpers.slow import slow_but

ANNEALED = AnnealedLangevin(step_size=0.01, steps_per_level=3, denoise=False)


def run(sampler, num_levels, keep_by_level=True, num=30):
    chains = sampling(sampler, num_levels, num, keep_by_level=keep_by_level).run()
    return chains, Geometric(10.0, 0.1, num_levels).sigmas.tolist()


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


MALA = AnnealedMALA(step_size=0.01, steps_per_level=3, denoise=True)
STRICT_MALA = AnnealedMALA(step_size=0.01, steps_per_level=3, denoise=False)
MULTISTEP = ProbabilityFlow(solver="multistep", denoise=True)


@pytest.mark.parametrize(("sampler", "last"), [(ANNEALED, "sigma 0.1"), (STRICT_MALA, "accepted")])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_bar_counts_a_users_steps_and_ends_at_the_last(sampler, last, workers, monkeypatch):
    bars = []

    class Bar(run_module.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings | {"disable": False, "file": io.StringIO()})
            self.seen = [self.n]
            bars.append(self)

        def update(self, n=1):
            self.seen.append(self.n + n)
            return super().update(n)

    monkeypatch.setattr(run_module, "tqdm", Bar)
    monkeypatch.setitem(TILE, "cpu", 64)
    stopped, saved = sampling(sampler, num=200, workers=workers), []
    monkeypatch.setattr(run_module, "_SECONDS_BETWEEN_SAVES", 0.0)
    stopped.run(saved.append)
    total = sampler.ends(plan_of(sampler, Geometric(10.0, 0.1, 5).sigmas))[-1]
    # A resumed run begins where it was: this one with some of its four tiles finished.
    sampling(sampler, num=200, workers=workers).run(saved=saved[len(saved) // 2])
    for bar in bars:
        assert bar.total == bar.n == total
        assert bar.seen == sorted(bar.seen)
        assert "level 5/5" in bar.postfix
        assert last in bar.postfix
    assert bars[0].initial == 0 < bars[1].initial < total


@pytest.mark.parametrize("sampler", [ANNEALED, MALA, MULTISTEP])
def test_a_chain_does_not_depend_on_how_many_there_are(sampler, monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 64)
    whole = sampling(sampler, num=200).run()
    for num in (1, 2, 7, 64, 100, 199):
        fewer = sampling(sampler, num=num).run()
        assert torch.equal(fewer.samples, whole.samples[:num])
        assert torch.equal(fewer.init, whole.init[:num])
        assert np.array_equal(fewer.settled_sigma, whole.settled_sigma[:num])
    assert len(torch.unique(whole.samples)) == 200  # no tile repeats another


@pytest.mark.parametrize("sampler", [ANNEALED, MALA, MULTISTEP])
def test_chains_do_not_depend_on_how_many_workers_run_them(sampler, monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 16)
    one = sampling(sampler, num=150).run()
    for workers in (2, 3, 99):
        assert_same(sampling(sampler, num=150, workers=workers).run(), one)


def test_a_networks_chains_do_not_depend_on_how_many_workers_run_them(monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 100)
    network = shaken(MLP(1, hidden=[33], activation="relu", conditional=True))
    found = [
        sampling(ANNEALED, num=450, score=network, workers=workers).run() for workers in (1, 3)
    ]
    assert_same(*found)
    assert found[0].score_evaluations == 15


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("sampler", slow_but([ANNEALED, MALA, MULTISTEP], 0))
def test_chains_stopped_at_any_moment_go_on_to_the_same_bits(sampler, workers, monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 16)
    monkeypatch.setattr("ncsn_cli.sampling.tile._SECONDS_BETWEEN_NEWS", 0.0)
    whole = sampling(sampler, num=70)
    undisturbed = whole.run()
    assert_same(sampling(sampler, num=70).run(saved=whole.finished()), undisturbed)
    steps = sampler.ends(sampler.levels(Geometric(10.0, 0.1, 5).sigmas))[-1]
    process, news_was_read = os.getpid(), multiprocessing.Event()

    def read(tasks, workers):
        with closing(run_in_processes(tasks, workers)) as all_news:
            for news in all_news:
                yield news
                if news:
                    news_was_read.set()

    monkeypatch.setattr("ncsn_cli.sampling.run.run_in_processes", read)
    have_begun = 0
    # Each worker runs one of the 5 tiles at least, and counts for itself.
    for stop in range(1, 5 * steps, 4) if workers == 1 else range(1, steps, 2):
        states, evaluated, once = [], 0, multiprocessing.Lock()
        news_was_read.clear()

        def score(x, sigma, stop=stop, once=once):
            nonlocal evaluated
            evaluated += 1
            if evaluated == stop and once.acquire(block=False):
                if workers > 1 and stop > 1:  # so that some tile has begun for the parent, too
                    assert news_was_read.wait(60)
                ask_to_stop(process)
                if workers > 1:  # time for the parent to see it while this tile runs
                    time.sleep(0.2)
            return two_modes_1d().score(x, sigma)

        with pytest.raises(InterruptedRun) as interruption:
            sampling(sampler, num=70, score=score, workers=workers).run(states.append)
        assert interruption.value.exit_code == 143
        (state,) = states
        have_begun += len(state[1]["tiles"])
        state = copy.deepcopy(state)
        json.dumps(state[1])
        assert_same(sampling(sampler, num=70, workers=2).run(saved=state), undisturbed)
    assert have_begun > 0


def test_tiles_that_finish_before_an_earlier_one_are_kept(monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 16)
    monkeypatch.setattr("ncsn_cli.sampling.tile._SECONDS_BETWEEN_NEWS", 0.0)
    states, process, slow, evaluated = [], os.getpid(), False, 0
    third_was_read = multiprocessing.Event()

    def read(tasks, workers):
        with closing(run_in_processes(tasks, workers)) as all_news:
            for news in all_news:
                yield news
                if any(number == 3 for number, _ in news):
                    third_was_read.set()

    def first_is_slow(setup, recording, number, resume_point):
        nonlocal slow
        for told in run_tile(setup, recording, number, resume_point):
            yield told
            slow = number == 0

    def score(x, sigma):
        nonlocal evaluated
        evaluated += 1
        if slow:  # from the first news on
            time.sleep(60)
        if evaluated == 2 * 21 + 10:  # 21 for a tile: at the middle of the third
            assert third_was_read.wait(60)
            ask_to_stop(process)
            time.sleep(0.2)  # time for the parent to see it while this tile runs
        return two_modes_1d().score(x, sigma)

    with monkeypatch.context() as changed:
        changed.setattr("ncsn_cli.sampling.run.run_tile", first_is_slow)
        changed.setattr("ncsn_cli.sampling.run.run_in_processes", read)
        with pytest.raises(InterruptedRun, match="at level 1 of 5, tile 1 of 5"):
            sampling(MALA, num=70, score=score, workers=2).run(states.append)
    ((tensors, record),) = states
    assert tensors["finished"].tolist() == [False, True, True, False, False]
    assert [place[0] for place in record["tiles"]] == [0, 3]
    resumed = sampling(MALA, num=70).run(saved=(tensors, record))
    assert_same(resumed, sampling(MALA, num=70).run())


def test_what_is_saved_while_chains_run_is_whole(monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 16)
    monkeypatch.setattr("ncsn_cli.sampling.run._SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("ncsn_cli.sampling.tile._SECONDS_BETWEEN_NEWS", 0.0)

    def score(x, sigma):
        time.sleep(0.001)
        return two_modes_1d().score(x, sigma)

    for sampler in (ANNEALED, MALA):
        states = []
        whole = sampling(sampler, num=70, score=score, workers=2).run(states.append)
        assert any(step > 0 for _, record in states for _, step, *_ in record["tiles"])
        for state in states[:: -(-len(states) // 10)]:
            assert_same(sampling(sampler, num=70).run(saved=state), whole)


def saved_half_way():
    """Chains of which one tile is finished and two are not."""
    states, evaluated = [], 0

    def score(x, sigma):
        nonlocal evaluated
        evaluated += 1
        if evaluated == 23:
            ask_to_stop()
        return two_modes_1d().score(x, sigma)

    with pytest.raises(InterruptedRun):
        sampling(ANNEALED, num=40, score=score).run(states.append)
    return states[0]


def test_stopped_chains_of_another_kind_are_refused(monkeypatch):
    monkeypatch.setitem(TILE, "cpu", 16)
    monkeypatch.setattr("ncsn_cli.sampling.tile._SECONDS_BETWEEN_NEWS", 0.0)
    tensors, record = saved_half_way()
    assert record["tiles"] == [[1, 6, 2, 6, 0]]
    with pytest.raises(BadCheckpointError):
        sampling(ANNEALED, num=41).run(saved=(tensors, record))
    places = [
        None, {}, [None], [[]], [7], [[1, 6, 2]], [[1, 6, 2, 6, 1]], [[1, 6, 2, 6, 10**9]],
        [[1, 6, 2, 6, 0, 0]],        [[1, 6, 2, 6], [1, 6, 2, 6]],
        [["1", 6, 2, 6]], [[99, 6, 2, 6]], [[-1, 6, 2, 6]], [[0, 6, 2, 6]], [[2, 6, 2, 6]],
        [[1, 6, 77, 6]], [[1, 1, 2, 6]], [[1, 6, None, 6]], [[1, 6, 2, -1]], [[1, 6, 2, True]],
    ]  # fmt: skip
    edits = [{"tiles": value} for value in places]
    edits += [{"evaluations": value} for value in ("0", -1, None, 1.0)]
    for edit in edits:
        with pytest.raises(BadCheckpointError):
            sampling(ANNEALED, num=40).run(saved=(tensors, {**record, **edit}))
    for name, tensor in tensors.items():
        for value in (tensor[..., :-1], tensor.double()[None], tensor.to(torch.float16), None):
            edited = {**tensors, name: value}
            if value is None:
                del edited[name]
            elif value.numel() == tensor.numel() == 0:
                continue
            with pytest.raises(BadCheckpointError):
                sampling(ANNEALED, num=40).run(saved=(edited, record))
    for name, value in [
        ("1.labels", 2), ("1.labels", -1), ("settled", 5), ("1.generator", 255), ("finished", 1)
    ]:  # fmt: skip
        edited = {**tensors, name: torch.full_like(tensors[name], value)}
        with pytest.raises(BadCheckpointError):
            sampling(ANNEALED, num=40).run(saved=(edited, record))
    sampling(ANNEALED, num=40).run(saved=(tensors, record))


@pytest.mark.parametrize("step", [1, 8, 16, 17, 49, 120])
def test_a_sample_that_is_not_finite_is_named_at_its_step(step, monkeypatch):
    monkeypatch.setattr("ncsn_cli.sampling.recording._FRAMES", 2)  # which end blocks of steps
    sampler = AnnealedLangevin(step_size=0.01, steps_per_level=24, denoise=False)
    evaluated = 0

    def score(x, sigma):
        nonlocal evaluated
        evaluated += 1
        return x * math.inf if evaluated == step else 0 * x

    level = (step - 1) // 24
    sigma = Geometric(10.0, 0.1, 5).sigmas[level]
    expected = rf"step {step}, level {level + 1} \(sigma = {sigma:g}\)"
    with pytest.raises(DivergedError, match=expected):
        sampling(sampler, score=score).run()
