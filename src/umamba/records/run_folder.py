"""The folder of a run and the names of its files, which are defined only here.

The path follows from the settings of the run and never from the time, so that the same command finds its run again:

    runs/<experiment>/<configuration>/fold_<k>/seed_<s>/
        config.yaml plan.json run.json metrics.csv progress.png checkpoints/ panels/
        validation/ validation.csv (of the fold) predictions/ scores.csv overlays/ (of the test images)

`run.json` holds the state of the run. The same command reads it and continues, or stops if the run is finished.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError, exclusive, provenance, read_json, write_json
from umamba.planning import planned_configuration
from umamba.records.checkpoint import CheckpointRecord
from umamba.settings import TrainSettings, plain, read_architecture

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"


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
    def predictions(self) -> Path:
        """The segmentations of the test images."""
        return self.path / "predictions"

    @property
    def scores(self) -> Path:
        """The scores of the test images."""
        return self.path / "scores.csv"

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

    def checkpoint(self, which: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            which: last or best.
        """
        return self.checkpoints / f"{which}.ckpt"

    def status(self) -> dict[str, Any]:
        """Return the content of run.json; empty if the run has not begun."""
        return dict(read_json(self.status_file)) if self.status_file.exists() else {}

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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run folder for this process.

        Raises:
            UserError: another process uses the run folder.
        """
        busy = f"{self.path} is in use by another process. Wait for it, stop it, or choose another fold, seed or name."
        with exclusive(self.path / ".lock", "the run", busy):
            yield

    def clear(self) -> None:
        """Delete the content of the folder except the lock."""
        for entry in self.path.iterdir():
            if entry.name.startswith(".lock"):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def is_finished(self, max_epochs: int, max_seconds: float | None) -> bool:
        """Return whether the run is trained, predicted and scored as far as a command asks.

        Args:
            max_epochs: epochs that the command asks for.
            max_seconds: time limit of the command; None: no limit.
        """
        status = self.status()
        if status.get("state") != "finished" or status.get("max_epochs", 0) < max_epochs:
            return False
        former = status.get("max_seconds")
        return former is None or (max_seconds is not None and max_seconds <= former)

    def begin(self, record: CheckpointRecord, max_epochs: int, max_seconds: float | None) -> None:
        """Check that the folder is empty or holds the same run, then write run.json and plan.json.

        Args:
            record: the identity of the run that starts or continues.
            max_epochs: epochs of the whole training.
            max_seconds: time limit of the training; None: no limit.

        Raises:
            UserError: the folder holds a run with another architecture, plan or dataset.
        """
        before, now = _identity_of(self.status()), record.identity()
        changed = [name for name in now if before and differs(before.get(name), now[name])]
        if changed:
            details = "\n".join(
                f"  {line}" for name in changed for line in differences(name, before.get(name), now[name])
            )
            raise UserError(
                f"{self.path} holds a run that differs from this command in:\n{details}\n"
                "Give the new run another name (name=...), or delete the old run with restart=true."
            )
        self.set_status(
            state="training",
            identity=now,
            max_epochs=max_epochs,
            max_seconds=max_seconds,
            provenance=provenance(),
        )
        write_json(self.plan, now["plan"])


def experiment_folder(settings: TrainSettings) -> Path:
    """Return <runs>/<experiment>/<configuration>, which holds the folds and seeds of an experiment.

    Args:
        settings: the settings of a run.

    Raises:
        UserError: plan.paper is true for a dataset that the paper's Table 2 does not have.
    """
    dataset = settings.dataset.root.name
    configuration = planned_configuration(dataset, settings.plan.paper, settings.plan.configuration)
    return settings.paths.runs / (settings.name or f"{dataset}_{settings.architecture.name}") / configuration


def differs(before: Any, now: Any) -> bool:
    """Return whether two values differ in JSON, where a tuple equals a list and an integer equals its float.

    Args:
        before: a JSON-able value.
        now: another one.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() != now.keys() or any(differs(before[key], now[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) != len(now) or any(differs(a, b) for a, b in zip(before, now, strict=True))
    return bool(before != now)


def differences(name: str, before: Any, now: Any) -> list[str]:
    """Return a line for each value that differs.

    Args:
        name: dotted name of the value.
        before: a JSON-able value.
        now: another one.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [f"{name}: was {before}, is {now}"] if differs(before, now) else []


def _identity_of(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity in run.json; options that are newer than the run get their defaults."""
    identity = dict(status.get("identity", {}))
    if identity.get("architecture"):
        identity["architecture"] = plain(read_architecture(identity["architecture"]))
    return identity
