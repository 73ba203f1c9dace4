"""Names of trained networks that a key may hold in the place of a file, such as checkpoint=zoo:phantom.

The networks are listed in zoo/index.json of this package, and in index.json of the folder UMAMBA_ZOO. Where both have a
name, the folder's network is taken.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError, read_json
from umamba.settings.fields import behind
from umamba.settings.wording import nearest

PREFIX = "zoo:"
VARIABLE = "UMAMBA_ZOO"
PACKAGED = Path(__file__).resolve().parents[1] / "zoo"
_INDEX = "index.json"
_FILE = re.compile(r"\w[\w.-]{0,99}")  # a name without a folder
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ZooFile:
    """A file of a trained network.

    Attributes:
        folder: of the index that names it.
        name: of the file.
        sha256: of its bytes.
        url: where it is downloaded from if it is not in the folder; None: nowhere.
    """

    folder: Path
    name: str
    sha256: str
    url: str | None


@dataclass(frozen=True)
class ZooNetwork:
    """A trained network, or several whose mean is taken.

    Attributes:
        sentence: what it segments.
        licence: of the weights.
        weights: the checkpoints.
        sample: an image to try it with; None: there is none.
    """

    sentence: str
    licence: str
    weights: tuple[ZooFile, ...]
    sample: ZooFile | None


def zoo_networks() -> dict[str, ZooNetwork]:
    """Return the trained networks by name.

    Raises:
        UserError: an index is missing or damaged.
    """
    found = _read(PACKAGED)
    own = os.environ.get(VARIABLE)
    return {**found, **_read(Path(own).expanduser())} if own else found


def zoo_name(path: Path) -> str | None:
    """Return the name behind `zoo:`; None for the path of a file or folder.

    Args:
        path: value of a key.

    >>> zoo_name(Path("zoo:phantom")), zoo_name(Path("runs/last.ckpt"))
    ('phantom', None)
    """
    return behind(PREFIX, path)


def no_such_network(name: str) -> str:
    """Return what is wrong with a name that no index has.

    Args:
        name: what stands behind `zoo:`.
    """
    known = zoo_networks()
    close = nearest(name, list(known))
    hint = f" Did you mean {PREFIX}{close}?" if close else ""
    return (
        f"there is no trained network of this name, but {', '.join(PREFIX + entry for entry in known)}.{hint} The "
        f"variable {VARIABLE} adds the networks of a folder."
    )


def _read(folder: Path) -> dict[str, ZooNetwork]:
    """Return the networks of a folder's index."""
    path = folder / _INDEX
    content = read_json(path)
    try:
        return {
            _text(name, _FILE): ZooNetwork(
                sentence=_text(entry["sentence"]),
                licence=_text(entry["licence"]),
                weights=tuple(_file(folder, weights) for weights in entry["weights"]),
                sample=None if entry.get("sample") is None else _file(folder, entry["sample"]),
            )
            for name, entry in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is no index of trained networks ({type(error).__name__}: {error}). docs/zoo.md explains its "
            f"entries. Mend it, or unset {VARIABLE}."
        ) from None


def _file(folder: Path, entry: Any) -> ZooFile:
    url = entry.get("url")
    if url is not None and not _text(url).startswith("https://"):
        raise ValueError(f"url={url!r} must begin with https://")
    return ZooFile(folder, _text(entry["file"], _FILE), _text(entry["sha256"], _SHA256), url)


def _text(value: Any, pattern: re.Pattern[str] | None = None) -> str:
    if not isinstance(value, str) or not (pattern is None or pattern.fullmatch(value)):
        raise ValueError(f"{value!r} is not allowed here")
    return value
