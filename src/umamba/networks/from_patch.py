"""A network's configuration from a patch size alone, without a dataset, by the rules of `umamba.planning`."""

from collections.abc import Sequence
from numbers import Integral, Real

from umamba.io import UserError
from umamba.planning import Configuration
from umamba.planning.rules import MIN_BATCH, rule_set
from umamba.planning.topology import derive_topology


def configuration_for_patch(
    patch_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    *,
    in_channels: int = 1,
    residual_encoder: bool = False,
) -> Configuration:
    """Derive strides, kernels, features and blocks for a patch as nnU-Net's planner does.

    The remaining values, which shape no network, are those that the planner gives a dataset of one image of this size:
    a batch of two, z-score normalisation.

    Args:
        patch_size: (Z, Y, X) or (Y, X), voxels; as in a plan, the coarsest axis comes first.
        spacing: mm, one entry for each axis of the patch; None: 1 mm on all axes.
        in_channels: image channels.
        residual_encoder: block counts of nnU-Net's residual encoder instead of two in each stage.

    Returns:
        The configuration, named 2d or 3d_fullres.

    Raises:
        UserError: not a patch size or spacing, or a patch that the strides do not divide.

    >>> configuration_for_patch((16, 64, 64), spacing=(4, 1, 1)).strides
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    patch = _patch(patch_size)
    dim = len(patch)
    mm = _spacing(spacing, dim)
    topology = derive_topology(mm, patch)
    if topology.patch_size != patch:
        raise UserError(
            f"patch_size={list(patch)}: must be divisible by {list(topology.divisor)}, the product of the strides for "
            f"this size. The nearest larger patch that fits is {list(topology.patch_size)}."
        )
    rules, stages = rule_set("resenc_m" if residual_encoder else "nnunet"), len(topology.strides)
    return Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=mm,
        median_shape=tuple(map(float, patch)),
        patch_size=patch,
        batch_size=MIN_BATCH,
        batch_dice=dim == 2,
        normalization=("ZScoreNormalization",) * in_channels,
        use_mask_for_norm=(False,) * in_channels,
        strides=topology.strides,
        kernel_sizes=topology.kernel_sizes,
        features_per_stage=rules.features(stages, dim),
        encoder_blocks=rules.encoder_blocks(stages),
        decoder_blocks=rules.decoder_blocks(stages),
        residual_encoder=rules.residual_encoder,
    )


def choose_configuration(
    configuration: Configuration | None,
    patch_size: Sequence[int] | None,
    spacing: Sequence[float] | None,
    *,
    in_channels: int,
    residual_encoder: bool = False,
) -> Configuration:
    """Return the configuration that was given, or derive it from the patch size that was given instead.

    Args:
        configuration: the plan's configuration, or None.
        patch_size: see `configuration_for_patch`, or None.
        spacing: see `configuration_for_patch`; allowed with `patch_size` only.
        in_channels: image channels.
        residual_encoder: see `configuration_for_patch`.

    Raises:
        UserError: both or neither are given, or the patch size cannot be used.
    """
    if (configuration is None) == (patch_size is None):
        given = "both were given" if patch_size is not None else "neither was given"
        raise UserError(f"Give either the plan's configuration or patch_size=(...); {given}.")
    if configuration is None:
        assert patch_size is not None
        return configuration_for_patch(patch_size, spacing, in_channels=in_channels, residual_encoder=residual_encoder)
    if spacing is not None:
        raise UserError("spacing=...: give it together with patch_size only, because a configuration has its own.")
    return configuration


def _patch(values: Sequence[int]) -> tuple[int, ...]:
    whole = all(isinstance(edge, Integral) and edge > 0 for edge in values)
    if len(values) not in (2, 3) or not whole:
        raise UserError(f"patch_size={list(values)}: must be 2 or 3 whole numbers of voxels above 0.")
    return tuple(int(edge) for edge in values)


def _spacing(values: Sequence[float] | None, dim: int) -> tuple[float, ...]:
    if values is None:
        return (1.0,) * dim
    if len(values) != dim or not all(isinstance(mm, Real) and mm > 0 for mm in values):
        raise UserError(f"spacing={list(values)}: must be {dim} numbers of mm above 0, one for each axis of the patch.")
    return tuple(float(mm) for mm in values)
