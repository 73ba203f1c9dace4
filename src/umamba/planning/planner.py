"""Derive a plan from a fingerprint (nnU-Net: experiment_planning/experiment_planners/default_experiment_planner.py).

A user can pin values. The planner keeps them, and derives from them the values that depend on them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from umamba.io import UserError
from umamba.planning.feature_maps import feature_map_values
from umamba.planning.fingerprint import Fingerprint
from umamba.planning.geometry import DatasetGeometry, dataset_geometry, median_shape_at
from umamba.planning.normalization import normalization_of, uses_mask
from umamba.planning.pinned import check_configuration, check_names, check_patch, pinned_spacing
from umamba.planning.plan import (
    CASCADE,
    FORCED,
    FULLRES,
    LOWRES,
    ONLY_2D,
    Configuration,
    Plan,
    axis3,
    read_configuration,
    stages,
)
from umamba.planning.rules import (
    LOWRES_BELOW,
    LOWRES_MIN_RATIO,
    LOWRES_STEP,
    MIN_BATCH,
    REFERENCE_BATCH,
    RuleSet,
    rule_set,
)
from umamba.planning.topology import (
    Topology,
    derive_topology,
    first_patch,
    fixed_topology,
    listed,
    shorter_patch,
    topology_reason,
)


@dataclass(frozen=True)
class _Dataset:
    """Values that the derivation of every configuration needs."""

    fingerprint: Fingerprint
    channel_names: Sequence[str]
    num_training: int
    num_label_entries: int
    rules: RuleSet
    gpu_memory_gb: float | None


def plan_dataset(
    fingerprint: Fingerprint,
    *,
    dataset_name: str,
    channel_names: Sequence[str],
    num_training: int,
    num_label_entries: int,
    rules: str = "nnunet",
    gpu_memory_gb: float | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Derive the plan of a dataset.

    Args:
        fingerprint: statistics of the training cases.
        dataset_name: name of the dataset, which is stored in the plan.
        channel_names: channel names of dataset.json, which choose the normalisation.
        num_training: number of training cases (numTraining of dataset.json).
        num_label_entries: entries of `labels` in dataset.json, including background and ignore label.
        rules: name of the rule set: nnunet, umamba, resenc_m, resenc_l or resenc_xl.
        gpu_memory_gb: GPU memory in GB that the network may take; None: that of the rule set.
        overrides: values to pin: configuration name -> key (spacing, patch_size, batch_size, strides, ...) -> value.

    Raises:
        UserError: the rules are unknown, or pinned values do not fit each other.

    Example:
        >>> from umamba.planning import Fingerprint, Intensity
        >>> fingerprint = Fingerprint(
        ...     spacings=((2.5, 0.8, 0.8),) * 20,
        ...     shapes_after_crop=((90, 512, 512),) * 20,
        ...     intensity=(Intensity(90.0, 92.0, 60.0, -200.0, 400.0, -80.0, 240.0),),
        ...     median_relative_size_after_cropping=1.0,
        ... )
        >>> plan = plan_dataset(
        ...     fingerprint,
        ...     dataset_name="Dataset001_Liver",
        ...     channel_names=("CT",),
        ...     num_training=20,
        ...     num_label_entries=2,
        ... )
        >>> full = plan.configuration("3d_fullres")
        >>> full.patch_size, full.batch_size, full.normalization
        ((40, 224, 224), 2, ('CTNormalization',))
    """
    if gpu_memory_gb is not None and gpu_memory_gb <= 0:
        raise UserError(f"planner.gpu_memory_gb={gpu_memory_gb}: must be above 0. Give the memory in GB.")
    pinned = {name: dict(values) for name, values in (overrides or {}).items()}
    check_names(pinned)
    dataset = _Dataset(fingerprint, channel_names, num_training, num_label_entries, rule_set(rules), gpu_memory_gb)
    geometry = dataset_geometry(fingerprint)
    decisions = [
        f"target spacing {listed(geometry.target_spacing)} mm: {geometry.reason}",
        f"axis order {listed(geometry.transpose)}: the coarsest target spacing first",
    ]
    configurations: dict[str, Configuration] = {}
    full_shape = median_shape_at(fingerprint, geometry, geometry.target_spacing)
    # A batch may cover a fraction of the dataset's voxels. nnU-Net counts those of whole volumes, for 2D as well.
    voxels = math.prod(full_shape) * num_training

    flat = pinned.get("2d", {})
    spacing = pinned_spacing(flat, geometry.target_spacing[1:])
    shape = median_shape_at(fingerprint, geometry, (geometry.target_spacing[0], *spacing))[1:]
    configurations["2d"] = _derive(dataset, "2d", spacing, shape, voxels, True, flat, decisions)
    if full_shape[0] == 1:
        decisions.append(f"{ONLY_2D}: the median image has a single slice")
    else:
        _add_volumetric(dataset, geometry, configurations, pinned, decisions)
    absent = set(pinned) - set(configurations)
    if absent:
        why = f", because it has no {LOWRES} ({FORCED})" if CASCADE in absent else ""
        raise UserError(
            f"plan.configuration={absent.pop()}: the plan of {dataset_name} has no such configuration{why}, so its "
            f"values cannot be pinned. Choose one of {', '.join(configurations)}."
        )
    return Plan(
        dataset_name,
        rules,
        geometry.transpose,
        axis3([geometry.transpose.index(axis) for axis in range(3)]),
        geometry.median_spacing,
        geometry.median_shape,
        fingerprint.intensity,
        configurations,
        tuple(decisions),
    )


