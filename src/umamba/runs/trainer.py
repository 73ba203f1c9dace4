"""Build Lightning's Trainer and the datamodule of a run from its settings."""

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.inference import choose_precision, tile_window
from umamba.inference.tiling import tile_starts
from umamba.io import UserError, provenance
from umamba.io.resources import available_cpus
from umamba.io.voice import showing
from umamba.patches import PatchDataModule
from umamba.records import RunFolder
from umamba.runs.preparation import PreparedDataset
from umamba.settings import CustomArchitectureSettings, PretrainSettings, TrainSettings, plain
from umamba.sweeps.preflight import MOST_WORKERS
from umamba.training.budget import PolynomialAverage
from umamba.training.case_validation import CaseValidation
from umamba.training.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from umamba.training.curves import ProgressPicture
from umamba.training.loggers import build_loggers, check_loggers
from umamba.training.metrics_csv import MetricsCsv
from umamba.training.nonfinite import SkipNonFinite
from umamba.training.panels import ValidationPanels
from umamba.training.peak_memory import PeakMemory
from umamba.training.profiling import build_profiler
from umamba.training.progress import EpochLines
from umamba.training.stopping import LeaveOnSignal, TimeBudget
from umamba.training.user_callbacks import AskedPatience, user_callbacks

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
    *("callbacks", "strategy"),
}
# Strategy of several devices where the graph of a step may change, so that each step looks for missing gradients.
SEVERAL = "ddp_find_unused_parameters_true"


