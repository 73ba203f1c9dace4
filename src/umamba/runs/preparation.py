"""Prepare a raw dataset: compute its fingerprint, derive its plan and preprocess its cases."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umamba.datasets import (
    Finding,
    RawDataset,
    dataset_digest,
    list_findings,
    read_dataset,
    write_phantom,
    write_phantom_2d,
)
from umamba.datasets.numbered_instances import classes_of_instances, holds_instances
from umamba.datasets.phantom import VOXEL_MM
from umamba.datasets.phantom_archives import converted_phantom
from umamba.io import StorageError, UserError, exclusive, read_json, write_json
from umamba.io.documents import OWN_BYTES
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet
from umamba.labels.annotated import annotated_sentence
from umamba.planning import (
    Configuration,
    Fingerprint,
    Plan,
    compute_fingerprint,
    inspect_dataset,
    paper_setting,
    plan_dataset,
    plan_table,
    planned_configuration,
    read_nnunet_plans,
    to_nnunet_plans,
)
from umamba.planning.plan import CASCADE, LOWRES
from umamba.preprocessing import CaseStore, prepare_store
from umamba.records.checkpoint import read_checkpoint
from umamba.runs.findings import dataset_findings, findings_file, keep_findings, kept_findings
from umamba.settings import DatasetSettings, PhantomSettings, TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedDataset:
    """A raw dataset and its plan.

    Attributes:
        dataset: the raw dataset.
        digest: hash of its content.
        plan: its plan.
        configuration: the configuration of the plan that the run uses.
        findings: the warnings about the dataset's listing and images; None if those about the images are not kept and
            the disk cannot be written.
    """

    dataset: RawDataset
    digest: str
    plan: Plan
    configuration: Configuration
    findings: tuple[Finding, ...] | None

    @property
    def labels(self) -> LabelSet:
        """The dataset's labels."""
        return self.dataset.labels

    @property
    def num_channels(self) -> int:
        """Number of channels of an image."""
        return len(self.dataset.channel_names)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: those of an image and, in a cascade, of the previous stage's labels."""
        return self.configuration.input_channels(self.num_channels, self.labels)


@dataclass(frozen=True)
class PreparedDataset(PlannedDataset):
    """A dataset with a plan and preprocessed cases, ready for training.

    Attributes:
        store: the preprocessed training cases.
    """

    store: CaseStore


def fingerprint_dataset(dataset: RawDataset, root: Path, workers: int) -> tuple[Fingerprint, str]:
    """Return the fingerprint and the content hash of a dataset, from a file if there is one for this content.

    The file is root/<dataset name>/fingerprint_<first 8 digits of the hash>.json, with `_ras` behind the digits for a
    dataset whose images are turned. It is written if it does not exist, with the warnings about the images and the
    hashes of their voxels beside it (`findings_file`).
    Several processes may call this at once: one works while the others wait. If the disk cannot be written, a file
    that exists is used without the lock.

    Args:
        dataset: the raw dataset.
        root: folder of all preprocessed datasets.
        workers: worker processes.

    Raises:
        UserError: all problems of the dataset, together.
        StorageError: the file does not exist, and the disk cannot be written.
    """
    folder = root / dataset.name
    cache = folder / "files.json"
    try:
        with exclusive(folder / ".fingerprint.lock", f"the fingerprint of {dataset.name}"):
            digest = dataset_digest(dataset, cache)
            path = _fingerprint_file(folder, digest, dataset.reader)
            known = _kept_fingerprint(path)
            if known is not None and kept_findings(findings_file(folder, digest)) is not None:
                return known, digest
            fingerprint, findings, contents = inspect_dataset(dataset, workers)
            keep_findings(findings_file(folder, digest), findings, contents)
            write_json(path, fingerprint.to_json())
        return fingerprint, digest
    except StorageError:
        digest = dataset_digest(dataset, cache, update=False)
        path = _fingerprint_file(folder, digest, dataset.reader)
        known = _kept_fingerprint(path)
        if known is None:
            raise
        return known, digest


def _kept_fingerprint(path: Path) -> Fingerprint | None:
    """Return the fingerprint in a file; None if there is none, or it is damaged and must be computed again."""
    if not path.exists():
        return None
    try:
        return Fingerprint.from_json(read_json(path, OWN_BYTES))
    except UserError as error:
        log.warning("%s is damaged (%s), and is computed again.", path, str(error).removeprefix(f"{path}: "))
        return None


def _fingerprint_file(folder: Path, digest: str, reader: str | None) -> Path:
    return folder / f"fingerprint_{digest[:8]}{'' if reader is None else '_ras'}.json"


