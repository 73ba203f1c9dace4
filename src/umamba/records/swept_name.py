"""Name the runs of a sweep (-m) by what it varies, so that each has a folder of its own, and the same one next time.

`-m recipe.optimizer.lr=0.1,0.01 augmentation=light,none` trains quickstart__augmentation-light__optimizer.lr-0.1 and
three more. The parts are in the alphabetical order of their keys. Only ASCII letters, digits and ._- are added, which
file systems, Hydra, SLURM and W&B take as they are.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from umamba.records.run_folder import base_name
from umamba.settings import TrainSettings, plain

_LONGEST = 120  # characters that are added; file systems allow 255 bytes for the whole name
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


def swept_name(settings: TrainSettings, swept: Sequence[tuple[str, Any]]) -> str | None:
    """Return the name of one run of a sweep.

    Args:
        settings: the settings of the run.
        swept: key (or group) and value of each override that the sweep varies, in any order.

    Returns:
        The name; None if the path of the run folder already tells the runs apart.

    >>> from umamba.settings import DatasetSettings
    >>> settings = TrainSettings(dataset=DatasetSettings(root="a"), name="mine")
    >>> swept_name(settings, [("recipe.optimizer.lr", 1e-5), ("plan.patch_size", [16, 32, 32]), ("fold", 1)])
    'mine__plan.patch_size-16x32x32__optimizer.lr-1e-05'
    """
    told = sorted((pair for pair in swept if not _in_path(*pair, settings)), key=lambda pair: pair[0])
    if not told:
        return None
    short = [".".join(key.split(".")[-2:]) for key, _ in told]
    keys = [name if short.count(name) == 1 else key for name, (key, _) in zip(short, told, strict=True)]
    parts = [f"{_text(key)}-{_text(value)}" for key, (_, value) in zip(keys, told, strict=True)]
    added = "__".join(parts)
    if len(added) > _LONGEST:
        added = f"{added[: _LONGEST - 9].rstrip('._-')}-{_digest(told)}"
    return f"{base_name(settings)}__{added}"


def _in_path(key: str, value: Any, settings: TrainSettings) -> bool:
    """Return whether the run folder's path already has another name for each value of a key."""
    if key in ("name", "fold", "seed", "paths.runs"):
        return True
    if key == "experiment":
        return bool(settings.name == value)
    if key in ("plan", "plan.configuration"):
        return bool(settings.plan.configuration == value)
    if settings.name is not None:
        return False
    if key in ("architecture", "architecture.name"):
        return bool(settings.architecture.name == value)
    return key in ("dataset", "dataset.root")


def _text(value: Any) -> str:
    """Return a value as a part of a name; what cannot stand there is replaced, and a hash of the value is added."""
    value = plain(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list) and value and all(type(entry) in (int, float) for entry in value):
        return "x".join(map(str, value))
    text = value if isinstance(value, str) else str(value)
    if _PLAIN.fullmatch(text) and len(text) <= 40 and "__" not in text:
        return text
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("._-")[-24:].replace("__", "_").lstrip("._-")
    return f"{readable}-{_digest(value)}" if readable else _digest(value)


def _digest(value: Any) -> str:
    content = json.dumps(plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
