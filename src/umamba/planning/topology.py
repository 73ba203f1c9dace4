"""Poolings and kernels of a U-Net from spacing and size (nnU-Net: experiment_planners/network_topology.py).

An axis is halved while it has at least 8 voxels and is no more than twice as coarse as the finest axis that can still
be halved; its kernels turn from 1 to 3 once it is no more than twice as coarse as the finest of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_EDGE = 4  # voxels of a feature map's edge


@dataclass(frozen=True)
class Topology:
    """Strides and kernels, one entry a stage, and the patch size padded to what the strides divide."""

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides of each axis."""
        return total_stride(self.strides)


def total_stride(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the product of the strides of each axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def pad_to(size: Sequence[float], divisor: Sequence[int]) -> tuple[int, ...]:
    """Return the size with each edge rounded up to a multiple of its divisor."""
    return tuple(math.ceil(edge / step) * step for edge, step in zip(size, divisor, strict=True))


def derive_topology(spacing: Sequence[float], size: Sequence[float]) -> Topology:
    """Derive the topology for a patch.

    Args:
        spacing: of each axis, mm.
        size: voxels of each axis; may end in .5.
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
    """Return the topology of a patch for given strides: the kernels that go with them, and the padded patch."""
    kernels, kernel, now_mm = [], [1] * len(size), [1.0 * mm for mm in spacing]
    for stride in strides[:-1]:
        now_mm = [mm * step for mm, step in zip(now_mm, stride, strict=True)]
        finest = min(now_mm)
        kernel = [3 if old == 3 or mm / finest < 2 else 1 for old, mm in zip(kernel, now_mm, strict=True)]
        kernels.append(tuple(kernel))
    kernels.append((3,) * len(size))
    return Topology(pad_to(size, total_stride(strides)), tuple(tuple(step) for step in strides), tuple(kernels))


def topology_reason(spacing: Sequence[float], topology: Topology) -> str:
    """Say how often each axis is halved, what is left of the patch then, and from which stage on it is convolved."""
    poolings = [sum(step > 1 for step in axis) for axis in zip(*topology.strides, strict=True)]
    left = [edge // step for edge, step in zip(topology.patch_size, topology.divisor, strict=True)]
    coarse = [mm * step for mm, step in zip(spacing, topology.divisor, strict=True)]
    flat = sum(1 in kernel for kernel in topology.kernel_sizes)
    return (
        f"poolings {_listed(poolings)} leave {_listed(left)} voxels of {_listed(coarse)} mm (halved: axes of at least "
        f"{2 * MIN_EDGE} voxels, less than twice as coarse as the finest of them); kernels of 1 along a coarser axis "
        f"in {flat} stage(s)"
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    wide = [axis for axis, edge in enumerate(size) if edge >= 2 * MIN_EDGE]
    if not wide:
        return []
    finest = min(spacing[axis] for axis in wide)
    chosen = [axis for axis in wide if spacing[axis] / finest < 2]
    if len(chosen) == 1 and size[chosen[0]] < 3 * MIN_EDGE:
        return []
    return chosen
