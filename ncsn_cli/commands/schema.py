"""The JSON Schema of a command's configuration, from the signatures of what options build."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

from hydra.utils import get_object
from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.commands.config import (
    Config,
    MeasureSettings,
    SampleSettings,
    Settings,
    TrainSettings,
)
from ncsn_cli.commands.suggestions import SEVERAL, known_names, known_options, option_settings

_RUN_KEYS: dict[str, type[Settings]] = {
    "train": TrainSettings, "sample": SampleSettings, "measure": MeasureSettings
}  # fmt: skip
_NO_PARTS = {"experiment", "hparams_search", "hydra"}
"""Groups that choose options of other groups, and hold nothing themselves."""

_NOT_CONFIGURED = {"self", "dim", "params", "scene"}
"""Parameters that the program gives itself."""


def schema_of(command: str) -> Config:
    """Return the JSON Schema (2020-12) of ``config.yaml`` of ``ncsn-command``."""
    properties: Config = {}
    for kind in (MeasureSettings, SampleSettings, _RUN_KEYS[command]):
        properties |= _parameters(kind)  # an experiment may hold the others' keys, too
    for name in known_names(command):
        if name in properties or name in _NO_PARTS:
            continue
        options = {option: _option(name, option) for option in known_options(name)}
        of_plain_values = [o for o in options.values() if "_target_" not in o["properties"]]
        if name in SEVERAL:
            properties[name] = {"type": ["object", "null"], "properties": options}
        elif of_plain_values:  # such as paths
            properties[name] = of_plain_values[0]
        else:
            known = [option["properties"]["_target_"]["const"] for option in options.values()]
            own = {
                "title": "another class, such as your own",
                "required": ["_target_"],
                "properties": {"_target_": {"not": {"enum": sorted(set(known))}}},
            }
            others = [own, {"type": "null"}]
            if command != "train":  # single values are merged into the checkpoint's
                others.append({"title": "single values", "not": {"required": ["_target_"]}})
            properties[name] = {"anyOf": [*options.values(), *others]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ncsn-{command}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def as_text(schema: Config) -> str:
    """Return ``schema`` as JSON, with quotes in place of the marks for code in descriptions."""
    return re.sub(r"``([^`]*)``", r"'\1'", json.dumps(schema))


def _option(group: str, option: str) -> Config:
    """Return the schema of what ``option`` of ``group`` builds; defaults are its own values."""
    values = option_settings(group, option)
    for base in values.pop("defaults", []):  # an option with other values than another one
        if base != "_self_":
            values = {**option_settings(group, base), **values}
    target = values.pop("_target_", None)
    fixed = {key: {"const": values.pop(key)} for key in ("_partial_",) if key in values}
    known = {} if target is None else _parameters(get_object(target))
    properties = {key: {**known.get(key, {}), "default": value} for key, value in values.items()}
    schema: Config = {"title": option, "type": "object"}
    if target is not None:
        fixed["_target_"] = {"const": target}
        lines = inspect.getdoc(get_object(target)) or ""
        schema["description"] = lines.partition("\n\n")[0].replace("\n", " ")
        schema["required"] = ["_target_"]
    path = config_dir() / group / f"{option}.yaml"
    schema["properties"] = {**fixed, **_with_comments(path, properties)}
    # What a preset leaves out has its constructor's default; an optimizer takes torch's own keys.
    schema["additionalProperties"] = group == "optimizer"
    return schema


def _parameters(target: Any) -> dict[str, Config]:  # noqa: ANN401
    """Return the schema of each parameter of a class or function, with its description."""
    annotated = target  # a function, or a dataclass
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        annotated = target.__init__
    hints = get_type_hints(annotated, include_extras=True)
    texts, found = described(target), {}
    for name in inspect.signature(target).parameters:
        if name in _NOT_CONFIGURED:
            continue
        try:
            found[name] = TypeAdapter(
                hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True)
            ).json_schema()
        except (PydanticUserError, ValueError):  # a type that JSON does not have
            found[name] = {}
        if name in texts:
            found[name]["description"] = texts[name]
    return found


def described(target: Any) -> dict[str, str]:  # noqa: ANN401
    """Return what the docstring of a class or function says of each parameter, in one line.

    What stands in its base classes counts, too.
    """
    kinds = target.__mro__[::-1] if inspect.isclass(target) else [target]
    found: dict[str, str] = {}
    for kind in kinds:
        _, _, args = (inspect.getdoc(kind) or "").partition("Args:\n")
        block = re.split(r"\n(?=\S)", args)[0]
        for entry in re.split(r"\n(?= {4}\S)", "\n" + block):
            name, colon, text = entry.strip().partition(":")
            words = " ".join(text.split())
            if colon and name.isidentifier() and not (words.startswith("See ") and name in found):
                found[name] = words
    return found


def _with_comments(path: Path, properties: dict[str, Config]) -> dict[str, Config]:
    """Add the comment behind a value in the option's file where nothing else describes it."""
    lines = path.read_text("utf-8").splitlines()
    found = [m for line in lines if (m := re.match(r"(\w+):[^#]*# (.*)", line))]
    comments = {m[1]: m[2] for m in found}
    return {
        key: {"description": comments[key], **value} if key in comments else value
        for key, value in properties.items()
    }
