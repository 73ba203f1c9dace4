"""Find the same image under several case names, because it would be in training and validation, or in the test set.

Training images are compared by their voxels, so that another header, compression or data type hides nothing. A test
image is compared byte for byte, because it is not decoded.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from umamba.datasets.digest import file_entries
from umamba.datasets.findings import Finding
from umamba.datasets.nnunet_raw import RawDataset, relative


def voxel_digest(array: np.ndarray) -> str:
    """Return a hash of an image's shape and values.

    Args:
        array: (C, Z, Y, X); values that are equal as float32 count as equal.
    """
    total = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for channel in array:
        total.update(np.ascontiguousarray(channel, dtype=np.float32).data)
    return total.hexdigest()


def same_images(
    dataset: RawDataset, digests: Mapping[str, str], folder: Path | None = None, update: bool = True
) -> list[Finding]:
    """Return a warning for each image that another case has, too, unless both cases are in one group.

    Args:
        dataset: the dataset, for its files and groups.
        digests: training case -> hash of its voxels, from `voxel_digest`.
        folder: the dataset's folder of preprocessed cases, whose files.json has the hashes of the training files, and
            test_files.json those of test files; None: all hashes are computed.
        update: False: test_files.json is not written.

    Raises:
        StorageError: test_files.json cannot be written.
    """
    found = []
    first: dict[str, str] = {}
    for case in dataset.training:
        digest = digests.get(case.case_id)
        twin = case.case_id if digest is None else first.setdefault(digest, case.case_id)
        group = dataset.groups.get(case.case_id)
        if twin != case.case_id and (group is None or group != dataset.groups.get(twin)):
            message = (
                f"the same image as case {twin}: a network would be validated on an image that it was trained on. "
                "Remove one, or put both into one group (groups.csv)."
            )
            found.append(Finding(case.case_id, relative(case.images[0], dataset.root), "warning", message))
    return found + _known_test_images(dataset, folder, update)


def _known_test_images(dataset: RawDataset, folder: Path | None, update: bool) -> list[Finding]:
    """Return a warning for each test file that is a training file, too; only files of one size are read."""
    training = [(case.case_id, path, path.stat().st_size) for case in dataset.training for path in case.images]
    sizes = {size for *_, size in training}
    test = [(case.case_id, path) for case in dataset.test for path in case.images if path.stat().st_size in sizes]
    if not test:
        return []
    tested = file_entries([path for _, path in test], None if folder is None else folder / "test_files.json", update)
    sizes = {entry[0] for entry in tested if not isinstance(entry, str)}
    alike = [(case_id, path) for case_id, path, size in training if size in sizes]
    trained = file_entries([path for _, path in alike], None if folder is None else folder / "files.json", update=False)
    first: dict[str, str] = {}
    for (case_id, _), entry in zip(alike, trained, strict=True):
        if not isinstance(entry, str):
            first.setdefault(entry[2], case_id)
    found = []
    for (case_id, path), entry in zip(test, tested, strict=True):
        twin = None if isinstance(entry, str) else first.get(entry[2])
        if twin is not None:
            message = f"the same file as an image of training case {twin}. Remove it from one of the two."
            found.append(Finding(case_id, relative(path, dataset.root), "warning", message))
    return found
