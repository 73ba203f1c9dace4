"""From a raw dataset to its fingerprint, plan and preprocessed cases: the first half of the flow, as one call."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from umamba.config import DatasetConfig, TrainConfig
from umamba.datasets import RawDataset, dataset_digest, list_findings, read_dataset, write_phantom, write_phantom_2d
from umamba.datasets.numbered_instances import classes_of_instances, holds_instances
from umamba.datasets.phantom_archives import converted_phantom
from umamba.io import UserError, exclusive, read_json, write_json
from umamba.io.resources import available_cpus
from umamba.planning import (
    Configuration,
    Fingerprint,
    Plan,
    compute_fingerprint,
    paper_setting,
    plan_dataset,
    plan_table,
    read_nnunet_plans,
    to_nnunet_plans,
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


def make_plan(config: TrainConfig, dataset: RawDataset, fingerprint: Fingerprint) -> tuple[Plan, str]:
    """Return the plan that a configuration asks for, and which of its configurations.

    It is read from nnU-Net's file, or derived by the rules with the paper's and the given values pinned.

    Raises:
        UserError: the file is none or was made for other channels, or pinned values do not fit.
    """
    wanted, pinned = config.plan, config.plan.pinned()
    if wanted.from_file:
        if pinned or wanted.paper:
            raise UserError(
                f"plan.from_file: the file says everything; plan.{next(iter(pinned), 'paper')} cannot be pinned beside "
                "it. Change it in the file, or leave out one of the two."
            )
        plan = read_nnunet_plans(Path(wanted.from_file))
        found, expected = len(plan.intensity), len(dataset.channel_names)
        if found != expected:
            raise UserError(
                f"plan.from_file={wanted.from_file}: made for {found} channel(s), {dataset.name} has {expected}."
            )
        return plan, _named(wanted.configuration)
    notes: tuple[str, ...] = ()
    configuration = wanted.configuration
    if wanted.paper:
        setting = paper_setting(dataset.name, configuration)
        configuration, pinned = setting.configuration, {**setting.pinned(), **pinned}
        notes = (f"{configuration}: {', '.join(setting.pinned())} pinned by Table 2 of the paper, {setting.title}",)
    configuration = _named(configuration)
    plan = plan_dataset(
        fingerprint,
        dataset_name=dataset.name,
        channel_names=dataset.channel_names,
        num_training=dataset.num_training,
        num_label_entries=dataset.labels.num_entries,
        rules=config.planner.rules,
        gpu_memory_gb=config.planner.gpu_memory_gb,
        overrides={configuration: pinned} if pinned else {},
    )
    return replace(plan, decisions=(*notes, *plan.decisions)), configuration


def _named(configuration: str | None) -> str:
    if configuration is None:
        raise UserError("plan.configuration is not given. Choose 2d, 3d_fullres or 3d_lowres.")
    return configuration


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


def locate_dataset(config: DatasetConfig, workers: int) -> Path:
    """Return the folder of the raw dataset; the phantom is written on first use, and converted by `workers` threads.

    Raises:
        UserError: the folder is not there, with where to put it and where the data come from.
    """
    root = Path(config.root)
    if config.kind == "phantom":
        if "archive" in config.phantom:
            return converted_phantom(root, **config.phantom, workers=workers)
        arguments = {key: value for key, value in config.phantom.items() if key != "scene"}
        scene = config.phantom.get("scene", "abdomen")
        if scene == "abdomen":
            return write_phantom(root, **arguments)
        return write_phantom_2d(root, scene=scene, **arguments)
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


def prepare(config: TrainConfig, explain: bool = False, nnunet_plans: Path | None = None) -> Prepared:
    """Take a dataset from its raw folder to preprocessed cases, printing the plan.

    Args:
        config: what to prepare.
        explain: print the planner's decisions, too.
        nnunet_plans: file to which the plan is also written, for nnU-Net.

    Raises:
        UserError: all problems of the dataset together, or a value of the configuration that cannot be used.
    """
    for name, folder in vars(config.paths).items():
        print(f"paths.{name}: {Path(folder).absolute()}")
    workers = config.data.prepare_workers or available_cpus()
    preprocessed = Path(config.paths.preprocessed)
    root = locate_dataset(config.dataset, workers)
    if holds_instances(root):
        print(f"{root} holds numbered instances: background, interior and boundary are made of them.")
        root = classes_of_instances(root, preprocessed / "classes", workers)
    dataset = listed_dataset(root, workers)
    fingerprint, digest = fingerprint_dataset(dataset, preprocessed, workers)
    plan, configuration = make_plan(config, dataset, fingerprint)
    console = Console(soft_wrap=True)
    console.print(plan_table(plan))
    if explain:
        console.print("\n".join(["Decisions", *(f"  {decision}" for decision in plan.decisions)]), highlight=False)
    if nnunet_plans is not None:
        write_json(nnunet_plans, to_nnunet_plans(plan, dataset.file_ending))
        print(f"The plan as nnU-Net's plans file: {nnunet_plans.absolute()}")
    return preprocess_dataset(dataset, digest, plan, configuration, preprocessed, workers)


def run_folder(config: TrainConfig, prepared: Prepared) -> Path:
    """Return runs/<experiment>/<configuration>/fold_<k>/seed_<s>."""
    name = config.name or f"{prepared.dataset.name}_{config.architecture['name']}"
    return Path(config.paths.runs) / name / prepared.configuration.name / f"fold_{config.fold}" / f"seed_{config.seed}"
