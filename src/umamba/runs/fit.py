"""Train a run: build its module, patches and trainer, continue after an interruption, and explain errors."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.io import UserError
from umamba.networks import build_network
from umamba.networks.cost import network_cost
from umamba.patches import PatchDataModule
from umamba.records import CheckpointRecord, RunFolder
from umamba.records.run_folder import pretrained_file
from umamba.runs.case_heads import case_classes, warn_of_classes, with_class
from umamba.runs.cases import run_cases
from umamba.runs.checks import graph_of
from umamba.runs.preparation import PreparedDataset
from umamba.runs.time_budget import budget_plan, end_of_training, report_forecast, spent
from umamba.runs.trainer import (
    build_datamodule,
    build_trainer,
    expected_warnings,
    is_first_process,
    trains_without_search,
)
from umamba.settings import TrainSettings
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.added_class import read_teacher, start_from_teacher
from umamba.training.backward_graph import freeze
from umamba.training.budget import BudgetSchedule
from umamba.training.checkpoints import newest_readable
from umamba.training.finetuning import encoder_names
from umamba.training.freed_memory import freed_memory_kept
from umamba.training.learning_rate import found_learning_rate
from umamba.training.masking import MaskedModule
from umamba.training.module import SegmentationModule
from umamba.training.nonfinite import Diverged
from umamba.training.pretrained import load_pretrained, load_pretrained_head
from umamba.training.same_start import SameStart
from umamba.training.step_times import StepTimes
from umamba.training.workers import explain_worker_error

log = logging.getLogger(__name__)

FULL_PRECISION = "32-true"


def fit(
    settings: TrainSettings,
    prepared: PreparedDataset,
    folder: RunFolder,
    record: CheckpointRecord,
    ends: float | None = None,
) -> list[Logger]:
    """Train up to trainer.max_epochs or the end of the time budget, and return the run's loggers.

    Training continues after the last completed epoch if there is one.

    If gradients stay non-finite, the run goes back to its last checkpoint and continues in float32 from then on.

    Args:
        settings: the settings of the run.
        prepared: the dataset, its plan and its preprocessed cases.
        folder: the run folder, in which training writes checkpoints, metrics, pictures and run.json.
        record: the content of each checkpoint beside the weights, from `checkpoint_record`.
        ends: when training ends with finish_by, in seconds since 1970; None: the next such time.

    Raises:
        UserError: an unusable setting, a dead patch worker, a full disk, or divergence (float32, or WORLD_SIZE is set).
    """
    ends = end_of_training(settings) if ends is None else ends
    while True:
        try:
            with expected_warnings():
                return attempt(settings, prepared, folder, record, ends)
        except Diverged as error:
            if folder.status().get("precision") == FULL_PRECISION or FULL_PRECISION in str(error):
                raise UserError(
                    f"Training diverges: {error}. Look at that batch, or lower recipe.optimizer.lr or "
                    "recipe.gradient_clip_norm, and begin afresh with restart=true."
                ) from error
            if is_first_process():
                folder.set_status(precision=FULL_PRECISION)
            if "WORLD_SIZE" in os.environ:
                raise UserError(f"{error}. The same command continues from the last checkpoint in float32.") from error
            log.info("%s. Going back to the last checkpoint; the run continues in float32.", error)


def attempt(
    settings: TrainSettings,
    prepared: PreparedDataset,
    folder: RunFolder,
    record: CheckpointRecord,
    ends: float | None = None,
) -> list[Logger]:
    """Train once, with the arguments and result of `fit`; raise `Diverged` if gradients stay non-finite."""
    train_cases, val_cases = run_cases(settings, prepared)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    held_out = set(val_cases).isdisjoint(train_cases)
    known = case_classes(settings, record.heads)
    warn_of_classes(settings, record.heads, train_cases)
    if settings.heads.alone:
        train_cases = with_class(train_cases, known)
    taught = None if settings.teacher is None else read_teacher(settings.teacher, record)
    if record.masking is None:
        teacher = None if taught is None else taught[0]
        module = SegmentationModule(record, held_out, teacher, known, settings.heads.weight)
    else:
        module = MaskedModule(record, held_out, settings.seed)
    trainer = build_trainer(settings, prepared, folder, val_cases if held_out else [])
    _freeze(settings, record, module, trainer)
    resume = newest_readable(folder)
    trainer.callbacks.append(SameStart(folder.path, resume[1] if resume else 0))  # type: ignore[attr-defined]
    if resume:
        whole = "" if settings.timed else f" of {settings.trainer.max_epochs}"
        log.info("Continuing %s after epoch %d%s.", folder.path, resume[1], whole)
    else:
        log.info("New run: %s", folder.path)
        _start_from_others(settings, record, module)
        if taught is not None:
            log.info(start_from_teacher(module.network, taught[1].weights, _builder(record), taught[0]))
    _describe(settings, record, folder, module, trainer, (len(train_cases), len(val_cases) if held_out else 0))
    if settings.trainer.find_lr:
        datamodule = build_datamodule(settings, prepared, trainer, train_cases, val_cases)
        module.learning_rate = found_learning_rate(folder, module, datamodule, trainer)
        log.info("Learning rate %.3g, found by trying: %s", module.learning_rate, folder.learning_rate_search)
    if settings.trainer.activation_checkpointing:
        log.info("Activation checkpointing: %d stages keep their inputs only.", checkpoint_stages(module.network))
    if settings.trainer.compile:
        module.network.compile(dynamic=False)  # patches have one size; symbolic sizes make Inductor fail
    timed = settings.timed
    if timed:
        cases, continued = (train_cases, val_cases), resume is not None
        budget = budget_plan(settings, prepared, folder, module, trainer, cases, continued=continued, ends=ends)
        trainer.callbacks.insert(0, BudgetSchedule(budget))  # type: ignore[attr-defined]
        settings = spent(settings, budget)
    datamodule = build_datamodule(settings, prepared, trainer, train_cases, val_cases)
    trainer.callbacks.append(StepTimes(datamodule))  # type: ignore[attr-defined]
    status = folder.status()
    if resume and status.get("ended_after") == resume[1] and status.get("max_epochs") == settings.trainer.max_epochs:
        log.info("Training ended after epoch %d, as the time limit or the early stopping says.", resume[1])
        return trainer.loggers
    _train(module, trainer, datamodule, resume and resume[0])
    if not folder.last.exists():
        raise UserError(f"Training ended without a checkpoint. The same command begins again: {folder.path}")
    if timed:
        report_forecast(folder)
    return trainer.loggers


def _freeze(
    settings: TrainSettings, record: CheckpointRecord, module: SegmentationModule, trainer: lightning.Trainer
) -> None:
    """Freeze the parameters that the loss does not depend on, and name those of a frozen encoder to the module."""
    if trains_without_search(trainer):
        graph = graph_of(settings, record.configuration, record.input_channels, record.output_channels)
        freeze(module.network, graph.idle)
    if settings.recipe.finetune.frozen:
        names = encoder_names(record.architecture, record.configuration, record.input_channels, record.output_channels)
        module.encoder = [module.network.get_parameter(name) for name in names]


def _start_from_others(settings: TrainSettings, record: CheckpointRecord, module: SegmentationModule) -> None:
    """Give the network the weights of `pretrained`, if there are any."""
    start = pretrained_file(settings)
    if start is None:
        return
    parts = settings.pretrained_parts
    log.info(load_pretrained(start, module.network, _builder(record), record.labels, parts))
    if module.case_head is not None and record.heads is not None:
        log.info(load_pretrained_head(start, module.case_head, record.heads))


def _describe(
    settings: TrainSettings,
    record: CheckpointRecord,
    folder: RunFolder,
    module: SegmentationModule,
    trainer: lightning.Trainer,
    cases: tuple[int, int],
) -> None:
    """Log and record the size of a run, whose numbers of training and validation cases are given."""
    modules = [module.network, *([] if module.case_head is None else [module.case_head])]
    parameters = sum(p.numel() for part in modules for p in part.parameters())
    if is_first_process():
        folder.set_status(parameters=parameters, step_flops=step_flops(record))
    log.info(
        "%s: %s parameters, %d training and %s validation cases, precision %s, device %s",
        *(settings.architecture.name, f"{parameters:,}", cases[0], cases[1] or "no"),
        *(trainer.precision, trainer.strategy.root_device),
    )


def _train(
    module: SegmentationModule,
    trainer: lightning.Trainer,
    datamodule: PatchDataModule,
    checkpoint: Path | None,
) -> None:
    """Let Lightning train, from a checkpoint if there is one; its errors of a user's making get one message."""
    try:
        with freed_memory_kept(trainer.strategy.root_device.type == "cpu"):
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"The trainer group does not fit this training: {error}") from error
    except (RuntimeError, UserError) as error:
        explained = explain_worker_error(error, datamodule)
        if explained is None:
            raise
        raise UserError(explained) from error


def step_flops(record: CheckpointRecord) -> float:
    """Return the FLOPs of a training step on the plan's batch: the backward pass costs twice the forward pass.

    Args:
        record: architecture, plan, channels and labels.
    """
    cost = network_cost(record.architecture, record.configuration, record.input_channels, record.output_channels)
    return 3.0 * cost.flops * record.configuration.batch_size


def _builder(record: CheckpointRecord) -> Callable[[int], torch.nn.Module]:
    """Return a function that builds the run's network for a number of classes."""

    def build(classes: int) -> torch.nn.Module:
        return build_network(record.architecture, record.configuration, record.input_channels, classes)

    return build
