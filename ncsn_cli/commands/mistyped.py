"""Mistakes of typing in the words of a command line, found before Hydra reads them.

Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection

from hydra._internal.utils import get_args_parser

from ncsn_cli.commands.names import for_shell, override
from ncsn_cli.commands.suggestions import (
    SEVERAL,
    did_you_mean,
    known_keys,
    known_names,
    known_options,
    nearest,
    nearest_key,
)
from ncsn_cli.core.errors import ConfigError

START = re.compile(r"~|[+]{0,2}[\w./@-]+=", re.ASCII)
"""The start of a word that is an override."""

_DOUBLED = re.compile(r"([+]{0,2}[\w./@-]+)==+([^=].*)", re.ASCII)


def refuse_mistyped(name: str, words: list[str], has_files: bool = False) -> None:
    """Check that ``words``, after ``ncsn-name``, are Hydra's flags and overrides ``key=value``.

    ``has_files`` says that words without ``=`` are names of files.

    Raises:
        ConfigError: If a word is neither. The error says what to type instead.
    """
    # Read flags that name a key, such as --seed, as that key; Hydra would read --e or -m in them.
    meant = {w: _as_key(w) for w in words if len(w) > 2 and _names_a_key(name, w)}
    meant |= {w: "=".join(both.groups()) for w in words if (both := _DOUBLED.match(w))}
    args, unknown = _parse(words, meant)
    if args.help or args.hydra_help or args.shell_completion:
        return
    if flags := [word for word in unknown if word.startswith("-")]:
        keys = {_as_key(word).partition("=")[0] for word in words}
        meant |= {word: _nearest_override(name, word, keys) for word in flags}
        args, unknown = _parse(words, meant)
    if unknown:
        _refuse_parts(words, [*args.overrides, *unknown])
    # Put together what the shell has split, and look at what then is no override.
    wrong, right = [], []
    typed = {new: word for word, new in meant.items()}
    for chunk in _chunks(name, args.overrides, has_files):
        is_fine = len(chunk) == 1 and (has_files or START.match(chunk[0]))
        if not is_fine or chunk[0] in typed:
            wrong += [typed.get(word, word) for word in chunk]
            right.append(_mended(name, chunk, wrong[-len(chunk) :]))
    if wrong:
        raise ConfigError(
            f"{' '.join(wrong)}: an override is one word, key=value; type {' '.join(right)}"
        )


def _parse(words: list[str], meant: dict[str, str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what Hydra would read, and the words that it would not accept."""
    return get_args_parser().parse_known_args([meant.get(word, word) for word in words])


def _as_key(flag: str) -> str:
    """Return ``flag`` without its dashes in front, and with _ for the dashes in its key."""
    key, is_given, value = flag.lstrip("-").partition("=")
    return f"{key.replace('-', '_')}{is_given}{value}"


def _names_a_key(name: str, word: str) -> bool:
    return word.startswith("-") and re.split(r"[=.@/]", _as_key(word))[0] in known_names(name)


def _nearest_override(name: str, flag: str, typed: Collection[str]) -> str:
    """Return the override that ``flag``, which Hydra does not know, may stand for.

    ``typed`` are the keys of the command line.

    Raises:
        ConfigError: If no key is near.
    """
    key, is_given, value = _as_key(flag).partition("=")
    found = nearest_key(key, known_keys(name))
    if found is None:
        flags = re.findall(r"--[a-z-]+", get_args_parser().format_usage())
        near = did_you_mean(flag.partition("=")[0], flags)
        raise ConfigError(
            f"{flag}: there is no such flag{near or ', and no key near it; --help lists the keys'}"
        )
    return f"{with_plus(name, found, typed)}{is_given}{value}"


