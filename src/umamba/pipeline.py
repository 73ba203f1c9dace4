"""From a raw dataset to its fingerprint, plan and preprocessed cases: the first half of the flow, as one call."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from umamba.config import DatasetConfig, TrainConfig
from umamba.datasets import RawDataset, dataset_digest, list_findings, read_dataset, write_phantom
from umamba.io import UserError, exclusive, read_json, write_json
from umamba.io.resources import available_cpus
from umamba.planning import (
    Configuration,
    Fingerprint,
    Plan,
    compute_fingerprint,
    plan_dataset,
    plan_table,
    read_nnunet_plans,
)
from umamba.preprocessing import CaseStore, prepare_store


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready to be trained on.

    Args:
        dataset: the raw dataset.
        digest: hash of its content.
        plan: its plan.
        configuration: the plan's configuration that was prepared.
        store: the preprocessed training cases.
    """

    dataset: RawDataset
    digest: str
    plan: Plan
    configuration: Configuration
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


def derive_plan(
    dataset: RawDataset,
    fingerprint: Fingerprint,
    rules: str,
    gpu_memory_gb: float | None,
    overrides: Mapping[str, Mapping[str, Any]],
) -> Plan:
    """Return the plan of a dataset by a rule set, with pinned values taken over."""
    return plan_dataset(
        fingerprint,
        dataset_name=dataset.name,
        channel_names=dataset.channel_names,
        num_training=dataset.num_training,
        num_label_entries=dataset.labels.num_entries,
        rules=rules,
        gpu_memory_gb=gpu_memory_gb,
        overrides=overrides,
    )


def preprocess_dataset(
    dataset: RawDataset, digest: str, plan: Plan, configuration: str, root: Path, workers: int
) -> Prepared:
    """Return the dataset with its preprocessed cases, made now or found complete.

    Raises:
        UserError: the plan has no such configuration, or a case cannot be preprocessed.
    """
    chosen = plan.configuration(configuration)
    store = prepare_store(dataset, digest, plan, configuration, root, workers)
    return Prepared(dataset, digest, plan, chosen, store)


def locate_dataset(config: DatasetConfig) -> Path:
    """Return the folder of the raw dataset; the phantom is written on first use.

    Raises:
        UserError: the folder is not there, with where to put it and where the data come from.
    """
    root = Path(config.root)
    if config.kind == "phantom":
        return write_phantom(root, **config.phantom)
    if config.kind != "nnunet":
        raise UserError(f"dataset.kind={config.kind} is unknown. Choose nnunet or phantom.")
    if not root.is_dir():
        origin = f" The data: {config.source}." if config.source else ""
        raise UserError(
            f"dataset.root: there is no folder {root.absolute()}. Put the dataset there in nnU-Net's raw layout "
            f"(dataset.json, imagesTr, labelsTr), or say where it is with paths.raw=FOLDER or dataset.root=FOLDER."
            f"{origin}"
        )
    return root


def listed_dataset(root: Path, workers: int) -> RawDataset:
    """Return a dataset's listing.

    Raises:
        UserError: the listing has errors; then all files are decoded too, so that all problems come together.
    """
    dataset, findings = list_findings(root)
    if dataset is not None and any(finding.severity == "error" for finding in findings):
        compute_fingerprint(dataset, workers)
    return read_dataset(root)


def prepare(config: TrainConfig) -> Prepared:
    """Take a dataset from its raw folder to preprocessed cases, printing the plan.

    Raises:
        UserError: all problems of the dataset together, or a value of the configuration that cannot be used.
    """
    for name, folder in vars(config.paths).items():
        print(f"paths.{name}: {Path(folder).absolute()}")
    workers = config.data.prepare_workers or available_cpus()
    dataset = listed_dataset(locate_dataset(config.dataset), workers)
    preprocessed = Path(config.paths.preprocessed)
    fingerprint, digest = fingerprint_dataset(dataset, preprocessed, workers)
    if config.plan.from_file:
        plan = read_nnunet_plans(Path(config.plan.from_file))
    else:
        plan = derive_plan(
            dataset, fingerprint, config.planner.rules, config.planner.gpu_memory_gb, config.plan.overrides()
        )
    Console(soft_wrap=True).print(plan_table(plan))
    return preprocess_dataset(dataset, digest, plan, config.plan.configuration, preprocessed, workers)


def run_folder(config: TrainConfig, prepared: Prepared) -> Path:
    """Return runs/<experiment>/<configuration>/fold_<k>/seed_<s>."""
    name = config.name or f"{prepared.dataset.name}_{config.architecture['name']}"
    return Path(config.paths.runs) / name / prepared.configuration.name / f"fold_{config.fold}" / f"seed_{config.seed}"
