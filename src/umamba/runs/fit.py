"""Train a run: build its module, patches and trainer, continue after an interruption, and explain errors."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.inference.forward import refuse_scale
from umamba.io import UserError, file_digest, provenance
from umamba.io.resources import memory_bytes
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.cost import build_without_data, network_cost
from umamba.networks.heads import build_case_head
from umamba.patches.cutmix import refuse_mixing
from umamba.patches.extra import check_on_patch
from umamba.planning import Configuration, fold_cases
from umamba.records import CheckpointRecord, RunFolder, find_checkpoint
from umamba.records.checkpoint import read_checkpoint
from umamba.records.identity import learnt_settings
from umamba.records.run_folder import pretrained_file
from umamba.runs.case_heads import case_classes, case_heads, heads_identity, warn_of_classes, with_class
from umamba.runs.cases import run_cases, splits_file
from umamba.runs.first_stage import first_stage
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.runs.time_budget import budget_plan, end_of_training, report_forecast, spent
from umamba.runs.trainer import (
    build_datamodule,
    build_trainer,
    check_deterministic,
    expected_warnings,
    is_first_process,
    processes,
    trains_on_cuda,
    trains_without_search,
)
from umamba.settings import PretrainSettings, TrainSettings
from umamba.settings.training import Fold
from umamba.settings.wording import wrong_choice
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.added_class import read_teacher, start_from_teacher
from umamba.training.backward_graph import BackwardGraph, backward_graph, freeze
from umamba.training.budget import BudgetSchedule
from umamba.training.checkpoints import newest_readable
from umamba.training.finetuning import encoder_names
from umamba.training.freed_memory import freed_memory_kept
from umamba.training.learning_rate import found_learning_rate
from umamba.training.losses import NOT_PARTIAL, build_loss
from umamba.training.masking import MaskedModule
from umamba.training.module import SegmentationModule
from umamba.training.nonfinite import Diverged
from umamba.training.pretrained import load_pretrained, load_pretrained_head
from umamba.training.step_times import StepTimes
from umamba.training.workers import explain_worker_error

log = logging.getLogger(__name__)

FULL_PRECISION = "32-true"


def checkpoint_record(settings: TrainSettings, planned: PlannedDataset) -> CheckpointRecord:
    """Return the record that each checkpoint of a run holds beside the weights: architecture, plan, labels, recipe.

    Args:
        settings: the settings of the run.
        planned: the dataset with its plan.
    """
    return CheckpointRecord(
        plan=planned.plan,
        configuration_name=planned.configuration.name,
        architecture=settings.architecture,
        labels=planned.labels,
        channel_names=tuple(planned.dataset.channel_names),
        file_ending=planned.dataset.file_ending,
        recipe=settings.recipe,
        pretrained=next((str(path) for path in (settings.pretrained, settings.teacher) if path is not None), None),
        mirror_axes=settings.augmentation.mirrored_axes(planned.configuration.dim),
        provenance=provenance() | _first_stage_of(settings),
        fingerprint_hash=planned.digest,
        heads=case_heads(settings, planned),
        masking=settings.masking if isinstance(settings, PretrainSettings) else None,
    )


def _first_stage_of(settings: TrainSettings) -> dict[str, str]:
    """Return where the first stage of a cascade is, for those who predict with the second; empty for other runs."""
    stage = first_stage(settings)
    return {} if stage is None else {"previous_stage": str(stage.folder.absolute())}


def run_identity(settings: TrainSettings, prepared: PreparedDataset, record: CheckpointRecord) -> dict[str, Any]:
    """Return everything that changes what a run learns; a continued run must not change it.

    Args:
        settings: the settings of the run.
        prepared: the dataset, whose cases are split into training and validation.
        record: the record of its checkpoints: architecture, plan, labels and dataset.
    """
    train_cases, val_cases = run_cases(settings, prepared)
    heads = heads_identity(settings, record.heads, {*train_cases, *val_cases})
    split = split_name(settings, prepared, settings.fold)
    parts = {"split": split, "groups": groups_name(prepared.dataset.groups), **heads}
    own = {**record.identity(), **learnt_settings(settings, processes(settings)), **parts}
    if prepared.dataset.annotated:
        own["partly_labelled"] = True
    if prepared.store.previous is not None:
        own["previous_stage"] = prepared.store.previous.name
    if settings.teacher is None:
        return {**own, "teacher": None}
    return {**own, "pretrained": None, "teacher": file_digest(find_checkpoint(settings.teacher))}  # wherever it lies


def split_name(settings: TrainSettings, planned: PlannedDataset, fold: Fold) -> str:
    """Return a text that differs between splits into training and validation cases; groups are named apart.

    Args:
        settings: `paths.preprocessed` (which may hold a splits file), and `dataset.num_training` with `seed`.
        planned: the dataset.
        fold: number of the fold, or all.
    """
    names = [case.case_id for case in planned.dataset.training]
    if settings.dataset.num_training is not None or isinstance(settings, PretrainSettings):
        train_cases, val_cases = run_cases(replace(settings, fold=fold), planned)
    else:
        train_cases, val_cases = fold_cases(names, fold, splits_file(settings, planned))
    text = "\n".join([*sorted(train_cases), "", *sorted(val_cases)])
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{len(train_cases)} to train, {len(val_cases)} to validate ({digest})"


def groups_name(groups: Mapping[str, str]) -> str | None:
    """Return a text that differs between groupings of the cases; None: they are not grouped.

    Args:
        groups: case -> its group.
    """
    if not groups:
        return None
    digest = hashlib.blake2b(json.dumps(sorted(groups.items())).encode(), digest_size=4).hexdigest()
    return f"{len(set(groups.values()))} groups ({digest})"


def step_flops(record: CheckpointRecord) -> float:
    """Return the FLOPs of a training step on the plan's batch: the backward pass costs twice the forward pass.

    Args:
        record: architecture, plan, channels and labels.
    """
    cost = network_cost(record.architecture, record.configuration, record.input_channels, record.output_channels)
    return 3.0 * cost.flops * record.configuration.batch_size


def check_network(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Build the network without data, so that a plan that does not fit it is refused before any preprocessing.

    Args:
        settings: the settings of the run.
        planned: the dataset with its plan.

    Raises:
        UserError: the architecture cannot be built at this plan, or not be trained deterministically on this device;
            the loss does not fit the labels, a transform of TorchIO not the patch, or predict.tile_scale not the
            network; the classes of `heads.case` cannot be used, or the architecture cannot have a head or no frozen
            encoder; or the run of `pretrained` is not trained.
    """
    heads = case_heads(settings, planned)
    classes = planned.labels.num_classes
    network = build_without_data(settings.architecture, planned.configuration, planned.input_channels, classes)
    if heads is not None:
        build_case_head(network, settings.architecture.name, heads.sizes)
    if settings.recipe.finetune.frozen:
        encoder_names(settings.architecture, planned.configuration, planned.input_channels, classes)
    pretrained_file(settings)  # refuses a run that is not trained yet
    needed = 4 * sum(parameter.numel() for parameter in network.parameters())
    if needed > memory_bytes():
        raise UserError(
            f"plan.{planned.configuration.name}: the network has {needed / 2**30:.4g} GiB of weights, more than the "
            f"{memory_bytes() / 2**30:.3g} GiB of memory here. Check the plan and the architecture group."
        )
    if settings.trainer.deterministic is True and trains_on_cuda(settings):
        graph = _graph(settings, planned.configuration, planned.input_channels, classes)
        check_deterministic(settings, graph.nondeterministic)
    if planned.dataset.annotated and settings.recipe.loss.name is not None:
        raise UserError(f"recipe.loss.name={settings.recipe.loss.name}: {NOT_PARTIAL}")
    if planned.dataset.annotated:
        refuse_mixing(settings.augmentation)
    if planned.dataset.annotated and settings.recipe.loss.component_weight:
        raise UserError(
            f"recipe.loss.component_weight={settings.recipe.loss.component_weight:g}: is for cases that carry all "
            f"labels, and some of {planned.dataset.name} do not (annotated_labels). Leave the component loss away."
        )
    refuse_scale(network, settings.predict.tile_scale)
    build_loss(planned.labels, planned.configuration.batch_dice, settings.recipe.loss)
    if settings.augmentation.extra:
        check_on_patch(settings.augmentation, planned.configuration.patch_size, planned.configuration.spacing)


