"""Build objects from groups of the configuration, the user's own or a checkpoint's."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from pydantic import ValidationError
from torch import Tensor, nn

from ncsn_cli.commands.config import Config, reason_of, shortened
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, NcsnError, one_line
from ncsn_cli.core.scene import Scene
from ncsn_cli.core.settings import random_stream
from ncsn_cli.inits import Init
from ncsn_cli.losses import Loss
from ncsn_cli.metrics import SampleMetric, ScoreMetric
from ncsn_cli.samplers import Sampler
from ncsn_cli.schedules import FromData, Schedule, checked_levels
from ncsn_cli.training.trainer import Trainer

log = logging.getLogger(__name__)

_MODULES = [
    f"ncsn_cli.{name}"
    for name in ("datasets", "inits", "losses", "mistakes", "models", "samplers", "schedules")
]

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


def instantiate(config: Config, key: str, **runtime: Any) -> Any:  # noqa: ANN401
    """Build and return the object of the group ``key`` that the user chose.

    ``runtime`` are further arguments of its constructor. Errors name the key.
    """
    settings = config.get(key)
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise ConfigError(f"{key}: choose an option, {key}=NAME; --help lists them")
    if given := settings.keys() & runtime.keys():
        raise ConfigError(f"{key}.{min(given)}: there is no such key; the dataset decides it")
    if key == "optimizer":
        _check_numbers(settings)
    try:
        made = hydra.utils.instantiate(settings, _convert_="all", **runtime)
        if isinstance(made, functools.partial):
            inspect.signature(made.func).bind(None, **made.keywords)
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError | RuntimeError) and key != "optimizer":
            raise cause from None  # torch's own, such as too little memory for a wide network
        is_torchs = key == "optimizer" and not re.search("keyword|no arguments", str(cause))
        if is_torchs:
            raise ConfigError(what_torch_refuses(settings, cause)) from error
        raise ConfigError(_why_not_made(key, settings["_target_"], cause, [*runtime])) from error
    return adopted(key, made, settings["_target_"])


def _why_not_made(key: str, target: str, cause: BaseException, runtime: list[str]) -> str:
    """Return one line on why calling ``target`` failed; ``runtime`` are arguments that it got."""
    try:
        called = hydra.utils.get_object(target)
    except Exception:  # Hydra's own line says why there is no such object
        return reason_of(key, cause)
    group = key.partition(".")[0]
    if isinstance(called, type) and inspect.isabstract(called):
        bases = _BASES.get(group, (_CALLED.get(group, called),))
        base = next((each for each in bases if issubclass(called, each)), bases[0])
        return _lack(key, target, _methods_of(called), base)
    for name in runtime:
        if re.search(rf"unexpected keyword argument '{name}'|takes no arguments", str(cause)):
            return f"{key}: {target} should take an argument {name!r}, which ncsn_cli gives it"
    if group in _CALLED and "missing" in str(cause) and not isinstance(called, type):
        return f"{key}: {target} is a function; write _partial_: true beside its _target_"
    return reason_of(key, cause)


def adopted(key: str, made: Any, target: str) -> Any:  # noqa: ANN401
    """Return ``made``, which ``target`` made for the group ``key``, as one of the group.

    An object of a class of the user's own that does not inherit from the group's base class gets
    the defaults of that class: its class becomes a subclass of both. (Modifies ``made``.)

    Raises:
        ConfigError: If ``made`` lacks a method or an attribute that the base class names.
    """
    group = key.partition(".")[0]
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


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _methods_of(base: type) -> list[str]:
    """Return the names of the abstract methods of ``base``."""
    return sorted(getattr(base, "__abstractmethods__", ()))


def _lack(key: str, name: str, names: list[str], base: type) -> str:
    """Return the line that refuses ``name``, which lacks ``names`` of the class ``base``."""
    kind = "method" if callable(getattr(base, names[0], None)) else "attribute"
    lacks = f"{kind}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
    return f"{key}: {name} has no {lacks}; see {_path_of(base)}"


def _lacking(made: object, base: type) -> list[str]:
    """Return the methods that ``made`` lacks to be a ``base``, or else the attributes."""
    if missing := [name for name in _methods_of(base) if not callable(getattr(made, name, None))]:
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


def try_own(key: str, made: object, call: str, run: Callable[[], object], shape: object) -> None:
    """Check what ``run`` returns, a call of the method ``call`` of a class of the user's own.

    ``shape`` is that of the tensor that it should return; None for a number.

    Raises:
        ConfigError: If the call fails, or returns something else.
    """
    kind = type(made)
    if kind.__module__.partition(".")[0] in ("ncsn_cli", "functools"):
        return
    name = _path_of(kind) if call == "__call__" else f"{_path_of(kind)}.{call}"
    try:
        found = run()
    except (NcsnError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise ConfigError(f"{key}: {name} failed: {reason}") from error
    if shape is None:
        is_right = isinstance(found, int | float) or getattr(found, "shape", None) == ()
    else:
        is_right = isinstance(found, Tensor) and found.shape == shape
    if not is_right:
        expected = "a number" if shape is None else f"a tensor {shape}"
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found))
        raise ConfigError(f"{key}: {name} should return {expected}, got {got}")


def what_torch_refuses(optimizer: Config, error: BaseException) -> str:
    """Return torch's ``error`` as one line that begins with the key of the setting it names."""
    reason = one_line(str(error))
    named = [key for key in optimizer if re.search(rf"\b{key}\b", reason, re.IGNORECASE)]
    return f"optimizer{'.' if named else ''}{''.join(named[:1])}: {reason}"


