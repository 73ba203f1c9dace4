"""The training of a run: its module, patches and trainer; continued, kept alive, and explained when it fails."""

import logging
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from umamba.config import TrainConfig
from umamba.inference import choose_precision
from umamba.io import UserError, provenance
from umamba.io.resources import available_cpus
from umamba.networks import build_network
from umamba.patches import PatchDataModule
from umamba.pipeline import Prepared
from umamba.planning import fold_cases
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.case_validation import CaseValidation
from umamba.training.checkpoints import AtomicCheckpointIO, SaveCheckpoints, newest_readable
from umamba.training.curves import ProgressPicture
from umamba.training.learning_rate import found_learning_rate
from umamba.training.loggers import wandb_logger
from umamba.training.metrics_csv import MetricsCsv
from umamba.training.module import SegmentationModule
from umamba.training.nonfinite import Diverged, SkipNonFinite
from umamba.training.panels import ValidationPanels
from umamba.training.peak_memory import PeakMemory
from umamba.training.pretrained import load_pretrained
from umamba.training.profiling import build_profiler
from umamba.training.progress import progress_callbacks
from umamba.training.run_folder import RunFolder
from umamba.training.step_times import StepTimes
from umamba.training.stopping import LeaveOnSignal, TimeBudget, budget_seconds
from umamba.training.workers import explain_worker_error

console = Console(soft_wrap=True)

# Keys of the trainer group that are not Lightning's.
OWN_KEYS = (
    *("limit_train_batches", "limit_val_batches", "max_time", "find_lr"),
    *("compile", "activation_checkpointing", "ddp_batch"),
)
FULL_PRECISION = "32-true"
# What Lightning warns of although it is meant so.
EXPECTED = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*sync_dist=True.*",
    ".*srun.*command is available.*",
)


