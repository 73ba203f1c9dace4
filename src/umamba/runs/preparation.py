"""From a raw dataset to its fingerprint, plan and preprocessed cases: the first half of the flow, as one call."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from umamba.datasets import RawDataset, dataset_digest, list_findings, read_dataset, write_phantom, write_phantom_2d
from umamba.datasets.numbered_instances import classes_of_instances, holds_instances
from umamba.datasets.phantom import VOXEL_MM
from umamba.datasets.phantom_archives import converted_phantom
from umamba.io import UserError, exclusive, read_json, write_json
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet
from umamba.planning import (
    Configuration,
    Fingerprint,
    Plan,
    compute_fingerprint,
    paper_setting,
    plan_dataset,
    plan_table,
    planned_configuration,
    read_nnunet_plans,
    to_nnunet_plans,
)
from umamba.preprocessing import CaseStore, prepare_store
from umamba.settings import DatasetSettings, PhantomSettings, TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset whose plan is known.

    Attributes:
        dataset: the raw dataset.
        digest: hash of its content.
        plan: its plan.
        configuration: the plan's configuration that is used.
    """

    dataset: RawDataset
    digest: str
    plan: Plan
    configuration: Configuration

    @property
    def labels(self) -> LabelSet:
        """The dataset's labels."""
        return self.dataset.labels

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return len(self.dataset.channel_names)


@dataclass(frozen=True)
class PreparedDataset(PlannedDataset):
    """A dataset that is ready to be trained on.

    Attributes:
        store: the preprocessed training cases.
    """

    store: CaseStore


def fingerprint_dataset(dataset: RawDataset, root: Path, workers: int) -> tuple[Fingerprint, str]:
    """Return the fingerprint and the content hash of a dataset, from `root` if its content has not changed.

    The file is root/<dataset name>/fingerprint_<first digits of the hash>.json. Many processes may ask at once.

    Raises:
        UserError: all problems of the dataset, together.
    """
    folder = root / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".fingerprint.lock", f"the fingerprint of {dataset.name}"):
        digest = dataset_digest(dataset, folder / "files.json")
        path = folder / f"fingerprint_{digest[:8]}.json"
        if path.exists():
            return Fingerprint.from_json(read_json(path)), digest
        fingerprint = compute_fingerprint(dataset, workers)
        write_json(path, fingerprint.to_json())
    return fingerprint, digest


def make_plan(settings: TrainSettings, dataset: RawDataset, fingerprint: Fingerprint) -> tuple[Plan, str]:
    """Return the plan that the settings ask for, and which of its configurations.

    The plan is read from nnU-Net's file, or derived by the rules with the paper's and the given values pinned.

    Raises:
        UserError: the file is no plan or was made for other channels, or pinned values do not fit.
    """
    wanted, pinned = settings.plan, settings.plan.pinned()
    configuration = planned_configuration(dataset.name, wanted.paper, wanted.configuration)
    if wanted.from_file:
        plan = read_nnunet_plans(wanted.from_file)
        found, expected = len(plan.intensity), len(dataset.channel_names)
        if found != expected:
            raise UserError(
                f"plan.from_file={wanted.from_file}: made for {found} channel(s), {dataset.name} has {expected}."
            )
        return plan, configuration
    notes: tuple[str, ...] = ()
    if wanted.paper:
        row = paper_setting(dataset.name, wanted.configuration)
        pinned = {**row.pinned(), **pinned}
        notes = (f"{configuration}: {', '.join(row.pinned())} pinned by Table 2 of the paper, {row.title}",)
    plan = plan_dataset(
        fingerprint,
        dataset_name=dataset.name,
        channel_names=dataset.channel_names,
        num_training=dataset.num_training,
        num_label_entries=dataset.labels.num_entries,
        rules=settings.planner.rules,
        gpu_memory_gb=settings.planner.gpu_memory_gb,
        overrides={configuration: pinned} if pinned else {},
    )
    return replace(plan, decisions=(*notes, *plan.decisions)), configuration


