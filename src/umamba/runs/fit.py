"""Train a run: build its module, patches and trainer, continue after an interruption, and explain errors."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.inference import choose_precision
from umamba.io import UserError, provenance
from umamba.io.resources import available_cpus
from umamba.io.voice import showing
from umamba.networks import build_network
from umamba.networks.cost import build_without_data, network_cost
from umamba.patches import PatchDataModule
from umamba.planning import fold_cases
from umamba.records import CheckpointRecord, RunFolder
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.settings import TrainSettings, plain
from umamba.sweeps.preflight import MOST_WORKERS
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.case_validation import CaseValidation
from umamba.training.checkpoints import AtomicCheckpointIO, SaveCheckpoints, newest_readable
from umamba.training.curves import ProgressPicture
from umamba.training.learning_rate import found_learning_rate
from umamba.training.loggers import wandb_logger
from umamba.training.losses import DiceCrossEntropy
from umamba.training.metrics_csv import MetricsCsv
from umamba.training.module import SegmentationModule
from umamba.training.nonfinite import Diverged, SkipNonFinite
from umamba.training.panels import ValidationPanels
from umamba.training.peak_memory import PeakMemory
from umamba.training.pretrained import load_pretrained
from umamba.training.profiling import build_profiler
from umamba.training.progress import progress_callbacks
from umamba.training.step_times import StepTimes
from umamba.training.stopping import LeaveOnSignal, TimeBudget
from umamba.training.workers import explain_worker_error

log = logging.getLogger(__name__)

FULL_PRECISION = "32-true"
# Lightning warnings that are expected here.
EXPECTED = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*sync_dist=True.*",
    ".*srun.*command is available.*",
)
# Fields of TrainerSettings that this project uses itself instead of handing them to Lightning's Trainer.
_OWN = {
    *("limit_train_batches", "limit_val_batches", "max_time", "find_lr"),
    *("compile", "activation_checkpointing", "ddp_batch", "precision", "profiler", "enable_progress_bar", "further"),
}


def is_first_process() -> bool:
    """Return whether this process has rank 0, the only one that predicts and scores after training."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def checkpoint_record(settings: TrainSettings, planned: PlannedDataset) -> CheckpointRecord:
    """Return the record that each checkpoint of a run holds beside the weights: architecture, plan, labels, recipe."""
    return CheckpointRecord(
        plan=planned.plan,
        configuration_name=planned.configuration.name,
        architecture=settings.architecture,
        labels=planned.labels,
        channel_names=tuple(planned.dataset.channel_names),
        file_ending=planned.dataset.file_ending,
        recipe=settings.recipe,
        pretrained=None if settings.pretrained is None else str(settings.pretrained),
        mirror_axes=settings.augmentation.mirrored_axes(planned.configuration.dim),
        provenance=provenance(),
        fingerprint_hash=planned.digest,
    )


def step_flops(record: CheckpointRecord) -> float:
    """Return the FLOPs of a training step on the plan's batch: the backward pass costs twice the forward pass."""
    cost = network_cost(record.architecture, record.configuration, record.num_channels, record.labels.num_classes)
    return 3.0 * cost.flops * record.configuration.batch_size


