"""Store the labels that the previous stage of a cascade finds in the training cases, beside the preprocessed cases.

    <root>/<dataset>/previous_<key>/
        previous.json           the case names and checksums; written last, so it marks a complete folder
        <case>.previous.b2nd    (1, Z, Y, X) int16 on the grid of the preprocessed case

The key is a hash of the preprocessed cases and of the networks. Each case is segmented by networks that were not
trained on it, because the labels would otherwise be better in training than for a new image (nnU-Net:
`predicted_next_stage`).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from umamba.io import UserError, exclusive, make_folder, read_json, remove_stale, write_json
from umamba.io.checksums import checksums
from umamba.io.documents import OWN_BYTES
from umamba.io.voice import tracked
from umamba.preprocessing.store import CaseStore, case_file, write_array
from umamba.settings.validate import read_record

log = logging.getLogger(__name__)

_RECORD = "previous.json"


@dataclass(frozen=True)
class _Record:
    cases: tuple[str, ...]
    checksums: Mapping[str, Any]


def with_previous(
    store: CaseStore,
    made_by: Any,
    find_labels: Callable[[str], np.ndarray],
    *,
    check: bool = True,
    workers: int = 1,
) -> CaseStore:
    """Return a store whose cases also have the labels of the previous stage; only missing ones are made.

    Several processes may call this at once: one works while the others wait. Cases that an interrupted process has
    finished are kept.

    Args:
        store: the preprocessed cases.
        made_by: what decides the labels beside the cases, as plain values, such as the hashes of the checkpoints.
        find_labels: returns the labels (Z, Y, X) of a case on the grid of its image.
        check: whether to compare existing files with their checksums; damaged ones are made again.
        workers: threads that read them.

    Raises:
        UserError: the labels of a case do not have the shape of its image, or as `find_labels`.
        StorageError: the disk cannot be written; the cases that are complete are kept.
    """
    folder = previous_folder(store, made_by)
    result = replace(store, previous=folder)
    files = [case_file(folder, case_id, "previous") for case_id in store.case_ids]
    if _whole(folder, store) and not (check and _damaged(folder, files, workers)):
        return result
    with exclusive(folder.parent / f".{folder.name}.lock", f"the labels of the previous stage in {folder}"):
        make_folder(folder)
        remove_stale(folder)
        if _whole(folder, store):
            for file in _damaged(folder, files, workers) if check else []:
                log.warning("%s: damaged on the disk, and made again.", file)
                file.unlink(missing_ok=True)
        whole = _whole(folder, store)
        missing = [case_id for case_id, file in zip(store.case_ids, files, strict=True) if not file.exists()]
        for case_id in tracked(missing, "Segmenting the cases with the previous stage", len(missing)):
            labels, shape = find_labels(case_id), tuple(store.load(case_id).image.shape[1:])
            if labels.shape != shape:
                raise UserError(f"{case_id}: the labels of the previous stage have {labels.shape} voxels, not {shape}.")
            write_array(case_file(folder, case_id, "previous"), labels[None].astype(np.int16), flat=False)
        if whole and not missing:  # another process has made them in the meantime
            return result
        content = {"cases": list(store.case_ids), "checksums": _sums(files, workers)}
        write_json(folder / _RECORD, content)
    return result


def previous_folder(store: CaseStore, made_by: Mapping[str, Any]) -> Path:
    """Return the folder of the labels that a previous stage finds in the cases of a store.

    Args:
        store: the preprocessed cases.
        made_by: everything that the labels depend on, JSON-able.
    """
    text = json.dumps([store.path.name, list(store.case_ids), made_by], sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return store.path.parent / f"previous_{key}"


def _read(folder: Path) -> _Record | None:
    path = folder / _RECORD
    if not path.exists():
        return None
    try:
        return read_record(_Record, read_json(path, OWN_BYTES))
    except UserError as error:
        log.warning("%s is damaged (%s), and is written again.", path, str(error).removeprefix(f"{path}: "))
        return None


def _whole(folder: Path, store: CaseStore) -> bool:
    found = _read(folder)
    return found is not None and found.cases == store.case_ids


def _sums(files: Sequence[Path], workers: int) -> dict[str, int | None]:
    return {file.name: value for file, value in zip(files, checksums(files, workers), strict=True)}


def _damaged(folder: Path, files: Sequence[Path], workers: int) -> list[Path]:
    """Return the files that differ from their checksums."""
    found = _read(folder)
    expected = {} if found is None else found.checksums
    now = _sums(files, workers)
    return [file for file in files if now[file.name] is None or now[file.name] != expected.get(file.name)]
