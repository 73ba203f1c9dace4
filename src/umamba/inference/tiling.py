"""Logits of an image from a network that sees patches: overlapping tiles under Gaussian weights (nnU-Net's rule).

Tiles are spread evenly with at most `tile_step_size` of a patch between them. The weights are a Gaussian with
sigma = patch / 8 around the patch's centre. Gaussian and grid are products over the axes, therefore the sum of all
weights at a voxel is also a product, and the weights of each tile can be divided by it beforehand. Sums over tiles are
then means, which need no second volume for the weights and fit into half precision. The image is processed along its
first axis, and only rows to which later tiles can still add are kept. A 2D network sees each slice on its own.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from umamba.inference.forward import HOST_PASSES, Forward, Start, at_once, fetched

SIGMA = 1 / 8  # of the Gaussian weights as a fraction of the patch
# Sums in half precision of so many values are worth the second that their compiled addition takes to load.
_COMPILED_FROM = 1 << 25
# Logits of a blank pass that are kept for further blank passes, at most so many bytes.
_BLANK_BYTES = 64 << 20
Place = Sequence["Tile"]  # a tile along each axis


def tile_starts(length: int, patch: int, tile_step_size: float) -> list[int]:
    """Return the first voxel of each tile of one axis: evenly spread, from 0 to `length - patch`.

    A step has at least one voxel, because equal tiles have equal logits. So a 2D network, whose tiles have one slice,
    computes each slice once, as in nnU-Net.

    Args:
        length: voxels of the image, at least `patch`.
        patch: voxels of a tile.
        tile_step_size: largest step as a fraction of the patch, above 0 and at most 1.

    >>> tile_starts(length=21, patch=10, tile_step_size=0.5)
    [0, 4, 7, 11]
    >>> tile_starts(length=3, patch=1, tile_step_size=0.5)
    [0, 1, 2]
    """
    steps = math.ceil((length - patch) / max(1, patch * tile_step_size))
    return [round((length - patch) / steps * index) for index in range(steps + 1)] if steps else [0]


def gaussian_weights(length: int) -> Tensor:
    """Return the weights of a tile's voxels along one axis: 1 at the centre, all above 0.

    Args:
        length: voxels of the tile.

    Returns:
        (length,) float64.

    >>> gaussian_weights(4)
    tensor([3.3546e-04, 1.3534e-01, 1.0000e+00, 1.3534e-01], dtype=torch.float64)
    """
    position = torch.arange(length, dtype=torch.float64) - length // 2
    return torch.exp(-0.5 * (position / (length * SIGMA)) ** 2)


@dataclass(frozen=True)
class Tile:
    """A tile along one axis.

    Attributes:
        start: its first voxel, negative in the padding before the image.
        weights: (patch,) float32, its share of the mean at each voxel.
    """

    start: int
    weights: Tensor

    @property
    def stop(self) -> int:
        """The voxel after its last."""
        return self.start + len(self.weights)


def tiles_along(length: int, patch: int, tile_step_size: float) -> list[Tile]:
    """Return the tiles of one axis; their weights at a voxel of the image add up to 1.

    Args:
        length: voxels of the image; an image smaller than the patch is padded on both sides, more at the end.
        patch: voxels of a tile.
        tile_step_size: largest step as a fraction of the patch.

    >>> [(tile.start, tile.stop) for tile in tiles_along(length=5, patch=8, tile_step_size=0.5)]
    [(-1, 7)]
    """
    before = max(patch - length, 0) // 2
    starts = tile_starts(max(length, patch), patch, tile_step_size)
    gaussian = gaussian_weights(patch)
    total = torch.zeros(max(length, patch), dtype=torch.float64)
    for start in starts:
        total[start : start + patch] += gaussian
    return [Tile(start - before, (gaussian / total[start : start + patch]).float()) for start in starts]


def _placed(tiles: Sequence[Tile], device: torch.device) -> list[Tile]:
    """Return tiles with their weights on a device, after one copy for all of them."""
    weights = torch.stack([tile.weights for tile in tiles]).to(device)
    return [replace(tile, weights=own) for tile, own in zip(tiles, weights, strict=True)]


class LogitRows:
    """The logits of an image, computed row by row along its first axis; each tile is computed once.

    Passes whose tiles all hold one value for each channel, such as the zeros around a cropped image, are computed once
    for each such value: the same input has the same logits.
    """

    def __init__(
        self,
        start: Start,
        image: Tensor,
        window: Sequence[int],
        *,
        num_classes: int,
        columns: slice,
        capacity: int,
        tile_step_size: float,
        tiles_per_pass: int,
        in_flight: int = 1,
        advance: Callable[[int], None] = lambda tiles: None,
        dtype: torch.dtype,
        sums_on: torch.device,
        on_device: Tensor | None = None,
    ) -> None:
        """Lay out the tiles and allocate the sums.

        Args:
            start: begins the computation of tiles (B, C, *window), and returns the function that waits for their logits
                (B, num_classes, *window).
            image: (C, Z, Y, X) float32, on the CPU, where a blank pass is found without waiting for a GPU.
            window: voxels of a tile along each axis.
            num_classes: outputs of the network.
            columns: part of the second axis that is wanted; tiles beside it are left out.
            capacity: rows to hold: those of one call of `take` and a window, or all of the image.
            tile_step_size: largest step between tiles as a fraction of the patch.
            tiles_per_pass: tiles in one forward pass.
            in_flight: passes that may be begun before the logits of the first of them are there.
            advance: called with the number of tiles of each pass after it.
            dtype: of the sums.
            sums_on: device of the sums, on which the logits must be.
            on_device: the image on the network's device, from which the tiles are cut; None: they are cut from `image`.
        """
        self._start, self._columns, self._advance = start, columns, advance
        self._image, self._source = image, image if on_device is None else on_device
        self._num_classes, self._tiles_per_pass, self._in_flight = num_classes, tiles_per_pass, in_flight
        # The number of tiles of a blank pass, its value for each channel, and its logits.
        self._blank: tuple[int, Tensor, Tensor] | None = None
        self._size = (image.shape[1], columns.stop - columns.start, image.shape[3])
        planes, rows, self._x = (
            _placed(tiles_along(length, size, tile_step_size), sums_on)
            for length, size in zip(image.shape[1:], window, strict=True)
        )
        self._z = iter(planes)
        self._next = next(self._z, None)
        self._y = [tile for tile in rows if tile.start < columns.stop and tile.stop > columns.start]
        self._first, self._reached = 0, 0  # rows that the sums hold
        self._sums = torch.zeros(
            (num_classes, min(capacity, self._size[0]), *self._size[1:]), dtype=dtype, device=sums_on
        )
        on_cpu = self._sums.device.type == "cpu" and dtype == torch.float16
        self._compiled = on_cpu and self._sums.numel() >= _COMPILED_FROM

    def take(self, first: int, stop: int) -> Tensor:
        """Return rows of the logits; they are valid until the next call.

        Args:
            first: first row; rows before it are discarded. Not less than in the call before.
            stop: the row after the last. Not less than in the call before.

        Returns:
            (num_classes, stop - first, columns, X).

        Raises:
            ValueError: the network has another number of outputs, or the rows exceed the capacity.
        """
        todo = []
        while self._next is not None and self._next.start < stop:
            if self._next.stop > first:  # where slices lie far apart, whole tiles lie between the rows that are wanted
                todo.append(self._next)
            self._next = next(self._z, None)
        self._keep(first, max([stop, self._reached, *(min(tile.stop, self._size[0]) for tile in todo)]))
        places = itertools.product(todo, self._y, self._x)
        begun: deque[tuple[Sequence[Place], Callable[[], Tensor]]] = deque()
        while batch := list(itertools.islice(places, self._tiles_per_pass)):
            begun.append((batch, self._begin(batch)))
            if len(begun) == self._in_flight:
                self._add(*begun.popleft())
        while begun:
            self._add(*begun.popleft())
        return self._sums[:, : stop - first]

    def _keep(self, first: int, reached: int) -> None:
        """Move the sums so that they hold the rows from `first` to `reached`."""
        if reached - first > self._sums.shape[1]:
            raise ValueError(f"rows {first} to {reached} exceed the capacity of {self._sums.shape[1]}")
        if first > self._first:
            kept = max(0, self._reached - first)
            for volume in self._sums:
                volume[:kept] = volume[first - self._first :][:kept].clone()
                volume[kept:] = 0
        self._first, self._reached = first, reached

    def _begin(self, batch: Sequence[Place]) -> Callable[[], Tensor]:
        """Begin a pass, unless it is blank and an equal one was computed before."""
        # The first test looks at two voxels, so that hardly a pass needs the second one.
        value = self._corner(batch[0], last=False)
        if torch.equal(value, self._corner(batch[-1], last=True)):
            spread = value[:, None, None, None]
            if all(bool((cut(self._image, place) == spread).all()) for place in batch):
                return lambda: self._blank_logits(batch, value)
        return self._start(self._tiles(batch))

    def _tiles(self, batch: Sequence[Place]) -> Tensor:
        return torch.stack([cut(self._source, place) for place in batch])

    def _corner(self, place: Place, last: bool) -> Tensor:
        """Return the first or the last voxel of a tile (C,)."""
        z, y, x = (tile.stop - 1 if last else tile.start for tile in place)
        if any(not 0 <= at < length for at, length in zip((z, y, x), self._image.shape[1:], strict=True)):
            return self._image.new_zeros(len(self._image))
        return self._image[:, z, y, x]

    def _blank_logits(self, batch: Sequence[Place], value: Tensor) -> Tensor:
        if self._blank is not None and self._blank[0] == len(batch) and torch.equal(self._blank[1], value):
            return self._blank[2]
        logits = self._start(self._tiles(batch))()
        if logits.nbytes <= _BLANK_BYTES:
            self._blank = (len(batch), value, logits)
        return logits

    def _add(self, batch: Sequence[Place], wait: Callable[[], Tensor]) -> None:
        output = wait()
        if output.shape[1] != self._num_classes:
            raise ValueError(f"the network has {output.shape[1]} outputs, not {self._num_classes}")
        for (z, y, x), logits in zip(batch, output, strict=True):
            (rows, inner_z), (columns, inner_y), (across, inner_x) = (
                _overlap(z, self._first, self._reached),
                _overlap(y, self._columns.start, self._columns.stop),
                _overlap(x, 0, self._size[2]),
            )
            along = (z.weights[inner_z], y.weights[inner_y], x.weights[inner_x])
            part = logits[:, inner_z, inner_y, inner_x]
            if self._compiled:
                from umamba.inference.half_sums import add_weighted

                for into, values in zip(self._sums, part, strict=True):
                    add_weighted(into, (rows.start, columns.start, across.start), values, along)
                continue
            sums = self._sums[:, rows, columns, across]
            weights = along[0][:, None, None] * along[1][:, None] * along[2]
            if part.dtype == sums.dtype == weights.dtype or sums.device.type != "cpu":
                sums.addcmul_(part, weights)
            else:
                for into, values in zip(sums, part, strict=True):  # class by class, because each copy is then small
                    into += values * weights
        self._advance(len(batch))


def cut(image: Tensor, place: Place) -> Tensor:
    """Return an image under a tile, with zeros beyond its border.

    Args:
        image: (C, Z, Y, X).
        place: the tile along each axis.

    Returns:
        (C, *window).
    """
    inside, padding = [], []
    for tile, length in zip(place, image.shape[1:], strict=True):
        start, stop = max(tile.start, 0), min(tile.stop, length)
        inside.append(slice(start, stop))
        padding.append((start - tile.start, tile.stop - stop))
    part = image[(slice(None), *inside)]
    amounts = [amount for pair in reversed(padding) for amount in pair]
    return functional.pad(part, amounts) if any(amounts) else part


def _overlap(tile: Tile, start: int, stop: int) -> tuple[slice, slice]:
    """Return where a tile and the range from start to stop overlap, counted from `start` and from the tile's start."""
    first, last = max(tile.start, start), min(tile.stop, stop)
    return slice(first - start, last - start), slice(first - tile.start, last - tile.start)


