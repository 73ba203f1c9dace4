"""One run from preprocessed cases to scores: train, predict the test images, score them, draw them."""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import pandas
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console

from umamba.config import TrainConfig
from umamba.evaluation import overlay_figure, score_folder, score_table, worst_median_best
from umamba.inference import Predictor, choose_precision
from umamba.io import UserError, atomic_path, provenance, read_image, read_label, write_json
from umamba.io.resources import available_cpus
from umamba.patches import PatchDataModule, mirrored_axes
from umamba.pipeline import Prepared
from umamba.planning import fold_cases
from umamba.training.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from umamba.training.loggers import log_pictures, wandb_logger
from umamba.training.metrics_csv import MetricsCsv
from umamba.training.module import SegmentationModule
from umamba.training.panels import ValidationPanels
from umamba.training.progress import progress_callbacks
from umamba.training.run_folder import RunFolder

console = Console(soft_wrap=True)


def checkpoint_record(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """Return what each checkpoint carries beside the weights, so that it can be used alone (plain types only)."""
    dataset = prepared.dataset
    record = {
        "format": 1,
        "plan": prepared.plan.to_json(),
        "configuration": prepared.configuration.name,
        "architecture": config.architecture,
        "labels": dataset.labels.to_json(),
        "channel_names": list(dataset.channel_names),
        "file_ending": dataset.file_ending,
        "recipe": config.recipe,
        "mirror_axes": mirrored_axes(config.augmentation, prepared.configuration.dim),
        "provenance": provenance(),
        "fingerprint_hash": prepared.digest,
    }
    return dict(json.loads(json.dumps(record)))  # what JSON cannot hold, a safe loader would refuse


def run_training(config: TrainConfig, prepared: Prepared, folder: RunFolder) -> None:
    """Train, predict, score and draw; whatever is already done in the folder is not done again.

    Raises:
        UserError: the folder is in use, or holds another run; a value of the configuration cannot be used.
    """
    with folder.lock():
        if config.restart:
            folder.clear()
        status = folder.status()
        max_epochs = config.trainer.get("max_epochs")
        if not isinstance(max_epochs, int) or max_epochs < 1:
            raise UserError(f"trainer.max_epochs={max_epochs}: give the number of epochs, at least 1.")
        if status.get("state") == "finished" and status.get("max_epochs", 0) >= max_epochs:
            console.print(f"This run is finished: {folder.path}. Train it again with restart=true.")
            show_scores(folder)
            return
        record = checkpoint_record(config, prepared)
        folder.begin(record, max_epochs)
        write_json(folder.path / "plan.json", record["plan"])
        with atomic_path(folder.path / "config.yaml") as temporary:
            OmegaConf.save(OmegaConf.structured(config), temporary)
        loggers = fit(config, prepared, folder, record)
        folder.set_status(state="predicting")
        predict_and_score(config, prepared, folder, loggers)
        folder.set_status(state="finished")
        console.print(f"Run folder: {folder.path}")


def fit(config: TrainConfig, prepared: Prepared, folder: RunFolder, record: dict[str, Any]) -> list[Logger]:
    """Train up to trainer.max_epochs, from the last completed epoch if there is one; return the run's loggers."""
    configuration = prepared.configuration
    train_cases, val_cases = fold_cases(prepared.store.case_ids, config.fold, splits_file(config, prepared))
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = SegmentationModule(
        config.architecture,
        configuration,
        len(prepared.dataset.channel_names),
        prepared.dataset.labels,
        config.recipe,
        record,
    )
    trainer = build_trainer(config, prepared, folder)
    datamodule = PatchDataModule(
        prepared.store,
        configuration,
        prepared.dataset.labels,
        train_cases,
        val_cases,
        seed=config.seed,
        iterations=batches(config.data.iterations_per_epoch, config.trainer.get("limit_train_batches")),
        val_iterations=batches(config.data.val_iterations, config.trainer.get("limit_val_batches")),
        augmentation=config.augmentation,
        oversample_foreground=config.recipe["oversample_foreground"],
        num_workers=patch_workers(config, trainer),
    )
    resume = folder.last if folder.last.exists() else None
    if resume:
        epoch = torch.load(resume, map_location="cpu", weights_only=True, mmap=True)["epoch"] + 1
        console.print(f"Continuing {folder.path} after epoch {epoch} of {config.trainer['max_epochs']}.")
    else:
        console.print(f"New run: {folder.path}")
    parameters = sum(p.numel() for p in module.network.parameters())
    folder.set_status(parameters=parameters)
    console.print(
        f"{config.architecture['name']}: {parameters:,} parameters, "
        f"{len(train_cases)} training and {len(val_cases)} validation cases, precision {trainer.precision}, "
        f"device {trainer.strategy.root_device}"
    )
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*Checkpoint directory.*",
            ".*LeafSpec.*",
            ".*smaller than the logging interval.*",
        ):
            warnings.filterwarnings("ignore", text)
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    if trainer.interrupted or not folder.last.exists():
        raise UserError(f"Training was interrupted. The same command continues it: {folder.path}")
    return trainer.loggers


