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
from contextlib import suppress
from typing import Any

import hydra
from hydra.errors import InstantiationException
from torch import Tensor

from ncsn_cli.commands.config import Config, reason_of, shortened
from ncsn_cli.commands.contract import adopted, num_arguments, why_not_made
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError, one_line
from ncsn_cli.core.settings import random_stream
from ncsn_cli.samplers import External
from ncsn_cli.schedules import FromData, Schedule

log = logging.getLogger(__name__)

_MODULES = [
    f"ncsn_cli.{name}"
    for name in ("datasets", "inits", "losses", "mistakes", "models", "samplers", "schedules")
]


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
            inspect.signature(made.func).bind(*[None] * num_arguments(key), **made.keywords)
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        is_ours = str(settings["_target_"]).startswith("ncsn_cli.")
        is_torchs_own = isinstance(cause, RuntimeError) and (is_ours or "memory" in str(cause))
        if key != "optimizer" and (is_torchs_own or isinstance(cause, MemoryError)):
            raise cause from None  # such as too little memory for a wide network
        is_torchs = key == "optimizer" and not re.search("keyword|no arguments", str(cause))
        if is_torchs:
            raise ConfigError(what_torch_refuses(settings, cause)) from error
        called = None
        with suppress(Exception):  # Hydra's own line says why there is no such object
            called = hydra.utils.get_object(settings["_target_"])
        raise ConfigError(
            why_not_made(key, settings["_target_"], called, cause, runtime)
        ) from error
    return adopted(key, made, settings)


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
    is_partial = values.pop("_partial_", False)
    called: Callable[..., Any] | None = None
    target = values.pop("_target_", None)
    try:
        if named is not None and named == target:
            called = hydra.utils.get_class(named)
        else:
            called = known_class(target, plugins, with_functions=is_partial)
        made = functools.partial(called, **values) if is_partial else called(**values)
        if isinstance(made, External):
            _check_function(made, plugins)
    except (AttributeError, ConfigError, ImportError, TypeError, ValueError) as error:
        raise ConfigError(why_not_made(key, str(target), called, error, runtime)) from error
    return adopted(key, made, settings)


def _check_function(sampler: External, plugins: Sequence[str]) -> None:
    """Raise if a checkpoint's ``sampler`` calls a function that is not defined in ``plugins``."""
    with suppress(ConfigError, ImportError, ValueError):
        if sampler.target and not sampler.target.startswith("ncsn_cli."):
            known_class(sampler.target, plugins, with_functions=True)
            return
    raise ConfigError(
        "target: a checkpoint may name no function; choose sampler=external again on the command"
        " line, or name the module that defines it in plugins=[MODULE]"
    )


def known_class(
    target: object, plugins: Sequence[str] = (), with_functions: bool = False
) -> Callable[..., Any]:
    """Return what a checkpoint's ``_target_`` names, if a checkpoint may name it.

    A checkpoint may name a public name of this package's modules. It may also name a public class
    (or function, ``with_functions``) that is defined in or below one of the modules ``plugins``,
    which the user names.

    Raises:
        ConfigError: If ``target`` is anything else.
    """
    module, _, name = str(target).rpartition(".")
    if module in plugins and not name.startswith("_"):
        own: Any = getattr(importlib.import_module(module), name, None)
        is_kind = isinstance(own, type) or (with_functions and inspect.isfunction(own))
        if is_kind and f"{own.__module__}.".startswith(f"{module}."):
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

    Raises:
        ConfigError: If they are not finite.
    """
    data = dataset.training_set()
    if data is None:
        log.info(
            "the dataset has no fixed size (num_samples=null), so its scale is measured on 10000"
            " fresh draws"
        )
        data = dataset.sample(10_000, generator=random_stream(seed, "data seen beforehand"))
    if not bool(data.isfinite().all()):
        raise ConfigError("dataset: its draws are not finite; choose less extreme values")
    return data


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