def with_plus(name: str, key: str, typed: Collection[str]) -> str:
    """Return ``key`` as ``ncsn-name`` takes it: with ++ if it may change a checkpoint's value.

    It may not if its option, or an exact score without a checkpoint, is among the keys ``typed``.
    """
    may_be_in_checkpoint = name == "sample" and "." in key
    places = ("hydra.", "paths.", *(f"{group}." for group in SEVERAL))
    has_no_checkpoint = "score" in typed and "checkpoint" not in typed
    is_here = key.partition(".")[0] in typed or has_no_checkpoint
    return (
        f"++{key}" if may_be_in_checkpoint and not key.startswith(places) and not is_here else key
    )


def _refuse_parts(words: list[str], overrides: list[str]) -> None:
    """Raise, with the right order, as Hydra accepts overrides in one unbroken group only."""
    flags = [word for word in words if word not in overrides]
    command = " ".join([os.path.basename(sys.argv[0]), for_shell([*flags, *overrides])])
    raise ConfigError(f"overrides stand side by side, behind the flags; type {command}")


def _chunks(name: str, words: list[str], has_files: bool) -> list[list[str]]:
    """Return ``words`` in groups, each of the words that one override was split into."""
    chunks: list[list[str]] = []
    for word in words:
        if chunks and not START.match(word) and _belongs(name, chunks[-1], word, has_files):
            chunks[-1].append(word)
        else:
            chunks.append([word])
    return chunks


def _belongs(name: str, chunk: list[str], word: str, has_files: bool) -> bool:
    """Return whether ``word``, which does not start an override, goes on with ``chunk``."""
    text = " ".join(chunk)
    if len(chunk) == 1 and "=" not in text:
        is_file = has_files and os.path.exists(word)
        is_value = _is_key(name, text) and not _is_key(name, word) and not is_file
        return word.startswith("=") or is_value
    is_unfinished = text.endswith(("=", ",")) or word.startswith(",") or _is_open(text)
    return is_unfinished or os.path.exists(f"{text.partition('=')[2]} {word}")


def _is_open(text: str) -> bool:
    """Return whether a bracket in ``text`` is not closed."""
    return sum(map(text.count, "[{(")) > sum(map(text.count, ")}]"))


def _is_key(name: str, word: str) -> bool:
    """Return whether ``word`` is a key, or inside a group and no file."""
    key = word.lstrip("+")
    if not re.fullmatch(r"\w+(\.\w+)*", key) or os.path.exists(word):
        return False
    return key in known_keys(name) or ("." in key and key.split(".")[0] in known_names(name))


def _mended(name: str, chunk: list[str], typed: list[str]) -> str:
    """Return the override, for a shell, that the words ``chunk``, shown as ``typed``, stand for.

    Raises:
        ConfigError: If no override is near.
    """
    text = " ".join(chunk)
    if _is_open(text):
        raise ConfigError(f"{' '.join(typed)}: a bracket is not closed")
    if parts := re.fullmatch(r"([^\s=]+)(?:\s*==?\s*|\s+)(.*)", text):
        key, value = parts.groups()
        if len(chunk) > 1 and os.path.exists(value):
            return override(key, value)
        value = re.sub(r"\s*([][{}(),:])\s*", r"\1", value)
        return for_shell([f"{key}={value}"])
    if _is_key(name, text):
        return f"{text}=VALUE"
    key, colon, value = text.partition(":")
    if colon and _is_key(name, key):
        return for_shell([f"{key}={value}"])
    return _option(name, text, " ".join(typed))


def _option(name: str, word: str, typed: str) -> str:
    """Return the override that chooses ``word``, the name of an option or path of a checkpoint.

    Raises:
        ConfigError: If no option has this name. The error names the nearest option or key.
    """
    if name == "sample" and os.path.exists(word):
        return override("checkpoint", word)
    groups = [group for group in ("experiment", *known_names(name)) if group != "paths"]
    options = {
        option: f"{group}=[{option}]" if group in SEVERAL else f"{group}={option}"
        for group in reversed(groups)
        for option in known_options(group)
    }
    if word in options:
        return for_shell([options[word]])
    near = nearest(word, options)
    meant = did_you_mean(word, known_names(name)) or (near and f"; did you mean {options[near]}?")
    raise ConfigError(f"{typed}: an override is key=value{meant or '; --help lists the keys'}")
