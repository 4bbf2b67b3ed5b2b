"""Compiled Langevin steps with a small network, several in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ncsn_cli.core.packages import compiled
from ncsn_cli.core.score import FunctionAtSigma, MultilevelScore, Score, ScoreAtSigma, score_at
from ncsn_cli.models.one_level import Perceptron, one_hidden_layer
from ncsn_cli.samplers import Level, Sampler

# Each step of a call has its own code, which takes a second to compile. The call itself costs as
# much as one step.
_STEPS_A_CALL = 8
_PLAIN, _COMPILED = 0.6e-9, 0.3e-9  # seconds per step of a chain and per hidden unit


@torch.no_grad()
def gain_of_compiling(
    score: Score, sampler: Sampler, plan: list[Level], num: int, device: torch.device
) -> tuple[str | None, float]:
    """Return why compiling would gain nothing, or None, and the seconds that it would save.

    ``num`` chains go down the levels of ``plan``. The seconds are those of one thread of a CPU, as
    benchmarks/steps.py measured them (docs/results/performance.md); on a GPU nothing is saved.
    """
    here = score_at(score, torch.ones((), device=device))
    if (
        sampler.needs_log_prob
        or not any(level.steps and level.tau for level in plan)
        or not isinstance(here, Perceptron)
        or not isinstance(here.activation, nn.ReLU)
        or len(here.layers) != 2
        or len(here.layers[1]) > 2
    ):
        return (
            "compile: true needs a network of one hidden layer of relu (model=mlp, embedding_mlp"
            " or ncsnv2_mlp) in 1D or 2D and a sampler with Langevin steps; set auto or false"
        ), 0.0
    per_unit = sum(
        _PLAIN * level.steps - _COMPILED * _STEPS_A_CALL * -(-level.steps // _STEPS_A_CALL)
        for level in plan
    )
    return None, num * len(here.layers[0]) * per_unit if device.type == "cpu" else 0.0


class CompiledLangevin(MultilevelScore):
    """A score with compiled Langevin steps; all levels share the same code.

    Args:
        score: A network for which ``gain_of_compiling`` finds no obstacle.
        x: Points (B, D), as an example of their shape.

    Raises:
        Exception: If torch cannot compile the steps; torch raises several kinds.
    """

    def __init__(self, score: Score, x: Tensor) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        self._score = score
        one = x.new_ones(())
        network = self._network(one)

        def steps(x: Tensor, z: Tensor, tau: Tensor, *layers: Tensor) -> tuple[Tensor]:
            here = FunctionAtSigma(partial(one_hidden_layer, layers, network.activation))
            return (torch.stack([state.mT for state in here.steps(x.mT, z.mT, tau)]),)

        z = x.new_zeros(_STEPS_A_CALL, *x.mT.shape)
        inputs: list[Any] = [x.mT, z, one, *network.layers]
        options = {"cpp.enable_floating_point_contract_flag": "fast"}  # a b + c is one operation
        self._steps = compiled(make_fx(steps)(*inputs), inputs, options=options)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (B, D) at ``x`` (B, D) and ``sigma`` () or (B,)."""
        return self._score(x, sigma)

    def at(self, sigma: Tensor) -> ScoreAtSigma:
        """Return the score at ``sigma`` ()."""
        return _CompiledAtSigma(self._network(sigma), self._steps)

    def _network(self, sigma: Tensor) -> Perceptron:
        here = score_at(self._score, sigma)
        assert isinstance(here, Perceptron)
        return here


class _CompiledAtSigma(ScoreAtSigma):
    """A network at one level, with compiled Langevin steps."""

    def __init__(self, network: Perceptron, steps: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self._network, self._steps = network, steps

    def __call__(self, x: Tensor) -> Tensor:
        return self._network(x)

    def steps(self, x: Tensor, z: Tensor, tau: Tensor) -> Iterator[Tensor]:
        """Yield the state after each step; see ``ScoreAtSigma``."""
        columns = x.mT.contiguous()
        for some in z.mT.split(_STEPS_A_CALL):  # (T, D, B)
            num = len(some)
            if num < _STEPS_A_CALL:
                some = functional.pad(some, (0, 0, 0, 0, 0, _STEPS_A_CALL - num))
            # Compiled code reads its inputs in the order of the examples.
            (states,) = self._steps([columns, some.contiguous(), tau, *self._network.layers])
            states = states[:num]
            yield from states.mT.unbind()
            columns = states[-1].contiguous()