def whole_logits(
    forward: Forward,
    image: Tensor,
    window: Sequence[int],
    num_classes: int,
    *,
    tile_step_size: float,
    tiles_per_pass: int,
    device: torch.device | None = None,
    sums_on: torch.device | None = None,
) -> Tensor:
    """Return the logits of a whole image at once.

    Args:
        forward: maps tiles (B, C, *window) to logits (B, num_classes, *window).
        image: (C, Z, Y, X) float32.
        window: voxels of a tile along each axis.
        num_classes: outputs of the network.
        tile_step_size: largest step between tiles as a fraction of the patch.
        tiles_per_pass: tiles in one forward pass.
        device: of the logits that `forward` returns; None: the CPU.
        sums_on: device of the sums, the CPU or `device`, which then also holds the image; None: the CPU.

    Returns:
        (num_classes, Z, Y, X) float32 on `sums_on`.

    >>> image = torch.arange(24.0).reshape(1, 2, 3, 4)
    >>> logits = whole_logits(lambda tiles: tiles, image, (2, 2, 2), 1, tile_step_size=0.5, tiles_per_pass=2)
    >>> torch.allclose(logits, image)
    True
    """
    _, depth, height, _ = image.shape
    cpu = torch.device("cpu")
    device, sums_on = device or cpu, sums_on or cpu
    across = device != sums_on
    rows = LogitRows(
        fetched(at_once(forward)) if across else at_once(forward),
        image,
        window,
        num_classes=num_classes,
        columns=slice(0, height),
        capacity=depth,
        tile_step_size=tile_step_size,
        tiles_per_pass=tiles_per_pass,
        in_flight=HOST_PASSES if across else 1,
        dtype=torch.float32,
        sums_on=sums_on,
        on_device=image.to(sums_on),
    )
    return rows.take(0, depth)
