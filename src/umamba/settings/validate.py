"""Validate all settings: make frozen records from plain values, and report all mistakes in one message.

A record is a frozen dataclass that inherits `Settings`. The types and limits (`Key`) of its fields define the allowed
values. A record checks itself when it is made, so a record in a notebook is as safe as a command line.
"""

import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from umamba.io.errors import UserError
from umamba.settings.entry_points import installed
from umamba.settings.fields import Key, run_name
from umamba.settings.wording import (
    alternatives,
    described,
    is_choice,
    is_literal,
    join,
    no_such_file,
    not_given,
    shown,
    unknown_name,
    wrong_choice,
)
from umamba.settings.zoo import no_such_network, zoo_name, zoo_networks

Record = TypeVar("Record", bound="Settings")
Held = TypeVar("Held")
_LISTED = 5  # mistakes of a record that one message names
REQUIRED = "???"  # omegaconf's placeholder for a value that the user must give


class InvalidSettings(UserError):
    """Settings that cannot be used.

    Attributes:
        problems: a sentence for each mistake.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        several = f"{len(self.problems)} settings cannot be used:\n  " if len(self.problems) > 1 else ""
        super().__init__(several + "\n  ".join(self.problems))


@dataclass(frozen=True)
class Settings:
    """Base of all settings records.

    Attributes:
        section: dotted name of the record on the command line, for messages.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check and convert every value: lists become tuples, integers become floats where the type is float.

        Raises:
            InvalidSettings: all mistakes of this record.
        """
        problems: list[str] = []
        record: Any = type(self)
        for name, (kind, limits) in _declared(record).items():
            value = _checked(getattr(self, name), kind, limits, join(self.section, name), problems)
            object.__setattr__(self, name, value)
        problems = problems or list(self.conflicts())
        if problems:
            raise InvalidSettings(problems)

    def conflicts(self) -> Iterator[str]:
        """Yield a sentence for each combination of values that is impossible although each value is allowed."""
        return iter(())


def parse(record: type[Record], values: Mapping[str, Any], section: str | None = None) -> Record:
    """Make a record from plain values; absent keys get their defaults.

    Args:
        record: the settings record.
        values: nested plain values, as YAML holds them.
        section: dotted name of the record for messages; None: the record's own.

    Raises:
        InvalidSettings: all unknown keys, missing keys, wrong values and impossible combinations, one sentence each.

    >>> from umamba.settings import RecipeSettings
    >>> parse(RecipeSettings, {"optimizer": {"lr": 0.001}}).optimizer.lr
    0.001
    """
    problems: list[str] = []
    found = _parsed(record, values, record.section if section is None else section, problems)
    if problems:
        raise InvalidSettings(problems)
    return typing.cast(Record, found)


def read_record(record: type[Held], values: Any, section: str = "") -> Held:
    """Make a frozen dataclass of values that a file holds, each of the type and within the limits of its field.

    Keys that the dataclass does not declare are left out, because other programs and versions write more of them.

    Args:
        record: the dataclass; `fields.key` declares the limits of its fields.
        values: plain values, or records where the fields hold records.
        section: dotted name of the record in the file, for messages.

    Raises:
        UserError: the values are no mapping, a key is missing, or a value has another type or is outside its limits.

    >>> from dataclasses import dataclass
    >>> from umamba.settings.fields import key
    >>> @dataclass(frozen=True)
    ... class Box:
    ...     edges: tuple[int, ...] = key(low=1, lengths=(2, 3))
    >>> read_record(Box, {"edges": [4, 5], "colour": "red"}, "box")
    Box(edges=(4, 5))
    >>> read_record(Box, {"edges": [4, 0]}, "box")
    Traceback (most recent call last):
    umamba.io.errors.UserError: box.edges=[4, 0]: must be a list of 2 or 3 whole numbers from 1 on.
    """
    kind: Any = record
    declared = _declared(kind)
    if not isinstance(values, Mapping):
        raise UserError(f"{section or 'it'}={shown(values)}: must be an object with the keys {', '.join(declared)}.")
    problems: list[str] = []
    arguments = {}
    for name, (hint, limits) in declared.items():
        if name in values:
            path = join(section, name)
            if _is_number_for_text(values[name], hint):
                problems.append(f"{path}={shown(values[name])}: must be {described(hint, limits)}, not a number.")
            else:
                arguments[name] = _checked(values[name], hint, limits, path, problems)
    missing = [join(section, name) for name in declared if name in _required(kind) and name not in values]
    if missing:
        problems.insert(0, f"{', '.join(missing)}: missing. Check that it is the right file, and complete.")
    if problems:
        raise UserError(" ".join(problems[:_LISTED]))
    return record(**arguments)


def _is_number_for_text(value: Any, kind: Any) -> bool:
    """Return whether a number stands where a file must hold text; on the command line, numbers are text, too."""
    if str in alternatives(kind):
        return isinstance(value, int | float)
    return kind == tuple[str, ...] and isinstance(value, list | tuple) and any(not isinstance(v, str) for v in value)


def plain(value: Any) -> Any:
    """Return a record as nested plain values for JSON and YAML: paths become text, tuples become lists.

    Args:
        value: a record, or a value of one.

    >>> from umamba.settings import UNETRSettings
    >>> plain(UNETRSettings())["name"]
    'unetr'
    """
    if is_dataclass(value) and not isinstance(value, type):
        content = {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
        extra = content.pop(getattr(value, "open_field", ""), {})  # the keys that the record does not declare
        return {**content, **extra}
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


@cache
def _declared(record: Any) -> dict[str, tuple[Any, Key]]:
    """Return the type and limits of each field of a record."""
    hints = typing.get_type_hints(record)
    return {entry.name: (hints[entry.name], entry.metadata.get("key", Key())) for entry in fields(record)}


@cache
def _required(record: Any) -> frozenset[str]:
    """Return the names of the fields that have no default."""
    missing = [entry for entry in fields(record) if entry.default is MISSING and entry.default_factory is MISSING]
    return frozenset(entry.name for entry in missing)


def _parsed(record: Any, values: Any, section: str, problems: list[str]) -> Any:
    """Make a record from plain values; return None and add to the problems if there are mistakes."""
    if not isinstance(values, Mapping):
        example = next(iter(_declared(record)))
        problems.append(f"{section}={shown(values)}: must hold keys, such as {join(section, example)}.")
        return None
    before = len(problems)
    declared, given = _declared(record), dict(values)
    open_field = getattr(record, "open_field", "")
    arguments: dict[str, Any] = {}
    wrong: set[str] = set()
    absent: list[str] = []
    for entry in fields(record):
        path = join(section, entry.name)
        if entry.name == open_field:
            continue
        value = given.pop(entry.name, REQUIRED)
        if isinstance(value, str) and value == REQUIRED:
            if entry.name in _required(record):
                absent.append(path)
            continue
        so_far = len(problems)
        arguments[entry.name] = _checked(value, *declared[entry.name], path, problems)
        if len(problems) > so_far and not _names_files(arguments[entry.name], declared[entry.name][1]):
            wrong.add(entry.name)
    if absent:
        problems.append(not_given(absent))
    if open_field:
        arguments[open_field] = given
    else:
        known = [entry.name for entry in fields(record)]
        problems += [unknown_name(str(name), section, known) for name in given]
    failed = len(problems) > before
    try:
        if failed:
            # Also report impossible combinations of the other values; wrong values are replaced by their defaults, but
            # a path stays, although nothing is there, because it says what is meant.
            arguments = {name: value for name, value in arguments.items() if name not in wrong}
            if any(is_choice(declared[name][0]) for name in wrong) or not _required(record) <= set(arguments):
                return None
        made = record(**arguments)
        return None if failed else made
    except InvalidSettings as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def _names_files(value: Any, limits: Key) -> bool:
    """Return whether a value is a path, or several, so that only what it names can be missing."""
    entries = _listed(value)
    return limits.existing and bool(entries) and all(isinstance(entry, Path) for entry in entries)


def _checked(value: Any, kind: Any, limits: Key, path: str, problems: list[str]) -> Any:
    """Return a value converted to its type; add a sentence to the problems if that is not possible."""
    kinds = alternatives(kind)
    if limits.variants is not None:
        return _variant(value, kind, limits.variants, path, problems)
    for candidate in kinds:
        if is_dataclass(candidate):
            value = limits.null if value is None and limits.null is not None else value
            return value if isinstance(value, candidate) else _parsed(candidate, value, path, problems)  # type: ignore[arg-type]
        if _record_of(candidate) is not None and isinstance(value, list | tuple):
            return tuple(_records(value, _record_of(candidate), path, problems))
        converted = _converted(value, candidate, limits)
        if converted is not _NO:
            if limits.existing:
                files = [entry for entry in _listed(converted) if isinstance(entry, Path)]
                problems += [wrong for file in files if (wrong := _missing(path, file, limits)) is not None]
            return converted
    if is_choice(kind):
        choices = [shown(choice) for entry in kinds for choice in typing.get_args(entry) or (None,)]
        problems.append(wrong_choice(path, shown(value), choices))
    else:
        problems.append(f"{path}={shown(value)}: must be {described(kind, limits)}.")
    return value


def _missing(path: str, file: Path, limits: Key) -> str | None:
    """Return what is wrong with a file, or with the name of a trained network; None if it exists."""
    if limits.run and run_name(file) is not None:
        return None
    name = zoo_name(file) if limits.zoo else None
    if name is None:
        return None if file.exists() else no_such_file(path, file)
    try:
        return None if name in zoo_networks() else f"{path}={file}: {no_such_network(name)}"
    except UserError as error:
        return f"{path}={file}: {error}"


def _record_of(kind: Any) -> Any:
    """Return the record of a list of records; None for other types."""
    entries = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
    return entries[0] if len(entries) == 2 and is_dataclass(entries[0]) and entries[1] is Ellipsis else None


def _records(values: Sequence[Any], record: Any, path: str, problems: list[str]) -> Iterator[Any]:
    """Yield the records of a list; each mistake is added to the problems."""
    for index, value in enumerate(values):
        yield value if isinstance(value, record) else _parsed(record, value, f"{path}[{index}]", problems)


def _listed(value: Any) -> Sequence[Any]:
    """Return a tuple unchanged, and any other value as the only entry of a list."""
    return value if isinstance(value, tuple) else [value]


def _variant(value: Any, kind: Any, variants: Mapping[str, type[Any]], path: str, problems: list[str]) -> Any:
    """Make the record that the entry `name` of a value chooses; a record of the right type stays as it is."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Settings):
        problems.append(f"{path}: {type(value).__name__} is no {kind.__name__}. Give a record that inherits it.")
        return None
    name = value.get("name") if isinstance(value, Mapping) else value
    own = variants.get("")  # of functions in the user's own packages
    offered = installed(own.entry_points) if own is not None and str(name) not in variants else {}
    record = variants.get(str(name)) or (own if ":" in str(name) or name in offered else None)
    if record is None:
        known = [known for known in variants if known]
        problems.append(wrong_choice(f"{path}.name", shown(name), [*known, *offered]))
        return None
    return _parsed(record, value, path, problems)


