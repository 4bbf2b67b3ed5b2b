"""Samplers of other libraries, and functions of the user's own, on the same levels as ours.

A foreign sampler goes down all levels by itself: in a plan, the last level has one step, which is
the whole way. So nothing is known of its chains between their start and their end.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
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

from ncsn_cli.core.errors import ConfigError, DivergedError, NcsnError, one_line
from ncsn_cli.core.settings import STRICT, Count
from ncsn_cli.samplers.base import Configured, Level, Step


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Foreign(Configured, ABC):
    """A sampler that goes from sigma_max to sigma_min in one call.

    Args:
        denoise: See ``Sampler``.
    """

    @abstractmethod
    def make(self, sigmas: Tensor, seed: int) -> Any:  # noqa: ANN401
        """Return the sampler for the ``sigmas`` (L,), or raise a ConfigError that names a key."""

    @abstractmethod
    def run(self, made: Any, x: Tensor, step: Step) -> Tensor:  # noqa: ANN401
        """Return x (B, D) taken from p_sigma_max to p_sigma_min by what ``make`` returned."""

    @property
    @abstractmethod
    def called(self) -> str:
        """The key that chooses the sampler, and its value, for messages."""

    def levels(self, sigmas: Tensor) -> list[Level]:
        """Return every level; the last one has a step, which is the whole way."""
        if bool((sigmas == 0).any()) or len(sigmas) < 2:
            raise ConfigError(
                "schedule: this sampler needs two levels or more, all above 0, as in"
                " schedule=karras"
            )
        self.make(sigmas, seed=0)
        *before, last = sigmas.tolist()
        return [*(Level(sigma, 0.0, 0) for sigma in before), Level(last, 0.0, 1)]

    def langevin(self, step: Step, x: Tensor) -> Iterator[tuple[Tensor, float | None]]:
        """Yield the end of the whole way at the last level."""
        if step.num == 0:
            return
        seed = int(torch.randint(2**31, (), generator=step.generator, device=x.device))
        made = self.make(step.sigmas, seed)
        try:
            y = self.run(made, x, step)
        except (NcsnError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(str(error))}"
            raise ConfigError(f"{self.called} failed: {reason}") from error
        if y.shape != x.shape:
            raise ConfigError(
                f"{self.called} should return an array {tuple(x.shape)}, as it gets, but returned"
                f" {tuple(y.shape)}"
            )
        if lost := int((~y.isfinite().all(dim=1)).sum()):
            of = (
                f"{lost} of {len(y)} points that are not finite (inf, nan); smaller steps may help"
            )
            raise DivergedError(f"{self.called} returned {of}")
        yield y, None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Diffusers(Foreign):
    """A scheduler of the library diffusers, which works on variance-preserving levels.

    Its training levels are those of the schedule, so that with ``timestep_spacing="linspace"`` it
    visits the same levels as other samplers. Its points are a x/c with a^2 = 1/(1 + (sigma/c)^2),
    where the unit c = 20 sigma_min keeps a^2 away from 1; its network predicts the noise,
    -sigma score(x, sigma). Its last step, from sigma_min to 0, is left out; ``denoise`` makes it.

    Args:
        denoise: See ``Sampler``.
        name: The scheduler's class, such as ``UniPCMultistepScheduler``.
        settings: Arguments of its constructor, such as ``solver_order``.
        timesteps_per_level: Number of its training levels from one of the schedule's to the next;
            1 trains it on the levels it visits. The levels in between are geometric.
    """

    name: str = "UniPCMultistepScheduler"
    settings: dict[str, Any] = field(default_factory=dict)
    timesteps_per_level: Count = 1

    @property
    def called(self) -> str:
        """The key that chooses the sampler, and its value."""
        return f"sampler.name: {self.name}"

    def make(self, sigmas: Tensor, seed: int) -> tuple[Any, Tensor]:
        """Return the scheduler with its times set, and log sigma/c at its training levels."""
        kind = _scheduler(self.name, self.called)
        logs = _between(sigmas, self.timesteps_per_level) - math.log(20 * float(sigmas[-1]))
        kept = 1 / (1 + logs.exp() ** 2)  # a^2, the product of 1 - beta
        betas = 1 - kept / torch.cat([torch.ones(1), kept[:-1]])
        ours = {**_OURS, "num_train_timesteps": len(logs), "trained_betas": betas.numpy()}
        _refuse_keys(self.settings, ours)
        ours["noise_sampler_seed"] = seed
        known = inspect.signature(kind.__init__).parameters
        chosen = {key: value for key, value in ours.items() if key in known}
        made = _made(kind, self.called, **chosen, **self.settings)
        with warnings.catch_warnings(action="ignore"):  # of numpy and torch, about diffusers
            made.set_timesteps(len(sigmas))
            if float(made.timesteps[-1]) != 0:  # those that count steps instead of levels
                made.set_timesteps(len(sigmas) - 1)
        return made, logs

    def run(self, made: Any, x: Tensor, step: Step) -> Tensor:  # noqa: ANN401
        """Return x (B, D) after all steps of the scheduler but the one to 0."""
        (scheduler, logs), unit = made, 20 * float(step.sigmas[-1])
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        noise = {"generator": step.generator} if takes_generator else {}
        times = scheduler.timesteps[: -1 if int(scheduler.timesteps[-1]) == 0 else None]
        # Networks see points scaled to variance 1. Points of a scheduler that scales them are x/c.
        is_scaled = scheduler.scale_model_input(x, times[0]) is x
        first, last = (1 + (step.sigmas[[0, -1]] / unit) ** 2).sqrt() ** -float(is_scaled)
        y = first * x / unit
        for time in times:
            level = float(np.exp(np.interp(float(time), range(len(logs)), logs)))
            at = unit * (1 + level**2) ** 0.5 * scheduler.scale_model_input(y, time)
            sigma = torch.tensor(unit * level, dtype=x.dtype, device=x.device)
            with warnings.catch_warnings(action="ignore"):
                y = scheduler.step(-sigma * step.score(at, sigma), time, y, **noise).prev_sample
        return y * unit / last


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

    @property
    def called(self) -> str:
        """The key that chooses the sampler, and its value."""
        return f"sampler.name: {self.name}"

    def make(self, sigmas: Tensor, seed: int) -> tuple[Any, int]:
        """Return the sampler, without its denoiser, and the seed of its noise."""
        is_sampler = self.name.endswith("Sampler") and self.name != "Sampler"
        library = _library("azula.sample")
        kind = getattr(library, self.name, None) if is_sampler else None
        if kind is None:
            near = _near(self.name, library, "Sampler") or "xEABSampler"
            raise ConfigError(f"{self.called} should be a sampler of azula.sample, such as {near}")
        _refuse_keys(self.settings, ("denoiser", "start", "stop", "steps", "silent", "dtype"))
        steps = {"steps": len(sigmas) - 1, "silent": True}
        return _made(kind, self.called, None, **steps, **self.settings), seed

    def run(self, made: Any, x: Tensor, step: Step) -> Tensor:  # noqa: ANN401
        """Return x (B, D) after all steps of the sampler."""
        sampler, seed = made
        logs, num = _between(step.sigmas, 1), len(step.sigmas)

        def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = np.exp(np.interp(t.cpu().numpy() * (num - 1), np.arange(num), logs))
            return torch.ones_like(t).to(x), torch.as_tensor(sigma).to(x)

        def denoised(x: Tensor, t: Tensor) -> SimpleNamespace:
            sigma = schedule(t)[1]
            return SimpleNamespace(mean=x + sigma**2 * step.score(x, sigma))

        denoised.schedule = schedule  # type: ignore[attr-defined]
        sampler.denoiser = denoised
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)  # azula draws from torch's own streams
            return sampler(x)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class External(Foreign):
    """A function of the user's own, with numpy arrays: ``function(score, x, sigmas, rng)``.

    It gets points ``x`` (B, D) ~ p_sigma_max and the descending levels ``sigmas`` (L,), and
    returns points (B, D) ~ p_sigma_min, all in data units. ``score(x, sigma)`` gives an array
    (B, D) for one sigma or for B of them. ``rng`` is a ``numpy.random.Generator``; a function that
    draws from it alone gives the same samples again.

    Args:
        denoise: See ``Sampler``.
        target: Where the function is, such as ``my_package.my_sampler``.
    """

    target: str | None = None

    @property
    def called(self) -> str:
        """The key that chooses the function, and its value."""
        return f"sampler.target: {self.target}"

    def make(self, sigmas: Tensor, seed: int) -> tuple[Callable[..., Any], int]:
        """Return the function, and the seed of its noise."""
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
            raise ConfigError(
                f"{self.called} should be a function of (score, x, sigmas, rng):"
                f" {one_line(str(error))}"
            ) from error
        return found, seed

    def run(self, made: Any, x: Tensor, step: Step) -> Tensor:  # noqa: ANN401
        """Return what the function returns for the points ``x`` (B, D)."""
        function, seed = made

        def own_score(points: Any, sigma: Any) -> Any:  # noqa: ANN401
            at = torch.as_tensor(np.ascontiguousarray(points)).to(x)
            level = torch.as_tensor(np.ascontiguousarray(sigma)).to(x).reshape(np.shape(sigma))
            if level.ndim and level.shape != at.shape[:1]:
                raise ValueError(
                    f"score takes one sigma, or one for each of the {len(at)} points, got the"
                    f" shape {np.shape(sigma)}"
                )
            return step.score(at, level).detach().cpu().double().numpy()

        levels = step.sigmas.cpu().double().numpy()
        found = function(own_score, x.cpu().double().numpy(), levels, np.random.default_rng(seed))
        if found is None:
            raise ValueError("it returned None; end it with 'return x'")
        return torch.as_tensor(np.asarray(found).astype(float, casting="same_kind")).to(x)


_OURS = {
    "timestep_spacing": "linspace", "final_sigmas_type": "sigma_min", "clip_sample": False,
    "prediction_type": "epsilon",
}  # fmt: skip
"""Arguments of diffusers' constructors with which a scheduler visits our levels."""


