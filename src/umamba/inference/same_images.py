"""Whether the segmentations of an output are those of the images that are given now.

A folder is continued by name, and a name may come again for another image: a fixed output file, a folder DICOM of
another patient, a file whose content was replaced. prediction.json says of which image each segmentation is.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from umamba.datasets import RawCase
from umamba.inference.case_queue import read_channels
from umamba.inference.digests import image_digest
from umamba.inference.manifest import CaseEntry, Manifest, written_paths
from umamba.inference.model import Model
from umamba.inference.outputs import CaseFiles, Outputs
from umamba.io import UserError

_NAMED = 5


def refuse_other_images(
    cases: Sequence[RawCase], files: Sequence[CaseFiles], outputs: Outputs, manifest: Manifest, model: Model
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

    Raises:
        UserError: a segmentation is of another image.
    """
    others = []
    for case, own in zip(cases, files, strict=True):
        # The only segmentation has the name of the output, and its entry that of the image.
        named = manifest.cases.get(case.case_id)
        entry = next(iter(manifest.cases.values()), None) if outputs.only is not None and named is None else named
        if entry is not None and own.segmentation.exists() and not _same(case, own.segmentation, entry, model):
            others.append(own.segmentation)
    if others:
        listed = ", ".join(map(str, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
        raise UserError(
            "output: holds segmentations of other images than these, or of an earlier content of their files, as "
            f"{outputs.record.name} says: {listed}. Give another place, or overwrite=true to segment all images again."
        )


def _same(case: RawCase, segmentation: Path, entry: CaseEntry, model: Model) -> bool:
    try:
        changed = max(map(changed_at, case.images))
    except OSError:  # it is gone, and its segmentation is there
        return True
    if written_paths(case.images) == entry.images and changed <= segmentation.stat().st_mtime:
        return True
    try:
        return image_digest(read_channels(case, model)) == entry.image
    except UserError:
        return False


def changed_at(image: Path) -> float:
    """Return when a file, or any file of the folder of a series, was written or put there, in seconds since 1970.

    Args:
        image: a file, or the folder of a DICOM series.
    """
    stats = [image.stat(), *(path.stat() for path in image.iterdir())] if image.is_dir() else [os.stat(image)]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in stats)