def is_first_process() -> bool:
    """Return whether this process has rank 0, the only one that predicts and scores after training."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def check_trainer(settings: TrainSettings) -> None:
    """Build Lightning's Trainer and the user's callbacks once, so that what they refuse is known before any work.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: this machine lacks the device, a callback cannot be made, a logger is not installed, or Lightning's
            Trainer refuses its arguments.
    """
    check_devices(settings)
    if settings.timed and processes(settings) > 1:
        raise UserError(
            f"{'finish_by' if settings.budget is None else 'budget'}: one device trains to a time budget, not "
            f"{processes(settings)} together. Give trainer.devices=1, or trainer.max_time instead of the budget."
        )
    if settings.recipe.finetune.frozen and processes(settings) > 1:
        raise UserError(
            f"recipe.finetune.frozen={settings.recipe.finetune.frozen:g}: several devices keep the graph of the first "
            "step, in which the encoder is frozen. Give trainer.devices=1, or recipe.finetune.frozen=0."
        )
    user_callbacks(settings.trainer.callbacks)
    check_loggers(settings.logger)
    with expected_warnings():
        _trainer(settings, {"precision": _precision(settings, None), "enable_progress_bar": False, "logger": False})


def check_deterministic(settings: TrainSettings, operations: Sequence[str]) -> None:
    """Refuse trainer.deterministic=true for a network whose gradients differ from run to run on a GPU.

    Args:
        settings: the settings of the run.
        operations: the network's operations without a deterministic gradient, see `BackwardGraph`.

    Raises:
        UserError: the network has such operations, or the scan adds in a changing order.
    """
    reasons, remedies = [], ["trainer.deterministic=warn", "trainer.accelerator=cpu"]
    if operations:
        reasons.append(f"PyTorch has no deterministic gradient there for {', '.join(operations)}")
    if getattr(settings.architecture, "scan_backend", None) == "cuda":
        reasons.append("architecture.scan_backend=cuda adds gradients in a changing order")
        if not operations:
            remedies.insert(0, "architecture.scan_backend=auto")
    if reasons:
        raise UserError(
            f"trainer.deterministic=true: {settings.architecture.name} cannot be trained so on a GPU, because "
            f"{', and '.join(reasons)}. Give {', or '.join(remedies)}."
        )


def check_devices(settings: TrainSettings) -> None:
    """Refuse devices that this machine does not have.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: the message names the key and what can be given instead.
    """
    accelerator, devices = settings.trainer.accelerator, settings.trainer.devices
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    missing = {"gpu": not cuda and not mps, "cuda": not cuda, "mps": not mps}
    if missing.get(accelerator):
        what = "an Apple GPU (MPS)" if accelerator == "mps" else "a CUDA device"
        raise UserError(
            f"trainer.accelerator={accelerator}: PyTorch {torch.__version__} does not see {what} on this machine. Give "
            "trainer.accelerator=auto or cpu; `umamba doctor` says what is missing."
        )
    if _device(settings).type == "cuda" and devices != "auto":
        count = torch.cuda.device_count()
        last = devices - 1 if isinstance(devices, int) else max(devices)
        if last >= count:
            given = devices if isinstance(devices, int) else str(list(devices)).replace(" ", "")
            raise UserError(
                f"trainer.devices={given}: this machine has {count} CUDA device(s), counted from 0. Give at most "
                f"{count}, or auto for all."
            )
    if _device(settings).type == "cpu" and isinstance(devices, tuple):
        raise UserError(
            f"trainer.devices={str(list(devices)).replace(' ', '')}: processors have no index. Give their number, such "
            f"as trainer.devices={len(devices)}."
        )


def processes(settings: TrainSettings) -> int:
    """Return the number of processes that train the run together.

    Args:
        settings: the settings of the run.
    """
    devices = settings.trainer.devices
    if devices == "auto":
        count = torch.cuda.device_count() if _device(settings).type == "cuda" else 1
    else:
        count = devices if isinstance(devices, int) else len(devices)
    return count * settings.trainer.num_nodes


def build_trainer(
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, val_cases: list[str]
) -> lightning.Trainer:
    """Return the Trainer of a run with its callbacks and loggers.

    Args:
        settings: the settings of the run.
        prepared: the dataset; a callback predicts whole cases of its store.
        folder: the run folder, into which callbacks write.
        val_cases: held-out cases, of which the first data.validation_cases are predicted whole.

    Raises:
        UserError: Lightning's Trainer refuses its arguments on this machine.
    """
    labels, spacing = prepared.labels, prepared.configuration.spacing
    bar = settings.trainer.enable_progress_bar and sys.stdout.isatty() and showing()
    decay, timed = settings.recipe.weight_averaging, settings.timed
    metrics = MetricsCsv(folder.metrics)
    # Under a time budget no whole cases are predicted, because one prediction may take longer than several epochs.
    segments = not isinstance(settings, PretrainSettings) and not settings.heads.alone
    every = 0 if timed or isinstance(settings, PretrainSettings) else settings.data.validate_cases_every
    shown = val_cases[: settings.data.validation_cases]
    asked = user_callbacks(settings.trainer.callbacks)
    callbacks: list[Callback] = [
        LeaveOnSignal(folder.path),
        # Before weight averaging, which removes the averaged weights from the network in the same hook.
        *([_case_validation(settings, prepared, shown)] if every and segments else []),
        *([EMAWeightAveraging(device=_device(settings), decay=decay)] if decay is not None else []),
        *([PolynomialAverage(device=_device(settings))] if timed else []),
        SkipNonFinite(folder.nonfinite, settings.seed),
        PeakMemory(),
        # Before the pictures, because its clock of a validation step would count the drawing of one.
        EpochLines(bar, _steps_after(settings, prepared, val_cases), every),
        *(
            [
                ValidationPanels(
                    *(folder.panels, labels, spacing, settings.logger.panels_every, prepared.store.letters),
                    prepared.num_channels,
                )
            ]
            if segments
            else []
        ),
        TimeBudget(settings.trainer.max_seconds),
        *asked,
        AskedPatience(asked),
        metrics,
        ProgressPicture(folder.curves, metrics),
        SaveCheckpoints(folder),
    ]
    loggers: list[Logger] = []
    if is_first_process():
        config = {**plain(settings), "plan_json": prepared.plan.to_json(), "provenance": provenance()}
        tags = (prepared.dataset.name, settings.architecture.name, prepared.configuration.name)
        loggers = build_loggers(folder, settings.logger, tags, config)
    return _trainer(
        settings,
        {
            "strategy": _strategy(settings, asked),
            "precision": _precision(settings, folder),
            "profiler": build_profiler(settings.trainer.profiler, folder.path),
            "enable_progress_bar": False,  # EpochLines shows its own, which knows the whole run
            "callbacks": callbacks,
            "logger": loggers or False,
            "plugins": [AtomicCheckpointIO()],
            "enable_checkpointing": True,  # because SaveCheckpoints is one of Lightning's Checkpoint callbacks
            "default_root_dir": folder.path,
        },
    )


def _steps_after(settings: TrainSettings, prepared: PreparedDataset, val_cases: list[str]) -> float:
    """Return how many validation steps of work the prediction after training needs, from the sizes of some cases."""
    if isinstance(settings, PretrainSettings):
        return 0.0
    configuration, store = prepared.configuration, prepared.store
    some = (val_cases or list(store.case_ids))[:10]
    shapes = [store.load(case).image.shape[1:] for case in some]
    step, window = settings.predict.tile_step_size, tile_window(configuration, scale=settings.predict.tile_scale)
    tiles = [
        math.prod(len(tile_starts(max(length, size), size, step)) for length, size in zip(shape, window, strict=True))
        for shape in shapes
    ]
    flips = 2 ** len(settings.augmentation.mirrored_axes(configuration.dim)) if settings.predict.tta else 1
    cases = (len(val_cases) if settings.predict.validation else 0) + len(prepared.dataset.test)
    return cases * flips * sum(tiles) / max(1, len(tiles)) / configuration.batch_size


def _case_validation(settings: TrainSettings, prepared: PreparedDataset, cases: list[str]) -> CaseValidation:
    """Return the callback that predicts whole validation cases with the same settings as after training."""
    configuration, every = prepared.configuration, settings.data.validate_cases_every
    mirrored = settings.augmentation.mirrored_axes(configuration.dim)
    return CaseValidation(
        *(prepared.store, cases, configuration, prepared.labels, every, settings.predict),
        mirror_axes=mirrored,
        annotated=prepared.dataset.annotated,
        tile_scale=settings.predict.tile_scale,
    )


def _trainer(settings: TrainSettings, arguments: dict[str, object]) -> lightning.Trainer:
    """Return Lightning's Trainer with the values of the `trainer` group and `arguments`, which override them."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # they report devices, and tips of other products
        logging.getLogger(name).setLevel(logging.WARNING)
    # The patch streams already have the limited length; Lightning would apply a fraction a second time.
    own = {name: value for name, value in vars(settings.trainer).items() if name not in _OWN}
    devices = settings.trainer.devices
    own["devices"] = list(devices) if isinstance(devices, tuple) else devices
    own["strategy"] = settings.trainer.strategy
    if own["benchmark"] is None:
        own["benchmark"] = not settings.trainer.deterministic
    given = {**own, **settings.trainer.further, **arguments, "gradient_clip_val": settings.recipe.gradient_clip_norm}
    try:
        return lightning.Trainer(**given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"The trainer group does not fit Lightning's Trainer: {error}") from error


