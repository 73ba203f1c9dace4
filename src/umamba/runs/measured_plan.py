"""planner.measure=true: patch, batch and the means to save memory from the measured step of the run's own network."""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from umamba.datasets import RawDataset
from umamba.io import UserError, exclusive, read_json, write_json
from umamba.io.resources import available_cpus, memory_bytes
from umamba.networks.cost import build_without_data
from umamba.planning import Configuration, Fingerprint, Plan, plan_dataset, planned_configuration
from umamba.planning.measured import MeasuredPlan, Trial, choose, plain_trials
from umamba.planning.rules import rule_set
from umamba.records import CheckpointRecord
from umamba.runs.preparation import fingerprint_dataset, raw_dataset
from umamba.runs.trainer import chosen_precision, processes, trains_on_cuda
from umamba.settings import TrainSettings, plain
from umamba.settings.validate import read_record
from umamba.training.measured_step import step_peak

log = logging.getLogger(__name__)
Run = TypeVar("Run", bound=TrainSettings)

_SHARE = 0.9  # of the memory here, if planner.gpu_memory_gb is not given
_VERSION = 1  # of the measurement


def with_measured_plan(settings: Run) -> Run:
    """Return settings whose patch, batch, accumulation and checkpointing are those that the measurement chooses.

    The choice is kept in <paths.preprocessed>/<dataset>/measured_<hash>.json, so that the run can continue with it.

    Args:
        settings: the settings of a run; without planner.measure they are returned as they are.

    Raises:
        UserError: as `runs.preparation.plan_of`, or no step of this network fits the memory.
    """
    if not settings.planner.measure:
        return settings
    workers = settings.data.prepare_workers or available_cpus()
    dataset = raw_dataset(settings, workers)
    if dataset.annotated:
        raise UserError(
            f"planner.measure=true: measures a step with whole labels, and some cases of {dataset.name} do not carry "
            "all labels (annotated_labels). Leave out planner.measure; plan.patch_size and plan.batch_size pin a plan."
        )
    fingerprint, digest = fingerprint_dataset(dataset, settings.paths.preprocessed, workers)
    budget = _budget(settings)
    path = _file(settings, dataset, digest, budget)
    found = _kept_choice(path)  # also on a disk that cannot be written, where nothing can be locked
    if found is None:
        with exclusive(path.with_name(f".{path.stem}.lock"), f"the measured plan of {dataset.name}"):
            found = _kept_choice(path)
            if found is None:
                found = _measured(settings, dataset, fingerprint, digest, budget)
                write_json(path, asdict(found))
    log.info(found.sentence())
    trial = found.trial
    return replace(
        settings,
        planner=replace(settings.planner, measure=False, gpu_memory_gb=None),
        plan=replace(settings.plan, patch_size=trial.patch_size, batch_size=trial.step_batch),
        trainer=replace(
            settings.trainer,
            accumulate_grad_batches=settings.trainer.accumulate_grad_batches * trial.accumulate,
            activation_checkpointing=settings.trainer.activation_checkpointing or trial.checkpointing,
        ),
    )


def kept_copies(settings: TrainSettings) -> int:
    """Return how many copies of the weights training keeps: their average, and the gradients that devices exchange.

    Args:
        settings: the settings of a run.
    """
    averaged = settings.timed or settings.recipe.weight_averaging is not None
    return int(averaged) + int(processes(settings) > 1)


def _budget(settings: TrainSettings) -> float:
    """Return the bytes that a training step may take."""
    if settings.planner.gpu_memory_gb is not None:
        return settings.planner.gpu_memory_gb * 1e9
    if trains_on_cuda(settings):
        return _SHARE * float(torch.cuda.get_device_properties(0).total_memory)
    return _SHARE * memory_bytes()


