"""Keeping the largest component of labels, where cross-validation showed that it helps (nnU-Net's post-processing).

The steps are determined by `umamba.selection`, stored as JSON, and applied to each segmentation by the predictor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from umamba.io import UserError, read_json, write_json

_CONNECTED = np.ones((3, 3, 3), dtype=bool)  # also across edges and corners
_KEY = "keep_largest_component"


def keep_largest(segmentation: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return a label map (Z, Y, X) in which, of all voxels with these values, only the largest component is left.

    Voxels of one component touch by faces, edges or corners and may have different of the values. Components of the
    same, largest size all stay. The rest becomes background, 0.
    """
    mask = np.isin(segmentation, values)
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
    """Steps of `keep_largest`, each with its label values, in order."""

    steps: tuple[tuple[int, ...], ...] = ()

    def apply(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map (Z, Y, X) after all steps."""
        for values in self.steps:
            segmentation = keep_largest(segmentation, values)
        return segmentation

    @classmethod
    def read(cls, path: Path) -> "PostProcessing":
        """Read the steps of a JSON file; further keys are passed over.

        Raises:
            UserError: the file is missing or of another form.
        """
        content = read_json(path)
        steps = content.get(_KEY) if isinstance(content, dict) else None
        if not isinstance(steps, list) or not all(
            isinstance(step, list) and step and all(type(value) is int and value > 0 for value in step)
            for step in steps
        ):
            raise UserError(
                f"{path}: no post-processing. It must be an object whose {_KEY!r} lists lists of label values."
            )
        return cls(tuple(tuple(step) for step in steps))

    def write(self, path: Path, record: dict[str, Any]) -> None:
        """Write the steps as JSON, beside what else is to be recorded."""
        write_json(path, {_KEY: [list(step) for step in self.steps], **record})
