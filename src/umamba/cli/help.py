"""Write the help of a command from its settings record: every key with its type, range, default and sentence."""

import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from umamba import settings
from umamba.cli.main import Command
from umamba.cli.share import share
from umamba.settings.fields import Key
from umamba.settings.validate import described, plain

_WIDTH = 110
_OPTIONS = (
    "Options",
    "  -m                   run the command once for each value of key=a,b,c",
    "  --config-dir FOLDER  also take config groups and options from this folder",
    "  --cfg job            show all settings that result, and run nothing; --package KEY shows a part of them",
)


def command_help(command: Command) -> str:
    """Return the help of a command: its sentence, examples, groups with their options, and keys.

    Args:
        command: the command.
    """
    lines = [command.sentence, "", "Examples"]
    lines += [f"  {text}" if text.startswith("eval") else f"  umamba {text}" for text in command.examples]
    if command.record is None:
        module = typing.cast(Any, __import__(f"umamba.cli.{command.module}", fromlist=["ARGUMENTS"]))
        extra = getattr(module, "ARGUMENTS", "")
        return "\n".join([*lines, *(["", extra] if extra else [])])
    record = getattr(settings, command.record)
    if issubclass(record, settings.TrainSettings):
        lines += ["", "Groups: group=option", *_groups()]
    lines += ["", *_OPTIONS]
    lines += ["", "Keys: key=value (the value in brackets is the default)", *_keys(record, "")]
    return "\n".join(lines)


def _groups() -> Iterator[str]:
    """Yield the lines of the config groups."""
    for folder in sorted(path for path in share("configs").iterdir() if path.is_dir()):
        names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        yield from textwrap.wrap(
            f"{folder.name}: {names}", _WIDTH, initial_indent="  ", subsequent_indent=" " * (4 + len(folder.name))
        )


def _keys(record: type[Any], section: str) -> Iterator[str]:
    """Yield the lines of a record's keys, and after them those of its groups."""
    hints = typing.get_type_hints(record)
    groups = []
    for entry in fields(record):
        limits, kind = entry.metadata.get("key"), hints[entry.name]
        if limits is None:
            continue
        name = f"{section}.{entry.name}" if section else entry.name
        variants = limits.variants
        if variants is not None:
            for variant in (found for known, found in variants.items() if known):
                groups.append(
                    (f"{name}={_default_name(variant)}", f"{(variant.__doc__ or '').splitlines()[0]}", variant)
                )
        elif is_dataclass(kind):
            groups.append((name, limits.sentence, kind))
        else:
            yield from _key(name, kind, limits, entry)
    for title, sentence, kind in groups:
        yield ""
        yield f"  {title}: {sentence}"
        yield from _keys(kind, title.split("=")[0])


def _default_name(variant: type[Any]) -> str:
    """Return the name of a variant of a group."""
    return str(next(entry.default for entry in fields(variant) if entry.name == "name"))


def _key(name: str, kind: Any, limits: Key, entry: Any) -> Iterator[str]:
    """Yield the lines of one key."""
    default = "required" if entry.default is MISSING else _shown(plain(entry.default))
    takes = described(kind, limits)
    sentence = limits.sentence if limits.sentence.endswith((".", '"', "...")) else f"{limits.sentence}."
    yield f"  {name} [{default}]"
    yield from textwrap.wrap(
        f"{sentence} Takes {takes}.",
        _WIDTH,
        initial_indent="      ",
        subsequent_indent="      ",
        break_on_hyphens=False,
    )


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, Path) else value.as_posix()