def _measured(
    settings: TrainSettings, dataset: RawDataset, fingerprint: Fingerprint, digest: str, budget: float
) -> MeasuredPlan:
    """Measure trials until the largest one is known that fits the budget."""
    name = planned_configuration(dataset.name, False, settings.plan.configuration)
    rules = rule_set(settings.planner.rules)

    def plan_with(memory_gb: float, **values: Any) -> Plan:
        pinned = {**settings.plan.pinned(), **values}
        return plan_dataset(
            fingerprint,
            dataset_name=dataset.name,
            channel_names=dataset.channel_names,
            num_training=dataset.num_training,
            num_label_entries=dataset.labels.num_entries,
            rules=rules.name,
            gpu_memory_gb=memory_gb,
            overrides={name: pinned} if pinned else {},
        )

    def sizes(target: float) -> dict[str, Any] | None:
        try:
            return _sizes(plan_with(target * rules.memory_gb), name)
        except UserError:
            return None

    wish = _trial(_sizes(plan_with(rules.memory_gb), name))
    plain_ones = [one for one in plain_trials(sizes) if _can_be_built(settings, dataset, plan_with, name, one)]
    if wish not in plain_ones:
        plain_ones = sorted({*plain_ones, wish}, key=lambda one: one.voxels)
    precision, device = chosen_precision(settings), "cuda" if trains_on_cuda(settings) else "cpu"

    def peak_of(trial: Trial) -> float:
        plan = plan_with(rules.memory_gb, patch_size=trial.patch_size, batch_size=trial.step_batch)
        record = CheckpointRecord(
            plan=plan,
            configuration_name=name,
            architecture=settings.architecture,
            labels=dataset.labels,
            channel_names=tuple(dataset.channel_names),
            file_ending=dataset.file_ending,
            recipe=settings.recipe,
            fingerprint_hash=digest,
        )
        recomputed = trial.checkpointing or settings.trainer.activation_checkpointing
        peak = step_peak(record, recomputed, kept_copies(settings), device, precision)
        log.info(
            "Measured: patch %s, %d a step%s: %s",
            " x ".join(map(str, trial.patch_size)),
            trial.step_batch,
            ", activation checkpointing" if trial.checkpointing else "",
            "out of memory" if peak == float("inf") else f"{peak / 1e9:.2f} GB",
        )
        return peak

    log.info("Measuring training steps of %s for a plan of %.3g GB.", settings.architecture.name, budget / 1e9)
    return choose(plain_ones, wish, budget, peak_of, "planner.gpu_memory_gb")


def _can_be_built(settings: TrainSettings, dataset: RawDataset, plan_with: Any, name: str, trial: Trial) -> bool:
    """Return whether the network can be built for a patch; some need others."""
    try:
        configuration: Configuration = plan_with(
            rule_set(settings.planner.rules).memory_gb, patch_size=trial.patch_size, batch_size=trial.batch_size
        ).configuration(name)
        build_without_data(settings.architecture, configuration, len(dataset.channel_names), dataset.labels.num_classes)
    except UserError:
        return False
    return True


def _sizes(plan: Plan, name: str) -> dict[str, Any]:
    configuration = plan.configuration(name)
    return {"patch_size": configuration.patch_size, "batch_size": configuration.batch_size}


def _trial(sizes: dict[str, Any]) -> Trial:
    return Trial(tuple(sizes["patch_size"]), int(sizes["batch_size"]))


def _file(settings: TrainSettings, dataset: RawDataset, digest: str, budget: float) -> Path:
    """Return the file of a choice, whose name depends on all that the memory depends on."""
    cuda = trains_on_cuda(settings)
    content = {
        "version": _VERSION,
        "dataset": digest,
        "plan": [plain(settings.plan), settings.planner.rules],
        "architecture": plain(settings.architecture),
        "recipe": plain(settings.recipe),
        "precision": chosen_precision(settings),
        "means": [settings.trainer.accumulate_grad_batches, settings.trainer.activation_checkpointing],
        "copies": kept_copies(settings),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "budget": budget,
    }
    digits = hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return settings.paths.preprocessed / dataset.name / f"measured_{digits}.json"


def _kept_choice(path: Path) -> MeasuredPlan | None:
    """Return the choice in a file; None if there is none, or it is damaged and measured again."""
    if not path.exists():
        return None
    try:
        content = dict(read_json(path))
        return read_record(MeasuredPlan, {**content, "trial": read_record(Trial, content.get("trial"), "trial")})
    except (UserError, TypeError, ValueError) as error:
        log.warning("%s is damaged (%s); the steps are measured again.", path, error)
        return None
