"""The defaults of training, written by hand: what configs/ held before the settings were typed.

The one difference is meant: a recipe states its precision, and trainer.precision (null) overrides it.
"""

from collections.abc import Callable
from typing import Any

import pytest

from umamba.settings import DescribeSettings, PrepareSettings, TrainSettings

Composed = Callable[..., dict[str, Any]]

NNUNET_RECIPE: dict[str, Any] = {
    "name": "nnunet",
    "optimizer": {
        "name": "sgd",
        "lr": 0.01,
        "weight_decay": 3e-5,
        "momentum": 0.99,
        "dampening": None,
        "nesterov": True,
        "betas": None,
        "eps": None,
        "amsgrad": None,
    },
    "schedule": {"name": "poly", "exponent": 0.9, "minimum": 0.0, "warm_up": 0.02, "decay": 0.3},
    "finetune": {"frozen": 0.0, "warm_up": 0.0},
    "loss": {
        "name": None,
        "dice_weight": 1.0,
        "cross_entropy_weight": 1.0,
        "class_weights": None,
        "focal_gamma": 0.0,
        "tversky": None,
        "exclusion_weight": 0.0,
        "distillation_weight": 10.0,
        "component_weight": 0.0,
    },
    "precision": "auto",
    "deep_supervision": True,
    "gradient_clip_norm": 12.0,
    "oversample_foreground": 0.33,
    "ema_momentum": 0.9,
    "weight_averaging": None,
}
ADAPTIVE: dict[str, Any] = {
    "name": "adam",
    "lr": 1e-4,
    "weight_decay": 1e-5,
    "momentum": None,
    "dampening": None,
    "nesterov": None,
    "betas": None,
    "eps": 1e-5,
    "amsgrad": None,
}
RECIPES: dict[str, dict[str, Any]] = {
    "nnunet": NNUNET_RECIPE,
    "segresnet": {
        **NNUNET_RECIPE,
        "name": "segresnet",
        "optimizer": ADAPTIVE,
        "precision": "32-true",
        "deep_supervision": False,
    },
    "unetr": {
        **NNUNET_RECIPE,
        "name": "unetr",
        "optimizer": {**ADAPTIVE, "name": "adamw", "weight_decay": 0.01},
        "schedule": {"name": "poly", "exponent": 1.0, "minimum": 0.0, "warm_up": 0.02, "decay": 0.3},
        "precision": "32-true",
        "deep_supervision": False,
    },
    "swinunetr": {
        **NNUNET_RECIPE,
        "name": "swinunetr",
        "optimizer": {**ADAPTIVE, "name": "adamw", "lr": 8e-4, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "exponent": 0.9, "minimum": 1.25e-3, "warm_up": 0.02, "decay": 0.3},
        "precision": "32-true",
        "deep_supervision": False,
    },
}
NNUNET_AUGMENTATION: dict[str, Any] = {
    "device": "cpu",
    "rotation": {"p": 0.2, "degrees_3d": 30.0, "degrees_in_plane": 180.0, "degrees_elongated": 15.0},
    "scaling": {"p": 0.2, "factor": [0.7, 1.4]},
    "cutmix": {"p": 0.0, "edge": [0.25, 0.6]},
    "convolution": {"p": 0.0, "p_channel": 1.0, "share": [0.2, 0.8]},
    "noise": {"p": 0.1, "std": [0.0, 0.1]},
    "blur": {"p": 0.2, "p_channel": 0.5, "sigma": [0.5, 1.0]},
    "brightness": {"p": 0.15, "factor": [0.75, 1.25]},
    "contrast": {"p": 0.15, "factor": [0.75, 1.25]},
    "low_resolution": {"p": 0.25, "p_channel": 0.5, "factor": [0.5, 1.0]},
    "gamma_negated": {"p": 0.1, "exponent": [0.7, 1.5]},
    "gamma": {"p": 0.3, "exponent": [0.7, 1.5]},
    "mirror": {"p": 0.5, "axes": None},
    "previous_stage": {
        "p_shape": 0.4,
        "p_removal": 0.2,
        "p_label": 0.5,
        "radius": [1.0, 8.0],
        "removed_share": 0.15,
    },
    "extra": [],
}


def without(*kinds: str) -> dict[str, Any]:
    """Return nnU-Net's augmentation with some kinds off."""
    off = {"previous_stage": {"p_shape": 0.0, "p_removal": 0.0}}
    return {
        name: {**kind, **off.get(name, {"p": 0.0})} if name in kinds else kind
        for name, kind in NNUNET_AUGMENTATION.items()
    }