def _strategy(settings: TrainSettings, callbacks: Sequence[Callback]) -> str | DDPStrategy:
    """Return the strategy of a run.

    Several devices record the graph of the first step and keep it, because the network's parameters without gradient
    are frozen (`freeze`). A network of the user's own may take another way in each step; accumulated gradients are not
    combined with a recorded graph.
    """
    if settings.trainer.strategy != "auto" or processes(settings) == 1:
        return settings.trainer.strategy
    accumulates = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
    accumulates = accumulates or settings.trainer.accumulate_grad_batches > 1
    if accumulates or isinstance(settings.architecture, CustomArchitectureSettings):
        return SEVERAL
    return DDPStrategy(find_unused_parameters=False, static_graph=True, gradient_as_bucket_view=True)


def trains_without_search(trainer: lightning.Trainer) -> bool:
    """Return whether several devices train together and do not look for parameters without gradient.

    Args:
        trainer: the Trainer of a run.
    """
    strategy = trainer.strategy
    return isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters", False)


def chosen_precision(settings: TrainSettings) -> str:
    """Return the precision that the settings ask for on this machine; auto: see `choose_precision`.

    Args:
        settings: the settings of the run.
    """
    wanted = settings.precision
    return choose_precision(_device(settings)) if wanted == "auto" else wanted


def _precision(settings: TrainSettings, folder: RunFolder | None) -> str:
    """Return the precision of a run: float32 after a divergence, else the setting."""
    chosen = chosen_precision(settings)
    return chosen if folder is None else str(folder.status().get("precision", chosen))


def build_datamodule(
    settings: TrainSettings,
    prepared: PreparedDataset,
    trainer: lightning.Trainer,
    train_cases: list[str],
    val_cases: list[str],
) -> PatchDataModule:
    """Return the datamodule that makes the patches of a run.

    Args:
        settings: the settings of the run.
        prepared: the dataset.
        trainer: its number of processes multiplies the batch with trainer.ddp_batch=multiply.
        train_cases: cases of the training patches.
        val_cases: cases of the validation patches.
    """
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
        annotated=prepared.dataset.annotated,
        component_regions=settings.recipe.loss.component_weight > 0,
    )


def trains_on_cuda(settings: TrainSettings) -> bool:
    """Return whether a run uses a CUDA device of this machine.

    Args:
        settings: the settings of the run.
    """
    return _device(settings).type == "cuda"


def _device(settings: TrainSettings) -> torch.device:
    """Return the device type that Lightning's accelerator name stands for on this machine."""
    accelerator = settings.trainer.accelerator
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "mps" if accelerator == "mps" else "cpu")


def patch_workers(settings: TrainSettings, trainer: lightning.Trainer) -> int:
    """Return the number of processes that make training patches: data.num_workers, or a number from the allocation.

    Args:
        settings: the settings of the run.
        trainer: its device decides: 1 process on a CPU, because the network needs the cores; beside a GPU all cores
            but one, at most 12.
    """
    if settings.data.num_workers is not None:
        return settings.data.num_workers
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return 1 if on_cpu else max(1, min(MOST_WORKERS, available_cpus() - 1))


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Hide Lightning's warnings that are expected here, while the block runs."""
    with warnings.catch_warnings():
        for text in EXPECTED:
            warnings.filterwarnings("ignore", text)
        yield