def is_first_process() -> bool:
    """Return whether this is the process that writes, of those that train one run together."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def fit(config: TrainConfig, prepared: Prepared, folder: RunFolder, record: dict[str, Any]) -> list[Logger]:
    """Train up to trainer.max_epochs, from the last completed epoch if there is one; return the run's loggers.

    If gradients stay non-finite, the run goes back to its last checkpoint and on in float32, now and when continued.

    Raises:
        UserError: a value of the configuration cannot be used, a process that makes patches died, the disk is full, or
            training diverges in float32.
    """
    while True:
        try:
            with warnings.catch_warnings():
                for text in EXPECTED:
                    warnings.filterwarnings("ignore", text)
                return attempt(config, prepared, folder, record)
        except Diverged as error:
            if folder.status().get("precision") == FULL_PRECISION or FULL_PRECISION in str(error):
                raise UserError(
                    f"Training diverges: {error}. Look at that batch, or lower recipe.optimizer.lr or "
                    "recipe.gradient_clip_norm, and begin afresh with restart=true."
                ) from error
            if is_first_process():
                folder.set_status(precision=FULL_PRECISION)
            if "WORLD_SIZE" in os.environ:
                raise UserError(f"{error}. The same command goes on from the last checkpoint in float32.") from error
            console.print(f"{error}. Going back to the last checkpoint, and on in float32.")


def attempt(config: TrainConfig, prepared: Prepared, folder: RunFolder, record: dict[str, Any]) -> list[Logger]:
    """Train until the end, or until something goes wrong; see `fit`."""
    labels = prepared.dataset.labels
    train_cases, val_cases = fold_cases(prepared.store.case_ids, config.fold, splits_file(config, prepared))
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    channels = len(prepared.dataset.channel_names)
    held_out = set(val_cases).isdisjoint(train_cases)
    module = SegmentationModule(
        config.architecture, prepared.configuration, channels, labels, config.recipe, record, held_out
    )
    trainer = build_trainer(config, prepared, folder, val_cases if held_out else [])
    datamodule = build_datamodule(config, prepared, trainer, train_cases, val_cases)
    trainer.callbacks.append(StepTimes(datamodule))  # type: ignore[attr-defined]
    resume = newest_readable(folder.last.parent)
    say = console.print if is_first_process() else lambda *_: None
    if resume:
        say(f"Continuing {folder.path} after epoch {resume[1]} of {config.trainer['max_epochs']}.")
    else:
        say(f"New run: {folder.path}")
        if config.pretrained:
            say(
                load_pretrained(
                    Path(config.pretrained),
                    module.network,
                    lambda classes: build_network(config.architecture, prepared.configuration, channels, classes),
                    labels,
                )
            )
    parameters = sum(p.numel() for p in module.network.parameters())
    if is_first_process():
        folder.set_status(parameters=parameters)
    say(
        f"{config.architecture['name']}: {parameters:,} parameters, "
        f"{len(train_cases)} training and {len(val_cases) if held_out else 'no'} validation cases, "
        f"precision {trainer.precision}, "
        f"device {trainer.strategy.root_device}"
    )
    if config.trainer.get("find_lr"):
        module.learning_rate = found_learning_rate(folder, module, datamodule, trainer)
        say(f"Learning rate {module.learning_rate:.3g}, found by trying: {folder.path / 'learning_rate.png'}")
    if config.trainer.get("activation_checkpointing"):
        say(f"Activation checkpointing: {checkpoint_stages(module.network)} stages keep their inputs only.")
    if config.trainer.get("compile"):
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


def build_trainer(
    config: TrainConfig, prepared: Prepared, folder: RunFolder, val_cases: list[str]
) -> lightning.Trainer:
    """Return Lightning's Trainer with the arguments of the `trainer` group and this project's callbacks.

    Raises:
        UserError: an argument that Lightning's Trainer does not take.
    """
    # The limits have gone into the length of the patch streams already; fractions must not count twice.
    arguments = {key: value for key, value in config.trainer.items() if key not in OWN_KEYS}
    device = accelerator_device(str(arguments.get("accelerator", "auto")))
    if arguments.get("precision") == "auto":
        arguments["precision"] = choose_precision(device)
    arguments["profiler"] = build_profiler(arguments.get("profiler"), folder.path)
    arguments["precision"] = folder.status().get("precision", arguments.get("precision"))
    bar = arguments["enable_progress_bar"] = arguments.get("enable_progress_bar", True) and sys.stdout.isatty()
    labels, spacing = prepared.dataset.labels, prepared.configuration.spacing
    decay = config.recipe.get("weight_averaging")
    metrics = MetricsCsv(folder.path / "metrics.csv")
    every, shown = config.data.validate_cases_every, val_cases[: config.data.validation_cases]
    callbacks: list[Callback] = [
        LeaveOnSignal(folder.path),
        # Before the averaging of weights takes its weights out of the network again.
        *([CaseValidation(prepared.store, shown, prepared.configuration, labels, every)] if every else []),
        *([EMAWeightAveraging(device=device, decay=decay)] if decay is not None else []),
        SkipNonFinite(folder.path / "nonfinite", config.seed),
        PeakMemory(),
        ValidationPanels(folder.path / "panels", labels, spacing, config.logger.panels_every),
        *progress_callbacks(bar),
        TimeBudget(budget_seconds(config.trainer.get("max_time"))),
        metrics,
        ProgressPicture(folder.path / "progress.png", metrics),
        SaveCheckpoints(folder.last.parent),
    ]
    loggers: list[Logger] = []
    if config.logger.wandb and is_first_process():
        settings = {**asdict(config), "plan_json": prepared.plan.to_json(), "provenance": provenance()}
        loggers.append(wandb_logger(folder, config.logger.project, config.logger.entity, settings))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        trainer = lightning.Trainer(
            **arguments,
            gradient_clip_val=config.recipe["gradient_clip_norm"],
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder.path,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The trainer group does not fit Lightning's Trainer: {error}") from error
    if trainer.world_size > 1 and {"-m", "--multirun"} & set(sys.argv):
        raise UserError(
            "trainer=ddp starts its processes with the same command, which a sweep (-m) cannot be: give one "
            "command for each run."
        )
    return trainer


def build_datamodule(
    config: TrainConfig, prepared: Prepared, trainer: lightning.Trainer, train_cases: list[str], val_cases: list[str]
) -> PatchDataModule:
    """Return the streams of patches that the `data`, `augmentation` and `trainer` groups describe."""
    choices = {"divide": 1, "multiply": trainer.world_size}
    choice = config.trainer.get("ddp_batch", "divide")
    if choice not in choices:
        raise UserError(f"trainer.ddp_batch={choice} is unknown. Choose divide or multiply.")
    return PatchDataModule(
        prepared.store,
        prepared.configuration,
        prepared.dataset.labels,
        train_cases,
        val_cases,
        seed=config.seed,
        iterations=batches(config.data.iterations_per_epoch, config.trainer.get("limit_train_batches")),
        val_iterations=batches(config.data.val_iterations, config.trainer.get("limit_val_batches")),
        batch_size=prepared.configuration.batch_size * choices[choice],
        augmentation=config.augmentation,
        oversample_foreground=config.recipe["oversample_foreground"],
        num_workers=patch_workers(config, trainer),
        prefetch_factor=config.data.prefetch_factor,
    )


def accelerator_device(accelerator: str) -> torch.device:
    """Return the device type that Lightning's accelerator name stands for on this machine."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu" if accelerator in ("auto", "cpu") else accelerator)


def batches(own: int, limit: int | float | None) -> int:
    """Return the batches of an epoch under the Trainer's limit (a number of batches, or a fraction)."""
    if limit is None:
        return own
    return min(own, limit) if isinstance(limit, int) else max(1, round(own * limit))


def patch_workers(config: TrainConfig, trainer: lightning.Trainer) -> int:
    """Return how many processes make patches: the configured number, else from the allocation.

    On a CPU run one worker leaves the cores to the network; beside a GPU all cores but one feed it, at most 12.
    """
    if config.data.num_workers is not None:
        return config.data.num_workers
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return 1 if on_cpu else max(1, min(12, available_cpus() - 1))


def splits_file(config: TrainConfig, prepared: Prepared) -> Path | None:
    """Return the dataset's own splits file, if there is one beside the raw data or the preprocessed cases."""
    for folder in (prepared.dataset.root, Path(config.paths.preprocessed) / prepared.dataset.name):
        if (folder / "splits_final.json").exists():
            return folder / "splits_final.json"
    return None