def build_trainer(config: TrainConfig, prepared: Prepared, folder: RunFolder) -> lightning.Trainer:
    """Return Lightning's Trainer with the arguments of the `trainer` group and this project's callbacks.

    Raises:
        UserError: an argument that Lightning's Trainer does not take.
    """
    # The limits have gone into the length of the patch streams already; fractions must not count twice.
    arguments = {key: value for key, value in config.trainer.items() if not key.startswith("limit_")}
    if arguments.get("precision") == "auto":
        accelerator = str(arguments.get("accelerator", "auto"))
        arguments["precision"] = choose_precision(accelerator_device(accelerator))
    arguments["enable_progress_bar"] = arguments.get("enable_progress_bar", True) and sys.stdout.isatty()
    callbacks: list[Callback] = [
        ValidationPanels(
            folder.path / "panels", prepared.dataset.labels, prepared.configuration.spacing, config.logger.panels_every
        ),
        *progress_callbacks(arguments["enable_progress_bar"]),
        MetricsCsv(folder.path / "metrics.csv"),
        SaveCheckpoints(folder.last.parent),
    ]
    loggers: list[Logger] = []
    if config.logger.wandb:
        settings = {**asdict(config), "plan_json": prepared.plan.to_json()}
        loggers.append(wandb_logger(folder, config.logger.project, config.logger.entity, settings))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return lightning.Trainer(
            **arguments,
            gradient_clip_val=config.recipe["gradient_clip_norm"],
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder.path,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The trainer group does not fit Lightning's Trainer: {error}") from error


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


def predict_and_score(config: TrainConfig, prepared: Prepared, folder: RunFolder, loggers: Sequence[Logger]) -> None:
    """Predict the dataset's test images, score those with a reference, and draw the worst, median and best."""
    test = prepared.dataset.test
    if not test:
        console.print("No test images (imagesTs): nothing to predict.")
        return
    checkpoint = {"last": folder.last, "best": folder.best}[config.predict.checkpoint]
    predictor = Predictor.from_checkpoint(checkpoint)
    predictor.predict_cases(
        test,
        folder.path / "predictions",
        tile_step_size=config.predict.tile_step_size,
        tta=config.predict.tta,
        overwrite=True,
    )
    scored = {case.case_id: (case, case.label) for case in test if case.label is not None}
    if not scored:
        console.print("The test images have no labels (labelsTs): predicted, not scored.")
        return
    scores = score_folder(
        folder.path / "predictions",
        {case_id: label for case_id, (_, label) in scored.items()},
        prepared.dataset.labels,
        prepared.dataset.file_ending,
        tolerance_mm=config.dataset.tolerance_mm,
        output=folder.path / "scores.csv",
    )
    pictures = {}
    for rank, case_id in worst_median_best(scores).items():
        pictures[rank] = folder.path / "overlays" / f"{rank}_{case_id}.png"
        case, label = scored[case_id]
        image, truth = read_image(case.images), read_label(label)
        prediction = read_label(folder.path / "predictions" / f"{case_id}{prepared.dataset.file_ending}")
        overlay_figure(
            image.array,
            truth.array[0],
            prediction.array[0],
            image.geometry.spacing,
            prepared.dataset.labels,
            pictures[rank],
        )
    log_pictures(loggers, "test", pictures)
    show_scores(folder)


def show_scores(folder: RunFolder) -> None:
    """Print the table of scores.csv, if the run has one."""
    path = folder.path / "scores.csv"
    if path.exists():
        console.print(score_table(pandas.read_csv(path)))
