"""`key` declares a field of a settings record: its default, its sentence for the help, and its allowed values."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

RUN = "run:"  # begins the name of a run in the place of a checkpoint


@dataclass(frozen=True)
class Key:
    """The sentence of a key and its limits; type and default are those of the dataclass field.

    Attributes:
        sentence: explains the key in `--help` and the documentation.
        low: smallest value that is allowed.
        above: the value must be larger than this one.
        high: largest value that is allowed.
        below: the value must be smaller than this one.
        lengths: numbers of entries that a list may have; empty: any.
        existing: the value is a path that must exist.
        zoo: the value may also be the name of a trained network, zoo:NAME.
        run: the value may also be run:NAME, a run of paths.runs, which may not exist yet.
        null: for a key that holds a record: the values that null stands for; None: null is not allowed.
        variants: for a key that holds one of several records: name -> record; the entry `name` of the value chooses.
    """

    sentence: str = ""
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    lengths: tuple[int, ...] = ()
    existing: bool = False
    zoo: bool = False
    run: bool = False
    null: Mapping[str, Any] | None = None
    variants: Mapping[str, type[Any]] | None = None


def key(default: Any = MISSING, sentence: str = "", **limits: Any) -> Any:
    """Declare a key of a settings record.

    Args:
        default: the value if none is given; left out: the key is required. A class is called to make the default.
        sentence: explains the key.
        limits: further attributes of `Key`, such as low=0 or existing=True.

    Returns:
        A dataclass field.

    >>> from dataclasses import dataclass, fields
    >>> @dataclass(frozen=True)
    ... class Example:
    ...     lr: float = key(0.01, "Learning rate of the first epoch.", above=0)
    >>> Example().lr, fields(Example)[0].metadata["key"].above
    (0.01, 0)
    """
    metadata = {"key": Key(sentence, **limits)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def behind(prefix: str, path: Path) -> str | None:
    """Return the name behind a prefix such as `run:`; None for the path of a file or folder.

    Args:
        prefix: with its colon.
        path: value of a key.

    >>> behind("run:", Path("run:pretraining")), behind("run:", Path("runs/last.ckpt"))
    ('pretraining', None)
    """
    text = str(path)
    return text.removeprefix(prefix) if text.startswith(prefix) else None


def run_name(path: Path) -> str | None:
    """Return the name of a run behind `run:`; None for the path of a file or folder."""
    return behind(RUN, path)


def listed(value: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    """Return the paths of a key that takes one path, or several as [a,b]; none for null.

    Args:
        value: of the key.

    >>> listed(Path("a.ckpt")), listed(None)
    ((PosixPath('a.ckpt'),), ())
    """
    if value is None:
        return ()
    return (value,) if isinstance(value, Path) else value