def _scheduler(name: str, called: str) -> Any:  # noqa: ANN401
    """Return a class of diffusers, if it is a scheduler that takes levels and predicts noise."""
    is_scheduler = name.endswith("Scheduler") and "Inverse" not in name
    kind = getattr(_library("diffusers"), name, None) if is_scheduler else None
    known = {} if kind is None else inspect.signature(kind.__init__).parameters
    is_for_distilled = "original_inference_steps" in known
    if is_for_distilled or not {"trained_betas", "prediction_type"} <= set(known):
        library = _library("diffusers.schedulers")
        near = _near(name, library, "Scheduler") or "UniPCMultistepScheduler"
        raise ConfigError(
            f"{called} should be a scheduler of diffusers that takes levels (trained_betas) and"
            f" predicts noise, such as {near}"
        )
    return kind


def _near(name: str, library: Any, end: str) -> str | None:  # noqa: ANN401
    """Return the class of ``library`` whose name is nearest to ``name`` and ends like ``end``."""
    names = {each.lower(): each for each in dir(library) if each.endswith(end) and each != name}
    word = name.lower().removesuffix(end.lower()) + end.lower()
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    return names[found[0]] if found else None


def _between(sigmas: Tensor, num: int) -> Tensor:
    """Return log sigma, ascending, float64, with ``num`` steps from each level to the next."""
    logs = sigmas.double().log().cpu().numpy()[::-1]
    places = np.arange((len(logs) - 1) * num + 1) / num
    return torch.from_numpy(np.interp(places, np.arange(len(logs)), logs))


def _refuse_keys(settings: dict[str, Any], ours: Any) -> None:  # noqa: ANN401
    """Raise if ``settings`` hold a key that the adapter sets, because it has to."""
    if taken := settings.keys() & set(ours):
        raise ConfigError(f"sampler.settings.{min(taken)}: ncsn_cli sets this key itself")


def _made(kind: Any, called: str, *values: Any, **settings: Any) -> Any:  # noqa: ANN401
    """Return an object of another library's class."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return kind(*values, **settings)
    except Exception as error:  # these libraries raise many kinds
        name = called.partition(": ")[2]
        raise ConfigError(f"sampler.settings: {name}: {one_line(str(error))}") from error


def _library(name: str) -> Any:  # noqa: ANN401
    """Return a module that the extra ``referee`` installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"sampler: {name} cannot be imported ({one_line(str(error))}); type"
            " pip install 'ncsn_cli[referee]'"
        ) from error
