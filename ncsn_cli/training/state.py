"""The state of a training: it advances by steps, and is saved and restored bit for bit."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ncsn_cli.core.compiling import compile_or_stay_plain
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, DivergedError
from ncsn_cli.core.settings import random_stream
from ncsn_cli.losses import Draws, Loss
from ncsn_cli.training.batches import Batches
from ncsn_cli.training.excess import excess_loss
from ncsn_cli.training.history import MEMORISING, Row
from ncsn_cli.training.memorising import memorising
from ncsn_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from ncsn_cli.training.compiled_steps import CompiledSteps

log = logging.getLogger(__name__)


_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class Training:
    """Everything that a training step reads or writes, so that a saved training loses nothing.

    The noise comes from one stream of random numbers, whose state is saved. The step alone gives
    the position in the training set (``Batches``).

    Args:
        trainer: The settings.
        model: The network, on its device.
        optimizer: An optimizer of the network's parameters.
        loss: The loss.
        dataset: The distribution to learn.
        sigmas: Noise levels (L,), descending.
        seed: Seed of the run.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        dataset: Dataset,
        sigmas: Tensor,
        seed: int,
    ) -> None:
        loss.check(sigmas)
        self.device = next(model.parameters()).device
        self.trainer, self.model, self.optimizer = trainer, model, optimizer
        self.loss, self.dataset, self.seed = loss, dataset, seed
        self.sigmas = sigmas.to(self.device, torch.float32)  # (L,)
        self.step = 0
        self.generator = random_stream(seed, "training", self.device)
        self._parameters = list(model.parameters())  # the module would look for them anew
        self._optimizer_step = optimizer_step(optimizer)
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        self._average: AveragedModel | None = None
        if trainer.ema_decay is not None:
            self._average = AveragedModel(model, avg_fn=_moving_average(trainer.ema_decay))
        data = dataset.training_set()
        self._data = None if data is None else data.to(self.device)  # (N, D)
        if self._data is None and trainer.batch_size is None:
            raise ConfigError("trainer.batch_size: dataset.num_samples=null needs a number here")
        self._noise = self._fixed_noise()  # (N, L, D) or None
        self._batches: Batches | None = None  # None: each step takes all points, or fresh draws
        size = trainer.batch_size
        if self._data is not None and size is not None and size < len(self._data):
            self._batches = Batches(len(self._data), size, seed, self.device)
        self._excess = excess_loss(dataset, self.sigmas, loss, seed, self.device)
        self._memorising = memorising(dataset, self.sigmas.double().cpu(), seed, self.device)
        self._is_to_compile = trainer.compile is True
        self._compiled: CompiledSteps | None = None
        self.compiling_failed = False
        """Whether steps are plain because compiling failed, in this process or before resuming."""
        self.grad_norm = math.nan
        """Norm of the last step's gradient before clipping."""
        self.clipped_grad_norm = math.nan
        """Norm of the last step's gradient after clipping; ``grad_norm`` if nothing is clipped."""

    def _fixed_noise(self) -> Tensor | None:
        stream = random_stream(self.seed, "fixed noise", self.device)
        data = torch.empty(0, self.dataset.dim) if self._data is None else self._data
        noise = self.loss.fixed_noise(data, self.sigmas, stream)
        if noise is not None and self._data is None:
            raise ConfigError("loss.noise: fixed needs a number in dataset.num_samples, not null")
        return noise

    @property
    def score(self) -> nn.Module:
        """Return the network to use: the one with averaged weights if an average is kept."""
        return self.model if self._average is None else self._average.module

    def advance(self, most: int = 1) -> float:
        """Make at least one and at most ``most`` steps; return the loss of the last batch.

        Raises:
            DivergedError: If the loss or a gradient is not finite. The weights are then those
                from before that step.
        """
        if self._compiled is not None:
            state = self.generator.get_state()
            value = self._advance_compiled(self._compiled, most)
            if value is not None:
                return value
            self.generator.set_state(state)  # plain steps find which step is not finite
        return self._advance_plainly()

    @property
    def is_to_compile(self) -> bool:
        """Return whether the next steps are to be compiled, and are not compiled yet.

        The first step is plain: it creates the optimizer's state, which compiled steps read.
        """
        return self._is_to_compile and self.step > 0

    def compile(self) -> None:
        """Compile the steps if possible; otherwise record so in ``trainer`` and in the log."""
        from ncsn_cli.training.compiled_steps import CompiledSteps  # takes a second to import

        state = self.generator.get_state()
        batches, draws = self._draw(range(self.step, self.step + 1))
        self.generator.set_state(state)
        self._compiled = compile_or_stay_plain(
            lambda: CompiledSteps(
                self.model, self.optimizer, self._average, self.loss, self.sigmas,
                self.dataset.score, self.trainer.grad_clip, batches[0], draws[0],
            ),
            "trainer.compile",
            has_earlier_steps=self.step > 1,  # every step after the first was compiled
        )  # fmt: skip
        if self._compiled is None:
            self.compiling_failed = True
            self.trainer = replace(self.trainer, compile=False)
        self._is_to_compile = False

    def _advance_compiled(self, compiled: CompiledSteps, most: int) -> float | None:
        """Make at most ``most`` compiled steps; return the loss of the last batch.

        Returns None if a step is not finite; only the random numbers have then advanced.
        """
        steps = range(self.step, self.step + min(most, compiled.most))
        rates = [self._learning_rates[0] * self._decay(step) for step in steps]
        made = 0 if self._average is None else int(self._average.n_averaged)
        decay = self.trainer.ema_decay or 0.0
        lerps = [_lerp_weight(decay, made + i) for i in range(len(steps))]
        found = compiled(*self._draw(steps), rates, lerps)
        if found is None:
            return None
        self.step = steps.stop
        self.optimizer.param_groups[0]["lr"] = rates[-1]
        loss, self.grad_norm, self.clipped_grad_norm = found[-1].tolist()
        return loss

    def _advance_plainly(self) -> float:
        for group, lr in zip(self.optimizer.param_groups, self._learning_rates, strict=True):
            group["lr"] = lr * self._decay(self.step)
        (x,), (draws,) = self._draw(range(self.step, self.step + 1))
        loss = self.loss.given(draws, self.model, x, self.sigmas, self.dataset.score)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", x)
        for parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(loss)  # the tensor's method does more around it
        norm = self._gradient_norm()
        self.grad_norm = self.clipped_grad_norm = norm.item()
        if not math.isfinite(self.grad_norm):
            raise self._diverged(f"the norm of the gradient is {self.grad_norm}", x)
        if self.trainer.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.trainer.grad_clip, norm)
            self.clipped_grad_norm = self._gradient_norm().item()
        self._optimizer_step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        self.step += 1
        return value

    def _gradient_norm(self) -> Tensor:
        """Return the norm of all gradients, put in one row as in ``CompiledSteps``.

        For small networks this is three times as fast as ``nn.utils.get_total_norm``. For large
        ones it copies the gradients; at a million weights, float32 makes an error of 1e-5.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.cat([each.reshape(-1) for each in gradients]))

    @torch.no_grad()
    def _diverged(self, what: str, x: Tensor) -> DivergedError:
        """Return an error that names what is not finite: weight, data, score or gradient."""
        state = {f"network.{name}": value for name, value in self.model.state_dict().items()}
        outputs = {f"the score at sigma = {s:g}": self.model(x, s) for s in self.sigmas}
        gradients = {
            f"the gradient of {name}": p.grad
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }
        suspects = state | {"a point of the data": x} | outputs | gradients
        named = [name for name, value in suspects.items() if not bool(value.isfinite().all())]
        place = f" ({named[0]} is not finite)" if named else ""
        return DivergedError(
            f"{what} at step {self.step + 1}{place}; try a smaller optimizer.lr or set"
            " trainer.grad_clip"
        )

    def row(
        self, loss: float, excess: float | None, seconds: float, *, is_evaluated: bool = False
    ) -> Row:
        """Return the row of ``history.csv`` for the step just made.

        ``is_evaluated`` says that the row also holds how far the network is from the true score
        and from that of the training set, if both are known.

        Raises:
            DivergedError: If a number in it is not finite.
        """
        row: Row = {
            "step": self.step,
            "loss": loss,
            "excess_loss": excess,
            "grad_norm": self.grad_norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 3),
            "clipped_grad_norm": self.clipped_grad_norm,
        }
        if self._memorising is not None:
            row |= dict.fromkeys(MEMORISING)
            row |= self._memorising.distances(self.score) if is_evaluated else {}
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {value} at step {self.step}; try a smaller optimizer.lr or set"
                    " trainer.grad_clip"
                )
        return row

    def excess_loss(self) -> float | None:
        """Return the excess loss on draws that are the same at every call.

        Return None if the loss names no lambda, or the true score is not known.
        """
        return None if self._excess is None else self._excess(self.score)

    def _decay(self, step: int) -> float:
        if self.trainer.lr_decay == "none":
            return 1.0
        return (1 + math.cos(math.pi * step / self.trainer.steps)) / 2

    def _draw(self, steps: range) -> tuple[Tensor, list[Draws]]:
        """Return the points (steps, B, D) of the steps, and levels and noise drawn for each."""
        draws = []
        if self._data is None:
            size, points = self.trainer.batch_size, []
            assert size is not None
            for _ in steps:
                points.append(self.dataset.sample(size, generator=self.generator))
                draws.append(self.loss.draw(points[-1], self.sigmas, self.generator))
            return torch.stack(points), draws
        noises: Iterable[Tensor | None] = repeat(self._noise, len(steps))
        if self._batches is None:
            batches = self._data.expand(len(steps), *self._data.shape)
        else:
            rows = self._batches.rows(steps)
            batches = self._data[rows]
            if self._noise is not None:
                noises = self._noise[rows]
        for x, noise in zip(batches.unbind(), noises, strict=True):
            draws.append(self.loss.draw(x, self.sigmas, self.generator, noise))
        return batches, draws

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the JSON-able values from which ``restore`` continues exactly.

        Raises:
            DivergedError: If a weight or a number of the optimizer is not finite.
        """
        tensors = {f"network.{name}": value for name, value in self.model.state_dict().items()}
        if self._average is not None:
            average = self._average.state_dict()
            tensors |= {f"ema.{name}": value for name, value in average.items()}
        numbers: dict[str, Any] = {}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                key = f"optimizer.{index}.{name}"
                (tensors if isinstance(value, Tensor) else numbers)[key] = value
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise DivergedError(f"{name} is not finite after step {self.step}")
        tensors["generator"] = self.generator.get_state()
        return tensors, {
            "step": self.step,
            "device_type": self.device.type,
            "optimizer": numbers,
            **({"compiling_failed": True} if self.compiling_failed else {}),
        }

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Put this training into the state that ``state`` returned."""
        self.step = record["step"]
        self.compiling_failed = record.get("compiling_failed") is True
        self.model.load_state_dict(_under("network.", tensors))
        if self._average is not None:
            self._average.load_state_dict(_under("ema.", tensors))
        entries: dict[int, dict[str, Any]] = {}
        for key, value in {
            **_under("optimizer.", tensors),
            **_under("optimizer.", record["optimizer"]),
        }.items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        weights = list(self.model.parameters())
        for number, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape not in (weights[number].shape, ()):
                    raise ValueError(f"optimizer.{number}.{name} has another shape")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        if record["device_type"] == self.device.type:
            self.generator.set_state(tensors["generator"])
        else:
            log.warning("the run was on another type of device: its noise differs from here on")
            name = f"training from step {self.step}"
            self.generator = random_stream(self.seed, name, self.device)


def optimizer_step(optimizer: Optimizer) -> Callable[[], object]:
    """Return ``optimizer.step``, without what torch wraps around the steps of its own optimizers.

    The wrappers import torch's compiler (to interrupt compiled code at the step), name the step
    for the profiler, and call hooks, of which there are none here. Modifies ``optimizer``: where
    ``fused`` was left open, one operation updates all weights.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, _FUSED) and group["fused"] is None:
            group["fused"] = True
    if not type(optimizer).__module__.startswith("torch.optim."):
        return optimizer.step
    step = inspect.unwrap(type(optimizer).step)
    return torch.no_grad()(lambda: step(optimizer))


def _under(prefix: str, entries: dict[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in entries.items()
        if name.startswith(prefix)
    }


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        return torch.lerp(averaged, current, _lerp_weight(decay, int(num_averaged)))

    return average


def _lerp_weight(decay: float, num: int) -> float:
    """Return the fraction of the way that an average of ``num`` weights moves to the next."""
    return 1 - min(decay, (1 + num) / (10 + num))
