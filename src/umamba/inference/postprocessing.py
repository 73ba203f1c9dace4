"""Keeps the largest component of labels where cross-validation showed that it helps (nnU-Net's post-processing).

`umamba find-best` determines the steps and stores them as JSON; the predictor applies them to each segmentation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umamba.io import UserError, read_json, write_json
from umamba.labels.label_set import MOST_VALUE
from umamba.labels.masks import mask_of

_CONNECTED = np.ones((3, 3, 3), dtype=bool)  # also across edges and corners
_KEY = "keep_largest_component"


def keep_largest(segmentation: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Keep only the largest component of all voxels that have one of some label values.

    Voxels of one component touch by faces, edges or corners and may have different values out of `values`. If several
    components have the largest size, all of them stay. Voxels of the other components become background, 0.

    Args:
        segmentation: label map (Z, Y, X).
        values: label values.

    Returns:
        A new label map, or the same array where nothing is removed.
    """
    from scipy import ndimage  # takes a while to load

    mask = mask_of(segmentation, values)
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return segmentation
    components, count = ndimage.label(mask[boxes[0]], _CONNECTED)
    if count == 1:
        return segmentation
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    removed = sizes < sizes.max()
    removed[0] = False
    result = segmentation.copy()
    result[boxes[0]][removed[components]] = 0
    return result


@dataclass(frozen=True)
class PostProcessing:
    """Steps of `keep_largest`.

    Attributes:
        steps: label values of each step, in the order in which the steps are applied.

    >>> segmentation = np.array([[[1, 1, 1, 0, 1, 0, 2]]])
    >>> PostProcessing(steps=((1,),)).apply(segmentation)
    array([[[1, 1, 1, 0, 0, 0, 2]]])
    """

    steps: tuple[tuple[int, ...], ...] = ()

    def apply(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map after all steps.

        Args:
            segmentation: label map (Z, Y, X).
        """
        for values in self.steps:
            segmentation = keep_largest(segmentation, values)
        return segmentation

    @classmethod
    def read(cls, path: Path) -> "PostProcessing":
        """Read the steps of a JSON file; other keys in it are ignored.

        Args:
            path: the file.

        Raises:
            UserError: the file is missing or has another form.
        """
        content = read_json(path)
        steps = content.get(_KEY) if isinstance(content, dict) else None
        if not isinstance(steps, list) or not all(
            isinstance(step, list) and step and all(type(value) is int and 0 < value <= MOST_VALUE for value in step)
            for step in steps
        ):
            raise UserError(
                f"{path}: holds no post-processing. It must be an object whose {_KEY!r} is a list of lists of label "
                f"values from 1 to {MOST_VALUE}. Give the post_processing.json that find-best wrote."
            )
        return cls(tuple(tuple(step) for step in steps))

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the steps as JSON.

        Args:
            path: the file.
            record: further keys of the file.
        """
        write_json(path, {_KEY: [list(step) for step in self.steps], **record})
