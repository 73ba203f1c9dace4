"""The folder of a run and the names of its files, which are defined only here.

The path follows from the settings of the run and never from the time, so that the same command finds its run again:

    runs/<experiment>/<configuration>/fold_<k>/seed_<s>/
        config.yaml plan.json run.json metrics.csv progress.png checkpoints/ panels/
        validation/ validation.csv (of the fold) predictions/ scores.csv overlays/ (of the test images)
        with a classification head: validation_classes.csv scores_classes.csv and a plot beside each

`run.json` holds the state of the run. The same command reads it and continues, or stops if the run is finished (see
`records.begin` for what is the same).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umamba.io import StorageError, UserError, exclusive, read_json, write_json
from umamba.planning import Configuration, Plan, planned_configuration
from umamba.settings import PretrainSettings, TrainSettings, key
from umamba.settings.fields import run_name
from umamba.settings.validate import read_record

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
_LOCK = ".lock"
DRY_RUN = "fast_dev_run_"  # begins the name of the experiment of trainer.fast_dev_run


_REMEDY = (
    "Put back a copy of the file, or begin afresh with restart=true. Without a copy you can also delete it: a run that "
    "has checkpoints then continues with the settings in config.yaml, but without a learning rate that "
    "trainer.find_lr found and without the float32 that it may have changed to."
)


@dataclass(frozen=True)
class _Status:
    """The values of run.json on which something depends, with their types."""

    state: str | None = None
    max_epochs: int | None = key(None, low=0)
    max_seconds: float | None = key(None, low=0)
    ended_after: int | None = key(None, low=0)
    early_stopping: tuple[Mapping[str, Any], ...] = ()
    continuations: tuple[Mapping[str, Any], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    scoring: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    found_lr: float | None = key(None, above=0)
    precision: str | None = None
    budget: Mapping[str, Any] | None = None
    forecast: Mapping[str, Any] | None = None
    wandb_id: str | None = None
    mlflow_id: str | None = None
    parameters: int | None = key(None, low=0)
    step_flops: float | None = key(None, low=0)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @classmethod
    def of(cls, settings: TrainSettings) -> "RunFolder":
        """Return the folder of a run: <runs>/<experiment>/<configuration>/fold_<k>/seed_<s>.

        Args:
            settings: the settings of the run.

        Raises:
            UserError: plan.paper is true for a dataset that the paper's Table 2 does not have.
        """
        return cls(experiment_folder(settings) / f"fold_{settings.fold}" / f"seed_{settings.seed}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of the last completed epoch."""
        return self.checkpoints / LAST

    @property
    def previous(self) -> Path:
        """The checkpoint of the epoch before the last, which replaces a damaged last one."""
        return self.checkpoints / PREVIOUS

    @property
    def best(self) -> Path:
        """The checkpoint with the highest smoothed patch Dice."""
        return self.checkpoints / BEST

    @property
    def config(self) -> Path:
        """The settings of the run."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """The table of losses and scores, one row an epoch."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """The plot of the curves."""
        return self.path / "progress.png"

    @property
    def learning_rate_search(self) -> Path:
        """The plot of the learning rate search (trainer.find_lr)."""
        return self.path / "learning_rate.png"

    @property
    def panels(self) -> Path:
        """Overlays of validation patches during training."""
        return self.path / "panels"

    @property
    def nonfinite(self) -> Path:
        """Folder of batches whose gradients were not finite."""
        return self.path / "nonfinite"

    @property
    def wandb(self) -> Path:
        """Folder of W&B's offline logs."""
        return self.path / "wandb"

    @property
    def validation(self) -> Path:
        """The segmentations of the fold's validation cases."""
        return self.path / "validation"

    @property
    def validation_scores(self) -> Path:
        """The scores of the fold's validation cases."""
        return self.path / "validation.csv"

    @property
    def cross_validation_scores(self) -> Path:
        """The scores of all folds together, beside the folders of the folds."""
        return self.path.parent.parent / f"cross_validation_{self.path.name}.csv"

    @property
    def cross_validation_classes(self) -> Path:
        """The scores of the classes of all folds together, beside the folders of the folds."""
        return self.path.parent.parent / f"cross_validation_classes_{self.path.name}.csv"

    @property
    def predictions(self) -> Path:
        """The segmentations of the test images."""
        return self.path / "predictions"

    @property
    def previous_stage(self) -> Path:
        """The segmentations by the first stage of a cascade, of the validation cases and the test images."""
        return self.path / "previous_stage"

    @property
    def scores(self) -> Path:
        """The scores of the test images."""
        return self.path / "scores.csv"

    @property
    def validation_classes(self) -> Path:
        """The scores of the classes of the fold's validation cases."""
        return self.path / "validation_classes.csv"

    @property
    def classes(self) -> Path:
        """The scores of the classes of the test images."""
        return self.path / "scores_classes.csv"

    @property
    def overlays(self) -> Path:
        """Pictures of the worst, median and best test case."""
        return self.path / "overlays"

    @property
    def status_file(self) -> Path:
        """run.json, the state of the run."""
        return self.path / "run.json"

    @property
    def task_file(self) -> Path:
        """task.json, written by the process that runs the training as a cluster job."""
        return self.path / "task.json"

    def planned(self) -> Configuration | None:
        """Return the configuration that plan.json plans; None if the file is missing or damaged."""
        try:
            return Plan.from_json(read_json(self.plan)).configuration(self.path.parents[1].name)
        except UserError:
            return None

    def checkpoint(self, which: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            which: last or best.
        """
        return self.checkpoints / f"{which}.ckpt"

    def status(self) -> dict[str, Any]:
        """Return the content of run.json; empty if the run has not begun.

        Raises:
            UserError: the file is damaged or was changed: a value has another type than this project writes.
        """
        if not self.status_file.exists():
            return {}
        try:
            content = read_json(self.status_file)
            read_record(_Status, content)
        except UserError as error:
            text = str(error).removeprefix(f"{self.status_file}: ")
            raise UserError(f"{self.status_file}: {text} {_REMEDY}") from None
        return dict(content)

    def readable_status(self) -> dict[str, Any]:
        """Return the content of run.json for those who only report; empty if it is missing or damaged."""
        try:
            return self.status()
        except UserError:
            return {}

    def set_status(self, **values: Any) -> None:
        """Change values in run.json.

        Args:
            values: the new values; other values stay.
        """
        write_json(self.status_file, {**self.status(), **values})

    def other_folds(self) -> list["RunFolder"]:
        """Return the existing folders of all folds of this experiment and seed, including this one."""
        return [RunFolder(path) for path in sorted(self.path.parent.parent.glob(f"fold_*/{self.path.name}"))]

    @property
    def fold(self) -> str:
        """The fold, from the folder's name."""
        return self.path.parent.name.removeprefix("fold_")

    def in_use(self) -> bool:
        """Return whether another process trains this run now.

        Raises:
            StorageError: the lock file cannot be opened.
        """
        if not (self.path / _LOCK).exists():
            return False
        try:
            with self.lock():
                return False
        except StorageError:
            raise
        except UserError:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run folder for this process.

        Raises:
            UserError: another process uses the run folder.
        """
        busy = f"{self.path} is in use by another process. Wait for it, stop it, or choose another fold, seed or name."
        with exclusive(self.path / _LOCK, "the run", busy):
            yield

    def saved(self) -> bool:
        """Return whether the run has a checkpoint of its last or previous epoch."""
        return self.last.exists() or self.previous.exists()

    def trained(self) -> bool:
        """Return whether the folder holds what a run has learnt; a command that failed before that does not count."""
        return self.saved() or self.status().get("state") in ("predicting", "finished")

    def is_finished(
        self, max_epochs: int, max_seconds: float | None, early_stopping: Sequence[Mapping[str, Any]] = ()
    ) -> bool:
        """Return whether the run is trained, predicted and scored as far as a command asks.

        Args:
            max_epochs: epochs that the command asks for.
            max_seconds: time limit of the command; None: no limit.
            early_stopping: options of the command's early stopping.
        """
        status = self.status()
        if status.get("state") != "finished" or (status.get("max_epochs") or 0) < max_epochs:
            return False
        if "ended_after" in status and status.get("early_stopping", []) != list(early_stopping):
            return False
        former = status.get("max_seconds")
        return former is None or (max_seconds is not None and max_seconds <= former)


def experiment_name(settings: TrainSettings) -> str:
    """Return the name of a run's experiment: `name`, or <dataset>_<architecture>; a dry run has a name of its own.

    Args:
        settings: the settings of a run.
    """
    return f"{DRY_RUN}{base_name(settings)}" if settings.trainer.dry_run else base_name(settings)


def base_name(settings: TrainSettings) -> str:
    """Return `name`, or <dataset>_<architecture>, of a pretraining with _pretraining behind.

    Args:
        settings: the settings of a run.
    """
    ending = "_pretraining" if isinstance(settings, PretrainSettings) else ""
    return settings.name or f"{settings.dataset.root.name}_{settings.architecture.name}{ending}"


def pretrained_file(settings: TrainSettings) -> Path | None:
    """Return the checkpoint from whose weights a run starts; None: from random ones.

    Args:
        settings: `pretrained`; for run:NAME also what the folder of a run follows from.

    Raises:
        UserError: the run of this name has no checkpoint yet, or its training has not ended.
    """
    given = settings.pretrained
    name = None if given is None else run_name(given)
    if given is None or name is None:
        return given
    own = RunFolder.of(settings).path.relative_to(settings.paths.runs / experiment_name(settings))
    before = RunFolder(settings.paths.runs / name / own)
    if not before.last.exists():
        raise UserError(
            f"pretrained={given}: {before.last} does not exist. Train that run first with the same fold and seed: "
            f"umamba pretrain (or train) name={name} fold={settings.fold} seed={settings.seed} ..."
        )
    if before.status().get("state") == "training" and not RunFolder.of(settings).saved():
        raise UserError(
            f"pretrained={given}: the training of {before.path} has not ended. Let it end first, or give the file to "
            f"begin with what it has learnt so far: pretrained={before.last}"
        )
    return before.last


def experiment_folder(settings: TrainSettings) -> Path:
    """Return <runs>/<experiment>/<configuration>, which holds the folds and seeds of an experiment.

    Args:
        settings: the settings of a run.

    Raises:
        UserError: plan.paper is true for a dataset that the paper's Table 2 does not have.
    """
    dataset = settings.dataset.root.name
    configuration = planned_configuration(dataset, settings.plan.paper, settings.plan.configuration)
    return settings.paths.runs / experiment_name(settings) / configuration
