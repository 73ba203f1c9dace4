"""metrics.csv of a run: one row an epoch, whole at any moment, continued when the run is continued."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from umamba.io import atomic_path


class MetricsCsv(Callback):
    """Writes the epoch's logged metrics and its duration as a row.

    Lightning's own CSVLogger empties its folder when a run is resumed; here rows of earlier epochs are kept, and those
    of an epoch that a killed process had written but not checkpointed are replaced.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Read the rows of the epochs before the one that starts."""
        self.rows = [row for row in read_rows(self.path) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the row of this epoch and write the file."""
        values = {name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items()}  # of all processes
        if not trainer.is_global_zero:
            return
        self.rows.append({"epoch": str(trainer.current_epoch), **values})
        try:
            write_rows(self.path, self.rows)
        except OSError as error:  # all rows are written again with the next epoch
            print(f"{self.path} could not be written: {error.strerror or error}", flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[Mapping[str, Any]] | list[dict[str, str]]) -> None:
    """Write rows with the union of their columns, in order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