def _add_volumetric(
    dataset: _Dataset,
    geometry: DatasetGeometry,
    configurations: dict[str, Configuration],
    pinned: Mapping[str, Mapping[str, Any]],
    decisions: list[str],
) -> None:
    """Add 3d_fullres and, if its patch covers too little of an image, 3d_lowres; the cascade if values are pinned."""
    own = pinned.get(FULLRES, {})
    spacing = pinned_spacing(own, geometry.target_spacing)
    shape = median_shape_at(dataset.fingerprint, geometry, spacing)
    voxels = math.prod(shape) * dataset.num_training
    full = _derive(dataset, "3d_fullres", spacing, shape, voxels, False, own, decisions)
    low = _derive_lowres(dataset, full, pinned.get("3d_lowres", {}), decisions)
    if low is not None and "batch_dice" not in own:
        full = replace(full, batch_dice=True)
    configurations["3d_fullres"] = full
    if low is None:
        return
    configurations[LOWRES] = low
    decisions.append(f"{CASCADE}: as {FULLRES}, with the labels that {LOWRES} finds as further input channels")
    if CASCADE in pinned:
        later = pinned[CASCADE]
        spacing = pinned_spacing(later, geometry.target_spacing)
        shape = median_shape_at(dataset.fingerprint, geometry, spacing)
        voxels = math.prod(shape) * dataset.num_training
        second = _derive(dataset, CASCADE, spacing, shape, voxels, True, later, decisions)
        configurations[CASCADE] = replace(second, previous_stage=LOWRES)


def _derive_lowres(
    dataset: _Dataset, full: Configuration, pinned: Mapping[str, Any], decisions: list[str]
) -> Configuration | None:
    """Derive 3d_lowres: make the spacing coarser until a patch covers enough of the median image.

    Return None if a patch covers enough at full resolution, or if the rules drop 3d_lowres.
    """

    def at(spacing: Sequence[float], notes: list[str]) -> tuple[Configuration, float]:
        sizes = [a / b * size for a, b, size in zip(full.spacing, spacing, full.median_shape, strict=True)]
        voxels = math.prod(sizes)
        shape = tuple(max(1.0, float(round(size))) for size in sizes)  # nnU-Net fails where an axis rounds to 0
        derived = _derive(dataset, "3d_lowres", spacing, shape, voxels * dataset.num_training, False, pinned, notes)
        return derived, voxels

    if "spacing" in pinned:
        return at(pinned_spacing(pinned, full.spacing), decisions)[0]
    low: Configuration | None = None
    notes: list[str] = []
    full_voxels = voxels = math.prod(full.median_shape)
    seen = first_seen = math.prod(full.patch_size) / voxels
    spacing = tuple(full.spacing)
    while seen < LOWRES_BELOW:
        coarsest = max(spacing)
        fine = [coarsest / mm > 2 for mm in spacing]
        spacing = tuple(
            mm * LOWRES_STEP if is_fine or not any(fine) else mm for mm, is_fine in zip(spacing, fine, strict=True)
        )
        notes = []
        low, voxels = at(spacing, notes)
        seen = math.prod(low.patch_size) / voxels
    why = f"a patch of 3d_fullres covers {first_seen:.3g} of the median image (threshold {LOWRES_BELOW:g})"
    if low is None:
        decisions.append(f"3d_lowres: none, {why}")
    elif dataset.rules.drops_close_lowres and full_voxels / voxels < LOWRES_MIN_RATIO:
        decisions.append(
            f"3d_lowres: dropped, full resolution has only {full_voxels / voxels:.3g} times its voxels "
            f"(at least {LOWRES_MIN_RATIO:g}); {why}"
        )
        low = None
    else:
        decisions += [f"3d_lowres: planned, {why}; 3d_fullres gets batch Dice", *notes]
    return low


