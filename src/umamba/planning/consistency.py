"""Refuse a plan from a file whose values contradict each other, or ask for a network that no machine can hold.

Types and ranges of the values are those of the records (`umamba.planning.plan`). A plan that nnU-Net or this project
made always passes.
"""

import math
from typing import TYPE_CHECKING

from umamba.io import UserError
from umamba.planning.normalization import SCHEMES
from umamba.planning.topology import total_stride
from umamba.settings.wording import shown

if TYPE_CHECKING:
    from umamba.planning.plan import Configuration, Plan

_MOST_STAGES = 32
_MOST_PATCH = 1 << 28  # voxels
_MOST_WEIGHTS = 1 << 38  # a terabyte in float32
_MOST_VOXELS = 1_000_000  # along an axis of the median image


def check_configuration_fits(configuration: "Configuration", section: str) -> None:
    """Refuse a configuration whose values do not fit each other.

    Args:
        configuration: read from a file.
        section: dotted name in the file, for messages.

    Raises:
        UserError: an entry has the wrong length, the strides shrink the patch to nothing, a normalisation is unknown,
            or the network would have more than a terabyte of weights.
    """
    dim, count = configuration.dim, configuration.num_stages
    if not 1 <= count <= _MOST_STAGES:
        raise UserError(f"{section}.strides: plans {count} stages, but can plan 1 to {_MOST_STAGES}.")
    lengths = {"spacing": dim, "median_shape": dim, "kernel_sizes": count, "features_per_stage": count}
    lengths |= {"encoder_blocks": count, "decoder_blocks": count - 1}
    lengths["use_mask_for_norm"] = len(configuration.normalization)
    for name, length in lengths.items():
        found = len(getattr(configuration, name))
        if found != length:
            raise UserError(f"{section}.{name}: has {found} entries, but needs {length}, as the other values have.")
    for name in ("strides", "kernel_sizes"):
        for index, stage in enumerate(getattr(configuration, name)):
            if len(stage) != dim:
                raise UserError(
                    f"{section}.{name}[{index}]={shown(list(stage))}: needs {dim} entries, as patch_size has."
                )
    if math.prod(configuration.patch_size) > _MOST_PATCH:
        raise UserError(f"{section}.patch_size={list(configuration.patch_size)}: has more than {_MOST_PATCH} voxels.")
    even = [size for kernel in configuration.kernel_sizes for size in kernel if size % 2 == 0]
    if even:
        raise UserError(f"{section}.kernel_sizes: {even[0]} is even, which changes the size of a feature map.")
    divisor = total_stride(configuration.strides)
    if any(step > edge for step, edge in zip(divisor, configuration.patch_size, strict=True)):
        raise UserError(
            f"{section}.strides: their products are {list(divisor)}, more than the patch has voxels "
            f"({list(configuration.patch_size)}), so nothing would be left of it."
        )
    for scheme in configuration.normalization:
        if scheme not in SCHEMES:
            raise UserError(f"{section}.normalization: {scheme[:60]} is unknown. Choose from {', '.join(SCHEMES)}.")
    _check_weights(configuration, section)


def _check_weights(configuration: "Configuration", section: str) -> None:
    """Refuse a network of more than a terabyte, counted from below: each block has a convolution of its own width."""
    kernels = map(math.prod, configuration.kernel_sizes)
    stages = zip(configuration.encoder_blocks, configuration.features_per_stage, kernels, strict=True)
    weights = sum(count * width**2 * kernel for count, width, kernel in stages)
    if weights > _MOST_WEIGHTS:
        raise UserError(
            f"{section}.features_per_stage={list(configuration.features_per_stage)}: the network would have "
            f"{weights * 4 / 2**40:.3g} TiB of weights."
        )


def check_plan_fits(plan: "Plan") -> None:
    """Refuse a plan whose values do not fit each other.

    Args:
        plan: read from a file.

    Raises:
        UserError: the axis orders do not undo each other, the channels differ in number, or the median image would
            have millions of voxels along an axis at the spacing of a configuration.
    """
    forward, backward = plan.transpose_forward, plan.transpose_backward
    if sorted(forward) != [0, 1, 2] or any(backward[axis] != index for index, axis in enumerate(forward)):
        raise UserError(
            f"transpose_forward={list(forward)}, transpose_backward={list(backward)}: must name each axis 0, 1, 2 once "
            "and undo each other."
        )
    extent = [mm * size for mm, size in zip(plan.median_spacing, plan.median_shape, strict=True)]
    for name, configuration in plan.configurations.items():
        needed = plan.intensity or "CTNormalization" in configuration.normalization  # other schemes read the image only
        if needed and len(configuration.normalization) != len(plan.intensity):
            raise UserError(
                f"configurations.{name}.normalization: has {len(configuration.normalization)} entries, but the plan "
                f"has intensities of {len(plan.intensity)} channels."
            )
        before = configuration.previous_stage
        if before is not None and (before not in plan.configurations or plan.configurations[before].previous_stage):
            raise UserError(
                f"configurations.{name}.previous_stage={shown(before)}: must be another configuration of the plan, "
                "which needs no previous stage itself."
            )
        sizes = [mm / step for mm, step in zip(extent[-configuration.dim :], configuration.spacing, strict=True)]
        if max(sizes) > _MOST_VOXELS:
            raise UserError(
                f"configurations.{name}.spacing={list(configuration.spacing)}: the median image would have "
                f"{max(sizes):.3g} voxels along an axis at this spacing."
            )