AUGMENTATIONS = {
    "nnunet": NNUNET_AUGMENTATION,
    "light": without("rotation", "scaling", "blur", "contrast", "low_resolution", "gamma_negated"),
    "spatial": without("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_negated", "gamma"),
    "none": without(*(name for name in NNUNET_AUGMENTATION if name not in ("device", "extra"))),
}
TRAINER: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,
    "max_epochs": 1000,
    "max_time": None,
    "find_lr": False,
    "profiler": None,
    "accumulate_grad_batches": 1,
    "callbacks": [],
    "compile": False,
    "activation_checkpointing": False,
    "ddp_batch": "divide",
    "limit_train_batches": None,
    "limit_val_batches": None,
    "deterministic": False,
    "benchmark": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "enable_progress_bar": True,
}
TRAINERS = {
    "default": TRAINER,
    "ddp": {**TRAINER, "devices": "auto", "strategy": "auto"},
}
UMAMBA: dict[str, Any] = {
    "blocks": "official",
    "full_resolution_skip": "official",
    "decoder_upsampling": "nearest",
    "mixer": "mamba",
    "match": "none",
    "mixer_kernel": 7,
    "head_width": 64,
    "mamba": True,
    "residual": False,
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "scan_backend": "auto",
    "scan_directions": "forward",
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "umamba_bot": {"name": "umamba_bot", **UMAMBA},
    "umamba_enc": {"name": "umamba_enc", **UMAMBA, "mamba_stages": "official"},
    "unet": {"name": "unet"},
    "resenc_unet": {"name": "resenc_unet"},
    "segresnet": {"name": "segresnet", "init_filters": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]},
    "unetr": {"name": "unetr", "feature_size": 16, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
    "swinunetr": {
        "name": "swinunetr",
        "feature_size": 48,
        "depths": [2, 2, 2, 2],
        "num_heads": [3, 6, 12, 24],
        "monai_compat": "1.3",
    },
}
PLAN: dict[str, Any] = {
    "configuration": "3d_fullres",
    "paper": False,
    "from_file": None,
    "spacing": None,
    "patch_size": None,
    "batch_size": None,
    "batch_dice": None,
    "normalization": None,
    "use_mask_for_norm": None,
    "strides": None,
    "kernel_sizes": None,
    "features_per_stage": None,
    "encoder_blocks": None,
    "decoder_blocks": None,
}
PLANS: dict[str, dict[str, Any]] = {
    "3d_fullres": PLAN,
    "3d_lowres": {**PLAN, "configuration": "3d_lowres"},
    "3d_cascade_fullres": {**PLAN, "configuration": "3d_cascade_fullres"},
    "2d": {**PLAN, "configuration": "2d"},
}
PLANNERS = {name: {"rules": name, "gpu_memory_gb": None, "measure": False} for name in ("nnunet", "umamba")} | {
    name: {"rules": name, "gpu_memory_gb": None, "measure": False} for name in ("resenc_m", "resenc_l", "resenc_xl")
}
PHANTOM: dict[str, Any] = {
    "scene": "abdomen",
    "archive": None,
    "num_training": 24,
    "num_test": 8,
    "seed": 0,
    "voxel_mm": None,
}
WANDB: dict[str, Any] = {
    "wandb": True,
    "tensorboard": False,
    "mlflow": False,
    "project": "umamba",
    "entity": None,
    "panels_every": 10,
    "further": [],
    "upload_model": False,
    "alert": False,
    "notify": None,
}
CSV = {**WANDB, "wandb": False}
LOGGERS = {"wandb": WANDB, "csv": CSV, "tensorboard": {**CSV, "tensorboard": True}, "mlflow": {**CSV, "mlflow": True}}
PATHS = {"raw": "data/raw", "preprocessed": "data/preprocessed", "runs": "runs"}
TRAIN: dict[str, Any] = {
    "dataset": {
        "root": "data/raw/Dataset900_Phantom",
        "kind": "phantom",
        "source": "made by this project",
        "licence": "synthetic, CC0",
        "tolerance_mm": 3.0,
        "protocol": "generic",
        "instance_targets": "boundary",
        "num_training": None,
        "phantom": PHANTOM,
    },
    "name": None,
    "fold": 0,
    "seed": 0,
    "restart": False,
    "budget": None,
    "finish_by": None,
    "pretrained": None,
    "pretrained_parts": "all",
    "previous_stage": None,
    "teacher": None,
    "smoke": False,
    "paths": PATHS,
    "planner": PLANNERS["nnunet"],
    "plan": PLAN,
    "architecture": ARCHITECTURES["umamba_bot"],
    "heads": {"case": None, "weight": 1.0, "alone": False},
    "recipe": NNUNET_RECIPE,
    "augmentation": NNUNET_AUGMENTATION,
    "data": {
        "num_workers": None,
        "prefetch_factor": 2,
        "prepare_workers": None,
        "check_store": True,
        "iterations_per_epoch": 250,
        "val_iterations": 50,
        "validate_cases_every": 50,
        "validation_cases": 3,
    },
    "trainer": TRAINER,
    "logger": WANDB,
    "predict": {
        "tile_step_size": 0.5,
        "tta": False,
        "engine": "auto",
        "tile_scale": 1,
        "validation": True,
        "checkpoint": "last",
        "probabilities": False,
    },
}
OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    (group, option, values)
    for group, options in (
        ("recipe", RECIPES),
        ("augmentation", AUGMENTATIONS),
        ("trainer", TRAINERS),
        ("architecture", ARCHITECTURES),
        ("plan", PLANS),
        ("planner", PLANNERS),
        ("logger", LOGGERS),
        ("paths", {"default": PATHS}),
    )
    for option, values in options.items()
]
CHALLENGE = "see the {0} challenge, {1}.grand-challenge.org"
DATASETS: dict[str, tuple[str, str, str, float, str | None]] = {
    # folder, licence, protocol, tolerance, archive of its phantom
    "hippocampus": ("Dataset004_Hippocampus", "CC-BY-SA 4.0", "generic", 1.0, None),
    "flare": ("Dataset701_AbdomenCT", CHALLENGE.format("FLARE22", "flare22"), "abdomen", 2.0, "flare"),
    "amos": ("Dataset702_AbdomenMR", CHALLENGE.format("AMOS22", "amos22"), "abdomen", 2.0, "amos"),
    "amos2d": ("Dataset702_AbdomenMR", CHALLENGE.format("AMOS22", "amos22"), "abdomen", 2.0, "amos"),
    "cell": (
        "Dataset703_NeurIPSCell",
        CHALLENGE.format("NeurIPS 2022 cell segmentation", "neurips22-cellseg"),
        "cell",
        2.0,
        "cell",
    ),
    "endovis": (
        "Dataset704_Endovis17",
        CHALLENGE.format("EndoVis 2017", "endovissub2017-roboticinstrumentsegmentation"),
        "endoscopy",
        2.0,
        "endovis",
    ),
}