def check_network(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Build the network without data, so that a plan that does not fit it is refused before any preprocessing.

    Raises:
        UserError: the architecture cannot be built at this plan, or the loss does not fit the labels.
    """
    classes = planned.labels.num_classes
    build_without_data(settings.architecture, planned.configuration, planned.num_channels, classes)
    DiceCrossEntropy(planned.labels, planned.configuration.batch_dice, settings.recipe.loss)


def check_fold(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Refuse a fold that the dataset does not have, before any preprocessing.

    Raises:
        UserError: there is no such fold, or too few cases to split.
    """
    fold_cases([case.case_id for case in planned.dataset.training], settings.fold, splits_file(settings, planned))


def check_trainer(settings: TrainSettings) -> None:
    """Build Lightning's Trainer once, so that a missing device is refused before any work.

    Raises:
        UserError: Lightning's Trainer refuses its arguments on this machine.
    """
    with _expected_warnings():
        _trainer(settings, {"precision": _precision(settings, None), "enable_progress_bar": False, "logger": False})


def fit(
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, record: CheckpointRecord
) -> list[Logger]:
    """Train up to trainer.max_epochs, from the last completed epoch if there is one; return the run's loggers.

    If gradients stay non-finite, the run goes back to its last checkpoint and continues in float32 from then on.

    Args:
        settings: the settings of the run.
        prepared: the dataset, its plan and its preprocessed cases.
        folder: the run folder, in which training writes checkpoints, metrics, pictures and run.json.
        record: the content of each checkpoint beside the weights, from `checkpoint_record`.

    Raises:
        UserError: an unusable setting, a dead patch worker, a full disk, or divergence (float32, or WORLD_SIZE is set).
    """
    while True:
        try:
            with _expected_warnings():
                return attempt(settings, prepared, folder, record)
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
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, record: CheckpointRecord
) -> list[Logger]:
    """Train once, with the arguments and result of `fit`; raise `Diverged` if gradients stay non-finite."""
    train_cases, val_cases = fold_cases(prepared.store.case_ids, settings.fold, splits_file(settings, prepared))
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    held_out = set(val_cases).isdisjoint(train_cases)
    module = SegmentationModule(record, held_out)
    trainer = build_trainer(settings, prepared, folder, val_cases if held_out else [])
    datamodule = build_datamodule(settings, prepared, trainer, train_cases, val_cases)
    trainer.callbacks.append(StepTimes(datamodule))  # type: ignore[attr-defined]
    resume = newest_readable(folder)
    if resume:
        log.info("Continuing %s after epoch %d of %d.", folder.path, resume[1], settings.trainer.max_epochs)
    else:
        log.info("New run: %s", folder.path)
        if settings.pretrained is not None:
            log.info(_load_pretrained(settings.pretrained, module, record))
    parameters = sum(p.numel() for p in module.network.parameters())
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
        module.learning_rate = found_learning_rate(folder, module, datamodule, trainer)
        log.info("Learning rate %.3g, found by trying: %s", module.learning_rate, folder.learning_rate_search)
    if settings.trainer.activation_checkpointing:
        log.info("Activation checkpointing: %d stages keep their inputs only.", checkpoint_stages(module.network))
    if settings.trainer.compile:
        module.network.compile()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume and resume[0], weights_only=True)
    except (RuntimeError, UserError) as error:
        explained = explain_worker_error(error, datamodule)
        if explained is None:
            raise
        raise UserError(explained) from error
    if not folder.last.exists():
        raise UserError(f"Training ended without a checkpoint. The same command begins again: {folder.path}")
    return trainer.loggers


def _load_pretrained(path: Path, module: SegmentationModule, record: CheckpointRecord) -> str:
    def build(classes: int) -> torch.nn.Module:
        return build_network(record.architecture, record.configuration, record.num_channels, classes)

    return load_pretrained(path, module.network, build, record.labels)


def build_trainer(
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, val_cases: list[str]
) -> lightning.Trainer:
    """Return the Trainer of a run with its callbacks, which may predict the first of the held-out `val_cases` whole.

    Raises:
        UserError: Lightning's Trainer refuses its arguments on this machine.
    """
    labels, spacing = prepared.labels, prepared.configuration.spacing
    bar = settings.trainer.enable_progress_bar and sys.stdout.isatty() and showing()
    decay = settings.recipe.weight_averaging
    metrics = MetricsCsv(folder.metrics)
    every, shown = settings.data.validate_cases_every, val_cases[: settings.data.validation_cases]
    callbacks: list[Callback] = [
        LeaveOnSignal(folder.path),
        # Before weight averaging, which removes the averaged weights from the network in the same hook.
        *([_case_validation(settings, prepared, shown)] if every else []),
        *([EMAWeightAveraging(device=_device(settings), decay=decay)] if decay is not None else []),
        SkipNonFinite(folder.nonfinite, settings.seed),
        PeakMemory(),
        ValidationPanels(folder.panels, labels, spacing, settings.logger.panels_every),
        *progress_callbacks(bar),
        TimeBudget(settings.trainer.max_seconds),
        metrics,
        ProgressPicture(folder.curves, metrics),
        SaveCheckpoints(folder),
    ]
    loggers: list[Logger] = []
    if settings.logger.wandb and is_first_process():
        shown_settings = {**plain(settings), "plan_json": prepared.plan.to_json(), "provenance": provenance()}
        loggers.append(wandb_logger(folder, settings.logger.project, settings.logger.entity, shown_settings))
    return _trainer(
        settings,
        {
            "precision": _precision(settings, folder),
            "profiler": build_profiler(settings.trainer.profiler, folder.path),
            "enable_progress_bar": bar,
            "callbacks": callbacks,
            "logger": loggers or False,
            "plugins": [AtomicCheckpointIO()],
            "default_root_dir": folder.path,
        },
    )