def instantiate_list(config: Config, key: str) -> dict[str, Any]:
    """Build and return, by name, the objects of a group from which several may be chosen."""
    chosen = config.get(key) or {}
    if not isinstance(chosen, dict):
        raise ConfigError(
            f"{key}: choose a list of options, {key}=[NAME,...], or in an experiment's defaults"
            f" list - override /{key}: [NAME,...]; --help lists them"
        )
    entries = {f"{key}.{name}": value for name, value in chosen.items() if value is not None}
    for path in entries:  # the names become file names
        if not re.fullmatch(r"\w[\w.+=,-]{0,99}", path.removeprefix(f"{key}.")):
            raise ConfigError(
                f"{path}: a name may hold letters, digits and _ . + = , - only, at most 100"
                " characters"
            )
    return {path.removeprefix(f"{key}."): instantiate(entries, path) for path in entries}


def _check_numbers(settings: Config) -> None:
    """Raise a ConfigError that names the key if a number of an optimizer is of a wrong kind.

    Torch's optimizers accept nan and texts, or refuse them without naming the key.
    """
    lr = settings.get("lr", 1.0)
    if isinstance(lr, bool) or not isinstance(lr, float | int) or not 0 < lr < math.inf:
        raise ConfigError(f"optimizer.lr: it should be a finite number above 0, got {lr!r}")
    if not str(settings["_target_"]).startswith("torch.optim."):
        return  # a class of the user's own checks its own numbers
    try:
        parameters = inspect.signature(hydra.utils.get_class(settings["_target_"])).parameters
    except (ImportError, ValueError, TypeError):
        return  # ``instantiate`` refuses this target, with a reason

    def is_like(value: object, default: object) -> bool:
        if isinstance(default, tuple):  # numbers, or None where torch chooses
            parts = zip(value if isinstance(value, list) else [], default, strict=False)
            return isinstance(value, list) and all(
                is_like(v, 1.0) or (v is None and d is None) for v, d in parts
            )
        if isinstance(default, bool) or isinstance(value, bool):
            return isinstance(default, bool) and isinstance(value, bool)
        return isinstance(value, float | int) and abs(value) <= sys.float_info.max

    for name, value in settings.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(default, tuple | bool | float | int) and not is_like(value, default):
            like = f"like {default}" if isinstance(default, tuple | bool) else "a finite number"
            raise ConfigError(f"optimizer.{name}: it should be {like}, got {shortened(value)}")


def build_from_checkpoint(
    settings: Config,
    key: str,
    plugins: list[str],
    named: str | None = None,
    **runtime: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Build and return the object of the group ``key`` that a checkpoint describes.

    The plain values of ``settings`` and ``runtime`` are passed to its constructor. The
    constructor must be known (see ``known_class``). A class that the user named on the command
    line (``named``) is also accepted. Errors name the key.
    """
    values = {**settings, **runtime}
    target = values.pop("_target_", None)
    try:
        if named is not None and named == target:
            made = hydra.utils.get_class(named)(**values)
        else:
            made = known_class(target, plugins)(**values)
    except (ConfigError, ValidationError, ImportError) as error:
        raise ConfigError(reason_of(key, error)) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(_why_not_made(key, str(target), error, [*runtime])) from error
    return adopted(key, made, str(target))


def known_class(target: object, plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """Return what a checkpoint's ``_target_`` names, if a checkpoint may name it.

    A checkpoint may name a public name of this package's modules. It may also name a public class
    that is defined in or below one of the modules ``plugins``, which the user names.

    Raises:
        ConfigError: If ``target`` is anything else.
    """
    module, _, name = str(target).rpartition(".")
    if module in plugins and not name.startswith("_"):
        own = getattr(importlib.import_module(module), name, None)
        if isinstance(own, type) and f"{own.__module__}.".startswith(f"{module}."):
            return own
    if module not in _MODULES or name not in importlib.import_module(module).__all__:
        raise ConfigError(
            f"_target_: {target} is no class of ncsn_cli, and a checkpoint may name no other;"
            " choose that group again on the command line, or name its module in plugins=[MODULE]"
        )
    known: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return known


def reference_data(dataset: Dataset, seed: int) -> Tensor:
    """Return points (N, D) to take scales from.

    These are the training set, or fresh draws if the dataset is endless.
    """
    data = dataset.training_set()
    if data is not None:
        return data
    log.info("the dataset is endless: 10000 draws are used wherever its scale is needed")
    return dataset.sample(10_000, generator=random_stream(seed, "data seen beforehand"))


def fit_schedule(schedule: Schedule | FromData, data: Tensor) -> tuple[Schedule, Config]:
    """Return the schedule and its settings, fitted to ``data`` (N, D) if it depends on data.

    The settings are {} for a schedule that does not depend on data.
    """
    if isinstance(schedule, Schedule):
        return schedule, {}
    try:
        fitted = schedule.fit(data)
    except ConfigError as error:
        raise ConfigError(reason_of("schedule", error)) from error
    target = f"{type(fitted).__module__}.{type(fitted).__qualname__}"
    return fitted, {"_target_": target, **dataclasses.asdict(fitted)}
