"""Write the page of all settings from their records: one table a group, with key, values, default and sentence."""

import json
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from umamba import settings  # only the standard library is needed
from umamba.settings.validate import described

_INTRODUCTION = """# Settings

Every key of every command, generated from the records in `src/umamba/settings`. On the command line a key is written
`group.key=value`; in Python it is a field of the group's record, see [From Python](../python.md). A value outside of
what a key takes is refused before anything is computed.

The files of `configs/` choose among these values: `recipe=segresnet` sets some keys of the group `recipe`, and the
others keep their defaults. `umamba COMMAND --help` prints the keys of one command.
"""
_TRAIN = """
## `umamba train`

`prepare` and `describe` take the same groups. Keys without a group:
"""
_PYTHON = """
## In Python

::: umamba.settings
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 3
      members: [Settings, InvalidSettings, key, parse, plain, read_architecture]
"""
# Commands with keys of their own, beside train.
_COMMANDS: Mapping[str, type[Any]] = {
    "pretrain": settings.PretrainSettings,
    "prepare": settings.PrepareSettings,
    "describe": settings.DescribeSettings,
    "predict": settings.PredictSettings,
    "verify": settings.VerifySettings,
    "find-best": settings.FindBestSettings,
    "audit": settings.AuditSettings,
    "calibrate": settings.CalibrateSettings,
    "evaluate": settings.EvaluateSettings,
    "report": settings.ReportSettings,
    "convert": settings.ConvertSettings,
    "export": settings.ExportSettings,
    "slurm": settings.SlurmSettings,
    "study power": settings.PowerSettings,
}


def settings_page() -> str:
    """Return the page as Markdown."""
    train = settings.TrainSettings
    parts = [_INTRODUCTION, _TRAIN, _table(_keys(train, ""))]
    for entry, kind in _typed(train):
        if entry.name == "architecture":
            parts.append(_architectures())
        elif is_dataclass(kind):
            parts += [f"\n### `{entry.name}`\n\n{_summary(kind)}\n", _table(_keys(kind, entry.name, nested=True))]
    of_train = {entry.name for entry in fields(train)}
    for command, record in _COMMANDS.items():
        own = of_train if issubclass(record, train) else set()
        group = "slurm" if record is settings.SlurmSettings else ""
        also = " These keys come in addition to those of `umamba train`." if own else ""
        rows = _keys(record, group, own, nested=bool(own))
        parts += [f"\n## `umamba {command}`\n\n{_summary(record)}{also}\n", _table(rows)]
    return "".join([*parts, _PYTHON])


def _architectures() -> str:
    parts = ["\n### `architecture`\n\nEach backbone has its own record. `architecture=NAME` chooses it.\n"]
    for name, record in settings.ARCHITECTURES.items():
        if name:
            rows = list(_keys(record, "architecture", {"name"}))
            parts.append(f"\n#### `architecture={name}`\n\n{_summary(record)}\n")
            parts.append(_table(rows) if rows else "\nIt has no options.\n")
    return "".join(parts)


def _keys(record: Any, section: str, left_out: set[str] | None = None, nested: bool = False) -> Iterator[str]:
    """Yield a row for each key of a record; keys of groups within it only if `nested`."""
    for entry, kind in _typed(record):
        if entry.name in (left_out or ()) or entry.name == getattr(record, "open_field", ""):
            continue
        name = f"{section}.{entry.name}" if section else entry.name
        limits = entry.metadata["key"]
        if is_dataclass(kind):
            if nested:
                yield from _keys(kind, name, nested=True)
            continue
        cells = (f"`{name}`", _text(described(kind, limits)), _default(entry), _text(limits.sentence))
        yield f"| {' | '.join(cells)} |\n"


def _typed(record: Any) -> Iterator[tuple[Field[Any], Any]]:
    hints = typing.get_type_hints(record)
    return ((entry, hints[entry.name]) for entry in fields(record))


def _table(rows: typing.Iterable[str]) -> str:
    return "".join(["\n| key | takes | default | meaning |\n| --- | --- | --- | --- |\n", *rows])


def _default(entry: Field[Any]) -> str:
    if entry.default is MISSING:
        return "required"
    value = settings.plain(entry.default)
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def _summary(record: Any) -> str:
    """Return the first paragraph of a record's docstring, without the names of scripts."""
    paragraph = " ".join((record.__doc__ or "").strip().split("\n\n")[0].split())
    return _text(paragraph)


def _text(sentence: str) -> str:
    """Return a sentence in which nothing is read as HTML or as the border of a table's cell."""
    return sentence.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
