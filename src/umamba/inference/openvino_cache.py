"""Converted networks on disk, so that the next run needs no conversion.

An entry is a folder with OpenVINO's two files, the graph as XML and the weights, and their hashes. Its name is a hash
of everything that the graph follows from. Neither file holds code. Entries are used only if nobody else can write them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umamba.inference.digests import weights_digest
from umamba.inference.engine_cache import is_ours
from umamba.inference.openvino_runtime import openvino as ov
from umamba.io import StorageError, UserError, atomic_directory, file_digest, make_folder, read_json, write_json

log = logging.getLogger(__name__)

ENTRIES = 8  # the oldest are deleted beyond this number
_PREFIX, _XML, _WEIGHTS, _HASHES = "openvino-", "graph.xml", "graph.bin", "hashes.json"


def entry_name(network: nn.Module, shape: Sequence[int]) -> str | None:
    """Return the name of the entry of a network: a hash of its weights, options and code, of the shape and versions.

    Args:
        network: the network.
        shape: (B, C, *patch).

    Returns:
        The name. None if the network has an attribute whose value does not show in a text, so that two different
        networks could share a name.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((ov.get_version(), torch.__version__, tuple(shape))).encode())
    sources = {Path(__file__).with_name(f"openvino_{name}.py") for name in ("cache", "graph", "runtime")}
    for name, module in network.named_modules():
        attributes = {key: value for key, value in vars(module).items() if not _is_machinery(key)}
        try:
            text = _text([name, type(module), attributes])
        except _Opaque as error:
            log.debug("A converted network is not kept, because %s of %s cannot be hashed.", error, name or "it")
            return None
        digest.update(text.encode())
        for base in type(module).__mro__:
            if base.__module__.split(".")[0] not in ("torch", "builtins"):
                sources.update(_source(base))
    for path in sorted(sources):
        digest.update(path.read_bytes())
    digest.update(weights_digest(network.state_dict()).encode())
    return _PREFIX + digest.hexdigest()


def load(core: Any, folder: Path, name: str) -> Any | None:
    """Return the graph of an entry; None if there is none, or if it is damaged or could be somebody else's.

    Args:
        core: OpenVINO's core, which knows the operation of the Mamba layers.
        folder: the cache.
        name: name of the entry.
    """
    entry = folder / name
    paths = [entry / each for each in (_XML, _WEIGHTS, _HASHES)]
    if not entry.is_dir() or not all(is_ours(path) for path in (folder, entry, *paths)):
        return None
    try:
        if read_json(entry / _HASHES) != {each: file_digest(entry / each) for each in (_XML, _WEIGHTS)}:
            raise UserError("it is damaged")
        graph = core.read_model(entry / _XML, entry / _WEIGHTS)
        os.utime(entry)
    except (OSError, RuntimeError, UserError) as error:
        log.warning("%s: cannot be read (%s). The network is converted again.", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return graph


def save(graph: Any, folder: Path, name: str) -> None:
    """Write an entry and delete the oldest ones; a cache that cannot be written is left alone.

    Args:
        graph: OpenVINO's graph.
        folder: the cache.
        name: name of the entry.
    """
    try:
        make_folder(folder)
        if not is_ours(folder):
            log.warning("%s: converted networks are not kept here, because other users can write this folder.", folder)
            return
        with atomic_directory(folder / name) as entry:
            entry.chmod(0o700)
            ov.save_model(graph, entry / _XML, compress_to_fp16=False)
            write_json(entry / _HASHES, {each: file_digest(entry / each) for each in (_XML, _WEIGHTS)})
    except (StorageError, OSError, RuntimeError) as error:
        log.debug("The converted network is not kept: %s", error)
        return
    entries = sorted(_entries(folder), key=lambda pair: pair[0], reverse=True)
    for _, old in entries[ENTRIES:]:
        shutil.rmtree(old, ignore_errors=True)


def _entries(folder: Path) -> Iterator[tuple[float, Path]]:
    """Yield the time of the last use and the path of every entry."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            yield path.stat().st_mtime, path


class _Opaque(Exception):
    """A value whose text does not tell it from others."""


def _is_machinery(name: str) -> bool:
    """Return whether an attribute belongs to `nn.Module` itself: hooks, submodules and tensors."""
    return name in _MACHINERY or name == "deep_supervision"  # the graph never has deep supervision


_MACHINERY = frozenset(vars(nn.Module()))


def _text(value: Any) -> str:
    """Return a text that is the same for equal values, in any process."""
    if isinstance(value, type) or inspect.isfunction(value) or inspect.isbuiltin(value):
        name = f"{value.__module__}.{value.__qualname__}"
        if "<" in name:
            raise _Opaque(name)
        return name
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple | torch.Size):
        return "(" + ",".join(map(_text, value)) + ")"
    if isinstance(value, set | frozenset):
        return "<" + ",".join(sorted(map(_text, value))) + ">"
    if isinstance(value, functools.partial):
        return _text([value.func, value.args, value.keywords])
    if isinstance(value, nn.Module):  # held outside the tree of modules
        return _text([type(value), repr(value), {k: v for k, v in vars(value).items() if not _is_machinery(k)}])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _text([type(value), [getattr(value, field.name) for field in dataclasses.fields(value)]])
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    raise _Opaque(type(value).__name__)


def _source(cls: type) -> list[Path]:
    """Return the file that defines a class, if there is one."""
    try:
        found = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return []
    return [Path(found)] if found and Path(found).is_file() else []
