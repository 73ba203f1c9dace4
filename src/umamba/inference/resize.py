"""Linear resampling of logits from the network's grid to an image's, box by box (nnU-Net's rule, see `preprocessing`).

Each voxel of the result is computed from the same few voxels by the same sums, in whichever box it lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from umamba.preprocessing.resample import separate_axis

VoxelBox = tuple[slice, slice, slice]
_COLUMNS = 64  # samples of the last axis that one matrix product computes


@dataclass(frozen=True)
class PlacedMap:
    """What interpolates along one axis, on the device of the logits.

    Attributes:
        low: as in `AxisMap`.
        high: as in `AxisMap`.
        share: as in `AxisMap`.
        matrices: each computes up to `_COLUMNS` samples of the image from those that they need of the grid (needed,
            samples); float64 on the CPU.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    matrices: tuple[Tensor, ...]


@dataclass(frozen=True)
class AxisMap:
    """How the samples of one axis of the image are interpolated from those of the network's grid.

    Attributes:
        low: index of the sample of the grid before each sample of the image, ascending; on the CPU.
        high: index of the sample of the grid after it, ascending; on the CPU.
        share: weight of `high`, float32; on the CPU.
        size: samples of the network's grid.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    size: int

    @property
    def unchanged(self) -> bool:
        """Whether the samples of the image are those of the grid."""
        return len(self.low) == self.size and not bool(self.share.any())

    def needed(self, rows: slice) -> slice:
        """Return the samples of the grid from which samples of the image are computed.

        Args:
            rows: samples of the image.
        """
        return slice(int(self.low[rows.start]), int(self.high[rows.stop - 1]) + 1)

    @property
    def columns(self) -> list[slice]:
        """The samples of the image that each matrix computes."""
        length = len(self.low)
        return [slice(start, min(start + _COLUMNS, length)) for start in range(0, length, _COLUMNS)]

    def on(self, device: torch.device) -> PlacedMap:
        """Return the map on a device; it is copied there once.

        Args:
            device: of the logits.
        """
        if device not in self._placed:
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            matrices = tuple(self._matrix(columns, dtype).to(device) for columns in self.columns)
            low, high, share = (values.to(device) for values in (self.low, self.high, self.share))
            self._placed[device] = PlacedMap(low, high, share, matrices)
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, PlacedMap]:
        return {}

    def _matrix(self, columns: slice, dtype: torch.dtype) -> Tensor:
        needed = self.needed(columns)
        count = columns.stop - columns.start
        weights = torch.zeros(needed.stop - needed.start, count, dtype=dtype)
        place = torch.arange(count)
        weights[self.low[columns] - needed.start, place] += 1 - self.share[columns]
        weights[self.high[columns] - needed.start, place] += self.share[columns]
        return weights


AxisMaps = tuple[AxisMap, AxisMap, AxisMap]


def axis_maps(
    shape: Sequence[int], new_shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> AxisMaps:
    """Return the maps of the three axes.

    Args:
        shape: voxels of the network's grid.
        new_shape: voxels of the image.
        current_spacing: of the grid in mm. Both spacings decide whether an axis is separate, which means that it is
            resampled to the nearest sample.
        target_spacing: of the image in mm.
    """
    separate = separate_axis(current_spacing, target_spacing)
    z, y, x = (
        _axis_map(size, new_size, axis == separate)
        for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True))
    )
    return z, y, x


def _axis_map(size: int, new_size: int, nearest: bool) -> AxisMap:
    places = size / new_size * (torch.arange(new_size, dtype=torch.float64) + 0.5) - 0.5
    if nearest or size == new_size:
        low = torch.floor(places + 0.5).long().clamp(0, size - 1)
        return AxisMap(low, low, torch.zeros(new_size), size)
    places = places.clamp(0, size - 1)
    low = places.long()
    return AxisMap(low, (low + 1).clamp(max=size - 1), (places - low).float(), size)


def resize_box(logits: Tensor, first: tuple[int, int], maps: AxisMaps, box: VoxelBox) -> Tensor:
    """Resample a box of the image.

    Args:
        logits: (z, y, X) part of a volume on the network's grid: what the box needs, the last axis whole.
        first: the row and the column of the volume at which they begin.
        maps: of the whole volume.
        box: of the image; its last axis whole.

    Returns:
        float32 of the box's shape.
    """
    axes = [axis for axis in range(3) if not maps[axis].unchanged]
    for axis in (0, 1):
        needed = maps[axis].needed(box[axis])
        logits = logits.narrow(axis, needed.start - first[axis], needed.stop - needed.start)
    logits = logits.float()
    for axis in sorted(axes, key=lambda axis: len(maps[axis].low) / maps[axis].size):
        logits = _columns(logits, maps[2]) if axis == 2 else _rows(logits, maps[axis], box[axis], axis)
    return logits


def _rows(logits: Tensor, axis_map: AxisMap, rows: slice, axis: int) -> Tensor:
    start, placed = axis_map.needed(rows).start, axis_map.on(logits.device)
    low = logits.index_select(axis, placed.low[rows] - start)
    if not axis_map.share[rows].any():
        return low
    high = logits.index_select(axis, placed.high[rows] - start)
    return torch.lerp(low, high, placed.share[rows].reshape([-1] + [1] * (2 - axis)))


def _columns(logits: Tensor, axis_map: AxisMap) -> Tensor:
    """Resample the last axis by small matrices, because gathering single voxels is much slower.

    On the CPU in float64, in which both products of a sample are exact: the library of matrix products rounds them or
    not, depending on the number of rows and of threads, and so on the boxes.
    """
    result = logits.new_empty((*logits.shape[:2], len(axis_map.low)))
    for columns, weights in zip(axis_map.columns, axis_map.on(logits.device).matrices, strict=True):
        result[..., columns] = logits[..., axis_map.needed(columns)].to(weights.dtype) @ weights
    return result


def parts(box: VoxelBox, voxels: int) -> list[VoxelBox]:
    """Cut a box into boxes that are whole in the last axis.

    Args:
        box: the box.
        voxels: at most so many in each part, unless a single row has more.
    """
    planes, rows, columns = box
    width = columns.stop - columns.start
    step_y = max(1, min(rows.stop - rows.start, voxels // width))
    step_z = max(1, voxels // (width * step_y))
    return [
        (slice(z, min(z + step_z, planes.stop)), slice(y, min(y + step_y, rows.stop)), columns)
        for z in range(planes.start, planes.stop, step_z)
        for y in range(rows.start, rows.stop, step_y)
    ]


def whole(shape: Sequence[int]) -> VoxelBox:
    """Return the box of a whole volume.

    Args:
        shape: voxels of the volume.
    """
    z, y, x = (slice(0, length) for length in shape)
    return z, y, x
