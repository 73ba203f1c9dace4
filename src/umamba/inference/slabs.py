"""Cuts an image into slabs so that the networks' logits keep within a memory limit, and gives them out slab by slab.

A slab is a range of rows along the first axis of the file. Rows that later tiles can still change are kept, so that no
tile is computed twice. Only where a slab of a single row is too large, the image is cut along the second axis, too;
tiles across such a cut are computed on both sides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umamba.inference.export import Slab
from umamba.inference.model import Model
from umamba.inference.resize import AxisMaps, Box
from umamba.inference.tiling import Forward, LogitRows, tiles_along


@dataclass(frozen=True)
class View:
    """An image as one network sees it.

    Attributes:
        model: the network.
        image: (C, Z, Y, X) on the network's grid, axes of the file.
        maps: from that grid to the crop of the image.
    """

    model: Model
    image: Tensor
    maps: AxisMaps


@dataclass(frozen=True)
class Layout:
    """How an image is cut: into so many strips along the second axis, and each into slabs of so many rows."""

    strips: int
    rows: int


def ranges(length: int, step: int) -> list[slice]:
    """Return consecutive ranges of at most `step` that cover `length`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def logits_bytes(view: View, crop_shape: Sequence[int], layout: Layout) -> int:
    """Return the memory that a network's sums over tiles take."""
    columns = _strips(crop_shape[1], layout.strips)
    width = max(_length(view.maps[1].needed(extent)) for extent in columns)
    per_row = view.model.labels.num_classes * width * view.image.shape[3] * view.model.sums_dtype.itemsize
    return _capacity(view, crop_shape, layout.rows) * per_row


def choose_layout(views: Sequence[View], crop_shape: Sequence[int], limit: float | None) -> Layout | None:
    """Return the layout of fewest strips, then most rows, whose sums take at most `limit` bytes; None: there is none.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        limit: bytes; None: the image is not cut.
    """
    if limit is None:
        return Layout(1, crop_shape[0])

    def fits(layout: Layout) -> bool:
        return sum(logits_bytes(view, crop_shape, layout) for view in views) <= limit

    for strips in range(1, crop_shape[1] + 1):
        if fits(Layout(strips, crop_shape[0])):
            return Layout(strips, crop_shape[0])
        if fits(Layout(strips, 1)):
            low, high = 1, crop_shape[0]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(Layout(strips, middle)) else (low, middle)
            return Layout(strips, low)
    return None


def give_slabs(
    views: Sequence[View],
    crop_shape: Sequence[int],
    layout: Layout,
    *,
    tile_step_size: float,
    tta: bool,
    sums_on: torch.device,
    advance: Callable[[int], None],
) -> Iterator[tuple[Box, list[Slab]]]:
    """Yield boxes of the crop with each network's logits; where there are several, each is valid until the next.

    `advance` is told the number of tiles after each pass. Who takes a box lets go of its logits before the next: a
    strip's sums are to be gone when those of the next one are made.
    """
    for columns in _strips(crop_shape[1], layout.strips):
        needed = [view.maps[1].needed(columns) for view in views]
        # Made in the call: nothing here holds the sums when the strip is done.
        yield from _slabs_of_strip(
            [
                LogitRows(
                    _counting(view.model.forward(tta), advance),
                    view.image,
                    view.model.window,
                    num_classes=view.model.labels.num_classes,
                    columns=own,
                    capacity=_capacity(view, crop_shape, layout.rows),
                    tile_step_size=tile_step_size,
                    tiles_at_once=view.model.tiles_at_once,
                    dtype=view.model.sums_dtype,
                    sums_on=sums_on,
                )
                for view, own in zip(views, needed, strict=True)
            ],
            [view.maps for view in views],
            [own.start for own in needed],
            (ranges(crop_shape[0], layout.rows), columns, slice(0, crop_shape[2])),
        )


def _slabs_of_strip(
    sources: Sequence[LogitRows],
    maps: Sequence[AxisMaps],
    first_columns: Sequence[int],
    boxes: tuple[Sequence[slice], slice, slice],
) -> Iterator[tuple[Box, list[Slab]]]:
    for extent in boxes[0]:
        lines = [own[0].needed(extent) for own in maps]
        slabs = [
            Slab(source.take(line.start, line.stop), (line.start, column), own)
            for source, line, column, own in zip(sources, lines, first_columns, maps, strict=True)
        ]
        yield (extent, *boxes[1:]), slabs
        del slabs


def count_tiles(views: Sequence[View], crop_shape: Sequence[int], layout: Layout, tile_step_size: float) -> int:
    """Return the tiles that `give_slabs` computes."""
    total = 0
    for view in views:
        planes, rows, across = (
            tiles_along(length, size, tile_step_size)
            for length, size in zip(view.image.shape[1:], view.model.window, strict=True)
        )
        for extent in _strips(crop_shape[1], layout.strips):
            columns = view.maps[1].needed(extent)
            own = [tile for tile in rows if tile.start < columns.stop and tile.stop > columns.start]
            total += math.prod(map(len, (planes, own, across)))
    return total


def _counting(forward: Forward, advance: Callable[[int], None]) -> Forward:
    def counted(tiles: Tensor) -> Tensor:
        logits = forward(tiles)
        advance(len(tiles))
        return logits

    return counted


def _strips(length: int, count: int) -> list[slice]:
    return ranges(length, -(-length // count))


def _capacity(view: View, crop_shape: Sequence[int], rows: int) -> int:
    """Return the rows of the network's grid that slabs of so many rows need at once."""
    needed = max(_length(view.maps[0].needed(extent)) for extent in ranges(crop_shape[0], rows))
    return min(view.maps[0].size, needed + view.model.window[0])


def _length(extent: slice) -> int:
    return int(extent.stop - extent.start)