def make_plan(settings: TrainSettings, dataset: RawDataset, fingerprint: Fingerprint) -> tuple[Plan, str]:
    """Return the plan that the settings ask for, and the name of the configuration to use.

    The plan is the teacher's, or read from nnU-Net's plans file (plan.from_file), or derived by the rules
    (planner.rules). A derived plan keeps the values that plan.* pins and, with plan.paper=true, those of the paper's
    Table 2; plan.* overrides Table 2. The plan of a cascade has the 3d_lowres of its trained first stage.

    Args:
        settings: `teacher` and the groups `plan` and `planner` are read.
        dataset: the raw dataset, whose name, channels, labels and number of training cases are read.
        fingerprint: statistics of its training cases.

    Raises:
        UserError: the file is no plan or has another number of channels, the teacher has another configuration, Table 2
            does not have the dataset, or pinned values do not fit.
    """
    wanted, pinned = settings.plan, settings.plan.pinned()
    configuration = planned_configuration(dataset.name, wanted.paper, wanted.configuration)
    if settings.teacher is not None:
        record = read_checkpoint(settings.teacher, trust=None).record
        if record.configuration_name != configuration:
            raise UserError(
                f"teacher={settings.teacher}: trained with plan.configuration={record.configuration_name}. Give this "
                "value, too."
            )
        return replace(record.plan, orientations=fingerprint.orientations), configuration
    if wanted.from_file:
        plan = read_nnunet_plans(wanted.from_file)
        found, expected = len(plan.configuration(configuration).normalization), len(dataset.channel_names)
        if found != expected:
            raise UserError(
                f"plan.from_file={wanted.from_file}: made for {found} channel(s), {dataset.name} has {expected}."
            )
        return replace(plan, orientations=fingerprint.orientations), configuration
    notes: tuple[str, ...] = ()
    if wanted.paper:
        row = paper_setting(dataset.name, wanted.configuration)
        pinned = {**row.pinned(), **pinned}
        notes = (f"{configuration}: {', '.join(row.pinned())} pinned by Table 2 of the paper, {row.title}",)
    overrides: dict[str, dict[str, Any]] = {configuration: pinned} if pinned else {}
    first = None
    if configuration == CASCADE:
        from umamba.runs.first_stage import first_record, first_stage  # they import torch

        stage = first_stage(settings)
        first = None if stage is None else first_record(stage)
    if first is not None and first.configuration.dim == 3:  # 3d_lowres as it was trained, even if no rule asks for it
        overrides[LOWRES] = {"spacing": first.configuration.spacing}
        notes = (*notes, f"{LOWRES}: as it was trained before")
    plan = plan_dataset(
        fingerprint,
        dataset_name=dataset.name,
        channel_names=dataset.channel_names,
        num_training=dataset.num_training,
        num_label_entries=dataset.labels.num_entries,
        rules=settings.planner.rules,
        gpu_memory_gb=settings.planner.gpu_memory_gb,
        overrides=overrides,
    )
    if LOWRES in overrides and first is not None:
        trained = replace(first.configuration, name=LOWRES)
        plan = replace(plan, configurations={**plan.configurations, LOWRES: trained})
    plan = replace(plan, reader=dataset.reader, orientations=fingerprint.orientations)
    return replace(plan, decisions=(*notes, *plan.decisions)), configuration


def locate_dataset(settings: DatasetSettings, preprocessed: Path, workers: int) -> Path:
    """Return the folder of the raw dataset; a phantom is written and numbered instances become classes on first use.

    Args:
        settings: where the dataset is, or which phantom to write there.
        preprocessed: folder of preprocessed datasets, in which the classes of numbered instances are written.
        workers: threads that convert numbered instances, or a phantom in the layout of a public archive.

    Raises:
        UserError: the folder does not exist (the message says where to get the dataset and where to put it), or a
            phantom cannot be written because the folder holds something else, or dataset.instance_targets does not fit.
    """
    root = settings.root
    if settings.kind == "phantom":
        return write_dataset(root, settings.phantom, workers)
    absent = settings.absent()
    if absent:
        raise UserError(absent)
    targets = settings.instance_targets
    if holds_instances(root):
        named = "interior and boundary" if targets == "boundary" else "levels of depth"
        log.info("%s holds numbered instances; they become the classes background, %s.", root, named)
        return classes_of_instances(root, preprocessed / "classes", workers, targets)
    if targets != "boundary":
        raise UserError(
            f"dataset.instance_targets={targets}: {root} holds no numbered instances, of which such labels are made "
            "(instancesTr, and no dataset.json). Leave dataset.instance_targets away to train the labels that it has."
        )
    return root