def locate_dataset(settings: DatasetSettings, workers: int) -> Path:
    """Return the folder of the raw dataset; a phantom is written on first use, and converted by `workers` threads.

    Raises:
        UserError: the folder is not there; the message says where to put it and where the data come from.
    """
    root = settings.root
    if settings.kind == "phantom":
        return write_dataset(root, settings.phantom, workers)
    absent = settings.absent()
    if absent:
        raise UserError(absent)
    return root


def write_dataset(root: Path, phantom: PhantomSettings, workers: int) -> Path:
    """Write a phantom into `root` and return it; a phantom of the same settings that is there is kept.

    Raises:
        UserError: `root` holds something else.
    """
    training, test, seed = phantom.num_training, phantom.num_test, phantom.seed
    if phantom.archive is not None:
        return converted_phantom(
            root, archive=phantom.archive, num_training=training, num_test=test, seed=seed, workers=workers
        )
    if phantom.scene != "abdomen":
        return write_phantom_2d(root, scene=phantom.scene, num_training=training, num_test=test, seed=seed)
    voxel_mm = VOXEL_MM if phantom.voxel_mm is None else phantom.voxel_mm
    return write_phantom(root, num_training=training, num_test=test, seed=seed, voxel_mm=voxel_mm)


def listed_dataset(root: Path, workers: int) -> RawDataset:
    """Return a dataset's listing.

    Raises:
        UserError: the listing has errors; then all files are decoded too, so that all problems come together.
    """
    dataset, findings = list_findings(root)
    if dataset is not None and any(finding.severity == "error" for finding in findings):
        compute_fingerprint(dataset, workers)
    return read_dataset(root)


def plan_of(settings: TrainSettings, explain: bool = False, nnunet_plans: Path | None = None) -> PlannedDataset:
    """Take a dataset from its raw folder to its plan, and report the plan.

    Args:
        settings: the dataset, the rules and the pinned values.
        explain: report the planner's decisions, too.
        nnunet_plans: file to which the plan is also written, for nnU-Net.

    Raises:
        UserError: all problems of the dataset together, or a pinned value that does not fit it.
    """
    for name, folder in vars(settings.paths).items():
        log.info("paths.%s: %s", name, folder.absolute())
    workers = settings.data.prepare_workers or available_cpus()
    root = locate_dataset(settings.dataset, workers)
    if holds_instances(root):
        log.info("%s holds numbered instances; they become the classes background, interior and boundary.", root)
        root = classes_of_instances(root, settings.paths.preprocessed / "classes", workers)
    dataset = listed_dataset(root, workers)
    fingerprint, digest = fingerprint_dataset(dataset, settings.paths.preprocessed, workers)
    plan, configuration = make_plan(settings, dataset, fingerprint)
    log.info(plan_table(plan))
    if explain:
        log.info("\n".join(["Decisions", *(f"  {decision}" for decision in plan.decisions)]))
    if nnunet_plans is not None:
        write_json(nnunet_plans, to_nnunet_plans(plan, dataset.file_ending))
        log.info("The plan as nnU-Net's plans file: %s", nnunet_plans.absolute())
    return PlannedDataset(dataset, digest, plan, plan.configuration(configuration))


def preprocess(planned: PlannedDataset, settings: TrainSettings) -> PreparedDataset:
    """Return a planned dataset with its preprocessed cases, made now or found complete.

    Raises:
        UserError: a case cannot be preprocessed.
    """
    workers = settings.data.prepare_workers or available_cpus()
    dataset, digest, plan, configuration = planned.dataset, planned.digest, planned.plan, planned.configuration
    store = prepare_store(dataset, digest, plan, configuration.name, settings.paths.preprocessed, workers)
    return PreparedDataset(dataset, digest, plan, configuration, store)


def prepare(settings: TrainSettings, explain: bool = False, nnunet_plans: Path | None = None) -> PreparedDataset:
    """Take a dataset from its raw folder to preprocessed cases; see `plan_of` for arguments and errors."""
    return preprocess(plan_of(settings, explain, nnunet_plans), settings)
