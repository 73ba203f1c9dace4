"""Find the same image under several case names, because it would be in training and validation, or in the test set.

Training images are compared by their voxels, so that another header, compression or data type hides nothing. A test
image is compared byte for byte, because it is not decoded.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from umamba.datasets.findings import Finding
from umamba.datasets.nnunet_raw import RawDataset, relative
from umamba.io import file_digest


def voxel_digest(array: np.ndarray) -> str:
    """Return a hash of an image's shape and values.

    Args:
        array: (C, Z, Y, X); values that are equal as float32 count as equal.
    """
    total = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for channel in array:
        total.update(np.ascontiguousarray(channel, dtype=np.float32).data)
    return total.hexdigest()


def same_images(dataset: RawDataset, digests: Mapping[str, str]) -> list[Finding]:
    """Return a warning for each image that another case has, too, unless both cases are in one group.

    Args:
        dataset: the dataset, for its files and groups.
        digests: training case -> hash of its voxels, from `voxel_digest`.
    """
    found = []
    first: dict[str, str] = {}
    files = {case.case_id: case.images[0] for case in dataset.training}
    for case_id in sorted(digests):
        twin = first.setdefault(digests[case_id], case_id)
        group = dataset.groups.get(case_id)
        if twin != case_id and (group is None or group != dataset.groups.get(twin)):
            message = (
                f"the same image as case {twin}: a network would be validated on an image that it was trained on. "
                "Remove one, or put both into one group (groups.csv)."
            )
            found.append(Finding(case_id, relative(files[case_id], dataset.root), "warning", message))
    return found + _known_test_images(dataset)


def _known_test_images(dataset: RawDataset) -> list[Finding]:
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for case in dataset.training:
        for path in case.images:
            by_size[path.stat().st_size].append((case.case_id, path))
    found = []
    for case in dataset.test:
        for path in case.images:
            alike = by_size.get(path.stat().st_size, [])
            digest = file_digest(path) if alike else ""
            twins = [case_id for case_id, other in alike if file_digest(other) == digest]
            if twins:
                message = f"the same file as an image of training case {twins[0]}. Remove it from one of the two."
                found.append(Finding(case.case_id, relative(path, dataset.root), "warning", message))
    return found