def write_dataset(root: Path, phantom: PhantomSettings, workers: int) -> Path:
    """Write a phantom into `root`, unless `root` holds the phantom of the same settings.

    Args:
        root: the dataset's folder.
        phantom: archive or scene, numbers of cases, seed, and spacing in mm.
        workers: threads that convert a phantom in the layout of a public archive.

    Returns:
        `root`.

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
    """List the cases, channels and labels of a raw dataset; no image is decoded unless the listing has errors.

    Args:
        root: the dataset's folder, with dataset.json in it.
        workers: worker processes that decode the training cases if the listing has errors.

    Raises:
        UserError: the listing has errors. The message also has the errors of the decoded images, so that the user sees
            all problems at once.
    """
    dataset, findings = list_findings(root)
    if dataset is not None and any(finding.severity == "error" for finding in findings):
        compute_fingerprint(dataset, workers)
    return read_dataset(root)


def raw_dataset(settings: TrainSettings, workers: int) -> RawDataset:
    """Return the listing of the dataset that a run trains on; numbered instances become classes first.

    Args:
        settings: the dataset, and where prepared cases are.
        workers: worker processes.

    Raises:
        UserError: the dataset is not there, or has errors.
    """
    root = locate_dataset(settings.dataset, settings.paths.preprocessed, workers)
    return listed_dataset(root, workers)


def plan_of(settings: TrainSettings, explain: bool = False, nnunet_plans: Path | None = None) -> PlannedDataset:
    """Take a dataset from its raw folder to its plan, and report the plan.

    Args:
        settings: the dataset, the rules and the pinned values.
        explain: also report the planner's decisions.
        nnunet_plans: file to which the plan is also written, for nnU-Net; None: no such file.

    Raises:
        UserError: all problems of the dataset together, a pinned value that does not fit it, or levels of depth asked
            for where there are no numbered instances.
    """
    for name, folder in vars(settings.paths).items():
        log.info("paths.%s: %s", name, folder.absolute())
    workers = settings.data.prepare_workers or available_cpus()
    dataset = raw_dataset(settings, workers)
    if dataset.annotated:
        training = [case.case_id for case in dataset.training]
        log.info(annotated_sentence(dataset.labels, dataset.annotated, training))
    fingerprint, digest = fingerprint_dataset(dataset, settings.paths.preprocessed, workers)
    plan, configuration = make_plan(settings, dataset, fingerprint)
    _refuse_lines(dataset, plan.configuration(configuration))
    log.info(plan_table(plan, configuration))
    if explain:
        log.info("\n".join(["Decisions", *(f"  {decision}" for decision in plan.decisions)]))
    if nnunet_plans is not None:
        write_json(nnunet_plans, to_nnunet_plans(plan, dataset.file_ending))
        log.info("The plan as nnU-Net's plans file: %s", nnunet_plans.absolute())
    findings = dataset_findings(dataset, digest, settings.paths.preprocessed)
    return PlannedDataset(dataset, digest, plan, plan.configuration(configuration), findings)


def _refuse_lines(dataset: RawDataset, configuration: Configuration) -> None:
    """Refuse a 2D configuration whose patch is a line, because the images are slices along another axis of the file.

    nnU-Net trains a network of lines on them without a word.

    Raises:
        UserError: the patch has one voxel along an axis.
    """
    if configuration.dim == 2 and min(configuration.patch_size) == 1:
        patch = " x ".join(map(str, configuration.patch_size))
        raise UserError(
            f"{dataset.root}: plan.configuration={configuration.name} would train on lines of {patch} voxels, because "
            "the images are single slices whose axis of one voxel is not the one that 2D plans cut along. Store them "
            "as two-dimensional files, or turn their axes so that the axis of one voxel is the last one of the file "
            "(X x Y x 1)."
        )


def preprocess(planned: PlannedDataset, settings: TrainSettings) -> PreparedDataset:
    """Return a planned dataset with its preprocessed cases; only missing ones are made.

    Args:
        planned: the dataset and its plan.
        settings: `paths.preprocessed` says where the cases are, `data.prepare_workers` how many processes work.

    Raises:
        UserError: a case cannot be preprocessed.
    """
    workers = settings.data.prepare_workers or available_cpus()
    dataset, digest, plan, configuration = planned.dataset, planned.digest, planned.plan, planned.configuration
    store = prepare_store(
        dataset, digest, plan, configuration.name, settings.paths.preprocessed, workers, settings.data.check_store
    )
    return PreparedDataset(dataset, digest, plan, configuration, planned.findings, store)


def prepare(settings: TrainSettings, explain: bool = False, nnunet_plans: Path | None = None) -> PreparedDataset:
    """Take a dataset from its raw folder to its preprocessed cases, and report the plan.

    Args:
        settings: the dataset, the rules, the pinned values, and the folder of the preprocessed cases.
        explain: also report the planner's decisions.
        nnunet_plans: file to which the plan is also written, for nnU-Net; None: no such file.

    Raises:
        UserError: as `with_measured_plan`, `plan_of` and `preprocess`.
    """
    if settings.planner.measure:
        from umamba.runs.measured_plan import with_measured_plan  # it needs this module, and all of the training

        settings = with_measured_plan(settings)
    return preprocess(plan_of(settings, explain, nnunet_plans), settings)