def test_the_defaults_of_training(composed: Composed) -> None:
    assert composed(TrainSettings, "dataset=phantom") == TRAIN


@pytest.mark.parametrize(("group", "option", "values"), OPTIONS, ids=[f"{group}={name}" for group, name, _ in OPTIONS])
def test_an_option_changes_its_group_alone(group: str, option: str, values: dict[str, Any], composed: Composed) -> None:
    assert composed(TrainSettings, "dataset=phantom", f"{group}={option}") == {**TRAIN, group: values}


@pytest.mark.parametrize("option", ["paper", "paper_2d"])
def test_the_plan_of_the_paper(option: str, composed: Composed) -> None:
    plan = {**PLAN, "paper": True, "configuration": None if option == "paper" else "2d"}
    assert composed(TrainSettings, "dataset=amos", f"plan={option}")["plan"] == plan


@pytest.mark.parametrize("option", DATASETS)
def test_the_published_datasets(option: str, composed: Composed) -> None:
    folder, licence, protocol, tolerance, archive = DATASETS[option]
    found = composed(TrainSettings, f"dataset={option}")
    source = found["dataset"].pop("source")
    assert folder in source or "medicaldecathlon" in source
    assert found["dataset"] == {
        "root": f"data/raw/{folder}",
        "kind": "nnunet",
        "licence": licence,
        "tolerance_mm": tolerance,
        "protocol": protocol,
        "instance_targets": "boundary",
        "num_training": None,
        "phantom": {**PHANTOM, "archive": archive},
    }
    assert {**found, "dataset": None} == {**TRAIN, "dataset": None}


def test_any_dataset_needs_its_root(composed: Composed) -> None:
    assert composed(TrainSettings, "dataset.root=there")["dataset"] == {
        "root": "there",
        "kind": "nnunet",
        "source": "",
        "licence": "",
        "tolerance_mm": 2.0,
        "protocol": "generic",
        "instance_targets": "boundary",
        "num_training": None,
        "phantom": PHANTOM,
    }


def test_prepare_and_describe_add_keys_of_their_own(composed: Composed) -> None:
    prepare = {"explain": False, "nnunet_plans": None, "preview": False}
    assert composed(PrepareSettings, "dataset=phantom") == {**TRAIN, **prepare}
    describe: dict[str, Any] = {"checkpoint": None, "num_classes": None, "trust": []}
    assert composed(DescribeSettings, "dataset=phantom") == {**TRAIN, **describe}
