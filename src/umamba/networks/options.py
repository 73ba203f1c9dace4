"""Options of an architecture: from the plain dict of `configs/architecture/*.yaml` to a checked, frozen record."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from umamba.io import UserError

Record = TypeVar("Record")


def parse_options(record: type[Record], options: Mapping[str, Any], name: str) -> Record:
    """Return the frozen record of an architecture's options; keys that are left out keep their defaults.

    Args:
        record: dataclass whose fields are bool, str, positive int, tuple[int, ...] or Literal (or a union of these).
        options: the architecture's dict without `name`.
        name: the architecture's name, for messages.

    Raises:
        UserError: an unknown key, or a value that its field does not take.
    """
    kinds = typing.get_type_hints(record)
    unknown = sorted(set(options) - set(kinds))
    if unknown:
        valid = ", ".join(kinds) or "none: this architecture has no options"
        raise UserError(f"architecture {name}: unknown option {', '.join(unknown)}; the options are: {valid}")
    return record(**{key: _checked(value, kinds[key], f"architecture.{key}") for key, value in options.items()})


def _checked(value: Any, kind: Any, key: str) -> Any:
    kinds = typing.get_args(kind) if typing.get_origin(kind) not in (Literal, tuple) else ()
    for candidate in kinds or (kind,):
        if typing.get_origin(candidate) is Literal:
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(candidate)):
                return value
        elif candidate in (bool, str):
            if isinstance(value, candidate):
                return value
        elif candidate is int:
            if _is_integer(value, at_least=1):
                return value
        elif isinstance(value, Sequence) and not isinstance(value, str) and all(_is_integer(item, 0) for item in value):
            return tuple(value)
    raise UserError(f"{key}: {value!r} is not possible; give {' or '.join(map(_described, kinds or (kind,)))}")


def _is_integer(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join("true" if choice is True else str(choice) for choice in typing.get_args(kind))
    return {bool: "true or false", int: "a positive integer", str: "a name"}.get(kind, "a list of integers")
