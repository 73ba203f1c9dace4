"""A hash of a dataset's training files, by which later steps notice that a file has changed."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from umamba.datasets.nnunet_raw import RawDataset, relative
from umamba.io import UserError, file_digest, read_json, write_json
from umamba.io.documents import OWN_BYTES
from umamba.io.tiff_spacing import spacing_file
from umamba.labels.annotated import FILE


def dataset_digest(
    dataset: RawDataset, cache: Path | None, update: bool = True, names: Mapping[Path, str] | None = None
) -> str:
    """Return the hash of dataset.json, of all training images and labels, and of their paths in the dataset.

    CASE.json, which states the spacing of a TIFF volume, counts as a part of it, and so does annotated_labels.csv.

    Args:
        dataset: the dataset.
        cache: JSON file with size, modification time and hash of each file. A file whose size and time are unchanged
            is not read again. The cache is created if it is missing, and replaced if it is damaged. None: no cache.
        update: False: only read the cache, because its disk cannot be written.
        names: path -> what is hashed in its place, for files that may lie anywhere; None: there are none.

    Returns:
        A BLAKE2b-128 hash in hexadecimal.

    Raises:
        UserError: files cannot be read; the message names all of them.
        StorageError: the cache cannot be written.
    """
    paths = [dataset.root / "dataset.json"]
    if (dataset.root / FILE).exists():
        paths.append(dataset.root / FILE)
    for case in dataset.training:
        paths += [*case.images, *([] if case.label is None else [case.label])]

    def name(path: Path) -> str:
        return (names or {}).get(path) or relative(path, dataset.root)

    beside = {path for path in map(spacing_file, paths) if path is not None}
    paths += sorted(beside, key=lambda path: Path(name(path)))
    found = file_entries(paths, cache, update)
    problems = [entry for entry in found if isinstance(entry, str)]
    if problems:
        raise UserError("\n".join([f"{dataset.root}: files of the dataset cannot be read.", *problems]))
    entries = [entry for entry in found if not isinstance(entry, str)]
    total = hashlib.blake2b(digest_size=16)
    for path, (_, _, digest) in zip(paths, entries, strict=True):
        total.update(f"{name(path)}\0{digest}\n".encode())
    return total.hexdigest()


def file_entries(paths: Sequence[Path], cache: Path | None, update: bool = True) -> list[list[Any] | str]:
    """Return [size, mtime_ns, hash] of each file, or a sentence that says why it cannot be read.

    Args:
        paths: the files.
        cache: JSON file with the entries of an earlier call; see `dataset_digest`.
        update: False: only read the cache.

    Raises:
        StorageError: the cache cannot be written.
    """
    known = _read_cache(cache)
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda path: _entry(path, known.get(str(path))), paths))
    current = {str(path): entry for path, entry in zip(paths, found, strict=True) if not isinstance(entry, str)}
    if cache is not None and update and current != known:
        write_json(cache, current)
    return found


def _entry(path: Path, known: Any) -> list[Any] | str:
    """Return [size, mtime_ns, hash] of a file, or why it cannot be read; reuse the hash if size and time are known."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return f"  {path}: is no regular file but a pipe or a device"  # reading it might never end
        status = path.stat()
        if isinstance(known, list) and known[:2] == [status.st_size, status.st_mtime_ns]:
            return known
        return [status.st_size, status.st_mtime_ns, file_digest(path)]
    except OSError as error:
        return f"  {path}: {error.strerror or error}"


def _read_cache(cache: Path | None) -> dict[str, Any]:
    if cache is None or not cache.exists():
        return {}
    try:
        found = read_json(cache, OWN_BYTES)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
