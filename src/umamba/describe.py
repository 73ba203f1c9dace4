"""Which network at which plan `describe.py` is asked for, and its description on the screen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from umamba.config import DescribeConfig
from umamba.datasets import RawDataset
from umamba.inference import find_checkpoint, load_checkpoint
from umamba.io import UserError
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet
from umamba.networks.cost_table import cost_table, disagreements
from umamba.networks.describe import network_cost
from umamba.pipeline import fingerprint_dataset, listed_dataset, locate_dataset, make_plan
from umamba.planning import Configuration, Plan, assumed_fingerprint, paper_setting, read_nnunet_plans
from umamba.planning.paper import Setting


@dataclass(frozen=True)
class Subject:
    """What is described.

    Attributes:
        architecture: the backbone's options.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: outputs.
        origin: where the plan is from, and what was assumed.
    """

    architecture: Mapping[str, Any]
    configuration: Configuration
    in_channels: int
    num_classes: int
    origin: str


def subject(config: DescribeConfig) -> Subject:
    """Return what a configuration asks for: a checkpoint's network, or one at the plan of a dataset, table or file.

    Raises:
        UserError: there is no plan to be had, or a value of the configuration cannot be used.
    """
    if config.checkpoint:
        return _of_checkpoint(Path(config.checkpoint))
    root = config.dataset.root
    if config.dataset.kind == "phantom" or (root and Path(root).is_dir()):
        workers = config.data.prepare_workers or available_cpus()
        dataset = listed_dataset(locate_dataset(config.dataset, workers), workers)
        fingerprint, _ = fingerprint_dataset(dataset, Path(config.paths.preprocessed), workers)
        origin = f"dataset {dataset.root}"
    elif config.plan.from_file:
        return _of_plans_file(config)
    elif config.plan.paper:
        setting = paper_setting(Path(root).name, config.plan.configuration)
        dataset, fingerprint = _assumed(config, setting), assumed_fingerprint(setting)
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
    plan, name = make_plan(config, dataset, fingerprint)
    return Subject(
        config.architecture,
        plan.configuration(name),
        len(dataset.channel_names),
        dataset.labels.num_classes,
        origin,
    )


def _of_checkpoint(path: Path) -> Subject:
    record = load_checkpoint(find_checkpoint(path))["umamba"]
    return Subject(
        record["architecture"],
        Plan.from_json(record["plan"]).configuration(record["configuration"]),
        len(record["channel_names"]),
        LabelSet.from_json(record["labels"]).num_classes,
        f"checkpoint {path}",
    )


def _of_plans_file(config: DescribeConfig) -> Subject:
    path = Path(str(config.plan.from_file))
    if config.num_classes is None or config.num_classes < 1:
        raise UserError("num_classes: give the number of labels, background included; the dataset is not there.")
    configuration = read_nnunet_plans(path).configuration(str(config.plan.configuration))
    channels = len(configuration.normalization)
    return Subject(config.architecture, configuration, channels, config.num_classes, f"plans file {path}")


def _assumed(config: DescribeConfig, setting: Setting) -> RawDataset:
    """Return a dataset without cases that says what a row of Table 2 says."""
    root = Path(config.dataset.root)
    labels = LabelSet(
        tuple(f"label {value}" for value in range(1, setting.num_labels + 1)),
        tuple((value,) for value in range(1, setting.num_labels + 1)),
    )
    channels = tuple(f"channel {index}" for index in range(setting.num_channels))
    return RawDataset(root.name, root, channels, labels, "", (), (), setting.num_training)


def print_description(config: DescribeConfig) -> None:
    """Print a network's stages, their cost, and where paper and code disagree about it.

    Raises:
        UserError: see `subject`; or the network cannot be built at that plan.
    """
    chosen = subject(config)
    configuration = chosen.configuration
    cost = network_cost(chosen.architecture, configuration, chosen.in_channels, chosen.num_classes)
    patch = " x ".join(map(str, configuration.patch_size))
    title = f"{chosen.architecture['name']} at {configuration.name}, patch {patch}, {chosen.num_classes} outputs"
    console = Console(soft_wrap=True, highlight=False)
    console.print(cost_table(cost, title, configuration.batch_size))
    console.print(f"Plan: {chosen.origin}.")
    found = disagreements(chosen.architecture, configuration)
    console.print("Where the U-Mamba paper and its released code disagree" + (":" if found else ": nowhere, here."))
    for line in found:
        console.print(f"  {line}")
