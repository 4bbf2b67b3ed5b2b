"""Samplers of other libraries, and functions of the user's own, on the same levels as ours.

A foreign sampler goes down all levels by itself: in a plan, the last level has one step, which is
the whole way. So nothing is known of its chains between their start and their end.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ncsn_cli.core.errors import ConfigError, NcsnError, one_line
from ncsn_cli.core.score import Score
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.samplers.base import Configured, Level, Step


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Foreign(Configured, ABC):
    """A sampler that goes from sigma_max to sigma_min in one call.

    Args:
        denoise: See ``Sampler``.
    """

    @abstractmethod
    def run(self, score: Score, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """Return x (B, D) taken from p_sigma_max to p_sigma_min, down the ``sigmas`` (L,)."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level; the last one has a step, which is the whole way."""
        if bool((sigmas == 0).any()) or len(sigmas) < 2:
            raise ConfigError(
                "schedule: this sampler needs two levels or more, all above 0, as in"
                " schedule=karras"
            )
        *before, last = sigmas.tolist()
        return [*(Level(sigma, 0.0, 0) for sigma in before), Level(last, 0.0, 1)]

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield the end of the whole way at the last level."""
        if step.num:
            yield self.run(step.score, x, step.sigmas, step.generator), None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Diffusers(Foreign):
    """A scheduler of the library diffusers, which works on variance-preserving levels.

    Its training levels are those of the schedule, so that with ``timestep_spacing="linspace"`` it
    visits the same levels as other samplers. With a = (1 + sigma^2)^(-1/2) its points are
    x_VP = a x, and its network predicts the noise, -sigma score(x, sigma). Its last step, from
    sigma_min to 0, is left out; ``denoise`` makes it.

    Args:
        denoise: See ``Sampler``.
        name: The scheduler's class, such as ``UniPCMultistepScheduler``.
        settings: Arguments of its constructor, besides those named above.
        timesteps_per_level: Number of its training levels from one of the schedule's to the next;
            1 trains it on the levels it visits. The levels in between are geometric.
    """

    name: str = "UniPCMultistepScheduler"
    settings: dict[str, Any] = field(default_factory=dict)
    timesteps_per_level: Count = 1

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level, after a look at the scheduler."""
        plan = super().levels(sigmas)
        self._scheduler(sigmas, seed=0)
        return plan

    def run(self, score: Score, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """Return x (B, D) after all steps of the scheduler but the one to 0."""
        seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
        scheduler, table = self._scheduler(sigmas, seed)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        noise: dict[str, Any] = {"generator": generator} if takes_generator else {}
        logs, ends_above_0 = table.log().numpy(), int(scheduler.timesteps[-1]) > 0
        times = scheduler.timesteps if ends_above_0 else scheduler.timesteps[:-1]
        one = torch.ones(1, device=x.device)
        is_scaled = float(scheduler.scale_model_input(one, times[0])) == 1  # its points are x_VP
        y = x / (1 + sigmas[0] ** 2).sqrt() if is_scaled else x
        for time in times:
            sigma = float(np.exp(np.interp(float(time), range(len(logs)), logs)))
            at = (1 + sigma**2) ** 0.5 * scheduler.scale_model_input(y, time)
            predicted = -sigma * score(at, torch.tensor(sigma, dtype=x.dtype, device=x.device))
            with warnings.catch_warnings(action="ignore"):
                y = scheduler.step(predicted, time, y, **noise).prev_sample
        return y * (1 + sigmas[-1] ** 2).sqrt() if is_scaled else y

    def _scheduler(self, sigmas: Tensor, seed: int) -> tuple[Any, Tensor]:
        """Return the scheduler with its times set, and its training levels, ascending."""
        library = _library("diffusers")
        kind: Any = getattr(library, self.name, None) if self.name.endswith("Scheduler") else None
        known = {} if kind is None else inspect.signature(kind.__init__).parameters
        if not {"trained_betas", "prediction_type"} <= set(known):
            raise ConfigError(
                f"sampler.name: {self.name} should be a scheduler of diffusers that takes levels"
                " (trained_betas) and predicts noise, such as UniPCMultistepScheduler"
            )
        num = len(sigmas)
        places = np.arange((num - 1) * self.timesteps_per_level + 1) / self.timesteps_per_level
        table = np.exp(np.interp(places, np.arange(num), np.log(sigmas.cpu().numpy()[::-1])))
        kept = 1 / (1 + table.astype(float) ** 2)  # the product of 1 - beta: a^2
        betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
        ours = {
            "num_train_timesteps": len(table), "trained_betas": betas, "clip_sample": False,
            "timestep_spacing": "linspace", "final_sigmas_type": "sigma_min",
            "noise_sampler_seed": seed, "original_inference_steps": num,
        }  # fmt: skip
        try:
            with warnings.catch_warnings(action="ignore"):  # of numpy and torch, about diffusers
                made = kind(**{k: v for k, v in ours.items() if k in known} | self.settings)
                made.set_timesteps(num)
                if float(made.timesteps[-1]) != 0:  # those that count steps instead of levels
                    made.set_timesteps(num - 1)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(f"sampler.settings: {self.name}: {one_line(str(error))}") from error
        return made, torch.from_numpy(table)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Azula(Foreign):
    """A sampler of the library azula, with alpha = 1 and our sigma.

    Args:
        denoise: See ``Sampler``.
        name: The sampler's class, such as ``xEABSampler``.
        settings: Arguments of its constructor, such as ``order``.
    """

    name: str = "xEABSampler"
    settings: dict[str, Any] = field(default_factory=dict)

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level, after a look at the sampler."""
        plan = super().levels(sigmas)
        self._sampler(None, len(sigmas))
        return plan

    def run(self, score: Score, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """Return x (B, D) after all steps of the sampler."""
        logs, num = sigmas.double().log().cpu().numpy()[::-1], len(sigmas)

        def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = np.exp(np.interp(t.cpu().numpy() * (num - 1), np.arange(num), logs))
            return torch.ones_like(t).to(x), torch.as_tensor(sigma).to(x)

        class Denoiser:
            def __init__(self) -> None:
                self.schedule = schedule

            def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
                sigma = schedule(t)[1]
                return SimpleNamespace(mean=x + sigma**2 * score(x, sigma))

        seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(seed)  # azula draws from torch's own stream
            return self._sampler(Denoiser(), num)(x)

    def _sampler(self, denoiser: object, num: int) -> Any:  # noqa: ANN401
        kind: Any = getattr(_library("azula").sample, self.name, None)
        if not self.name.endswith("Sampler") or kind is None:
            raise ConfigError(
                f"sampler.name: {self.name} should be a sampler of azula.sample, such as"
                " xEABSampler"
            )
        try:
            return kind(denoiser, steps=num - 1, silent=True, dtype=torch.float64, **self.settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"sampler.settings: {self.name}: {one_line(str(error))}") from error


@dataclass(frozen=True, config=STRICT, kw_only=True)
class External(Foreign):
    """A function of the user's own, with numpy arrays: ``function(score, x, sigmas, rng)``.

    It gets points ``x`` (B, D) ~ p_sigma_max and the descending levels ``sigmas`` (L,), and
    returns points (B, D) ~ p_sigma_min. ``score(x, sigma)`` gives an array (B, D) for one sigma or
    for B of them. ``rng`` is a ``numpy.random.Generator``; a function that draws from it alone
    gives the same samples again.

    Args:
        denoise: See ``Sampler``.
        target: Where the function is, such as ``my_package.my_sampler``.
    """

    target: str | None = None

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level, after a look at the function."""
        plan = super().levels(sigmas)
        self._function()
        return plan

    def run(self, score: Score, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the function returns for the points ``x`` (B, D)."""

        def own_score(points: Any, sigma: Any) -> Any:  # noqa: ANN401
            found = score(torch.as_tensor(points).to(x), torch.as_tensor(sigma).to(x))
            return found.cpu().double().numpy()

        seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
        start, levels = x.cpu().double().numpy(), sigmas.cpu().double().numpy()
        try:
            found = self._function()(own_score, start, levels, np.random.default_rng(seed))
            y = torch.as_tensor(np.asarray(found, dtype=float)).to(x)
        except NcsnError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(str(error))}"
            raise ConfigError(f"sampler.target: {self.target} failed: {reason}") from error
        if y.shape != x.shape:
            raise ConfigError(
                f"sampler.target: {self.target} should return an array {tuple(x.shape)}, as it"
                f" gets, but returned {tuple(y.shape)}"
            )
        return y

    def _function(self) -> Callable[..., Any]:
        module, _, name = str(self.target or "").rpartition(".")
        if not module:
            raise ConfigError(
                "sampler.target: name your function, as in sampler.target=my_package.my_sampler;"
                " it is called as my_sampler(score, x, sigmas, rng)"
            )
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
            inspect.signature(found).bind(None, None, None, None)
        except Exception as error:
            reason = one_line(str(error))
            raise ConfigError(
                f"sampler.target: {self.target} should be a function of (score, x, sigmas, rng):"
                f" {reason}"
            ) from error
        return found


def _library(name: str) -> Any:  # noqa: ANN401
    """Return the module ``name`` of the extra ``referee``, with what it is asked for here."""
    try:
        library = importlib.import_module(name)
        if name == "azula":
            importlib.import_module("azula.sample")
    except ImportError as error:
        raise ConfigError(
            f"sampler: {name} cannot be imported ({one_line(str(error))}); type"
            " pip install 'ncsn_cli[referee]'"
        ) from error
    return library