def _graph(settings: TrainSettings, configuration: Configuration, channels: int, classes: int) -> BackwardGraph:
    return backward_graph(
        settings.architecture,
        configuration,
        channels,
        classes,
        settings.recipe.deep_supervision and not isinstance(settings, PretrainSettings),
        encoder_only=settings.heads.alone,
    )


def check_fold(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Refuse a fold that the dataset does not have, or whose cases cannot teach all labels, before any preprocessing.

    Args:
        settings: the settings of the run.
        planned: the dataset with its plan.

    Raises:
        UserError: there is no such fold, or too few cases to split; a label is carried by none of the training cases
            and unknown to the teacher, or the teacher has nothing to teach.
    """
    train_cases, val_cases = run_cases(settings, planned)
    if settings.heads.alone and not with_class(train_cases, case_classes(settings, case_heads(settings, planned))):
        raise UserError(
            f"heads.case={settings.heads.case}: no training case of fold {settings.fold} has a class there, so that "
            "heads.alone=true has nothing to train. Add classes of these cases, or choose another fold."
        )
    labels = planned.labels
    _check_monitors(settings, labels, disjoint=set(train_cases).isdisjoint(val_cases))
    carried = [planned.dataset.annotated.get(case_id, labels.names) for case_id in train_cases]
    teacher = settings.teacher
    known = () if teacher is None else read_checkpoint(teacher, trust=None).record.labels.names
    lost = [name for name in labels.names if name not in known and not any(name in names for names in carried)]
    if lost:
        raise UserError(
            f"annotated_labels: no training case of fold {settings.fold} carries {', '.join(lost)}, so that nothing "
            "teaches it. Take it out of labels, or give teacher=CHECKPOINT of a network that knows it."
        )
    taught = [name for name in labels.names if name in known and not all(name in names for names in carried)]
    if teacher is not None and not taught:
        raise UserError(
            f"teacher={teacher}: knows {', '.join(known)}, and the training cases carry all of these, so that it would "
            "teach nothing. Name the labels of each case in annotated_labels, or give pretrained=... instead."
        )


def _check_monitors(settings: TrainSettings, labels: LabelSet, disjoint: bool) -> None:
    """Refuse a callback that monitors a value which this run never logs, because of its labels or its split."""
    for monitor in (str(entry["monitor"]) for entry in settings.trainer.callbacks if "monitor" in entry):
        given, part = f"trainer.callbacks: monitor={monitor}", monitor.partition("/")[0]
        _, of_label, label = monitor.partition("/patch_dice/")
        if of_label and label not in labels.names:
            raise UserError(wrong_choice(f"{given}: the label", label, labels.names))
        if part == "val" and settings.fold != "all" and not disjoint:
            raise UserError(
                f"{given}: fold {settings.fold} trains on some of its validation cases (splits_final.json), so that "
                f"the values begin with seen/. Give seen{monitor.removeprefix('val')}, or correct the split."
            )


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
    teacher = None if taught is None else taught[0]
    if record.masking is None:
        module = SegmentationModule(record, held_out, teacher, known, settings.heads.weight)
    else:
        module = MaskedModule(record, held_out, settings.seed)
    trainer = build_trainer(settings, prepared, folder, val_cases if held_out else [])
    if trains_without_search(trainer):
        graph = _graph(settings, record.configuration, record.input_channels, record.output_channels)
        freeze(module.network, graph.idle)
    if settings.recipe.finetune.frozen:
        names = encoder_names(record.architecture, record.configuration, record.input_channels, record.output_channels)
        module.encoder = [module.network.get_parameter(name) for name in names]
    resume = newest_readable(folder)
    if resume:
        whole = "" if settings.timed else f" of {settings.trainer.max_epochs}"
        log.info("Continuing %s after epoch %d%s.", folder.path, resume[1], whole)
    else:
        log.info("New run: %s", folder.path)
        start = pretrained_file(settings)
        if start is not None:
            parts = settings.pretrained_parts
            log.info(load_pretrained(start, module.network, _builder(record), record.labels, parts))
            if module.case_head is not None and record.heads is not None:
                log.info(load_pretrained_head(start, module.case_head, record.heads))
        if taught is not None:
            log.info(start_from_teacher(module.network, taught[1].weights, _builder(record), taught[0]))
    modules = [module.network, *([] if module.case_head is None else [module.case_head])]
    parameters = sum(p.numel() for part in modules for p in part.parameters())
    if is_first_process():
        folder.set_status(parameters=parameters, step_flops=step_flops(record))
    log.info(
        "%s: %s parameters, %d training and %s validation cases, precision %s, device %s",
        settings.architecture.name,
        f"{parameters:,}",
        len(train_cases),
        len(val_cases) if held_out else "no",
        trainer.precision,
        trainer.strategy.root_device,
    )
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
    try:
        with freed_memory_kept(trainer.strategy.root_device.type == "cpu"):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume and resume[0], weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"The trainer group does not fit this training: {error}") from error
    except (RuntimeError, UserError) as error:
        explained = explain_worker_error(error, datamodule)
        if explained is None:
            raise
        raise UserError(explained) from error
    if not folder.last.exists():
        raise UserError(f"Training ended without a checkpoint. The same command begins again: {folder.path}")
    if timed:
        report_forecast(folder)
    return trainer.loggers


def _builder(record: CheckpointRecord) -> Callable[[int], torch.nn.Module]:
    """Return a function that builds the run's network for a number of classes."""

    def build(classes: int) -> torch.nn.Module:
        return build_network(record.architecture, record.configuration, record.input_channels, classes)

    return build
