"""Checks of plan values that a user pins, so that what is left to derive fits them."""

from collections.abc import Mapping, Sequence
from typing import Any

from umamba.io import UserError
from umamba.planning.normalization import SCHEMES
from umamba.planning.plan import Configuration
from umamba.planning.topology import Topology

NAMES = ("2d", "3d_fullres", "3d_lowres")
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
    """Raise UserError for an unknown configuration or key, or a value that cannot be one of its kind."""
    for name, values in pinned.items():
        if name not in NAMES:
            raise UserError(f"plan.configuration={name} is unknown. Choose one of {', '.join(NAMES)}.")
        dim = 2 if name == "2d" else 3
        for key, value in values.items():
            if key not in PINNABLE:
                raise UserError(f"plan.{key} cannot be pinned. What can: {', '.join(PINNABLE)}.")
            if key in ("spacing", "patch_size") and (len(value) != dim or min(value) <= 0):
                raise UserError(f"plan.{key}={list(value)}: {name} needs {dim} positive entries.")
            if key in ("strides", "kernel_sizes") and any(len(step) != dim or min(step) < 1 for step in value):
                raise UserError(f"plan.{key}={list(map(list, value))}: each stage needs {dim} positive entries.")
            if key == "batch_size" and value < 1:
                raise UserError(f"plan.batch_size={value}: must be at least 1.")


def pinned_spacing(pinned: Mapping[str, Any], derived: Sequence[float]) -> tuple[float, ...]:
    """Return the pinned spacing, else the derived one."""
    return tuple(float(mm) for mm in pinned.get("spacing", derived))


def check_patch(name: str, patch: Sequence[int], topology: Topology) -> None:
    """Raise UserError for a pinned patch that the strides do not divide."""
    if tuple(patch) != topology.patch_size:
        raise UserError(
            f"plan.patch_size={list(patch)}: not divisible by {list(topology.divisor)}, the strides of {name} for this "
            f"size. The nearest larger one is {list(topology.patch_size)}; or pin plan.strides too."
        )


def check_configuration(configuration: Configuration, num_channels: int) -> None:
    """Raise UserError where pinned values do not fit the number of stages or channels."""
    stages = configuration.num_stages
    if any(step != 1 for step in configuration.strides[0]):
        raise UserError(f"plan.strides: the first stage must not be strided, it is {list(configuration.strides[0])}.")
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
        raise UserError(f"plan.kernel_sizes: {even[0]} is even; kernels must be odd to keep the size of a map.")