def _case_validation(settings: TrainSettings, prepared: PreparedDataset, cases: list[str]) -> CaseValidation:
    """Return the callback that predicts whole validation cases with the same settings as after training."""
    configuration, every = prepared.configuration, settings.data.validate_cases_every
    mirrored = settings.augmentation.mirrored_axes(configuration.dim)
    return CaseValidation(
        prepared.store, cases, configuration, prepared.labels, every, settings.predict, mirror_axes=mirrored
    )


def _trainer(settings: TrainSettings, arguments: dict[str, object]) -> lightning.Trainer:
    """Return Lightning's Trainer with the values of the `trainer` group and `arguments`, which override them."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # they report devices, and tips of other products
        logging.getLogger(name).setLevel(logging.WARNING)
    # The patch streams already have the limited length; Lightning would apply a fraction a second time.
    own = {name: value for name, value in vars(settings.trainer).items() if name not in _OWN}
    devices = settings.trainer.devices
    own["devices"] = list(devices) if isinstance(devices, tuple) else devices
    given = {**own, **settings.trainer.further, **arguments, "gradient_clip_val": settings.recipe.gradient_clip_norm}
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return lightning.Trainer(**given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"The trainer group does not fit Lightning's Trainer: {error}") from error


def _precision(settings: TrainSettings, folder: RunFolder | None) -> str:
    """Return the precision of a run: float32 after a divergence, else the setting; auto: see `choose_precision`."""
    wanted = settings.precision
    chosen = choose_precision(_device(settings)) if wanted == "auto" else wanted
    return chosen if folder is None else str(folder.status().get("precision", chosen))


def build_datamodule(
    settings: TrainSettings,
    prepared: PreparedDataset,
    trainer: lightning.Trainer,
    train_cases: list[str],
    val_cases: list[str],
) -> PatchDataModule:
    """Return the datamodule that draws patches from the given training and validation cases."""
    times = trainer.world_size if settings.trainer.ddp_batch == "multiply" else 1
    return PatchDataModule(
        prepared.store,
        prepared.configuration,
        prepared.labels,
        train_cases,
        val_cases,
        seed=settings.seed,
        iterations=settings.train_batches,
        val_iterations=settings.val_batches,
        batch_size=prepared.configuration.batch_size * times,
        augmentation=settings.augmentation,
        oversample_foreground=settings.recipe.oversample_foreground,
        num_workers=patch_workers(settings, trainer),
        prefetch_factor=settings.data.prefetch_factor,
    )


def _device(settings: TrainSettings) -> torch.device:
    """Return the device type that Lightning's accelerator name stands for on this machine."""
    accelerator = settings.trainer.accelerator
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "mps" if accelerator == "mps" else "cpu")


def patch_workers(settings: TrainSettings, trainer: lightning.Trainer) -> int:
    """Return the number of processes that make training patches: data.num_workers, or a number from the allocation.

    The latter is 1 if the network runs on the CPU and needs its cores; otherwise all cores but one, at most 12.
    """
    if settings.data.num_workers is not None:
        return settings.data.num_workers
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return 1 if on_cpu else max(1, min(MOST_WORKERS, available_cpus() - 1))


def splits_file(settings: TrainSettings, planned: PlannedDataset) -> Path | None:
    """Return the splits_final.json in the raw dataset, else that of the preprocessed cases; None: there is none."""
    for folder in (planned.dataset.root, settings.paths.preprocessed / planned.dataset.name):
        if (folder / "splits_final.json").exists():
            return folder / "splits_final.json"
    return None


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for text in EXPECTED:
            warnings.filterwarnings("ignore", text)
        yield
