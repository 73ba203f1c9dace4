"""What is kept of the choice of an engine: small JSON files and compiled networks in the user's cache folder.

Nothing here fails where the folder cannot be written: then nothing is kept, and the next command measures again.
"""

import hashlib
import json
import os
import platform
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

import umamba.networks
from umamba.inference.model import Model
from umamba.io import StorageError, UserError, read_json, write_json


def cache_folder() -> Path | None:
    """Return the folder for compiled networks, $XDG_CACHE_HOME or ~/.cache, then umamba/openvino; it is made if absent.

    Returns:
        The folder; None: it cannot be written, or others than its owner may write there.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umamba" / "openvino"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home folder
        return None
    return folder if is_ours(folder) and os.access(folder, os.W_OK) else None


def is_ours(path: Path) -> bool:
    """Return whether a file or folder is no link, belongs to this user and can be written by nobody else.

    Args:
        path: the file or folder.
    """
    try:
        found = path.lstat()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):  # Windows has no such owners and bits
        return not stat.S_ISLNK(found.st_mode)
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


@dataclass(frozen=True)
class Kept:
    """A small record that outlives the process.

    Attributes:
        folder: where it is; None: nowhere, and it is always empty.
        name: of the file without its ending.
    """

    folder: Path | None
    name: str

    def read(self) -> dict[str, Any]:
        """Return the record; empty if there is none that can be read."""
        if self.folder is None:
            return {}
        try:
            found = read_json(self.folder / f"{self.name}.json")
        except UserError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, record: dict[str, Any]) -> None:
        """Write the record if it can be written.

        Args:
            record: plain values.
        """
        if self.folder is not None:
            with suppress(OSError, StorageError, ValueError):
                write_json(self.folder / f"{self.name}.json", record)


def kind_of(model: Model, threads: int) -> str:
    """Return the hash of everything that the time of a tile depends on: network, tile, precision, code, machine.

    Args:
        model: the model, with its network in PyTorch.
        threads: that compute.
    """
    versions = [metadata.version("torch"), _version("openvino"), platform.python_version()]
    parts = [repr(model.network), model.tile_shape, model.precision, threads, versions, _processor()]
    hashed = hashlib.sha256(json.dumps(parts).encode())
    for path in _sources(model.network):
        with suppress(OSError):
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:32]


def _sources(network: nn.Module) -> Iterator[Path]:
    """Yield the files whose code computes a network: its classes outside of PyTorch, and this project's own."""
    names = {type(module).__module__ for module in network.modules()}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names if name.split(".")[0] != "torch"}
    own = Path(umamba.networks.__file__).parent
    yield from sorted({Path(file) for file in files if file} | set(own.rglob("*.py")))
    yield from sorted(Path(__file__).parent.glob("openvino*.py"))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> list[str]:
    """Return the processor's name and instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    named = (line.split(":", 1) for line in lines if ":" in line)
    first: dict[str, str] = {}
    for key, value in named:
        first.setdefault(key.strip(), value.strip())
    return [platform.machine(), *(first.get(key, "") for key in ("model name", "flags", "Features"))]
