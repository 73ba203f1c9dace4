"""Read nnU-Net's plans files of release 2.8 and of releases before 2.4, and write plans files for 2.8."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from umamba.datasets import READERS, REORIENTING_READER
from umamba.io import UserError, read_json
from umamba.planning.fingerprint import read_intensities
from umamba.planning.plan import (
    CASCADE,
    FULLRES,
    LOWRES,
    Configuration,
    Plan,
    entries_of,
    parse_record,
    read_configuration,
    read_plan,
)
from umamba.settings import key
from umamba.settings.validate import read_record
from umamba.settings.wording import shown

_RESAMPLE = "resample_data_or_seg_to_shape"
_NETWORKS = "dynamic_network_architectures.architectures.unet."
_CLASSES = {"PlainConvUNet": False, "ResidualEncoderUNet": True}  # network class: whether its encoder is residual
_PLANNERS = {
    "nnunet": ("ExperimentPlanner", "nnUNetPlans"),
    "umamba": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}


def read_nnunet_plans(path: Path) -> Plan:
    """Read an nnU-Net plans file.

    Args:
        path: the JSON file.

    Raises:
        UserError: the file is missing, is not a plans file, or plans a network that is neither of nnU-Net's U-Nets.
    """
    if not path.is_file():
        raise UserError(f"plan.from_file={path}: there is no such file. Check the path.")
    return parse_nnunet_plans(read_json(path), str(path))


def parse_nnunet_plans(obj: Any, origin: str) -> Plan:
    """Read the content of an nnU-Net plans file.

    Args:
        obj: the content.
        origin: where it comes from, for messages.

    Raises:
        UserError: it is not a plan, or plans a network that is neither of nnU-Net's U-Nets.
    """
    plan = parse_record(origin, obj, _read_plan)
    return replace(plan, decisions=(f"all values: read from {origin}",))


def foreign_settings(obj: Mapping[str, Any], configuration: str) -> list[str]:
    """Return the settings of a plans file that this project does not support, as "key: value".

    These are other readers of images, preprocessors or resampling functions, and layers that nnU-Net's planners do not
    choose, such as another norm, dropout or another nonlinearity.

    Args:
        obj: the content of the plans file.
        configuration: name of the configuration to check.
    """
    entry = _inherited(configuration, obj["configurations"])
    known = _write_configuration(_read_configuration(configuration, entry), str(obj.get("plans_name")))
    asked = {key: value for key, value in entry.items() if key == "preprocessor_name" or key.startswith("resampling_")}
    asked |= entry.get("architecture", {}).get("arch_kwargs", {})
    known |= known["architecture"]["arch_kwargs"]
    reader = obj.get("image_reader_writer")
    foreign = [] if reader is None or reader in READERS else [f"image_reader_writer: {reader}"]
    return foreign + [f"{key}: {value}" for key, value in asked.items() if key not in known or value != known[key]]


def to_nnunet_plans(plan: Plan, file_ending: str = ".nii.gz") -> dict[str, Any]:
    """Return the content of a plans file for nnU-Net 2.8.

    Args:
        plan: the plan.
        file_ending: ending of the dataset's images, which chooses nnU-Net's reader.
    """
    planner, name = _PLANNERS.get(plan.rules, _PLANNERS["nnunet"])
    configurations = {key: _write_configuration(entry, name) for key, entry in plan.configurations.items()}
    if CASCADE in plan.names:
        before = plan.configuration(CASCADE).previous_stage
        configurations[str(before)]["next_stage"] = CASCADE
        own = configurations.get(CASCADE, {"inherits_from": FULLRES})
        configurations[CASCADE] = {**own, "previous_stage": before}
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": name,
        "original_median_spacing_after_transp": list(plan.median_spacing),
        "original_median_shape_after_transp": [round(size) for size in plan.median_shape],
        "image_reader_writer": plan.reader or _image_reader(file_ending.lower(), "3d_fullres" in configurations),
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": configurations,
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): asdict(channel) for index, channel in enumerate(plan.intensity)
        },
    }


def _image_reader(file_ending: str, volumes: bool) -> str:
    """Return the name of nnU-Net's reader for a file ending; .tif has one reader for pictures and one for volumes."""
    if file_ending in (".png", ".bmp") or (file_ending == ".tif" and not volumes):
        return "NaturalImage2DIO"
    return "Tiff3DIO" if file_ending in (".tif", ".tiff") else "SimpleITKIO"


