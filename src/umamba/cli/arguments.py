"""Check the form of a command line: unknown options, words without a key, missing keys; show the right command."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from umamba.cli.words import required_keys
from umamba.io.errors import UserError
from umamba.settings import InvalidSettings
from umamba.settings.wording import nearest

_SWITCHES = ("-m", "--multirun", "--resolve", "--hydra-help", "-r", "--run")
# Hydra's options that take a word, with the words that they take; an empty tuple: any.
_TAKE = {
    **dict.fromkeys(("-c", "--cfg"), ("job", "hydra", "all")),
    **dict.fromkeys(("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("-p", "--package"), ()),
}


def checked_arguments(name: str, record: Any, arguments: Sequence[str]) -> list[str]:
    """Return the arguments if each is an override or an option that Hydra has.

    Args:
        name: the command.
        record: its settings record.
        arguments: the arguments, as typed.

    Returns:
        The overrides, and after them the options; `--cfg=job` as two words.

    Raises:
        InvalidSettings: all unknown options and words without a key, with the command as it should be.
    """
    kept: list[str] = []
    options: list[str] = []
    corrected: list[str] = []
    words: list[str] = []
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        following = rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else None
        given = value if equals else following
        takes = _TAKE.get(option)
        if word in _SWITCHES:
            options.append(word)
        elif takes is not None and given is not None and (given in takes or not takes):
            options += [option, given]
            rest = rest if equals else rest[1:]
        elif option == "--info" and given is None:
            options.append(option)
        elif word.startswith("-"):
            problems.append(_wrong_option(option, record))
            if key := _meant(option, record):
                corrected.append(f"{key}={'true' if given is None else given}")
                rest = rest if equals or following is None else rest[1:]
        elif not equals and not word.startswith("~"):
            problems.append(f"{word}: must be key=value or group=option.")
            words.append(word)
        else:
            kept.append(word)
    if problems:
        usage = _usage(name, record, [*kept, *corrected, *options], words)
        raise UserError(f"{InvalidSettings(problems)}\n{usage}")
    return [*kept, *options]


def with_usage(error: InvalidSettings, name: str, record: Any, arguments: Sequence[str]) -> UserError:
    """Return an error whose message also shows the command with its required keys, if one of them is missing.

    Args:
        error: the mistakes in the settings.
        name: the command.
        record: its settings record.
        arguments: the arguments, as typed.
    """
    missing = missing_keys(record, arguments)
    if any(f"{key}=..." in str(error) for key in missing):
        return UserError(f"{error}\n{_usage(name, record, arguments, ())}")
    return error


def missing_keys(record: Any, overrides: Sequence[str]) -> list[str]:
    """Return the required keys that no override gives; a preset gives those of a training.

    Args:
        record: the settings record of the command.
        overrides: the overrides, as typed.
    """
    given = {override.lstrip("+").split("=")[0] for override in overrides if "=" in override}
    if "experiment" in given:
        return []
    return [key for key in required_keys(record) if not given & {key, key.split(".")[0]}]


def _usage(name: str, record: Any, arguments: Sequence[str], words: Sequence[str]) -> str:
    """Return the right command; words without a key become the values of the missing keys."""
    missing = missing_keys(record, arguments)
    values = [*words, *["..."] * len(missing)]
    filled = [f"{key}={value}" for key, value in zip(missing, values, strict=False)]
    first = next((index for index, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    return f"Usage: {shlex.join(['umamba', name, *arguments[:first], *filled, *arguments[first:]])}"


def _meant(option: str, record: Any) -> str | None:
    """Return the key that an option most probably means: --output, -o."""
    name = option.lstrip("-").replace("-", "_")
    keys = [entry.name for entry in fields(record)]
    if len(name) > 1:
        return nearest(name, keys)
    return next((key for key in required_keys(record) if key.startswith(name)), None)


def _wrong_option(option: str, record: Any) -> str:
    key = _meant(option, record)
    return f"{option}: no such option. Values are written as key=value{f': {key}=...' if key else ''}"
