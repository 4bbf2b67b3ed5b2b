"""Many training steps in one call: one step is traced, compiled, and repeated in a loop.

The trace records what the loss, the network and the optimizer do, so the mathematics is theirs.
All weights form one vector, so that one operation updates all layers; so does each quantity that
the optimizer keeps per weight. Adam permits this: it updates each weight by itself. Clipping and
the moving average are repeated here; results equal plain steps up to rounding
(``tests/training/test_compiled.py``).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel

from ncsn_cli.core.packages import compiled
from ncsn_cli.core.score import Score
from ncsn_cli.losses import Draws, Loss

_MAX_STEPS = 128  # limit of the steps in one call
_MAX_NUMBERS = 2**20  # limit of the points and noise held for one call


class CompiledSteps:
    """Steps of ``Training.advance``, several per call.

    The first step of the run must have been made before: it creates the optimizer's state.

    Args:
        model: The network.
        optimizer: The network's optimizer, Adam or AdamW, with one parameter group. Both act on
            each weight by itself, and accept lr as a tensor.
        average: The average of the weights; None: no average.
        loss: The loss.
        sigmas: Noise levels (L,), descending.
        true_score: See ``Loss``.
        grad_clip: Largest norm of the gradient; None: no limit.
        x: Points (B, D) of one step, as an example of their shape.
        draws: Draws of one step, as an example of their shapes.

    Raises:
        Exception: If torch cannot trace or compile the step; torch raises several kinds.
    """

    def __init__(  # noqa: PLR0913  # all that a step reads
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        loss: Loss,
        sigmas: Tensor,
        true_score: Score,
        grad_clip: float | None,
        x: Tensor,
        draws: Draws,
    ) -> None:
        self._optimizer, self._average = optimizer, average
        self._loss, self._sigmas, self._true_score = loss, sigmas, true_score
        self._model, self._grad_clip = model, grad_clip
        self._buffers = dict(model.named_buffers())
        # A weight without a gradient, such as an energy's constant, has no state and does not
        # change.
        self._weights = {n: w for n, w in model.named_parameters() if optimizer.state.get(w)}
        self._sizes = [weight.numel() for weight in self._weights.values()]
        numbers = sum(t.numel() for t in (x, *draws))
        self.most = max(1, min(_MAX_STEPS, _MAX_NUMBERS // numbers))
        self._stacks = [torch.zeros((self.most, *t.shape)).to(t) for t in (x, *draws)]
        self._rates = [torch.ones(self.most, device=x.device) for _ in range(2)]
        step = torch.func.functionalize(self._step)
        rows = [stack[0] for stack in (*self._rates, *self._stacks)]
        products: dict[Any, Callable[..., Tensor]] = {
            torch.ops.aten.mm.default: _product,
            torch.ops.aten.addmm.default: _affine,
        }
        trace = make_fx(step, decomposition_table=products)
        self._graph: GraphModule = trace(*rows, *self._constants(), *self._state())
        for node in reversed(self._graph.graph.nodes):
            if "profiler" in str(node.target):  # optimizers report their steps to the profiler
                self._graph.graph.erase_node(node)
        self._graph.graph.eliminate_dead_code()  # shape checks that the derivatives have left
        self._graph.recompile()
        self._steps = compiled(self._graph, self._inputs(0), _Repeated(self))

    def __call__(
        self, batches: Tensor, draws: list[Draws], rates: list[float], lerps: list[float]
    ) -> Tensor | None:
        """Make a step for each of the ``batches`` (steps, B, D) with its draws, at most ``most``.

        ``rates`` are the learning rates of the steps. ``lerps`` are the fractions of the way that
        the average moves towards the weights. Modifies the weights, the optimizer's state and the
        average. Returns the loss of each step and the norm of its gradient before and after
        clipping, (steps, 3). Returns None and modifies nothing if one of these is not finite.
        """
        num = len(batches)
        points, *stacks = self._stacks
        points[:num] = batches
        for stack, drawn in zip(stacks, zip(*draws, strict=True), strict=True):
            torch.stack(drawn, out=stack[:num])
        for rate, values in zip(self._rates, (rates, lerps), strict=True):
            rate[:num] = torch.tensor(values)
        numbers, state = self._call(num)
        if not bool(numbers.isfinite().all()):
            return None
        self._take(state, num)
        return numbers

    @torch.no_grad()
    def _call(self, num: int) -> tuple[Tensor, list[Tensor]]:
        """Return loss and both norms of each step (num, 3), and ``_state`` after ``num`` steps."""
        _, numbers, *state = self._steps(self._inputs(num))
        return numbers[:num], state

    def _inputs(self, num: int) -> list[Tensor]:
        """Return what ``repeat`` takes for ``num`` steps."""
        count = torch.tensor(num, device=self._sigmas.device)
        return [count, *self._rates, *self._stacks, *self._constants(), *self._state()]

    def _constants(self) -> list[Tensor]:
        """Return what the steps read and never change: the levels and the network's buffers.

        Values in the code would need new code for every schedule and training set.
        """
        return [self._sigmas, *self._buffers.values()]

    def _state(self) -> list[Tensor]:
        """Return all weights in a row, then each quantity of the optimizer, then the averages."""
        kept = [self._optimizer.state[weight] for weight in self._weights.values()]
        state = [_flat(self._weights.values())]
        for name, value in kept[0].items():
            state.append(value if value.ndim == 0 else _flat([entry[name] for entry in kept]))
        if self._average is not None:
            state.append(_flat(self._averages()))
        return [row.detach() for row in state]

    def _averages(self) -> list[Tensor]:
        """Return the average of each weight tensor."""
        assert self._average is not None
        return [self._average.module.get_parameter(name) for name in self._weights]

    @torch.no_grad()
    def _take(self, state: list[Tensor], num: int) -> None:
        """Copy ``state`` into the weights, optimizer and average; ``num`` steps were made."""
        kept = [self._optimizer.state[weight] for weight in self._weights.values()]
        row, *others = state
        self._write(row, self._weights.values())
        for (name, value), row in zip(kept[0].items(), others, strict=False):
            if value.ndim == 0:
                for entry in kept:
                    entry[name].copy_(row)
            else:
                self._write(row, [entry[name] for entry in kept])
        if self._average is not None:
            self._write(state[-1], self._averages())
            self._average.n_averaged += num

    def _write(self, row: Tensor, tensors: Iterable[Tensor]) -> None:
        for tensor, part in zip(tensors, row.split(self._sizes), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _step(self, rate: Tensor, lerp: Tensor, x: Tensor, *rest: Tensor) -> list[Tensor]:
        """Return the loss with both norms of the gradient (3,), and the new ``_state``."""
        num_draws = len(Draws._fields)
        draws, sigmas, others = Draws(*rest[:num_draws]), rest[num_draws], rest[num_draws + 1 :]
        buffers = dict(zip(self._buffers, others, strict=False))
        weights, *state = others[len(buffers) :]

        def loss_of(weights: Tensor) -> Tensor:
            parts = zip(self._weights.items(), weights.split(self._sizes), strict=True)
            named = {name: part.view_as(weight) for (name, weight), part in parts}
            named |= buffers

            def score(points: Tensor, sigma: Tensor) -> Tensor:
                made: Tensor = torch.func.functional_call(self._model, named, (points, sigma))
                return made

            return self._loss.given(draws, score, x, sigmas, self._true_score)

        gradient, loss = torch.func.grad_and_value(loss_of)(weights)
        weights = weights.clone()
        weights.grad = gradient
        norm = clipped_norm = nn.utils.get_total_norm([gradient], foreach=False)
        if self._grad_clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self._grad_clip, norm, foreach=False)
            clipped_norm = nn.utils.get_total_norm([weights.grad], foreach=False)
        names = list(self._optimizer.state[next(iter(self._weights.values()))])
        kept = dict(zip(names, (value.clone() for value in state), strict=False))
        # With ``differentiable`` the optimizer keeps its count of steps as a tensor.
        group = {"params": [weights], "lr": rate, "differentiable": True}
        optimizer = copy.copy(self._optimizer)
        optimizer.param_groups = [
            {**self._optimizer.param_groups[0], **group, "foreach": False, "fused": False}
        ]
        optimizer.state = defaultdict(dict, {weights: kept})
        optimizer.step()
        new = [weights, *(optimizer.state[weights][name] for name in names)]
        if self._average is not None:
            new.append(torch.lerp(state[-1], weights, lerp))
        return [torch.stack([loss, norm, clipped_norm]), *new]

    @torch.no_grad()
    def repeat(self, num: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Make ``num`` steps, each with its row of every stack.

        Returns ``num``, the loss and norms of each step, and the last state.
        """
        num_stacks, num_constants = len(self._rates) + len(self._stacks), 1 + len(self._buffers)
        stacks, rest = tensors[:num_stacks], tensors[num_stacks:]
        constants, state = rest[:num_constants], rest[num_constants:]
        steps = torch.arange(len(stacks[0]), device=num.device)

        def is_left(i: Tensor, *_: Tensor) -> Tensor:
            return i < num

        def step(i: Tensor, numbers: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            rows = [stack.index_select(0, i.reshape(1))[0] for stack in stacks]
            here, *state = self._graph(*rows, *constants, *state)
            return i + 1, torch.where((steps == i)[:, None], here, numbers), *state

        nothing = torch.zeros(len(stacks[0]), 3, device=num.device)
        start = (torch.zeros_like(num), nothing, *state)
        made: tuple[Tensor, ...] = torch.while_loop(is_left, step, start)
        return made


class _Repeated(nn.Module):
    """``CompiledSteps.repeat`` as a module without weights, as torch exports it."""

    def __init__(self, steps: CompiledSteps) -> None:
        super().__init__()
        self.forward = steps.repeat


def _is_small(a: Tensor, b: Tensor) -> bool:
    """Return whether sums are faster than the product, as measured with batches of 128 points."""
    sizes = [*a.shape, b.shape[1]]
    return min(sizes) <= 2 and max(sizes) <= 128


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b: small products as sums, which the compiler fuses with their neighbours."""
    return (a[:, :, None] * b).sum(1) if _is_small(a, b) else NotImplemented


def _affine(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return bias + a b with a separate addition, which the compiler fuses with what follows.

    A product with two columns takes two or three times as long as its transpose with two rows.
    """
    return bias + (a @ b if b.shape[1] > 2 or _is_small(a, b) else (b.t() @ a.t()).t())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