def _write_configuration(configuration: Configuration, plans_name: str) -> dict[str, Any]:
    dim, residual = configuration.dim, configuration.residual_encoder
    network = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "data_identifier": f"{plans_name}_{configuration.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing),
        "normalization_schemes": list(configuration.normalization),
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        **_resampling("data", False, 3),
        **_resampling("seg", True, 1),
        **_resampling("probabilities", False, 1),
        "architecture": {
            "network_class_name": _NETWORKS + network,
            "arch_kwargs": {
                "n_stages": configuration.num_stages,
                "features_per_stage": list(configuration.features_per_stage),
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [list(kernel) for kernel in configuration.kernel_sizes],
                "strides": [list(stride) for stride in configuration.strides],
                "n_blocks_per_stage" if residual else "n_conv_per_stage": list(configuration.encoder_blocks),
                "n_conv_per_stage_decoder": list(configuration.decoder_blocks),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": configuration.batch_dice,
    }


def _resampling(what: str, is_label: bool, order: int) -> dict[str, Any]:
    return {
        f"resampling_fn_{what}": _RESAMPLE,
        f"resampling_fn_{what}_kwargs": {"is_seg": is_label, "order": order, "order_z": 0, "force_separate_z": None},
    }


def _read_plan(obj: Mapping[str, Any]) -> Plan:
    planner = obj.get("experiment_planner_used")
    rules = next((name for name, (known, _) in _PLANNERS.items() if known == planner), "nnunet")
    entries = entries_of(obj["configurations"], "configurations")
    for name, entry in entries.items():
        entries_of(entry, f"configurations.{shown(name)}")
    # A cascade whose first stage is not planned cannot be trained or predicted, and is left out.
    usable = [name for name, entry in entries.items() if entry.get("previous_stage") in (None, *entries)]
    configurations = {name: _read_configuration(name, _inherited(name, entries)) for name in usable}
    return read_plan(
        {
            "dataset_name": obj["dataset_name"],
            "rules": rules,
            "transpose_forward": obj["transpose_forward"],
            "transpose_backward": obj["transpose_backward"],
            "median_spacing": obj["original_median_spacing_after_transp"],
            "median_shape": obj["original_median_shape_after_transp"],
            "intensity": read_intensities(obj["foreground_intensity_properties_per_channel"]),
            "configurations": {
                name: found for name, found in configurations.items() if found != _derived(name, configurations)
            },
            "reader": REORIENTING_READER if obj.get("image_reader_writer") == REORIENTING_READER else None,
        }
    )


def _derived(name: str, configurations: Mapping[str, Configuration]) -> Configuration | None:
    """Return what a plan without an entry for the cascade has in its place; None for other configurations."""
    if name != CASCADE or not {LOWRES, FULLRES} <= configurations.keys():
        return None
    return replace(configurations[FULLRES], name=CASCADE, previous_stage=LOWRES)


def _inherited(name: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of a configuration, including those that it inherits."""
    chain: list[str] = []
    while True:
        if name in chain:
            raise UserError(f"configurations.{name}.inherits_from: the configuration inherits from itself.")
        if name not in entries:
            raise UserError(f"configurations.{chain[-1]}.inherits_from={shown(name)}: there is no such configuration.")
        chain.append(name)
        if "inherits_from" not in entries[name]:
            return {key: value for link in reversed(chain) for key, value in entries[link].items()}
        name = str(entries[name]["inherits_from"])


def _read_configuration(name: str, entry: Mapping[str, Any]) -> Configuration:
    section = f"configurations.{shown(name)}"
    network = entry
    if "architecture" in entry:
        network = entries_of(entry["architecture"], f"{section}.architecture")
    kind = str(network["network_class_name" if "architecture" in entry else "UNet_class_name"]).rsplit(".", 1)[-1]
    if kind not in _CLASSES:
        raise UserError(f"{section}: plans a {kind[:60]}. Only {' and '.join(_CLASSES)} are known here.")
    residual = _CLASSES[kind]
    if "architecture" in entry:
        layers = entries_of(network["arch_kwargs"], f"{section}.architecture.arch_kwargs")
        values = {
            "strides": layers["strides"],
            "kernel_sizes": layers["kernel_sizes"],
            "features_per_stage": layers["features_per_stage"],
            "encoder_blocks": layers["n_blocks_per_stage" if residual else "n_conv_per_stage"],
            "decoder_blocks": layers["n_conv_per_stage_decoder"],
        }
    else:  # nnU-Net before 2.4
        values = {
            "strides": entry["pool_op_kernel_sizes"],
            "kernel_sizes": entry["conv_kernel_sizes"],
            "features_per_stage": _doubled(entry, section),
            "encoder_blocks": entry["n_conv_per_stage_encoder"],
            "decoder_blocks": entry["n_conv_per_stage_decoder"],
        }
    return read_configuration(
        {
            "name": name,
            "spacing": entry["spacing"],
            "median_shape": entry["median_image_size_in_voxels"],
            "patch_size": entry["patch_size"],
            "batch_size": entry["batch_size"],
            "batch_dice": entry["batch_dice"],
            "normalization": entry["normalization_schemes"],
            "use_mask_for_norm": entry["use_mask_for_norm"],
            **values,
            "residual_encoder": residual,
            "previous_stage": entry.get("previous_stage"),
        },
        section,
    )


@dataclass(frozen=True)
class _Widths:
    """Feature maps of the first stage and of the widest one, as releases before 2.4 plan them."""

    UNet_base_num_features: int = key(low=1, high=16384)
    unet_max_num_features: int = key(low=1, high=16384)


def _doubled(entry: Mapping[str, Any], section: str) -> list[int]:
    """Return the feature maps of each stage, which double from stage to stage."""
    widths = read_record(_Widths, entry, section)
    count = min(len(entry["pool_op_kernel_sizes"]), 64)
    return [min(widths.UNet_base_num_features * 2**stage, widths.unet_max_num_features) for stage in range(count)]