_NO = object()


def _converted(value: Any, kind: Any, limits: Key) -> Any:
    """Return a value converted to one type without alternatives, or _NO if that is not possible."""
    if kind is type(None):
        return None if value is None else _NO
    if is_literal(kind):
        choices = typing.get_args(kind)
        if isinstance(value, bool):
            return value if any(choice is value for choice in choices) else _NO
        return next((choice for choice in choices if not isinstance(choice, bool) and str(choice) == str(value)), _NO)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _entries(value, typing.get_args(kind), limits)
    if origin in (Mapping, dict) or kind is Mapping:
        return dict(value) if isinstance(value, Mapping) else _NO
    if kind is bool:
        return value if isinstance(value, bool) else _NO
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) and _within(value, limits) else _NO
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and _within(value, limits) else _NO
    if kind is str:
        return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else _NO
    if kind is Path:
        return Path(str(value)) if isinstance(value, str | int | Path) and str(value) else _NO
    return value if kind is Any or kind is object else _NO


def _entries(value: Any, kinds: tuple[Any, ...], limits: Key) -> Any:
    """Return a tuple with entries of the given types (`X, ...`, or a type for each entry), or _NO."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return _NO
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value) or (limits.lengths and len(value) not in limits.lengths):
        return _NO
    found = tuple(_converted(entry, kind, limits) for entry, kind in zip(value, kinds, strict=True))
    return _NO if any(entry is _NO for entry in found) else found


def _within(value: float, limits: Key) -> bool:
    """Return whether a number is finite and within the limits."""
    return (
        abs(value) <= sys.float_info.max  # false for NaN, too
        and (limits.low is None or value >= limits.low)
        and (limits.above is None or value > limits.above)
        and (limits.high is None or value <= limits.high)
        and (limits.below is None or value < limits.below)
    )
