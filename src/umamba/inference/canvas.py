"""From logits on the networks' grids to a label map on the image's own grid, box by box (nnU-Net's rule).

The logits are resampled to the cropped image, then labels are decided (`decide_labels`). Of several networks the mean
of their probabilities decides. The result is written into a zero volume at the crop box. All axes are the file's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from umamba.inference.decision import decide_labels
from umamba.inference.resize import AxisMaps, VoxelBox, axis_maps, parts, resize_box, whole
from umamba.io import Turn, UserError
from umamba.io.lazy import load_beside
from umamba.io.orientation import AS_STORED
from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan
from umamba.preprocessing import CaseProperties

_NOT_FINITE = (
    "the network gave values that are not finite: its training diverged, its precision is too low for it (try "
    "precision=32-true), or the image holds such values."
)
_MOST_HEADS = 254  # of the compiled code, so that their numbers and one more fit into a byte
_LARGE = 1 << 25  # voxels of all heads; fewer take PyTorch less time than loading compiled code
# Voxels of one class, or of all classes together for probabilities; bounds the memory beside the logits.
_VOXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Placement:
    """Where the crop that networks see lies in an image.

    Attributes:
        shape: voxels of the image, axes of the file.
        crop: the crop in the turned image.
        turn: from the axes of the file to those of the turned image, which the networks see.
    """

    shape: tuple[int, ...]
    crop: VoxelBox
    turn: Turn = AS_STORED

    @classmethod
    def of(cls, properties: CaseProperties, plan: Plan) -> "Placement":
        """Return the placement of a case that was preprocessed under a plan.

        Args:
            properties: what preprocessing did to the image.
            plan: the plan.
        """
        z, y, x = (slice(*properties.bbox[axis]) for axis in plan.transpose_backward)
        shape = [properties.shape_before_crop[axis] for axis in plan.transpose_backward]
        turn = properties.turn
        return cls(tuple(shape[axis] for axis in turn.back.axes), (z, y, x), turn)

    @property
    def crop_shape(self) -> tuple[int, ...]:
        """Voxels of the crop."""
        return tuple(extent.stop - extent.start for extent in self.crop)


@dataclass(frozen=True)
class Slab:
    """The logits of one network for a box of the crop.

    Attributes:
        logits: (num_classes, z, y, X) on the network's grid, as much of it as the box needs, the last axis whole.
        first: row and column of the grid at which they begin.
        maps: from the whole grid to the crop.
    """

    logits: Tensor
    first: tuple[int, int]
    maps: AxisMaps

    def resized(self, head: int, box: VoxelBox) -> Tensor:
        """Resample the logits of one head to the crop.

        Args:
            head: number of the head.
            box: part of the crop.

        Returns:
            float32 of the box's shape.

        Raises:
            UserError: they are not finite.
        """
        values = resize_box(self.logits[head], self.first, self.maps, box)
        if not torch.isfinite(values.sum()):  # one pass; finite logits are far too small for their sum to overflow
            raise UserError(_NOT_FINITE)
        return values


class Canvas:
    """The label map of one image, painted box by box; boxes may be added in any order and by several threads."""

    def __init__(self, placement: Placement, labels: LabelSet, probabilities: np.ndarray | None = None) -> None:
        """Begin with background everywhere.

        Args:
            placement: of the crop in the image.
            labels: labels, or regions and the order in which they are painted.
            probabilities: (num_classes, *shape) float32, which is filled as well; None: labels alone.
        """
        self.placement, self._labels = placement, labels
        self.segmentation = np.zeros(placement.shape, dtype=np.min_scalar_type(labels.all_values[-1]))
        # Views along the axes that the networks see; painting them fills the arrays along the axes of the file.
        self._painted = placement.turn.of(self.segmentation)
        # Compiled code paints labels of a byte. It does not pay for small images, because it must be loaded.
        self._compiled = (
            probabilities is None
            and self.segmentation.dtype == np.uint8
            and labels.num_classes <= _MOST_HEADS
            and math.prod(placement.crop_shape) * labels.num_classes >= _LARGE
        )
        if self._compiled:
            load_beside("umamba.inference.winners")  # while the networks compute
        self._probabilities = None if probabilities is None else placement.turn.of(probabilities)
        if probabilities is not None and not labels.has_regions:
            probabilities[0] = 1  # background beyond the crop

    def add(self, box: VoxelBox, slabs: Sequence[Slab]) -> None:
        """Decide the labels of a box of the crop.

        Args:
            box: part of the crop.
            slabs: the logits of each network for it.

        Raises:
            UserError: logits are not finite.
        """
        heads = self._labels.num_classes
        direct = len(slabs) == 1 and self._probabilities is None
        if self._compiled and all(slab.logits.device.type == "cpu" for slab in slabs):
            from umamba.inference.winners import paint_winners  # numba, which small images do not need

            order = self._labels.region_order
            of_heads = np.array(range(heads) if order is None else (0, *order), dtype=np.uint8)
            into = self._painted[self._place(box)]
            if not paint_winners(into, slabs, box, of_heads, regions=order is not None):
                raise UserError(_NOT_FINITE)
            return
        for part in parts(box, _VOXELS_AT_ONCE if direct else max(1, _VOXELS_AT_ONCE // heads)):
            place = self._place(part)
            if direct:
                decided = decide_labels(heads, partial(slabs[0].resized, box=part), self._labels)
            else:
                mean = mean_probabilities(slabs, part, self._labels)
                decided = decide_labels(heads, mean.__getitem__, self._labels, threshold=0.5)
                if self._probabilities is not None:
                    self._probabilities[(slice(None), *place)] = mean.cpu().numpy()
            self._painted[place] = decided.cpu().numpy()

    def _place(self, box: VoxelBox) -> tuple[slice, ...]:
        """Return where a box of the crop lies in the turned image."""
        return tuple(
            slice(extent.start + crop.start, extent.stop + crop.start)
            for extent, crop in zip(box, self.placement.crop, strict=True)
        )


def mean_probabilities(slabs: Sequence[Slab], box: VoxelBox, labels: LabelSet) -> Tensor:
    """Return the mean of the networks' probabilities: softmax of labels, sigmoid of regions.

    Args:
        slabs: the logits of each network.
        box: part of the crop.
        labels: the label set.

    Returns:
        (num_classes, *box) float32 on the CPU.

    Raises:
        UserError: logits are not finite.
    """
    total: Tensor | None = None
    for slab in slabs:
        own = torch.stack([slab.resized(head, box) for head in range(labels.num_classes)])
        # Not softmax() and sigmoid(), whose last bit depends on where in the memory a voxel lies, and so on the boxes.
        if labels.has_regions:
            own.neg_().exp_().add_(1).reciprocal_()
        else:
            own.sub_(own.amax(0)).exp_()
            own.div_(sum(own[1:], own[0].clone()))
        total = own.cpu() if total is None else total.add_(own.cpu())
    assert total is not None
    return total.div_(len(slabs))


def grid_maps(
    shape: Sequence[int], placement: Placement, spacing: Sequence[float], plan: Plan, configuration: Configuration
) -> AxisMaps:
    """Return the maps from a network's grid to the crop of an image, axes of the file.

    Args:
        shape: voxels of the grid.
        placement: of the crop in the image.
        spacing: of the turned image in mm.
        plan: its transposition.
        configuration: its target spacing.
    """
    own = tuple(spacing[axis] for axis in plan.transpose_forward)
    target = own[: 3 - configuration.dim] + tuple(configuration.spacing)
    return axis_maps(shape, placement.crop_shape, [target[axis] for axis in plan.transpose_backward], spacing)


def logits_to_segmentation(
    logits: Tensor | np.ndarray,
    properties: CaseProperties,
    plan: Plan,
    configuration: Configuration,
    labels: LabelSet,
) -> np.ndarray:
    """Return the label map of the original image.

    Args:
        logits: (num_classes, Z, Y, X) on the network's grid (transposed axes, target spacing).
        properties: what preprocessing did to the image.
        plan: its transposition.
        configuration: its target spacing.
        labels: labels, or regions and the order in which they are painted.

    Returns:
        (Z, Y, X) along the axes of the file, in the smallest unsigned integer type.

    Raises:
        UserError: logits are not finite.
    """
    backward = [0, *(axis + 1 for axis in plan.transpose_backward)]
    turned = torch.as_tensor(logits).permute(backward)
    placement = Placement.of(properties, plan)
    maps = grid_maps(turned.shape[1:], placement, properties.seen_geometry.spacing, plan, configuration)
    canvas = Canvas(placement, labels)
    canvas.add(whole(placement.crop_shape), [Slab(turned, (0, 0), maps)])
    return canvas.segmentation
