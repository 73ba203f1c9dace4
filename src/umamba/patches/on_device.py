"""The transforms of a batch of regions at once, on the device where the batch is, from what the workers drew.

All numbers go to the device in one copy, and no value is read back from it, so the CPU never waits for it.
Labels are those of `warp` voxel for voxel, because positions and votes are computed in the same order and precision;
images agree within 1e-5 of their range, because sums over a patch are made in another order.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.patches.draws import Drawn
from umamba.patches.intensity import AddNoise, ChannelTransform, ClearOutside
from umamba.patches.spatial import MirrorPatch, crop_centre
from umamba.preprocessing.case import OUTSIDE


class Numbers:
    """Numbers for one copy to the device."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._length = 0

    def add(self, values: Any) -> slice:
        """Add numbers of any shape, and return where they will be."""
        part = np.asarray(values, dtype=np.float64).ravel()
        self._parts.append(part)
        self._length += len(part)
        return slice(self._length - len(part), self._length)

    def on(self, device: torch.device) -> Tensor:
        """Return all numbers (n,) on a device, float64 where the device has it."""
        together = torch.from_numpy(np.concatenate([np.zeros(0), *self._parts])).to(precise_dtype(device))
        return (together.pin_memory() if device.type == "cuda" else together).to(device, non_blocking=True)


