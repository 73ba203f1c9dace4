"""Check the plan values that a user pins, on which the derived values are then based."""

from collections.abc import Mapping, Sequence
from typing import Any

from umamba.io import UserError
from umamba.planning.normalization import SCHEMES
from umamba.planning.plan import Configuration
from umamba.planning.topology import Topology

NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
PINNABLE = (
    "spacing",
    "patch_size",
    "batch_size",
    "batch_dice",
    "normalization",
    "use_mask_for_norm",
    "strides",
    "kernel_sizes",
    "features_per_stage",
    "encoder_blocks",
    "decoder_blocks",
)


def check_names(pinned: Mapping[str, Mapping[str, Any]]) -> None:
    """Check names and form of pinned values.

    Args:
        pinned: configuration name -> key -> value.

    Raises:
        UserError: a configuration or key is unknown, or a value is out of range or has the wrong number of entries.
    """
    for name, values in pinned.items():
        if name not in NAMES:
            raise UserError(f"plan.configuration={name} is unknown. Choose one of {', '.join(NAMES)}.")
        dim = 2 if name == "2d" else 3
        for key, value in values.items():
            if key not in PINNABLE:
                raise UserError(f"plan.{key} cannot be pinned. Choose from {', '.join(PINNABLE)}.")
            if key in ("spacing", "patch_size") and (len(value) != dim or min(value) <= 0):
                raise UserError(f"plan.{key}={list(value)}: {name} needs {dim} positive entries.")
            if key in ("strides", "kernel_sizes") and any(len(step) != dim or min(step) < 1 for step in value):
                raise UserError(f"plan.{key}={list(map(list, value))}: each stage needs {dim} positive entries.")
            if key == "batch_size" and value < 1:
                raise UserError(f"plan.batch_size={value}: must be at least 1.")


def pinned_spacing(pinned: Mapping[str, Any], derived: Sequence[float]) -> tuple[float, ...]:
    """Return the pinned spacing, or the derived one if none is pinned.

    Args:
        pinned: pinned values of a configuration.
        derived: in mm.
    """
    return tuple(float(mm) for mm in pinned.get("spacing", derived))


def check_patch(name: str, patch: Sequence[int], topology: Topology) -> None:
    """Check that the strides divide a pinned patch.

    Args:
        name: name of the configuration.
        patch: the pinned patch in voxels.
        topology: strides, and the patch padded to a multiple of them.

    Raises:
        UserError: they do not divide it.
    """
    if tuple(patch) != topology.patch_size:
        raise UserError(
            f"plan.patch_size={list(patch)}: not divisible by {list(topology.divisor)}, the strides of {name} for this "
            f"size. The nearest larger one is {list(topology.patch_size)}. Use that, or pin plan.strides too."
        )


def check_configuration(configuration: Configuration, num_channels: int) -> None:
    """Check that pinned values fit the number of stages and channels.

    Args:
        configuration: the configuration, with the pinned values in it.
        num_channels: number of image channels.

    Raises:
        UserError: a list has the wrong length, or a value in it cannot be used.
    """
    stages = configuration.num_stages
    if any(step != 1 for step in configuration.strides[0]):
        raise UserError(f"plan.strides: the first stage has {list(configuration.strides[0])}, but must have all 1.")
    wanted = {
        "kernel_sizes": stages,
        "features_per_stage": stages,
        "encoder_blocks": stages,
        "decoder_blocks": stages - 1,
        "normalization": num_channels,
        "use_mask_for_norm": num_channels,
    }
    for key, length in wanted.items():
        found = len(getattr(configuration, key))
        if found != length:
            of = "channels" if length == num_channels and "norm" in key else f"its {stages} stages"
            raise UserError(
                f"plan.{key}: has {found} entries, {configuration.name} needs {length} for {of} "
                f"(patch {list(configuration.patch_size)}, strides {[list(step) for step in configuration.strides]})."
            )
    unknown = [scheme for scheme in configuration.normalization if scheme not in SCHEMES]
    if unknown:
        raise UserError(f"plan.normalization: {unknown[0]} is unknown. Choose from {', '.join(SCHEMES)}.")
    even = [size for kernel in configuration.kernel_sizes for size in kernel if size % 2 == 0]
    if even:
        raise UserError(
            f"plan.kernel_sizes: {even[0]} is even. Use odd kernels, because only they keep the size of a feature map."
        )
