"""Read the words of a command line as the shell hands them over, before Hydra reads them by its own grammar.

In Hydra's grammar ( ) [ ] { } , = # : quotes and letters beyond ASCII have a meaning of their own, or none. The value
of a key that takes text or a path needs no grammar, so it is quoted here. Lists, mappings, null, values in quotes,
interpolations (${...}) and the choices of a sweep keep the meaning that Hydra gives them.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from umamba.io.errors import UserError
from umamba.settings.wording import alternatives, join

_IN_QUOTES = re.compile(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
_OPENING, _CLOSING = "[{", "]}"


def quoted(text: str) -> str:
    """Return a text as a string of Hydra's grammar.

    Args:
        text: any text.

    >>> quoted("run (1)")
    "'run (1)'"
    """
    return QuotedString(text, Quote.single).with_quotes()


def override_of(key: str, value: object) -> str:
    """Return the override that gives a key a value, whatever characters the value has.

    Args:
        key: the key.
        value: text, a path, or a list of texts.
    """
    if isinstance(value, list | tuple):
        return f"{key}=[{','.join(quoted(str(entry)) for entry in value)}]"
    return f"{key}={quoted(str(value))}"


def parsed(text: str) -> Override | None:
    """Return an override as Hydra reads it; None if Hydra cannot read it.

    Args:
        text: the override.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def has_choices(override: Override) -> bool:
    """Return whether an override stands for several values: a,b or range(), interval(), glob() and so on.

    Args:
        override: the override.
    """
    return override.is_sweep_override() or isinstance(override.value(), Glob)


def values_of(record: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` texts of a record that no config holds, such as `slurm` and `power`.

    Args:
        record: the settings record; its section stands in the message.
        texts: the keys without the section, and their values.

    Raises:
        UserError: Hydra cannot read a value, or it stands for several.
    """
    values: dict[str, Any] = {}
    for key, _, value in (text.partition("=") for text in texts):
        read = parsed(f"key={readable(record, key, value, sweep=False)}")
        if read is None or has_choices(read):
            raise UserError(f"{record.section}.{key}={value}: cannot be read. Put quotes around the value.")
        values[key] = read.value()
    return values


def keys_sentence(record: Any) -> list[str]:
    """Return a line of help for each key of such a record.

    Args:
        record: the settings record.
    """
    return [
        f"  {record.section}.{name} [{'null' if entry.default is None else entry.default}]  "
        f"{entry.metadata['key'].sentence}"
        for name, entry in record.__dataclass_fields__.items()
        if "key" in entry.metadata
    ]


def readable(record: Any, key: str, value: str, sweep: bool) -> str:
    """Return a value in the form in which Hydra reads what the user meant.

    Args:
        record: the settings record of the command.
        key: dotted name of the key.
        value: the value, as typed.
        sweep: the command line is that of a sweep (-m), where a,b are two values.

    Returns:
        The value, quoted where needed; unchanged if it opens a bracket or quote and does not close it.

    >>> from umamba.settings import PredictSettings
    >>> readable(PredictSettings, "input", "/data/a=b", sweep=False)
    "'/data/a=b'"
    """
    read = parsed(f"key={value}")
    if value.lower() == "null" or "${" in value or _IN_QUOTES.fullmatch(value) or is_cut(value):
        return value
    if sweep and (has_choices(read) if read else "," in value):
        return value
    kinds = alternatives(kind_of(record, key))
    if all(_is_text(kind) for kind in kinds):
        return _text(value, kinds)
    return value if read else quoted(value)


def is_cut(value: str) -> bool:
    """Return whether a value begins with a bracket or quote that it never closes, as after a space without quotes.

    Args:
        value: the value, as typed.
    """
    if value[:1] in ("'", '"'):
        return value.count(value[0]) == 1
    return value[:1] in ("[", "{") and sum(map(value.count, _OPENING)) > sum(map(value.count, _CLOSING))


def with_quotes(text: str) -> str:
    """Return `key=value` as it must be typed so that the value is taken as it stands.

    Args:
        text: the argument, as the shell handed it over.

    >>> print(with_quotes("name=[a"))
    'name="[a"'
    """
    key, _, value = text.partition("=")
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def kind_of(record: Any, key: str) -> Any:
    """Return the type of a key; `object` if the record does not declare it.

    Args:
        record: a settings record.
        key: dotted name of the key.
    """
    name, _, rest = key.partition(".")
    entry = next((entry for entry in fields(record) if entry.name == name), None)
    if entry is None:
        return object
    kind = get_type_hints(record)[name]
    if not rest:
        return kind
    found = [kind_of(nested, rest) for nested in _records(kind, entry)]
    found += [get_args(one)[1] for one in alternatives(kind) if _is_mapping(one)]
    return next((one for one in found if one is not object), object)


def required_keys(record: Any, section: str = "") -> Iterator[str]:
    """Yield the dotted names of the keys that have no default.

    Args:
        record: a settings record.
        section: dotted name of the record.
    """
    hints = get_type_hints(record)
    for entry in fields(record):
        if entry.default is MISSING and entry.default_factory is MISSING:
            name = join(section, entry.name)
            if is_dataclass(hints[entry.name]):
                yield from required_keys(hints[entry.name], name)
            else:
                yield name


def _records(kind: Any, entry: Any) -> list[Any]:
    """Return the records that a field may hold."""
    limits = entry.metadata.get("key")
    if limits is not None and limits.variants is not None:
        return list(limits.variants.values())
    return [one for one in alternatives(kind) if is_dataclass(one)]


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping) and len(get_args(kind)) == 2


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (tuple, Sequence) and set(get_args(kind)) - {Ellipsis} <= {str, Path}


def _is_text(kind: Any) -> bool:
    """Return whether a type takes text, paths, or lists or mappings of them (also of lists)."""
    if _is_mapping(kind):
        return all(one in (str, Path) or _is_list(one) for one in alternatives(get_args(kind)[1]))
    return kind in (str, Path, type(None)) or _is_list(kind)


def _text(value: str, kinds: Sequence[Any]) -> str:
    """Quote a text, each entry of a list, or each value of a mapping."""
    if any(map(_is_list, kinds)) and _listed(value):
        return f"[{','.join(_entry(entry) for entry in split(value[1:-1]))}]"
    held = [alternatives(get_args(kind)[1]) for kind in kinds if _is_mapping(kind)]
    if held and value.startswith("{") and value.endswith("}"):
        pairs = [entry.partition(":") for entry in split(value[1:-1])]
        lists = any(map(_is_list, held[0]))
        texts = [_text(entry.strip(), held[0]) if lists and _listed(entry) else _entry(entry) for _, _, entry in pairs]
        return f"{{{','.join(f'{name}:{text}' for (name, _, _), text in zip(pairs, texts, strict=True))}}}"
    return quoted(value)


def _listed(text: str) -> bool:
    return text.strip().startswith("[") and text.strip().endswith("]")


def _entry(text: str) -> str:
    text = text.strip()
    return text if "${" in text or _IN_QUOTES.fullmatch(text) else quoted(text)


def split(text: str) -> list[str]:
    """Split a text at its commas, but not at those within brackets or quotes.

    Args:
        text: the entries of a list.

    >>> split("a=[1,2],'b,c'")
    ['a=[1,2]', "'b,c'"]
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif depth == 0 and character == ",":
            parts.append("")
            continue
        depth += (character in _OPENING) - (character in _CLOSING) if not quote else 0
        parts[-1] += character
    return parts if text.strip() else []
