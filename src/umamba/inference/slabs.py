"""Cuts an image into slabs so that the networks' logits keep within a memory limit, and yields them one by one.

A slab is a range of rows along the first axis of the file. Rows to which later tiles can still add are kept, so that
each tile is computed once. Only where a slab of a single row is too large, the image is also cut into strips along the
second axis; tiles across such a cut are computed on both sides of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umamba.inference.canvas import Slab
from umamba.inference.forward import HOST_PASSES, Start, fetched, mirrored
from umamba.inference.model import Model
from umamba.inference.resize import AxisMaps, VoxelBox
from umamba.inference.tiling import LogitRows, Tile, tiles_along
from umamba.settings import SlidingWindowSettings


@dataclass(frozen=True)
class View:
    """An image as one network sees it.

    Attributes:
        model: the network.
        image: (C, Z, Y, X) on the network's grid, axes of the file; on the CPU.
        maps: from that grid to the crop of the image.
        on_device: the image on the network's device; None: it is on the CPU only.
        flip: axis of the file along which each tile is mirrored; None: none. Such a view has no test-time augmentation.
        tile_step_size: that of this view, which has no test-time augmentation; None: that of the settings.
    """

    model: Model
    image: Tensor
    maps: AxisMaps
    on_device: Tensor | None = None
    flip: int | None = None
    tile_step_size: float | None = None


@dataclass(frozen=True)
class SlabLayout:
    """How an image is cut.

    Attributes:
        strips: number of strips along the second axis.
        rows: rows of each slab of a strip along the first axis.
    """

    strips: int
    rows: int


def ranges(length: int, step: int) -> list[slice]:
    """Return consecutive ranges of at most `step` that cover `length`.

    Args:
        length: voxels of the axis.
        step: voxels of a range.

    >>> ranges(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def logits_bytes(view: View, crop_shape: Sequence[int], layout: SlabLayout) -> int:
    """Return the bytes that a network's sums over tiles take.

    Args:
        view: the image as the network sees it.
        crop_shape: voxels of the crop, axes of the file.
        layout: how the image is cut.
    """
    columns = _strips(crop_shape[1], layout.strips)
    width = max(_length(view.maps[1].needed(extent)) for extent in columns)
    per_row = view.model.labels.num_classes * width * view.image.shape[3] * view.model.sums_dtype.itemsize
    return _capacity(view, crop_shape, layout.rows) * per_row


def choose_layout(views: Sequence[View], crop_shape: Sequence[int], limit: float | None) -> SlabLayout | None:
    """Choose the layout of fewest strips, then of most rows, whose sums over tiles fit into the memory.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        limit: bytes; None: no limit, and the image is not cut.

    Returns:
        The layout; None: not even a slab of one row in the narrowest strip fits.
    """
    if limit is None:
        return SlabLayout(1, crop_shape[0])

    def fits(layout: SlabLayout) -> bool:
        return sum(logits_bytes(view, crop_shape, layout) for view in views) <= limit

    for strips in range(1, crop_shape[1] + 1):
        if fits(SlabLayout(strips, crop_shape[0])):
            return SlabLayout(strips, crop_shape[0])
        if fits(SlabLayout(strips, 1)):
            low, high = 1, crop_shape[0]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(SlabLayout(strips, middle)) else (low, middle)
            return SlabLayout(strips, low)
    return None


def give_slabs(
    views: Sequence[View],
    crop_shape: Sequence[int],
    layout: SlabLayout,
    settings: SlidingWindowSettings,
    *,
    sums_on: torch.device,
    advance: Callable[[int], None],
) -> Iterator[tuple[VoxelBox, list[Slab]]]:
    """Compute the logits of an image slab by slab.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        layout: how the image is cut.
        settings: the layout of the tiles and test-time augmentation.
        sums_on: device of the sums over tiles.
        advance: called with the number of tiles of each pass after it.

    Yields:
        A box of the crop, and the logits that each network has for it. Logits are valid until the next slab. The caller
        must delete its references to them before it asks for the next slab, because the sums of one strip must be freed
        before those of the next strip are allocated.
    """
    for columns in _strips(crop_shape[1], layout.strips):
        needed = [view.maps[1].needed(columns) for view in views]
        # The sums are made inside the call, so that nothing in this frame keeps them when the strip is done.
        yield from _slabs_of_strip(
            [
                LogitRows(
                    _passes(view, settings.tta, sums_on),
                    view.image,
                    view.model.window,
                    num_classes=view.model.labels.num_classes,
                    columns=own,
                    capacity=_capacity(view, crop_shape, layout.rows),
                    tile_step_size=view.tile_step_size or settings.tile_step_size,
                    tiles_per_pass=view.model.tiles_per_pass,
                    in_flight=HOST_PASSES if _crosses(view.model, sums_on) else view.model.in_flight(settings.tta),
                    advance=advance,
                    dtype=view.model.sums_dtype,
                    sums_on=sums_on,
                    on_device=view.on_device,
                )
                for view, own in zip(views, needed, strict=True)
            ],
            [view.maps for view in views],
            [own.start for own in needed],
            (ranges(crop_shape[0], layout.rows), columns, slice(0, crop_shape[2])),
        )


def _passes(view: View, tta: bool, sums_on: torch.device) -> Start:
    further = view.flip is not None or view.tile_step_size is not None
    start = view.model.start(tta and not further)
    if view.flip is not None:
        start = mirrored(start, view.flip)
    return fetched(start) if _crosses(view.model, sums_on) else start


def _crosses(model: Model, sums_on: torch.device) -> bool:
    """Return whether logits are computed by a GPU and added on the CPU."""
    return sums_on.type == "cpu" and model.device.type != "cpu"


def _slabs_of_strip(
    sources: Sequence[LogitRows],
    maps: Sequence[AxisMaps],
    first_columns: Sequence[int],
    boxes: tuple[Sequence[slice], slice, slice],
) -> Iterator[tuple[VoxelBox, list[Slab]]]:
    for extent in boxes[0]:
        lines = [own[0].needed(extent) for own in maps]
        slabs = [
            Slab(source.take(line.start, line.stop), (line.start, column), own)
            for source, line, column, own in zip(sources, lines, first_columns, maps, strict=True)
        ]
        yield (extent, *boxes[1:]), slabs
        del slabs


def count_tiles(views: Sequence[View], crop_shape: Sequence[int], layout: SlabLayout, tile_step_size: float) -> int:
    """Return the number of tiles that `give_slabs` computes.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        layout: how the image is cut.
        tile_step_size: largest step between tiles as a fraction of the patch.
    """
    total = 0
    for view in views:
        planes, rows, across = (
            tiles_along(length, size, view.tile_step_size or tile_step_size)
            for length, size in zip(view.image.shape[1:], view.model.window, strict=True)
        )
        planes = _used(planes, [view.maps[0].needed(extent) for extent in ranges(crop_shape[0], layout.rows)])
        for extent in _strips(crop_shape[1], layout.strips):
            columns = view.maps[1].needed(extent)
            own = [tile for tile in rows if tile.start < columns.stop and tile.stop > columns.start]
            total += math.prod(map(len, (planes, own, across)))
    return total


def _used(tiles: Sequence[Tile], wanted: Sequence[slice]) -> list[Tile]:
    """Return the tiles that `LogitRows.take` computes when it is called with these ranges one after the other."""
    left, used = list(tiles), []
    for extent in wanted:
        reached = [tile for tile in left if tile.start < extent.stop]
        used += [tile for tile in reached if tile.stop > extent.start]
        left = left[len(reached) :]
    return used


def _strips(length: int, count: int) -> list[slice]:
    return ranges(length, -(-length // count))


def _capacity(view: View, crop_shape: Sequence[int], rows: int) -> int:
    """Return how many rows of the network's grid slabs of `rows` rows need at once."""
    needed = max(_length(view.maps[0].needed(extent)) for extent in ranges(crop_shape[0], rows))
    return min(view.maps[0].size, needed + view.model.window[0])


def _length(extent: slice) -> int:
    return int(extent.stop - extent.start)
