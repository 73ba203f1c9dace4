"""Settings of `umamba train`, `prepare` and `describe`, with the groups `data`, `logger` and `predict`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from umamba.settings.architecture import ARCHITECTURES, ArchitectureSettings, TrustSettings, UMambaBotSettings
from umamba.settings.augmentation import AugmentationSettings
from umamba.settings.dataset import DatasetSettings, PathsSettings
from umamba.settings.duration import SHORTEST_S, duration_seconds, is_clock_time
from umamba.settings.fields import key, run_name
from umamba.settings.heads import HeadsSettings
from umamba.settings.plan import PlannerSettings, PlanSettings
from umamba.settings.prediction import EngineSettings, PredictionSettings, SlidingWindowSettings
from umamba.settings.recipe import LossSettings, Precision, RecipeSettings, ScheduleSettings
from umamba.settings.trainer import TrainerSettings
from umamba.settings.validate import Settings

NO_DATASET = "(not given)"  # dataset.root of `umamba describe` if none is given
Which = Literal["last", "best"]
Fold = int | Literal["all"]
_NEED_A_LOGGER = {"LearningRateMonitor", "DeviceStatsMonitor"}


@dataclass(frozen=True)
class DataSettings(Settings):
    """How patches are made for the network."""

    section: ClassVar[str] = "data"
    num_workers: int | None = key(
        None,
        "Processes that make patches; null: 1 if the network runs on the CPU, else one fewer than the CPUs of the "
        "allocation, at most 12.",
        low=0,
    )
    prefetch_factor: int = key(
        2,
        "Batches that each of these processes makes in advance; /dev/shm must hold them and two more for each process.",
        low=1,
    )
    prepare_workers: int | None = key(
        None, "Processes that prepare the dataset; null: all CPUs of the allocation.", low=1
    )
    check_store: bool = key(
        True, "Compare the prepared files with their checksums when a run starts; damaged cases are prepared again."
    )
    iterations_per_epoch: int = key(250, "Training batches of an epoch (trainer.limit_train_batches lowers it).", low=1)
    val_iterations: int = key(
        50, "Validation batches of an epoch (trainer.limit_val_batches lowers it); 0: none.", low=0
    )
    validate_cases_every: int = key(
        50,
        "Epochs between predictions of whole validation cases, whose score is val/case_dice; 0: never. They follow "
        "an epoch's validation batches; with val_iterations=0 no case is predicted.",
        low=0,
    )
    validation_cases: int = key(3, "Number of validation cases that are predicted whole during training.", low=0)


@dataclass(frozen=True)
class LoggerSettings(Settings):
    """Loggers of curves and pictures; metrics.csv is always written."""

    section: ClassVar[str] = "logger"
    wandb: bool = key(True, "Log to Weights & Biases (W&B); without an account, key or network it logs offline.")
    tensorboard: bool = key(False, "Log to TensorBoard, into the folder tensorboard of the run.")
    mlflow: bool = key(
        False, "Log to MLflow: to MLFLOW_TRACKING_URI, or without it into the file mlflow.db of the run."
    )
    project: str = key("umamba", "W&B project, and experiment of MLflow.")
    entity: str | None = key(None, "W&B entity; null: the account's default.")
    panels_every: int = key(10, "Epochs between overlays of validation patches; 0: none.", low=0)
    further: tuple[Mapping[str, Any], ...] = key(
        (),
        "Further loggers: Lightning's by their name with their arguments, such as [{name: CometLogger}], or "
        "classes of an installed package, [{name: 'module:Class'}].",
    )
    upload_model: bool = key(False, "Upload the last checkpoint to W&B as an artifact after training.")
    alert: bool = key(False, "Send W&B's alert (e-mail, Slack) when the run has ended or failed.")
    notify: str | None = key(
        None, "Command that is run when the run has ended or failed; its last argument is the message. null: none."
    )

    def conflicts(self) -> Iterator[str]:
        """Yield what needs W&B without W&B."""
        for name in ("upload_model", "alert"):
            if getattr(self, name) and not self.wandb:
                yield f"logger.{name}=true: needs W&B. Give logger=wandb, or logger.{name}=false."


@dataclass(frozen=True, kw_only=True)
class AfterTrainingSettings(SlidingWindowSettings, EngineSettings):
    """The prediction of validation cases and test images after training."""

    section: ClassVar[str] = "predict"
    validation: bool = key(
        True, "Predict and score the fold's whole validation cases; cross-validation pools the scores of all folds."
    )
    checkpoint: Which = key(
        "last", "Which checkpoint predicts: last (as in nnU-Net), or best (highest smoothed patch Dice)."
    )
    probabilities: bool = key(
        False, "Also write NAME.npz with the probabilities of each case, which `umamba audit` uses. They are large."
    )

    @property
    def prediction(self) -> PredictionSettings:
        """The settings of prediction; earlier segmentations of the run are replaced."""
        return PredictionSettings(
            tile_step_size=self.tile_step_size, tta=self.tta, probabilities=self.probabilities, overwrite=True
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """All keys of `umamba train`."""

    dataset: DatasetSettings = key(sentence="The images, and how they are scored.")
    name: str | None = key(None, "Name of the experiment and its folder in paths.runs; null: <dataset>_<architecture>.")
    fold: Fold = key(0, "Fold of the five-fold split, 0 to 4, or all: train on every case.", low=0)
    seed: int = key(0, "Seed of weights, patches and augmentation.", low=0, high=2**32 - 1)
    restart: bool = key(
        False,
        "Replace the run in the run folder and start from the beginning; the old run is deleted when the new one has "
        "saved its first checkpoint.",
    )
    budget: str | None = key(
        None,
        "Time for the training with all its continuations, such as 45min, 1h30min or 2d. The speed is measured; the "
        "schedule (wsd), the length of the epochs, the share of validation and the workers follow. The preparation "
        "before and the scores after it are not counted. null: trainer.max_epochs ends the training.",
    )
    finish_by: str | None = key(
        None,
        "As budget, but given by the time at which the training ends: the next HH:MM, or a date and time such as "
        "2027-03-01T07:30; in a YAML file with quotes. null: no such time.",
    )
    pretrained: Path | None = key(
        None,
        "Fine-tune: a new run starts from the weights of this checkpoint (this project's, nnU-Net's, nnssl's or "
        "U-Mamba's); the segmentation heads start from random weights if the classes differ. run:NAME: the last "
        "checkpoint of the run of this name in paths.runs, such as a pretraining, with the same fold and seed.",
        existing=True,
        zoo=True,
        run=True,
    )
    pretrained_parts: Literal["all", "fitting"] = key(
        "all",
        "all: the weights must fit the network, besides its heads. fitting: take the tensors that fit by name and "
        "shape, and say which; for public encoders, and networks of another depth.",
    )
    previous_stage: Path | None = key(
        None,
        "plan.configuration=3d_cascade_fullres: the folder runs/<experiment>/3d_lowres of its first stage, whose folds "
        "are all trained with the same seed; null: that of this experiment.",
        existing=True,
    )
    teacher: Path | None = key(
        None,
        "Add labels to a trained network without its old data: a new run starts from this checkpoint and takes its "
        "plan, and the frozen network teaches the labels that the cases do not carry (annotated_labels of the "
        "dataset). zoo:NAME: a trained network that comes with this program.",
        existing=True,
        zoo=True,
    )
    smoke: bool = key(
        False, "Test the run in a minute, with a phantom of the same kind, a tiny plan and network, and two epochs."
    )
    paths: PathsSettings = key(PathsSettings, "Folders of raw datasets, preprocessed cases and runs.")
    planner: PlannerSettings = key(PlannerSettings, "The rules from which the plan is derived.")
    plan: PlanSettings = key(PlanSettings, "The configuration of the plan, and pinned values.")
    architecture: ArchitectureSettings = key(UMambaBotSettings, "The network and its options.", variants=ARCHITECTURES)
    heads: HeadsSettings = key(HeadsSettings, "Classes of whole cases that the network learns, too.")
    recipe: RecipeSettings = key(RecipeSettings, "Optimiser, schedule, loss, clipping, precision.")
    augmentation: AugmentationSettings = key(AugmentationSettings, "Augmentation: kinds, probabilities, ranges.")
    data: DataSettings = key(DataSettings, "How patches are made.")
    trainer: TrainerSettings = key(TrainerSettings, "Duration and devices; arguments of Lightning's Trainer.")
    logger: LoggerSettings = key(LoggerSettings, "Loggers of curves and pictures.")
    predict: AfterTrainingSettings = key(AfterTrainingSettings, "Prediction after training.")

    def __post_init__(self) -> None:
        """Check every value, and let a training with a time budget have the schedule that does not need its length.

        Raises:
            InvalidSettings: all mistakes of this record.
        """
        super().__post_init__()
        if self.timed:
            given = self.recipe.schedule
            schedule = ScheduleSettings(name="wsd", warm_up=given.warm_up, decay=given.decay)
            object.__setattr__(self, "recipe", replace(self.recipe, schedule=schedule))

    @property
    def timed(self) -> bool:
        """Whether a time budget ends the training (budget or finish_by)."""
        return self.budget is not None or self.finish_by is not None

    @property
    def precision(self) -> Precision:
        """The precision of training: trainer.precision, or the recipe's if that is null."""
        return self.trainer.precision or self.recipe.precision

    @property
    def train_batches(self) -> int:
        """Training batches of an epoch after the trainer's limit."""
        return limited(self.data.iterations_per_epoch, self.trainer.limit_train_batches)

    @property
    def val_batches(self) -> int:
        """Validation batches of an epoch after the trainer's limit."""
        return limited(self.data.val_iterations, self.trainer.limit_val_batches)

    def conflicts(self) -> Iterator[str]:
        """Yield values of different groups that contradict each other."""
        if self.name is not None and not is_folder_name(self.name):
            yield f"name={self.name}: must be the name of one folder, without / and without a dot at its start."
        yield from self._wrong_cascade()
        if self.dataset.num_training is not None and self.fold == "all":
            yield (
                f"dataset.num_training={self.dataset.num_training}: fold=all trains on every case. Give a fold, or "
                "leave dataset.num_training away."
            )
        if self.teacher is not None:
            yield from self._beside_teacher()
        yield from self._without_effect()
        yield from self._wrong_fine_tuning()
        yield from self._wrong_budget()
        yield from self._wrong_measuring()
        axes = self.augmentation.mirror.axes
        if axes is not None and self.plan.dim is not None and any(axis >= self.plan.dim for axis in axes):
            yield (
                f"augmentation.mirror.axes={list(axes)}: {self.plan.configuration} has the axes 0 to "
                f"{self.plan.dim - 1}; null mirrors all."
            )
        if self.recipe.loss.component_weight and self.augmentation.device == "gpu":
            yield (
                f"recipe.loss.component_weight={self.recipe.loss.component_weight:g}: the components of labels are "
                "found by the processes that make patches. Give augmentation.device=auto or cpu."
            )
        log = self.logger
        if not (log.wandb or log.tensorboard or log.mlflow or log.further):
            for name in {str(entry.get("name")) for entry in self.trainer.callbacks} & _NEED_A_LOGGER:
                yield f"trainer.callbacks: {name} sends values to a logger, and none is on. Give logger=tensorboard."
        for monitor in (entry.get("monitor") for entry in self.trainer.callbacks if "monitor" in entry):
            yield from self._wrong_monitor(str(monitor))
        if self.predict.checkpoint == "best" and not self.val_batches:
            yield (
                "predict.checkpoint=best: without validation batches there is no best checkpoint. Give "
                "data.val_iterations above 0, or predict.checkpoint=last."
            )
        interval = self.trainer.further.get("val_check_interval")
        per_epoch = self.trainer.further.get("check_val_every_n_epoch", 1) is not None
        if type(interval) is int and per_epoch and not self.timed and interval > self.train_batches:
            yield (
                f"trainer.val_check_interval={interval}: an epoch has {self.train_batches} batches. Give at most so "
                "many, or trainer.check_val_every_n_epoch=null to count over epochs."
            )
        every = self.trainer.further.get("check_val_every_n_epoch") or 1
        if self.predict.checkpoint == "best" and not self.timed and every > self.trainer.max_epochs:
            yield (
                f"trainer.check_val_every_n_epoch={every}: no epoch of {self.trainer.max_epochs} is validated, so that "
                "there is no best checkpoint. Give a smaller number, or predict.checkpoint=last."
            )
        yield from self._wrong_heads()

    def _without_effect(self) -> Iterator[str]:
        """Yield keys that are given and would do nothing, because another key takes away what they change."""
        if not self.timed:  # a budget replaces the schedule
            yield from self.recipe.schedule.foreign()
        if self.teacher is None and self.recipe.loss.distillation_weight != LossSettings.distillation_weight:
            yield "recipe.loss.distillation_weight: there is no teacher. Give teacher=CHECKPOINT, or leave it away."
        memory = self.planner.gpu_memory_gb
        if memory is not None and (self.plan.from_file is not None or self.teacher is not None):
            whole = "plan.from_file" if self.plan.from_file is not None else "teacher"
            yield f"planner.gpu_memory_gb={memory:g}: the plan is that of {whole}. Leave out one of the two."
        every = self.data.validate_cases_every
        if every not in (0, DataSettings.validate_cases_every) and not self.val_batches and not self.timed:
            yield (
                f"data.validate_cases_every={every}: whole cases are predicted after the validation batches, and there "
                "are none. Give data.val_iterations above 0, or data.validate_cases_every=0."
            )

    def _wrong_cascade(self) -> Iterator[str]:
        """Yield what the second stage of a cascade cannot have, and what only it has."""
        if self.plan.configuration != "3d_cascade_fullres":
            if self.previous_stage is not None:
                yield f"previous_stage={self.previous_stage}: is for plan.configuration=3d_cascade_fullres only."
            return
        if self.smoke:
            yield (
                "smoke=true: the second stage of a cascade needs a trained first one. Try plan.configuration=3d_lowres."
            )
        if self.augmentation.device == "gpu":
            yield "augmentation.device=gpu: the labels of a cascade's first stage are augmented on the CPU. Give cpu."
        absent = {
            "teacher": self.teacher is not None,
            "heads.case": self.heads.case is not None,
            "planner.measure": self.planner.measure,
        }
        for name in (name for name, given in absent.items() if given):
            yield f"{name}: the second stage of a cascade (plan.configuration=3d_cascade_fullres) cannot have it."

    def _wrong_fine_tuning(self) -> Iterator[str]:
        """Yield a name that no run has, and what needs pretrained weights without them."""
        name = None if self.pretrained is None else run_name(self.pretrained)
        if name is not None and not is_folder_name(name):
            yield f"pretrained={self.pretrained}: must be run:NAME with the name of one run."
        if self.pretrained is None and self.pretrained_parts != "all":
            yield f"pretrained_parts={self.pretrained_parts}: there is no pretrained checkpoint. Give pretrained=..."
        if self.recipe.finetune.on and self.pretrained is None and self.teacher is None:
            yield "recipe.finetune: there are no pretrained weights. Give pretrained=..., or leave it away."

    def _wrong_heads(self) -> Iterator[str]:
        """Yield what a classification head cannot be combined with."""
        if self.heads.case is not None and self.trainer.compile:
            yield (
                "trainer.compile=true: only the segmentation's pass is compiled, which a network with a head does not "
                "use. Leave trainer.compile or heads.case away."
            )
        if self.heads.case is not None and self.augmentation.cutmix.p:
            yield (
                f"augmentation.cutmix.p={self.augmentation.cutmix.p:g}: a patch that is mixed from two cases has no "
                "class of its own. Leave augmentation.cutmix or heads.case away."
            )
        if self.heads.alone and self.predict.probabilities:
            yield (
                "predict.probabilities=true: are those of a segmentation, which heads.alone=true does not train. Leave "
                "predict.probabilities away."
            )
        if self.heads.alone and self.predict.checkpoint == "best":
            yield (
                "predict.checkpoint=best: is the checkpoint with the best segmentation, and heads.alone=true trains "
                "none. Give predict.checkpoint=last."
            )

    def _beside_teacher(self) -> Iterator[str]:
        """Yield what contradicts the plan and weights of a teacher."""
        if self.pretrained is not None:
            yield "pretrained: the weights are those of teacher. Leave out one of the two."
        if self.smoke:
            yield "smoke=true: its tiny network cannot start from teacher. Leave out one of the two."
        if self.plan.pinned() or self.plan.from_file or self.plan.paper:
            yield "plan: the plan is that of teacher. Leave out the values of plan besides plan.configuration."
        if self.planner.measure:
            yield "planner.measure=true: the plan is that of teacher. Leave out one of the two."
        if self.heads.case is not None:
            yield "heads.case: a run with a teacher learns no classes of cases. Leave out one of the two."

    def _wrong_measuring(self) -> Iterator[str]:
        """Yield values that planner.measure chooses itself, and losses whose memory it does not measure."""
        if not self.planner.measure:
            return
        given = [name for name in ("from_file", "patch_size", "batch_size") if getattr(self.plan, name) is not None]
        if given or self.plan.paper:
            yield (
                f"planner.measure=true chooses patch and batch, so plan.{given[0] if given else 'paper'} cannot be "
                "given as well. Leave out one of the two."
            )
        if self.heads.case is not None:
            yield "planner.measure=true: measures a step without the head of heads.case. Leave out one of the two."
        if self.recipe.loss.component_weight:
            yield (
                "planner.measure=true: measures a step without the component loss. Leave out either it or "
                "recipe.loss.component_weight."
            )

    def _wrong_budget(self) -> Iterator[str]:
        """Yield budgets that cannot be read, and keys of which a budget takes the place."""
        if not self.timed:
            return
        if self.budget is not None:
            seconds = duration_seconds(self.budget)
            if seconds is None:
                yield f"budget={self.budget}: must be a duration such as 45min, 1h30min, 90s or 2d, or null."
            elif seconds < SHORTEST_S:
                yield f"budget={self.budget}: must be at least {SHORTEST_S:g}s."
        if self.finish_by is not None and not is_clock_time(self.finish_by):
            yield (
                f"finish_by={self.finish_by}: must be a time such as 07:30, a date and time such as 2027-03-01T07:30, "
                "or null."
            )
        if self.budget is not None and self.finish_by is not None:
            yield "budget and finish_by both say how long the training takes. Leave out one of the two."
        if self.trainer.max_time is not None:
            yield "trainer.max_time: a budget ends the training already. Leave out one of the two."
        if self.recipe.weight_averaging is not None:
            yield "recipe.weight_averaging: a budget averages the weights itself. Leave out one of the two."
        if self.data.iterations_per_epoch != DataSettings.iterations_per_epoch:
            yield (
                "data.iterations_per_epoch: a budget chooses the length of the epochs. Leave out one of the two, or "
                "give trainer.limit_train_batches, which the budget keeps."
            )

    def _wrong_monitor(self, monitor: str) -> Iterator[str]:
        """Yield why a value that a callback monitors is never logged by this run."""
        given = f"trainer.callbacks: monitor={monitor}"
        if monitor.startswith("val/") and self.fold == "all":
            yield f"{given}: fold=all holds no case out. Give seen/ instead of val/, or a fold."
        elif monitor.startswith("seen/") and self.fold != "all":
            yield f"{given}: fold={self.fold} holds cases out, so that the values begin with val/."
        elif self.heads.alone and "dice" in monitor:
            part = "seen" if self.fold == "all" else "val"
            yield f"{given}: heads.alone=true trains no segmentation. Give {part}/case_loss with mode=min."
        elif "/case_" in monitor and monitor != "val/case_dice" and self.heads.case is None:
            yield f"{given}: is of the classes of whole cases, and there are none. Give heads.case=TABLE."
        elif monitor.startswith(("val/", "seen/")) and not self.val_batches:
            yield f"{given}: there are no validation batches. Give data.val_iterations above 0."
        elif monitor == "val/case_dice":
            if self.timed:
                yield f"{given}: a budget validates no whole cases. Give val/patch_dice."
            elif self.data.validate_cases_every != 1 or not self.data.validation_cases:
                yield f"{given}: is not computed in every epoch. Give data.validate_cases_every=1, or val/patch_dice."


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(TrainSettings):
    """All keys of `umamba prepare`."""

    explain: bool = key(False, "Print each decision of the planner with the numbers behind it.")
    nnunet_plans: Path | None = key(
        None,
        "Also write the plan to this file as nnU-Net's plans JSON, such as "
        "<nnUNet_preprocessed>/Dataset004_X/nnUNetPlans.json.",
    )
    preview: bool = key(
        False,
        "Draw augmented training patches with their labels into "
        "<paths.preprocessed>/<dataset>/patches_<configuration>.png.",
    )


@dataclass(frozen=True, kw_only=True)
class DescribeSettings(TrainSettings, TrustSettings):
    """All keys of `umamba describe`."""

    checkpoint: Path | None = key(None, "Describe the network of this checkpoint instead.", existing=True, zoo=True)
    num_classes: int | None = key(
        None, "Classes of the network with background, if plan.from_file is given without its dataset.", low=1
    )


def limited(batches: int, limit: int | float | None) -> int:
    """Return the batches of an epoch after a limit.

    Args:
        batches: batches without the limit.
        limit: a number of batches, a fraction of them, or None.

    >>> limited(250, None), limited(250, 40), limited(250, 0.1), limited(250, 0.0)
    (250, 40, 25, 0)
    """
    if limit is None:
        return batches
    if not limit:
        return 0
    return min(batches, limit) if isinstance(limit, int) else max(1, round(batches * limit))


def is_folder_name(name: str) -> bool:
    """Return whether a text can be the name of one folder.

    Args:
        name: the text.
    """
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\\0\n") and name == name.strip()