def transform_regions(
    transforms: Sequence[Any],
    images: Tensor,
    labels: Tensor,
    drawn: Sequence[Drawn],
    noise: Sequence[Tensor],
    patch_size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Apply a chain to a batch of regions.

    Args:
        transforms: the chain of a patch, without transforms of TorchIO.
        images: (B, C, Z, Y, X) float32, the regions.
        labels: (B, 1, Z, Y, X) integers; -1 outside.
        drawn: what was drawn for each patch.
        noise: (C, *patch_size) of each patch that has noise, in their order, on the same device.
        patch_size: (Z, Y, X), voxels.

    Returns:
        Image (B, C, *patch_size) and label (B, 1, *patch_size).
    """
    channels, numbers = images.shape[1], Numbers()
    moved = [index for index, own in enumerate(drawn) if own.matrix is not None]
    matrices = numbers.add([own.matrix for own in drawn if own.matrix is not None])
    rows: dict[int, tuple[slice, slice]] = {}
    for number in sorted({number for own in drawn for number in own.rows}):
        found = [
            (index * channels + channel, values)
            for index, own in enumerate(drawn)
            for channel, values in own.rows.get(number, [])
        ]
        if found:
            rows[number] = numbers.add([row for row, _ in found]), numbers.add([values for _, values in found])
    table = numbers.on(images.device)

    image, label = (crop_centre(each, patch_size).contiguous() for each in (images, labels))
    if moved:
        own_images, own_labels = (torch.stack([each[index] for index in moved]) for each in (images, labels))
        sampled = sample_regions(own_images, own_labels, table[matrices].view(len(moved), -1), patch_size)
        for position, index in enumerate(moved):
            image[index], label[index] = sampled[0][position], sampled[1][position]
    flat = image.view(-1, *patch_size)
    for number, step in enumerate(transforms):
        if number in rows:
            assert isinstance(step, ChannelTransform)
            places, values = (table[part] for part in rows[number])
            places = places.long()
            changed = step.change_rows(flat.index_select(0, places), values.view(len(places), -1).float())
            flat.index_copy_(0, places, changed)
        elif isinstance(step, AddNoise):
            noisy = [(index, own.noise) for index, own in enumerate(drawn) if own.noise is not None]
            for (index, std), values in zip(noisy, noise, strict=True):
                image[index].add_(values, alpha=std)
        elif isinstance(step, MirrorPatch):
            for index, own in enumerate(drawn):
                if own.mirrored:
                    for each in (image, label):
                        each[index] = each[index].flip(own.mirrored)
        elif isinstance(step, ClearOutside):
            for channel in step.channels:
                image[:, channel].masked_fill_(label[:, 0] == OUTSIDE, 0.0)
            label.clamp_(min=0)
    return image, label


def sample_regions(
    images: Tensor, labels: Tensor, matrices: Tensor, patch_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sample patches at rotated and scaled positions, as `umamba.patches.warp.resample_patch` does for one patch.

    Args:
        images: (M, C, Z, Y, X) float32; zero outside.
        labels: (M, 1, Z, Y, X) integers; -1 outside, which competes like a label.
        matrices: (M, 9), or (M, 4) for the last two axes, while the first is cropped: each maps offsets from the
            patch's centre to offsets from the region's centre, row by row.
        patch_size: (Z, Y, X), voxels.

    Returns:
        Image (M, C, *patch_size) and label (M, 1, *patch_size).
    """
    count, axes = len(images), 2 if matrices.shape[1] == 4 else 3
    if axes == 2:
        images, labels = (crop_centre(each, (patch_size[0], *each.shape[-2:])) for each in (images, labels))
    source, target = images.shape[-axes:], tuple(patch_size)[-axes:]
    # For each axis the voxels before and behind each position: their offsets, and whether they are inside.
    ends: list[list[tuple[Tensor, Tensor]]] = []
    shares, stride = [], source.numel()
    for positions, length in zip(_positions(matrices.view(count, axes, axes), source, target), source, strict=True):
        whole = positions.floor()
        shares.append((positions - whole).float()[:, None])
        stride, cell = stride // length, whole.long()
        voxels = cell, cell + 1
        ends.append([(each.clamp(0, length - 1) * stride, (each >= 0) & (each < length)) for each in voxels])
    flat_images, flat_labels = (each.reshape(count, -1, source.numel()) for each in (images, labels))

    def at(corner: Sequence[int], values: Tensor, outside: float) -> Tensor:
        """Return the values (M, K, N) at one corner of each cell."""
        place, inside = ends[0][corner[0]]
        for own, step in zip(ends[1:], corner[1:], strict=True):
            place, inside = place + own[step][0], inside & own[step][1]
        found = values.gather(2, place[:, None].expand(-1, values.shape[1], -1))
        return found.masked_fill_(~inside[:, None], outside)

    def between(corner: tuple[int, ...]) -> Tensor:
        """Interpolate along the axes that a corner leaves open, the last one first."""
        if len(corner) == axes:
            return at(corner, flat_images, 0)
        low = between((*corner, 0))
        return low + shares[len(corner)] * (between((*corner, 1)) - low)

    corners = list(itertools.product((0, 1), repeat=axes))
    candidates = torch.stack([at(corner, flat_labels, OUTSIDE) for corner in corners])
    precise = [share.to(matrices.dtype) for share in shares]
    weights = torch.stack([_weight(corner, precise) for corner in corners])
    return (
        between(()).reshape(count, -1, *patch_size),
        _vote(candidates, weights).reshape(count, -1, *patch_size),
    )


def _positions(matrices: Tensor, source: Sequence[int], target: Sequence[int]) -> list[Tensor]:
    """Return where voxels of the patches (M, N) lie along each axis of the regions."""
    *outer, columns = target
    found = []
    for axis, length in enumerate(source):
        start = torch.zeros([], dtype=matrices.dtype, device=matrices.device)
        for own, size in enumerate(outer):
            offsets = torch.arange(size, dtype=matrices.dtype, device=matrices.device) - (size - 1) / 2
            shape = [-1 if other == own else 1 for other in range(len(outer))]
            start = start + matrices[:, axis, own].view(-1, *[1] * len(outer)) * offsets.view(1, *shape)
        step = matrices[:, axis, -1].view(-1, *[1] * len(outer))
        start = start - step * (columns - 1) / 2 + (length - 1) / 2
        along = torch.arange(columns, dtype=matrices.dtype, device=matrices.device)
        found.append((start[..., None] + step[..., None] * along).flatten(1))
    return found


def _weight(corner: Sequence[int], shares: Sequence[Tensor]) -> Tensor:
    """Return the weight (M, 1, N) float32 of a corner of each cell."""
    weight: Tensor | None = None
    for step, share in zip(corner, shares, strict=True):
        own = share if step else 1 - share
        weight = own if weight is None else weight * own
    assert weight is not None
    return weight.float()


def _vote(candidates: Tensor, weights: Tensor) -> Tensor:
    """Return the labels (M, K, N) with the largest sums of weights, of equal ones those of the first corner.

    Args:
        candidates: (corners, M, K, N) integers.
        weights: (corners, M, 1, N) float32.
    """
    best, most = candidates[0], None
    for candidate in candidates:
        votes = torch.where(candidates == candidate, weights, 0.0).sum(0, dtype=precise_dtype(weights.device))
        if most is None:
            most = votes
        else:
            best, most = torch.where(votes > most, candidate, best), torch.maximum(votes, most)
    return best


def precise_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for Apple's devices, which have no float64.

    Args:
        device: where the numbers are.
    """
    return torch.float32 if device.type == "mps" else torch.float64
