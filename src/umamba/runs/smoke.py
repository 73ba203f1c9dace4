"""Reduce a run to a smoke test (smoke=true): a matching phantom, a tiny plan and network, and two epochs.

A smoke test takes a minute on a CPU. It keeps the archive's layout and its converter, the configuration's name, the
planner's rules, the architecture, the recipe, the fold, prediction and scoring.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from umamba.planning import planned_configuration
from umamba.settings import (
    ArchitectureSettings,
    HeadsSettings,
    LoggerSettings,
    PhantomSettings,
    PlanSettings,
    SegResNetSettings,
    SwinUNETRSettings,
    TrainerSettings,
    TrainSettings,
    UNETRSettings,
)
from umamba.settings.fields import RUN, run_name

log = logging.getLogger(__name__)
PREFIX = "smoke_"  # begins the name of a smoke test
Run = TypeVar("Run", bound=TrainSettings)

# The phantom that stands in for each archive; the position is the number in the dataset's name.
_PHANTOMS: Mapping[str | None, PhantomSettings] = {
    None: PhantomSettings(num_training=6, num_test=2, voxel_mm=6.0),
    "flare": PhantomSettings(archive="flare", num_training=6, num_test=2),
    "amos": PhantomSettings(archive="amos", num_training=6, num_test=2),
    "endovis": PhantomSettings(archive="endovis", num_training=10, num_test=3),
    "cell": PhantomSettings(archive="cell", num_training=10, num_test=3),
}


def smoke_test(settings: Run) -> Run:
    """Return the settings of a smoke test of a run, under the name smoke_<name>.

    Args:
        settings: the run, which is not changed. Numbers of epochs and batches that differ from the defaults are kept.
    """
    if settings.heads.case is not None:
        log.warning("smoke=true: without heads.case, because the phantom's cases have no classes.")
    archive = settings.dataset.phantom.archive
    number, title = list(_PHANTOMS).index(archive), (archive or "phantom").capitalize()
    root = settings.paths.raw / f"Dataset99{number}_Smoke{title}"
    phantom = _PHANTOMS[archive]  # of cells: interior and boundary, and no numbered instances to make levels of
    dataset = replace(
        settings.dataset, kind="phantom", root=root, phantom=phantom, instance_targets="boundary", num_training=None
    )
    return replace(
        settings,
        name=f"{PREFIX}{settings.name or settings.architecture.name}",
        dataset=dataset,
        budget=None,
        finish_by=None,
        planner=replace(settings.planner, measure=False),
        plan=_small_plan(settings),
        architecture=_small_network(settings.architecture),
        trainer=_short(settings.trainer),
        logger=LoggerSettings(wandb=False, panels_every=0),
        heads=HeadsSettings(),
        pretrained=_smoke_run(settings.pretrained),
    )


def _smoke_run(pretrained: Path | None) -> Path | None:
    """Return the smoke test of a run that is named; a file stays as it is."""
    name = None if pretrained is None else run_name(pretrained)
    return pretrained if name is None else Path(f"{RUN}{PREFIX}{name}")


def _small_plan(settings: TrainSettings) -> PlanSettings:
    """Return a small plan that fits every architecture."""
    wanted = settings.plan
    name = planned_configuration(settings.dataset.root.name, wanted.paper, wanted.configuration)
    if name == "2d":
        return PlanSettings(
            configuration="2d", patch_size=(64, 64), features_per_stage=(8, 16, 32, 32, 32), batch_size=2
        )
    return PlanSettings(
        configuration=name,  # type: ignore[arg-type]
        patch_size=(16, 32, 64),
        features_per_stage=(8, 16, 32, 32),
        batch_size=2,
    )


def _small_network(architecture: ArchitectureSettings) -> ArchitectureSettings:
    if isinstance(architecture, SegResNetSettings):
        return replace(architecture, init_filters=8)
    if isinstance(architecture, UNETRSettings):
        return replace(architecture, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4)
    if isinstance(architecture, SwinUNETRSettings):
        return replace(architecture, feature_size=12)
    return architecture


def _short(trainer: TrainerSettings) -> TrainerSettings:
    """Return a short schedule; values that differ from the defaults are kept."""
    full = TrainerSettings()
    return replace(
        trainer,
        max_epochs=2 if trainer.max_epochs == full.max_epochs else trainer.max_epochs,
        limit_train_batches=4 if trainer.limit_train_batches is None else trainer.limit_train_batches,
        limit_val_batches=2 if trainer.limit_val_batches is None else trainer.limit_val_batches,
    )
