"""Files of trained networks: in the installation, in a folder of one's own, or downloaded once; always by checksum."""

import hashlib
import logging
import os
import shutil
import urllib.request
from pathlib import Path

from umamba.io import StorageError, UserError, atomic_path
from umamba.settings.zoo import VARIABLE, ZooFile, ZooNetwork, no_such_network, zoo_name, zoo_networks

log = logging.getLogger(__name__)

_TIMEOUT_S = 30


def zoo_weights(path: Path) -> list[Path]:
    """Return the checkpoints that a path names; other paths stand for themselves.

    Args:
        path: `zoo:NAME`, or a file or folder.

    Raises:
        UserError: no index has the name, or a file is missing, damaged or cannot be downloaded.
    """
    network = _network(path)
    return [Path(path)] if network is None else [_file(entry) for entry in network.weights]


def zoo_sample(path: Path) -> Path:
    """Return the sample image that a path names; another path stands for itself.

    Args:
        path: `zoo:NAME`, or a file or folder.

    Raises:
        UserError: as `zoo_weights`, or the network has no sample.
    """
    network = _network(path)
    if network is None:
        return Path(path)
    if network.sample is None:
        raise UserError(f"input={path}: this network has no sample image. Give images of your own.")
    return _file(network.sample)


def _network(path: Path) -> ZooNetwork | None:
    name = zoo_name(path)
    if name is None:
        return None
    known = zoo_networks()
    if name not in known:
        raise UserError(f"{path}: {no_such_network(name)}")
    return known[name]


def _file(entry: ZooFile) -> Path:
    """Return a file whose checksum is right: beside its index, or in the cache, where it is downloaded to."""
    beside = entry.folder / entry.name
    if beside.is_file():
        return _checked(beside, entry)
    if entry.url is None:
        raise UserError(
            f"{beside}: this file of a trained network is missing. Install umamba again, or put the file with the "
            f"SHA-256 {entry.sha256} there."
        )
    kept = _cache() / f"{entry.sha256[:16]}-{entry.name}"
    if not kept.is_file():
        log.info("Downloading %s to %s", entry.url, kept)
        _download(entry, kept)
    return _checked(kept, entry)


def _checked(path: Path, entry: ZooFile) -> Path:
    found = _sha256(path)
    if found != entry.sha256:
        raise UserError(
            f"{path}: is damaged or another file, because its SHA-256 is {found} and not {entry.sha256}. Delete it and "
            "get it again."
        )
    return path


def _download(entry: ZooFile, kept: Path) -> None:
    """Download a file; it gets its name only if its checksum is right."""
    assert entry.url is not None
    with atomic_path(kept) as temporary:
        try:
            with urllib.request.urlopen(entry.url, timeout=_TIMEOUT_S) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)
        except StorageError:
            raise
        except OSError as error:  # urllib's errors, too
            raise UserError(
                f"{entry.url}: cannot be downloaded ({error}). Download it elsewhere, and put it with its name "
                f"{entry.name} and the index into a folder that the variable {VARIABLE} names."
            ) from None
        found = _sha256(temporary)
        if found != entry.sha256:
            raise UserError(
                f"{entry.url}: the file there has the SHA-256 {found} and not {entry.sha256}, so it is not used."
            )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umamba" / "zoo"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
