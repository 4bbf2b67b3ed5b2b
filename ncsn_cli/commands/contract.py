"""What a class of the user's own has to be: found out before any work is done."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ncsn_cli.commands.config import Config, reason_of
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, NcsnError, UnknownTruthError, one_line
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.settings import random_stream
from ncsn_cli.datasets import Sampled, gives_draws_only
from ncsn_cli.inits import Init
from ncsn_cli.losses import Loss
from ncsn_cli.metrics import SampleMetric, ScoreMetric
from ncsn_cli.samplers import Foreign, Level, Sampler, Step, some_levels
from ncsn_cli.schedules import FromData, Schedule, checked_levels
from ncsn_cli.training.trainer import Trainer

MOST_TRIED = 1000
"""Number of points on which classes of the user's own are tried, beforehand."""

_MOST_LEVELS_TRIED = 5  # a foreign sampler is tried on so few levels, for all of its way

_BASES: dict[str, tuple[type, ...]] = {
    "dataset": (Dataset,),
    "schedule": (Schedule,),
    "loss": (Loss,),
    "sampler": (Sampler,),
    "metric": (SampleMetric, ScoreMetric),
}
"""Base classes of the groups. A class of the user's own need not inherit from them."""

_INHERITED = {"model": nn.Module, "optimizer": torch.optim.Optimizer, "trainer": Trainer}
"""Classes from which even a class of the user's own inherits."""

_CALLED = {"init": Init, "plot": Scene, "animation": Scene}
"""Groups of functions, or of objects that are called, and the class to read about them."""


def num_arguments(key: str) -> int:
    """Return how many arguments a function of the group ``key`` is called with."""
    return len(inspect.signature(Init.__call__).parameters) - 1 if key == "init" else 1


def why_not_made(
    key: str,
    target: str,
    called: Any,  # noqa: ANN401
    cause: BaseException,
    runtime: Iterable[str],
) -> str:
    """Return one line on why ``called`` made no object of the group ``key``.

    ``called`` is what ``target`` names; None if that was not found. ``runtime`` are arguments that
    this package gave it.
    """
    known: list[str] = []
    with suppress(TypeError, ValueError):
        known = [*inspect.signature(called).parameters]
    if called is None and not isinstance(cause, ConfigError):
        return f"{key}._target_: {one_line(str(cause))}"
    if called is None or isinstance(cause, ConfigError | ValidationError):
        return reason_of(key, cause, known)
    group = key.partition(".")[0]
    if isinstance(called, type) and inspect.isabstract(called):
        bases = _BASES.get(group, (_CALLED.get(group, called),))
        base = next((each for each in bases if issubclass(called, each)), bases[0])
        return _lack(key, target, _methods_of(called), base)
    for name in runtime:
        if re.search(rf"unexpected keyword argument '{name}'|takes no arguments", str(cause)):
            return f"{key}: {target} should take an argument {name!r}, which ncsn_cli gives it"
    if not isinstance(cause, TypeError | ValueError):
        return f"{key}: {target} failed: {type(cause).__name__}: {one_line(str(cause))}"
    is_key = "unexpected keyword argument" in str(cause)
    if group in _CALLED and not isinstance(called, type) and not is_key:
        what = f"{num_arguments(key)} argument" + ("s" if num_arguments(key) > 1 else "")
        return (
            f"{key}: {target} should be a function of {what}, with _partial_: true beside its"
            f" _target_ ({one_line(str(cause))}); see {_path_of(_CALLED[group])}"
        )
    return reason_of(key, cause, known)


def adopted(key: str, made: Any, settings: Config) -> Any:  # noqa: ANN401
    """Return ``made``, which was made with the ``settings`` of the group ``key``, as one of it.

    An object of a class of the user's own that does not inherit from the group's base class gets
    the defaults of that class: its class becomes a subclass of both. (Modifies ``made``.)

    Raises:
        ConfigError: If ``made`` lacks a method or an attribute that the base class names.
    """
    group, target = key.partition(".")[0], str(settings["_target_"])
    if group == "dataset" and gives_draws_only(made):
        return _as_draws(made, settings)
    name = target if type(made).__name__ == target.rpartition(".")[2] else f"what {target} returns"
    if group in _INHERITED and not isinstance(made, _INHERITED[group]):
        raise ConfigError(f"{key}: {name} should be a {_path_of(_INHERITED[group])}")
    if group == "model" and type(made).forward is nn.Module.forward:
        raise ConfigError(_lack(key, name, ["forward"], nn.Module))
    if group in _CALLED and not callable(made):
        raise ConfigError(_lack(key, name, ["__call__"], _CALLED[group]))
    if group == "init":
        _check_arguments(key, name, made, Init)
    bases = () if isinstance(made, FromData) else _BASES.get(group, ())
    base = next((each for each in bases if isinstance(made, each)), None)
    if bases and base is None:
        base = next((each for each in bases if not _lacking(made, each)), bases[0])
    if base is not None and (names := _lacking(made, base)):
        raise ConfigError(_lack(key, name, names, base))
    if base is not None and group != "dataset":
        _check_arguments(key, name, made, base)
    if base is not None and not isinstance(made, base):
        kind = type(made)
        names_of = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        try:
            both = type(kind.__name__, (kind, base), names_of)
            object.__setattr__(made, "__class__", both)  # a frozen dataclass refuses its own
        except TypeError:
            raise ConfigError(
                f"{key}: {name} should be a class that inherits from {_path_of(base)}"
            ) from None
    return checked_levels(made) if isinstance(made, Schedule) else made


