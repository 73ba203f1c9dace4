"""The same run small (+smoke=true): a matching phantom, a tiny plan and network, two epochs; about a minute on a CPU.

What stays is the path: the archive's layout and its converter, configuration, rules of the planner, architecture,
recipe, fold, prediction, scoring.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from umamba.config import PlanConfig, TrainConfig

Config = TypeVar("Config", bound=TrainConfig)

# Patch and features that every architecture takes; the numbers of the phantom's cases.
_PLAN: dict[str, dict[str, Any]] = {
    "2d": {"patch_size": [64, 64], "features_per_stage": [8, 16, 32, 32, 32], "batch_size": 2},
    "3d": {"patch_size": [16, 32, 64], "features_per_stage": [8, 16, 32, 32], "batch_size": 2},
}
_PHANTOM: dict[str | None, dict[str, Any]] = {
    None: {"num_training": 6, "num_test": 2, "seed": 0, "voxel_mm": 6.0},
    "flare": {"archive": "flare", "num_training": 6, "num_test": 2, "seed": 0},
    "amos": {"archive": "amos", "num_training": 6, "num_test": 2, "seed": 0},
    "endovis": {"archive": "endovis", "num_training": 10, "num_test": 3, "seed": 0},
    "cell": {"archive": "cell", "num_training": 10, "num_test": 3, "seed": 0},
}
_NETWORK: dict[str, dict[str, Any]] = {
    "segresnet": {"init_filters": 8},
    "unetr": {"feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
    "swinunetr": {"feature_size": 12},
}
# What is full-sized, and what it becomes; a value that was changed in the command stays.
_TRAINER: dict[str, tuple[Any, int]] = {
    "max_epochs": (1000, 2),
    "limit_train_batches": (None, 4),
    "limit_val_batches": (None, 2),
}


def smoke_test(config: Config) -> Config:
    """Return the configuration made small, under a name of its own: smoke_<name>."""
    archive = config.dataset.phantom.get("archive")
    configuration = config.plan.configuration or "3d_fullres"
    small = {key: few for key, (full, few) in _TRAINER.items() if config.trainer.get(key) == full}
    number, title = list(_PHANTOM).index(archive), (archive or "phantom").capitalize()
    root = Path(config.paths.raw) / f"Dataset99{number}_Smoke{title}"
    return replace(
        config,
        name=f"smoke_{config.name or config.architecture['name']}",
        dataset=replace(config.dataset, kind="phantom", root=str(root), phantom=_PHANTOM[archive]),
        plan=PlanConfig(configuration=configuration, **_PLAN["2d" if configuration == "2d" else "3d"]),
        architecture={**config.architecture, **_NETWORK.get(config.architecture["name"], {})},
        trainer={**config.trainer, **small},
        logger=replace(config.logger, wandb=False, panels_every=0),
    )
