"""From logits on the networks' grids to a label map on the image's own grid, box by box (nnU-Net's rule).

The logits are resampled to the cropped image, then labels are decided (`decide_labels`). Of several networks the mean
of their probabilities decides. The result is written into a zero volume at the crop box. All axes are the file's.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umamba.inference.decision import decide_labels
from umamba.inference.device_work import fetch
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
        """
        return resize_box(self.logits[head], self.first, self.maps, box)


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
        device, waiting = slabs[0].logits.device, deque[tuple[tuple[slice, ...], Callable[[], Tensor]]]()
        # A GPU keeps the labels of the whole box, because each copy of a part would wait for what is computed before.
        decided = None if device.type == "cpu" else self._labels_on(device, box)
        sums: list[Tensor] = []
        for part in parts(box, _VOXELS_AT_ONCE if direct else max(1, _VOXELS_AT_ONCE // heads)):
            place = self._place(part)
            labels, mean = decide_part(slabs, part, self._labels, direct, sums)
            if decided is None:
                refuse_not_finite(sums)
                self._painted[place] = labels.numpy()
            else:
                decided[_within(part, box)] = labels
            if self._probabilities is not None and mean is not None:
                waiting.append((place, fetch(mean)))
                if decided is None or len(waiting) > 1:
                    self._keep_probabilities(*waiting.popleft())
        for place, wait in waiting:
            self._keep_probabilities(place, wait)
        if decided is not None:
            labels_of_box = fetch(decided)
            refuse_not_finite(sums)
            self._painted[self._place(box)] = labels_of_box().numpy()

    def _labels_on(self, device: torch.device, box: VoxelBox) -> Tensor:
        dtype = torch.uint8 if self._labels.all_values[-1] < 256 else torch.int32
        return torch.empty([extent.stop - extent.start for extent in box], dtype=dtype, device=device)

    def _keep_probabilities(self, place: tuple[slice, ...], wait: Callable[[], Tensor]) -> None:
        assert self._probabilities is not None
        self._probabilities[(slice(None), *place)] = wait().numpy()

    def _place(self, box: VoxelBox) -> tuple[slice, ...]:
        """Return where a box of the crop lies in the turned image."""
        return tuple(
            slice(extent.start + crop.start, extent.stop + crop.start)
            for extent, crop in zip(box, self.placement.crop, strict=True)
        )


def _within(part: VoxelBox, box: VoxelBox) -> VoxelBox:
    """Return where a part of a box lies in it."""
    z, y, x = (slice(own.start - all_.start, own.stop - all_.start) for own, all_ in zip(part, box, strict=True))
    return z, y, x


def decide_part(
    slabs: Sequence[Slab], box: VoxelBox, labels: LabelSet, direct: bool, sums: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Decide the labels of a box on the device of the logits, without waiting for it.

    Args:
        slabs: the logits of each network.
        box: part of the crop.
        labels: the label set.
        direct: the logits of the only network decide; otherwise the mean of the probabilities.
        sums: receives the sum of each head's logits, see `refuse_not_finite`.

    Returns:
        The labels of the box's shape, and the mean of the probabilities (num_classes, *box) float32 unless `direct`.
    """
    if direct:

        def logits_of(head: int) -> Tensor:
            values = slabs[0].resized(head, box)
            sums.append(values.sum())
            return values

        return decide_labels(labels.num_classes, logits_of, labels), None
    mean = mean_probabilities(slabs, box, labels, sums)
    return decide_labels(labels.num_classes, mean.__getitem__, labels, threshold=0.5), mean


def mean_probabilities(slabs: Sequence[Slab], box: VoxelBox, labels: LabelSet, sums: list[Tensor]) -> Tensor:
    """Return the mean of the networks' probabilities: softmax of labels, sigmoid of regions.

    Args:
        slabs: the logits of each network, on one device.
        box: part of the crop.
        labels: the label set.
        sums: receives the sum of each network's logits, see `refuse_not_finite`.

    Returns:
        (num_classes, *box) float32 on that device.
    """
    total: Tensor | None = None
    for slab in slabs:
        own = torch.stack([slab.resized(head, box) for head in range(labels.num_classes)])
        sums.append(own.sum())
        # Not softmax() and sigmoid(), whose last bit depends on where in the memory a voxel lies, and so on the boxes.
        if labels.has_regions:
            own.neg_().exp_().add_(1).reciprocal_()
        else:
            own.sub_(own.amax(0)).exp_()
            together = own[0].clone()
            for head in own[1:]:
                together.add_(head)
            own.div_(together)
        total = own if total is None else total.add_(own)
    assert total is not None
    return total.div_(len(slabs))


def refuse_not_finite(sums: list[Tensor]) -> None:
    """Look at the sums of logits, all at once because each look waits for the GPU, and empty the list.

    Args:
        sums: scalars; finite logits are far too small for their sums to overflow.

    Raises:
        UserError: some are not finite, because logits are not.
    """
    finite = not sums or bool(torch.stack(sums).isfinite().all())
    sums.clear()
    if not finite:
        raise UserError(_NOT_FINITE)


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