def _as_draws(made: object, settings: Config) -> Sampled:
    """Return the law of the draws of ``made``, a dataset that was made with ``settings``."""
    values = vars(made) if isinstance(made, Dataset) else settings
    of_the_training_set = {k: v for k, v in values.items() if k in ("num_samples", "seed")}
    try:
        return Sampled(made, **of_the_training_set)
    except ValidationError as error:
        raise ConfigError(reason_of("dataset", error)) from error


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _methods_of(base: type) -> list[str]:
    """Return the names of the methods that a ``base`` has to have: its abstract ones.

    A dataset with a score needs the others that come with a density, too.
    """
    of_a_density = {"has_density", "log_prob", "posterior", "score"} if base is Dataset else set()
    return sorted(of_a_density.union(getattr(base, "__abstractmethods__", ())))


def _lack(key: str, name: str, names: list[str], base: type) -> str:
    """Return the line that refuses ``name``, which lacks ``names`` of the class ``base``."""
    kind = "method" if callable(getattr(base, names[0], None)) else "attribute"
    lacks = f"{kind}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
    return f"{key}: {name} has no {lacks}; see {_path_of(base)}"


def _lacking(made: object, base: type) -> list[str]:
    """Return the methods that ``made`` lacks to be a ``base``, or else the attributes."""
    missing = [
        name
        for name in _methods_of(base)
        if not callable(getattr(made, name, None))
        or getattr(type(made), name, None) is getattr(base, name)
    ]
    if missing:
        return missing
    attributes = {
        name: None
        for kind in base.__mro__
        for name, kind_of in inspect.get_annotations(kind).items()
        if not str(kind_of).startswith("ClassVar") and not hasattr(base, name)
    }
    nothing = object()  # found statically: a property may be slow to compute
    return [n for n in attributes if inspect.getattr_static(made, n, nothing) is nothing]


def _check_arguments(key: str, name: str, made: object, base: type) -> None:
    """Raise if a method of ``made`` that ``base`` names does not take the arguments it gets."""
    for method in _methods_of(base):
        _, *arguments = inspect.signature(getattr(base, method)).parameters
        try:
            inspect.signature(getattr(made, method)).bind(*arguments)
        except TypeError:
            raise ConfigError(
                f"{key}: {name}.{method} should take the arguments {', '.join(arguments)}; see"
                f" {_path_of(base)}"
            ) from None


def try_metrics(
    metrics: Mapping[str, SampleMetric], truth: Dataset, sigma: float, num: int
) -> None:
    """Check that each metric of the user's own returns a number for at most ``num`` draws.

    Raises:
        ConfigError: If it does not.
    """
    num, stream = min(num, MOST_TRIED), random_stream(0, "trial of metrics")
    for name, metric in metrics.items():
        draws = truth.sample(num, sigma=sigma, generator=stream)

        def measure(metric: SampleMetric = metric, draws: Tensor = draws) -> float:
            return metric.distance(truth, sigma, num)(draws, stream)

        try_own(f"metric.{name}", metric, "distance", measure, None)


def try_sampler(sampler: Sampler, plan: list[Level], dim: int) -> None:
    """Check what the first steps of a sampler of the user's own return, for a Gaussian in D = dim.

    Raises:
        ConfigError: If they return something else than points.
    """
    stream, sigmas = random_stream(0, "trial of a sampler"), torch.tensor([s for s, *_ in plan])
    x = torch.randn(dim, 3, generator=stream).mT

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return -x / (1 + sigma**2)

    def log_prob(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x**2).sum(-1) / 2 / (1 + sigma**2)

    def at(index: int) -> Step:
        _, tau, steps = plan[index]
        return Step(score, sigmas, index, tau, steps, stream, log_prob)

    def langevin() -> Tensor:
        first = next(index for index, level in enumerate(plan) if level.steps)
        moved, _ = next(iter(sampler.langevin(at(first), x)), (x, None))
        return moved

    def step_down() -> Tensor:
        moved, _ = sampler.step_down(at(0), x, ())
        return moved

    if isinstance(sampler, Foreign):
        chosen = sigmas[some_levels(len(sigmas), _MOST_LEVELS_TRIED)]
        try:
            sampler(score, x, chosen, generator=stream)
        except NcsnError as error:
            trial = f"in a trial with {len(x)} points on {len(chosen)} levels"
            raise type(error)(f"{error} ({trial})") from error
        return
    if any(level.steps for level in plan):
        try_own("sampler", sampler, "langevin", langevin, (3, dim))
    if sampler.descends and len(plan) > 1:
        try_own("sampler", sampler, "step_down", step_down, (3, dim))


def try_own(
    key: str,
    made: object,
    call: str,
    run: Callable[[], object],
    shape: object,
    may_be_none: bool = False,
) -> None:
    """Check what ``run`` returns, a call of the method ``call`` of a class of the user's own.

    ``shape`` is that of the tensor that it should return; None for a number. ``may_be_none`` says
    that it may return None instead.

    Raises:
        ConfigError: If the call fails, or returns something else.
    """
    made = getattr(made, "func", made)  # options make partials
    kind: Any = made if inspect.isfunction(made) else type(made)
    if kind.__module__.partition(".")[0] in ("ncsn_cli",):
        return
    name = _path_of(kind) if call == "__call__" else f"{_path_of(kind)}.{call}"
    try:
        found = run()
    except UnknownTruthError:  # what needs more than draws is refused later, or null
        return
    except (NcsnError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError(f"{key}: {name} failed: {reason}") from error
    if found is None and may_be_none:
        return
    if shape is None:
        is_right = isinstance(found, int | float) or getattr(found, "shape", None) == ()
    else:
        is_right = isinstance(found, Tensor) and found.shape == shape
    if not is_right:
        expected = "a number" if shape is None else f"a tensor {shape}"
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found))
        raise ConfigError(f"{key}: {name} should return {expected}, got {got}")
