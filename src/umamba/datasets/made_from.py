"""The record of a converted dataset, made_from.json: what each of its files was made from.

A second conversion keeps the files that it would write again, and replaces or removes the others. The record is written
after the files that it no longer lists are gone, and before the first of its own files is there. So every file that is
there was made as the record says, also after an interruption, and a missing one is written by the next conversion.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba.io import UserError, below, read_json, storage_errors, write_json
from umamba.io.documents import OWN_BYTES

log = logging.getLogger(__name__)

FILE = "made_from.json"
FOLDERS = tuple(f"{kind}{split}" for kind in ("images", "labels", "instances") for split in ("Tr", "Ts"))
Files = Mapping[str, str]  # file below the dataset's folder -> `origin`


def origin(made_with: Mapping[str, Any], paths: Sequence[Path]) -> str:
    """Return a hash of what a file is made from.

    Args:
        made_with: everything but the source files that decides its content; plain values.
        paths: the source files in their order. Path, size and modification time of each count.

    Raises:
        UserError: a source file does not exist or cannot be reached.
    """
    facts = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}. Get the file again, or remove its case.") from None
        facts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    text = json.dumps([made_with, facts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_made_from(target: Path, files: Files) -> bool:
    """Return whether a dataset is complete and holds what a conversion would write.

    Args:
        target: the dataset's folder.
        files: the files that the conversion would write.
    """
    try:
        recorded = _recorded(target)
    except UserError:
        return False
    return recorded == files and all((target / name).exists() for name in ("dataset.json", *files))


def begin(target: Path, files: Files) -> None:
    """Remove what an earlier conversion made from something else, and record the files that are written next.

    Files that are in the record with an equal origin stay, and so do files that no conversion has written. dataset.json
    is removed if anything changes, because it would describe other cases.

    Args:
        target: the dataset's folder.
        files: the files that the conversion writes.

    Raises:
        UserError: the folder holds cases or a dataset.json, and no record of what they were made from; or a file that
            would be written is there and not in the record; or a file that would be replaced or removed was changed
            after the conversion, as its time says. Nothing is removed.
        StorageError: the disk cannot be written.
    """
    recorded = _recorded(target)
    if recorded is None:
        there = [path for path in (target / "dataset.json", *_cases(target)) if path.exists()]
        reason = f"nothing says what {there[0].name if there else ''} was made from ({FILE} is missing)"
    else:
        there = [target / name for name in files if name not in recorded and (target / name).exists()]
        reason = f"{there[0].relative_to(target) if there else ''} was not written by this program"
    if there:
        raise UserError(
            f"{target}: {reason}, so it might belong to other images or labels. Delete that folder, or convert into "
            "another one (name=, or paths.raw=)."
        )
    if recorded == files:
        return
    stale = [below(target, *name.split("/")) for name, made in (recorded or {}).items() if files.get(name) != made]
    edited = [path for path in stale if _is_later(path, target / "dataset.json")]
    if edited:
        raise UserError(
            f"{target}: {edited[0].relative_to(target)} was changed after its conversion, and would be replaced or "
            "removed now. Keep a copy of it and delete it there, or convert into another folder (name=, or paths.raw=)."
        )
    if stale:
        log.info("%s: %d files of an earlier conversion are replaced or removed.", target.name, len(stale))
    for path in (target / "dataset.json", *stale):
        with storage_errors(path):
            path.unlink(missing_ok=True)
    write_json(target / FILE, {"files": dict(files)})


def _recorded(target: Path) -> dict[str, str] | None:
    """Return the files of the record; None if there is none."""
    path = target / FILE
    if not path.exists():
        return None
    content = read_json(path, OWN_BYTES)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(_is_case_file(name) and isinstance(files[name], str) for name in files):
        raise UserError(f"{path}: is no record of a conversion. Delete the folder {target}, which is made again.")
    return files


def _is_later(path: Path, end: Path) -> bool:
    """Return whether a file was written after the file that ends a conversion; False if one of them is not there."""
    return path.exists() and end.exists() and path.stat().st_mtime_ns > end.stat().st_mtime_ns


def _is_case_file(name: str) -> bool:
    folder, slash, file = name.partition("/")
    return folder in FOLDERS and slash == "/" and "/" not in file


def _cases(target: Path) -> list[Path]:
    """Return the files in the folders of cases."""
    files = (path for folder in FOLDERS for path in sorted((target / folder).glob("*")))
    return [path for path in files if not path.name.startswith(".")]