def _derive(
    dataset: _Dataset,
    name: str,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
    batch_dice: bool,
    pinned: Mapping[str, Any],
    decisions: list[str],
) -> Configuration:
    """Derive one configuration: patch and topology from the memory estimate, then batch size and normalisation."""
    dim, rules = len(spacing), dataset.rules
    reference, reference_batch = rules.reference(dim, dataset.gpu_memory_gb), REFERENCE_BATCH[dim]

    def topology_of(size: Sequence[float]) -> Topology:
        strides = pinned.get("strides")
        derived = fixed_topology(spacing, size, strides) if strides else derive_topology(spacing, size)
        return replace(derived, kernel_sizes=stages(pinned.get("kernel_sizes", derived.kernel_sizes)))

    def shape_of(topology: Topology) -> dict[str, tuple[int, ...]]:
        return {key: tuple(pinned.get(key, value)) for key, value in _layers(rules, len(topology.strides), dim).items()}

    def estimate_of(topology: Topology) -> int:
        layers = shape_of(topology)
        own = _layers(rules, len(topology.strides), dim)
        if any(len(layers[key]) != len(own[key]) for key in own):
            layers = own  # a pinned list fits only one number of stages, so other patches use the lists of the rules
        return feature_map_values(
            topology.patch_size,
            topology.strides,
            layers["features_per_stage"],
            layers["encoder_blocks"],
            layers["decoder_blocks"],
            dataset.num_label_entries,
            rules.residual_encoder,
        )

    if "spacing" in pinned and min(median_shape) < 1:
        raise UserError(
            f"{name}: plan.spacing={listed(spacing)} mm is so coarse that the median image has {listed(median_shape)} "
            "voxels. Give a finer spacing, in mm."
        )
    decisions.append(f"{name}: at {listed(spacing)} mm the median image has {listed(median_shape)} voxels")
    if "patch_size" in pinned:
        topology = topology_of(pinned["patch_size"])
        check_patch(name, pinned["patch_size"], topology)
        estimate = estimate_of(topology)
        decisions.append(f"{name}: patch {listed(topology.patch_size)} as pinned")
    else:
        topology = topology_of(first_patch(spacing, median_shape))
        estimate = estimate_of(topology)
        first = (topology.patch_size, estimate)
        limit = reference if rules.fit_batch is None else reference * reference_batch / rules.fit_batch
        while estimate > limit:
            topology = topology_of(shorter_patch(topology, median_shape, topology_of))
            if min(topology.patch_size) < 1:
                remedy = "fewer plan.strides, plan.patch_size, or " if "strides" in pinned else ""
                memory = rules.memory_gb if dataset.gpu_memory_gb is None else dataset.gpu_memory_gb
                raise UserError(f"{name}: no patch fits {memory:g} GB. Give {remedy}a larger planner.gpu_memory_gb.")
            estimate = estimate_of(topology)
        decisions.append(
            f"{name}: patch {listed(topology.patch_size)}, {estimate / 1e6:.4g}M feature map values "
            f"(limit {limit / 1e6:.4g}M; first guess {listed(first[0])} has {first[1] / 1e6:.4g}M), "
            f"{len(topology.strides)} stages"
        )
    decisions.append(f"{name}: {topology_reason(spacing, topology)}")
    by_memory = round(reference / estimate * reference_batch)
    by_coverage = round(dataset_voxels * rules.coverage / math.prod(topology.patch_size))
    batch_size = max(min(by_memory, by_coverage), MIN_BATCH)
    decisions.append(
        f"{name}: batch {pinned.get('batch_size', batch_size)}"
        + (" as pinned" if "batch_size" in pinned else "")
        + f"; memory allows {by_memory}, {rules.coverage:.0%} of all voxels {by_coverage}, at least {MIN_BATCH}"
    )
    normalization = tuple(pinned.get("normalization", [normalization_of(c, rules) for c in dataset.channel_names]))
    relative = dataset.fingerprint.median_relative_size_after_cropping
    masks = tuple(pinned.get("use_mask_for_norm", [uses_mask(scheme, relative) for scheme in normalization]))
    decisions.append(
        f"{name}: normalisation {listed(normalization)}, inside the nonzero mask {listed(masks)} "
        f"(the crop leaves {relative:.3g} of the voxels)"
    )
    layers = shape_of(topology)
    configuration = Configuration(
        name=name,
        spacing=tuple(float(mm) for mm in spacing),
        median_shape=tuple(float(size) for size in median_shape),
        patch_size=topology.patch_size,
        batch_size=pinned.get("batch_size", batch_size),
        batch_dice=pinned.get("batch_dice", batch_dice),
        normalization=normalization,
        use_mask_for_norm=masks,
        strides=topology.strides,
        kernel_sizes=topology.kernel_sizes,
        features_per_stage=layers["features_per_stage"],
        encoder_blocks=layers["encoder_blocks"],
        decoder_blocks=layers["decoder_blocks"],
        residual_encoder=rules.residual_encoder,
    )
    check_configuration(configuration, len(dataset.channel_names))
    return read_configuration(configuration.to_json(), f"plan.{name}")  # refuses now what the plan's readers refuse


def _layers(rules: RuleSet, num_stages: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the rules' features and blocks for a number of stages."""
    return {
        "features_per_stage": rules.features(num_stages, dim),
        "encoder_blocks": rules.encoder_blocks(num_stages),
        "decoder_blocks": rules.decoder_blocks(num_stages),
    }
