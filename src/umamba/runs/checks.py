"""Refuse before any preprocessing what cannot be trained: a network that does not fit, a fold that teaches nothing."""

import logging

from umamba.inference.forward import refuse_scale
from umamba.io import UserError
from umamba.io.resources import memory_bytes
from umamba.labels import LabelSet
from umamba.networks.cost import build_without_data
from umamba.networks.heads import build_case_head
from umamba.patches.cutmix import refuse_mixing
from umamba.patches.extra import check_on_patch
from umamba.planning import Configuration
from umamba.records.checkpoint import read_checkpoint
from umamba.records.run_folder import pretrained_file
from umamba.runs.case_heads import case_classes, case_heads, with_class
from umamba.runs.cases import run_cases
from umamba.runs.preparation import PlannedDataset
from umamba.runs.trainer import check_deterministic, trains_on_cuda
from umamba.settings import PretrainSettings, TrainSettings
from umamba.settings.wording import wrong_choice
from umamba.training.backward_graph import BackwardGraph, backward_graph
from umamba.training.finetuning import encoder_names
from umamba.training.losses import NOT_PARTIAL, build_loss

log = logging.getLogger(__name__)


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
        graph = graph_of(settings, planned.configuration, planned.input_channels, classes)
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
    _refuse_idle_exclusion(settings, planned)
    _warn_of_other_encoder(settings, planned)
    refuse_scale(network, settings.predict.tile_scale)
    build_loss(planned.labels, planned.configuration.batch_dice, settings.recipe.loss)
    if settings.augmentation.extra:
        check_on_patch(settings.augmentation, planned.configuration.patch_size, planned.configuration.spacing)


def _refuse_idle_exclusion(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Refuse an exclusion loss that this dataset cannot have."""
    given = f"recipe.loss.exclusion_weight={settings.recipe.loss.exclusion_weight:g}"
    if settings.recipe.loss.exclusion_weight and planned.labels.has_regions:
        raise UserError(
            f"{given}: the regions of {planned.dataset.name} may overlap, so that none excludes another. Give 0."
        )
    if settings.recipe.loss.exclusion_weight and not planned.dataset.annotated:
        raise UserError(f"{given}: all cases of {planned.dataset.name} carry all labels (no annotated_labels). Give 0.")


def _warn_of_other_encoder(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Say if nnU-Net's plain or residual U-Net is built at a plan that nnU-Net makes for the other one."""
    name, residual = settings.architecture.name, planned.configuration.residual_encoder
    if name == "unet" and residual:
        log.warning(
            "architecture=unet: the plan is one for nnU-Net's residual encoder (resenc), so that this network is none "
            "of nnU-Net's. Give architecture=resenc_unet, or planner=nnunet."
        )
    if name == "resenc_unet" and not residual:
        log.warning(
            "architecture=resenc_unet: the plan is one for nnU-Net's plain U-Net, so that this network is none of "
            "nnU-Net's. Give planner=resenc_m, resenc_l or resenc_xl."
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


def graph_of(settings: TrainSettings, configuration: Configuration, channels: int, classes: int) -> BackwardGraph:
    """Return what the backward pass of a run's network uses.

    Args:
        settings: the settings of the run.
        configuration: the plan.
        channels: of the input.
        classes: of the output.
    """
    return backward_graph(
        settings.architecture,
        configuration,
        channels,
        classes,
        settings.recipe.deep_supervision and not isinstance(settings, PretrainSettings),
        encoder_only=settings.heads.alone,
    )
