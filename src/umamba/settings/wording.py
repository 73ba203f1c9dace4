"""Words of the validator's messages: allowed values of a key, similar names, values as on the command line."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

from umamba.settings.fields import Key

_SHOWN = 200  # characters of a value in a message


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a mistyped one most probably means.

    Args:
        name: the mistyped name.
        known: the names that exist.

    Returns:
        The most similar name, or the only one that begins with `name`; None without such a name.

    >>> nearest("bf16", ["32-true", "bf16-mixed"]), nearest("lsat", ["last", "best"]), nearest("x", ["last"])
    ('bf16-mixed', 'last', None)
    """
    close = difflib.get_close_matches(name, known, n=1)
    begun = [entry for entry in known if len(name) > 2 and entry.startswith(name)]
    return close[0] if close else begun[0] if len(begun) == 1 else None


def unknown_name(name: str, section: str, known: Iterable[str]) -> str:
    """Return the message about an unknown key, with the most similar known one.

    Args:
        name: the unknown key.
        section: dotted name of the record.
        known: keys of the record.
    """
    names = sorted(known)
    close = nearest(name, names)
    hint = f" Did you mean '{join(section, close)}'?" if close else ""
    return f"Unknown key '{join(section, name)}'.{hint} Keys of {section or 'the configuration'}: {', '.join(names)}."


def wrong_choice(path: str, value: Any, choices: Iterable[str]) -> str:
    """Return the message about a value that is none of the choices, with the most similar choice.

    Args:
        path: dotted name of the key.
        value: the wrong value.
        choices: the allowed values.
    """
    names = list(choices)
    close = nearest(str(value), names)
    hint = f" Did you mean {close}?" if close else ""
    return f"{path}={value}: must be one of {', '.join(names)}.{hint}"


def not_given(paths: Sequence[str]) -> str:
    """Return the message about required keys that have no value.

    Args:
        paths: dotted names of the keys.

    >>> not_given(["study"])
    'A required value is not given: study. Add it to the command: study=...'
    """
    values = " ".join(f"{path}=..." for path in paths)
    if len(paths) == 1:
        return f"A required value is not given: {paths[0]}. Add it to the command: {values}"
    return f"These required values are not given: {', '.join(paths)}. Add them to the command: {values}"


def no_such_file(path: str, file: Path) -> str:
    """Return the message about a path that does not exist; it mentions quotes if a shell would need them.

    Args:
        path: dotted name of the key.
        file: the path.
    """
    quotes = "" if re.fullmatch(r"[\w./:@%+,~-]*", str(file)) else ", and put quotes around the whole argument"
    return f"{path}={file}: there is no such file or folder. Check the path{quotes}."


def described(kind: Any, limits: Key) -> str:
    """Describe the allowed values of a key in words.

    Args:
        kind: type of the key.
        limits: limits of the key.

    >>> described(float | None, Key(low=0, high=1))
    'a number from 0 to 1, or null'
    """
    parts = [_described(entry, limits) for entry in alternatives(kind) if entry is not type(None)]
    if type(None) in alternatives(kind):
        parts.append("null")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f", or {parts[-1]}"


def _described(kind: Any, limits: Key) -> str:
    if is_literal(kind):
        choices = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in typing.get_args(kind)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)} {_plural(arguments[0], limits)}"
        count = " or ".join(map(str, limits.lengths)) + " " if limits.lengths else ""
        return f"a list of {count}{_plural(arguments[0], limits)}"
    if is_dataclass(kind) or typing.get_origin(kind) in (Mapping, dict):
        return "a group of keys"
    names = {bool: "true or false", str: "text", Path: "a path"}
    if kind in names:
        return names[kind]
    return ("a whole number" if kind is int else "a number") + _range(limits)


def _plural(kind: Any, limits: Key) -> str:
    if typing.get_origin(kind) is tuple:
        return f"lists of {_plural(typing.get_args(kind)[0], limits)}"
    if typing.get_origin(kind) in (Mapping, dict) or kind is Mapping:
        return "groups of keys"
    if is_literal(kind):
        choices = typing.get_args(kind)
        what = "numbers" if all(isinstance(choice, int) for choice in choices) else "names"
        return f"{what} out of {', '.join(map(str, choices))}"
    if is_dataclass(kind):
        return "groups of keys"
    numbers = {int: f"whole numbers{_range(limits)}", float: f"numbers{_range(limits)}"}
    return {**numbers, bool: "true or false", Path: "paths"}.get(kind, "names")


def _range(limits: Key) -> str:
    """Return the limits in words, such as ' from 0 to 1' or ' above 0'; empty without limits."""
    parts = []
    if limits.low is not None or limits.above is not None:
        parts.append(f"from {_number(limits.low)}" if limits.low is not None else f"above {_number(limits.above)}")
    if limits.high is not None:
        parts.append(f"{'to' if limits.low is not None else 'up to'} {_number(limits.high)}")
    elif limits.below is not None:
        parts.append(f"below {_number(limits.below)}")
    elif limits.low is not None:
        parts.append("on")
    joined = " ".join(parts) if limits.below is None and limits.above is None else " and ".join(parts)
    return f" {joined}" if joined else ""


def _number(value: float | None) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself.

    Args:
        kind: a type.
    """
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def is_literal(kind: Any) -> bool:
    """Return whether a type is a Literal.

    Args:
        kind: a type.
    """
    return typing.get_origin(kind) is Literal


def is_choice(kind: Any) -> bool:
    """Return whether a type only allows listed values.

    Args:
        kind: a type.
    """
    kinds = alternatives(kind)
    literals = [is_literal(entry) for entry in kinds]
    return any(literals) and all(literal or entry is type(None) for literal, entry in zip(literals, kinds, strict=True))


def shown(value: Any) -> str:
    """Return a value as it is written on the command line, cut after 200 characters.

    Args:
        value: the value.
    """
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = "null" if value is None else str(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def join(section: str, name: str) -> str:
    """Return the dotted name of a key.

    Args:
        section: dotted name of the record; empty: none.
        name: the key.
    """
    return f"{section}.{name}" if section else name
