"""Derive poolings and kernels of a U-Net from spacing and size (nnU-Net: experiment_planners/network_topology.py).

An axis is halved while it has at least 8 voxels and is less than twice as coarse as the finest axis that can still be
halved. Its kernels have size 1 until it is less than twice as coarse as the finest of all axes, then size 3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_START_EDGE = {2: 2048, 3: 256}  # the first guess of a patch has as many voxels as a square or cube of this edge
MIN_EDGE = 4  # smallest edge of a feature map in voxels


@dataclass(frozen=True)
class Topology:
    """Poolings and kernels of a U-Net.

    Attributes:
        patch_size: in voxels, rounded up to a multiple of all strides.
        strides: strides of each encoder stage.
        kernel_sizes: kernel sizes of each encoder stage.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of all strides along each axis."""
        return total_stride(self.strides)


def total_stride(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the product of all strides along each axis.

    Args:
        strides: strides of each encoder stage.
    """
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def pad_to(size: Sequence[float], divisor: Sequence[int]) -> tuple[int, ...]:
    """Round each edge up to a multiple of its divisor.

    Args:
        size: edges in voxels.
        divisor: one per axis.
    """
    return tuple(math.ceil(edge / step) * step for edge, step in zip(size, divisor, strict=True))


def derive_topology(spacing: Sequence[float], size: Sequence[float]) -> Topology:
    """Derive the topology for a patch.

    Args:
        spacing: of each axis in mm.
        size: of each axis in voxels; an entry may end in .5.
    """
    now_mm, now_vox = list(spacing), list(size)
    strides = [(1,) * len(size)]
    while chosen := _axes_to_halve(now_mm, now_vox):
        for axis in chosen:
            now_mm[axis] *= 2
            now_vox[axis] = math.ceil(now_vox[axis] / 2)
        strides.append(tuple(2 if axis in chosen else 1 for axis in range(len(size))))
    return fixed_topology(spacing, size, strides)


def fixed_topology(spacing: Sequence[float], size: Sequence[float], strides: Sequence[Sequence[int]]) -> Topology:
    """Return the topology for given strides: the kernels that they imply, and the padded patch.

    Args:
        spacing: of each axis in mm.
        size: of each axis in voxels.
        strides: strides of each encoder stage.
    """
    kernels, kernel, now_mm = [], [1] * len(size), [1.0 * mm for mm in spacing]
    for stride in strides[:-1]:
        now_mm = [mm * step for mm, step in zip(now_mm, stride, strict=True)]
        finest = min(now_mm)
        kernel = [3 if old == 3 or mm / finest < 2 else 1 for old, mm in zip(kernel, now_mm, strict=True)]
        kernels.append(tuple(kernel))
    kernels.append((3,) * len(size))
    return Topology(pad_to(size, total_stride(strides)), tuple(tuple(step) for step in strides), tuple(kernels))


def first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """Return the first guess of a patch: a fixed number of voxels, edges of equal mm, clipped to the median image.

    Args:
        spacing: of each axis in mm.
        median_shape: of each axis in voxels.
    """
    dim, edges = len(spacing), [1 / mm for mm in spacing]
    scale = (_START_EDGE[dim] ** dim / math.prod(edges)) ** (1 / dim)
    return tuple(min(round(edge * scale), size) for edge, size in zip(edges, median_shape, strict=True))


def shorter_patch(
    topology: Topology, median_shape: Sequence[float], topology_of: Callable[[Sequence[float]], Topology]
) -> tuple[int, ...]:
    """Shorten the axis that covers most of the median image; of equal axes, the last.

    As in nnU-Net, the step is not the present divisor, but the divisor of the patch that is shorter by it.

    Args:
        topology: the present patch with its strides.
        median_shape: of each axis in voxels.
        topology_of: derives the topology of a patch.
    """
    ratios = [edge / size for edge, size in zip(topology.patch_size, median_shape, strict=True)]
    axis = max(range(len(ratios)), key=lambda index: (ratios[index], index))
    shorter = list(topology.patch_size)
    shorter[axis] -= topology.divisor[axis]
    smaller = list(topology.patch_size)
    smaller[axis] -= topology_of(shorter).divisor[axis]
    return tuple(smaller)


def topology_reason(spacing: Sequence[float], topology: Topology) -> str:
    """Describe the topology in words: poolings, size and spacing at the bottleneck, and number of flat kernels.

    Args:
        spacing: of each axis in mm at full resolution.
        topology: the topology.
    """
    poolings = [sum(step > 1 for step in axis) for axis in zip(*topology.strides, strict=True)]
    left = [edge // step for edge, step in zip(topology.patch_size, topology.divisor, strict=True)]
    coarse = [mm * step for mm, step in zip(spacing, topology.divisor, strict=True)]
    flat = sum(1 in kernel for kernel in topology.kernel_sizes)
    return (
        f"poolings {listed(poolings)} leave {listed(left)} voxels of {listed(coarse)} mm (halved: axes of at least "
        f"{2 * MIN_EDGE} voxels, less than twice as coarse as the finest of them); kernels of 1 along a coarser axis "
        f"in {flat} stage(s)"
    )


def listed(values: Sequence[Any]) -> str:
    """Return values as text, separated by commas.

    Args:
        values: numbers, or others as they are printed.
    """
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    wide = [axis for axis, edge in enumerate(size) if edge >= 2 * MIN_EDGE]
    if not wide:
        return []
    finest = min(spacing[axis] for axis in wide)
    chosen = [axis for axis in wide if spacing[axis] / finest < 2]
    if len(chosen) == 1 and size[chosen[0]] < 3 * MIN_EDGE:
        return []
    return chosen
