"""Whether the segmentations of an output are those of the images that are given now.

A folder is continued by name, and a name may come again for another image: a fixed output file, a folder DICOM of
another patient, a file whose content was replaced. prediction.json says of which image each segmentation is.
"""

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba.datasets import RawCase
from umamba.inference.case_queue import previous_file, read_channels
from umamba.inference.digests import image_digest
from umamba.inference.manifest import CaseEntry, Manifest, written_paths
from umamba.inference.model import Model
from umamba.inference.outputs import CaseFiles, Outputs
from umamba.io import UserError, read_label
from umamba.settings import PredictionSettings

_NAMED = 5
_PLAIN = PredictionSettings()


def refuse_other_images(
    cases: Sequence[RawCase],
    files: Sequence[CaseFiles],
    outputs: Outputs,
    manifest: Manifest,
    model: Model,
    previous_stage: Path | None = None,
) -> None:
    """Refuse an output that holds the segmentation of another image than the one that is given now.

    An image that lies elsewhere, or was written after its segmentation, is read and compared with the recorded hash.
    The record of an earlier version says nothing of images, and nothing is compared.

    Args:
        cases: the images.
        files: their outputs.
        outputs: where they are.
        manifest: what made the segmentations that are there.
        model: a network; its plan says how channels are turned.
        previous_stage: folder of the first stage's segmentations, which belong to the images of a cascade.

    Raises:
        UserError: a segmentation is of another image.
    """
    others = []
    for case, own in zip(cases, files, strict=True):
        # The only segmentation has the name of the output, and its entry that of the image.
        named = manifest.cases.get(case.case_id)
        entry = next(iter(manifest.cases.values()), None) if outputs.only is not None and named is None else named
        if entry is None or not own.segmentation.exists():
            continue
        if not _same(case, own.segmentation, entry, model, previous_file(previous_stage, case.case_id, model)):
            others.append(str(own.segmentation))
    _refuse(others, "segmentations", outputs)


def refuse_other_classes(
    cases: Sequence[RawCase], rows: Container[str], outputs: Outputs, manifest: Manifest, model: Model
) -> None:
    """Refuse a classes.csv that holds a row of another image of the same name (see `refuse_other_images`).

    Args:
        cases: the images.
        rows: the cases that have a row.
        outputs: where the table is.
        manifest: what made the rows that are there.
        model: a network; its plan says how channels are turned.

    Raises:
        UserError: a row is of another image.
    """
    known = [(case, manifest.classified.get(case.case_id)) for case in cases if case.case_id in rows]
    others = [
        case.case_id for case, entry in known if entry is not None and not _same(case, outputs.classes, entry, model)
    ]
    _refuse(others, f"classes in {outputs.classes}", outputs)


def _refuse(others: Sequence[str], what: str, outputs: Outputs) -> None:
    if others:
        raise UserError(
            f"output: holds {what} of other images than these, or of an earlier content of their files, as "
            f"{outputs.record.name} says: {_few(others)}. Give another place, or overwrite=true to make them again."
        )


def kept_record(outputs: Outputs, record: Mapping[str, Any], cases: Sequence[str]) -> dict[str, Any] | None:
    """Return the record of the results of other images, which stay where cases are segmented again (overwrite).

    Args:
        outputs: where the segmentations are.
        record: what they are made with now.
        cases: names of the cases that are segmented again.

    Raises:
        UserError: results of other images were made with something else, and would pass as made with this.
    """
    found = outputs.compared(record)
    if found is None or outputs.only is not None:
        return None
    earlier, alike = found
    manifest = Manifest(outputs, earlier)
    paths = [outputs.case(name, _PLAIN).segmentation for name in manifest.other_cases(cases)]
    others = [str(path) for path in paths if path.exists()]
    others += [name for name in manifest.classified if name not in cases]
    if others and alike:
        return earlier
    if others:
        raise UserError(
            "output: holds results of other images by another network or other settings, which overwrite=true "
            f"does not make again, as {outputs.record.name} says: {_few(others)}. Give another folder, or delete them."
        )
    return None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _same(case: RawCase, made: Path, entry: CaseEntry, model: Model, previous: Path | None = None) -> bool:
    try:
        changed = max(map(changed_at, case.images if previous is None else (*case.images, previous)))
    except OSError:  # it is gone, and what was made of it is there
        return True
    if written_paths(case.images) == entry.images and changed <= made.stat().st_mtime:
        return True
    try:
        image = read_channels(case, model)
        return image_digest(image, None if previous is None else read_label(previous)) == entry.image
    except UserError:
        return False


def changed_at(image: Path) -> float:
    """Return when a file, or any file of the folder of a series, was written or put there, in seconds since 1970.

    Args:
        image: a file, or the folder of a DICOM series.
    """
    stats = [image.stat(), *(path.stat() for path in image.iterdir())] if image.is_dir() else [os.stat(image)]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in stats)
