"""The trained folds of the first stage of a cascade, which the settings of the second one name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from umamba.io import UserError
from umamba.planning.plan import CASCADE, LOWRES
from umamba.records import CheckpointRecord, RunFolder, read_checkpoint
from umamba.records.run_folder import base_name
from umamba.settings import TrainSettings


@dataclass(frozen=True)
class FirstStage:
    """The trained folds of the first stage of a cascade.

    Attributes:
        folder: runs/<experiment>/3d_lowres.
        runs: fold -> run folder.
    """

    folder: Path
    runs: Mapping[int, RunFolder]

    def checkpoint(self, fold: int) -> Path:
        """Return the checkpoint of a fold.

        Args:
            fold: its number.

        Raises:
            UserError: the fold is not trained.
        """
        if fold not in self.runs:
            raise UserError(
                f"previous_stage={self.folder}: fold {fold} of the first stage is not trained. Train it with "
                f"plan.configuration={LOWRES} fold={fold}, and let it end."
            )
        return self.runs[fold].last

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints of all folds."""
        return [run.last for _, run in sorted(self.runs.items())]


def first_stage(settings: TrainSettings) -> FirstStage | None:
    """Return the first stage of the cascade that the settings train; None: they train no cascade.

    Args:
        settings: `plan.configuration` is read, and `previous_stage`, or the names from which its folder follows.

    Raises:
        UserError: `previous_stage` names a folder without trained folds.
    """
    if settings.plan.configuration != CASCADE:
        return None
    given = settings.previous_stage
    stage = trained_folds(given or settings.paths.runs / base_name(settings) / LOWRES, settings.seed)
    if given is not None and not stage.runs:
        raise UserError(
            f"previous_stage={given}: holds no run whose training has ended (fold_<k>/seed_{settings.seed}). Give the "
            f"folder runs/<experiment>/{LOWRES}, or train the first stage with plan.configuration={LOWRES}."
        )
    return stage


def trained_folds(folder: Path, seed: int) -> FirstStage:
    """Return the folds of runs/<experiment>/<configuration> whose training has ended.

    Args:
        folder: that folder.
        seed: seed of the runs.
    """
    found = {}
    for path in sorted(Path(folder).glob(f"fold_[0-9]*/seed_{seed}")):
        run = RunFolder(path)
        if run.fold.isdigit() and run.last.exists() and run.status().get("state") in ("predicting", "finished"):
            found[int(run.fold)] = run
    return FirstStage(Path(folder), found)


def first_record(stage: FirstStage) -> CheckpointRecord | None:
    """Return the record of the first stage's networks; None: no fold is trained.

    Args:
        stage: the first stage.
    """
    return read_checkpoint(stage.checkpoints[0], trust=None).record if stage.runs else None
