"""A network and its plan, without training: from a checkpoint, or from a dataset, Table 2 or a plans file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umamba.datasets import RawDataset
from umamba.io import UserError
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet
from umamba.planning import Configuration, assumed_fingerprint, paper_setting, read_nnunet_plans
from umamba.planning.paper import PaperSetting
from umamba.records import read_checkpoint
from umamba.runs.preparation import fingerprint_dataset, listed_dataset, locate_dataset, make_plan
from umamba.settings import ArchitectureSettings, DescribeSettings


@dataclass(frozen=True)
class NetworkAtPlan:
    """A network and the plan for which it is built.

    Attributes:
        architecture: the backbone and its options.
        configuration: the plan's configuration.
        in_channels: channels of the network's input.
        num_classes: channels of the network's logits.
        origin: a text that names the source of the plan and the assumptions.
    """

    architecture: ArchitectureSettings
    configuration: Configuration
    in_channels: int
    num_classes: int
    origin: str


def network_at_plan(settings: DescribeSettings) -> NetworkAtPlan:
    """Return the network of a checkpoint, or a network for the plan of a dataset, of Table 2 or of a plans file.

    Args:
        settings: the settings of `umamba describe`. The first of these that applies gives the plan: `checkpoint`; the
            dataset, if it is a phantom or its folder exists; `plan.from_file`; `plan.paper`.

    Returns:
        The architecture, the plan's configuration, the channels and classes, and a text on the source of the plan.

    Raises:
        UserError: the settings name no source of a plan, or a file cannot be used.
    """
    if settings.checkpoint:
        return _of_checkpoint(settings.checkpoint, settings.trust)
    root = settings.dataset.root
    if settings.dataset.kind == "phantom" or root.is_dir():
        if settings.planner.measure:
            from umamba.runs.measured_plan import with_measured_plan  # it imports all of the training

            settings = with_measured_plan(settings)
        workers = settings.data.prepare_workers or available_cpus()
        dataset = listed_dataset(locate_dataset(settings.dataset, settings.paths.preprocessed, workers), workers)
        fingerprint, _ = fingerprint_dataset(dataset, settings.paths.preprocessed, workers)
        origin = f"dataset {dataset.root}"
    elif settings.plan.from_file:
        return _of_plans_file(settings)
    elif settings.plan.paper:
        setting = paper_setting(root.name, settings.plan.configuration)
        dataset, fingerprint = _assumed(settings, setting), assumed_fingerprint(setting)
        spacing = " x ".join(f"{mm:g}" for mm in setting.assumed_spacing)
        origin = (
            f"Table 2 of the paper, {setting.title}; the dataset is not there, so its spacing of {spacing} mm (which "
            f"decides the flat kernels) is assumed, with {setting.num_channels} channel(s)"
        )
    else:
        raise UserError(
            f"dataset.root={root}: there is no such folder, so there is no plan to describe a network at. Give "
            "dataset.root=FOLDER, plan.from_file=PLANS with num_classes=N, plan.paper=true, or checkpoint=FILE."
        )
    plan, name = make_plan(settings, dataset, fingerprint)
    return NetworkAtPlan(
        settings.architecture,
        plan.configuration(name),
        plan.configuration(name).input_channels(len(dataset.channel_names), dataset.labels),
        dataset.labels.num_classes,
        origin,
    )


def _of_checkpoint(path: Path, trust: str | Sequence[str]) -> NetworkAtPlan:
    record = read_checkpoint(path, trust).record
    return NetworkAtPlan(
        record.architecture,
        record.configuration,
        record.input_channels,
        record.labels.num_classes,
        f"checkpoint {path}",
    )


def _of_plans_file(settings: DescribeSettings) -> NetworkAtPlan:
    path = settings.plan.from_file
    assert path is not None
    if settings.num_classes is None:
        raise UserError("num_classes: give the number of labels, background included; the dataset is not there.")
    configuration = read_nnunet_plans(path).configuration(str(settings.plan.configuration))
    # Without the dataset the values of its labels are not known; regions apart, they are the classes but background.
    labels = LabelSet(
        tuple(map(str, range(1, settings.num_classes))), tuple((n,) for n in range(1, settings.num_classes))
    )
    channels = configuration.input_channels(len(configuration.normalization), labels)
    return NetworkAtPlan(settings.architecture, configuration, channels, settings.num_classes, f"plans file {path}")


def _assumed(settings: DescribeSettings, setting: PaperSetting) -> RawDataset:
    """Return a dataset without cases that has the channels, labels and number of cases of a row of Table 2."""
    root = settings.dataset.root
    labels = LabelSet(
        tuple(f"label {value}" for value in range(1, setting.num_labels + 1)),
        tuple((value,) for value in range(1, setting.num_labels + 1)),
    )
    channels = tuple(f"channel {index}" for index in range(setting.num_channels))
    return RawDataset(root.name, root, channels, labels, "", (), (), setting.num_training)
