"""The callback that writes metrics.csv: a row for each epoch, written atomically and kept when a run continues."""

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from umamba.records.tables import MetricsRow, read_metrics, write_metrics

log = logging.getLogger(__name__)


class MetricsCsv(Callback):
    """Writes the epoch's logged metrics and its duration as a row.

    Lightning's own CSVLogger empties its folder when a run is resumed. This callback keeps the rows of earlier epochs,
    and replaces the row of an epoch that a killed process wrote without saving a checkpoint. Rows that a full disk did
    not take travel in the checkpoint, and are written when the run continues.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[MetricsRow] = []
        self.written = True

    def state_dict(self) -> dict[str, Any]:
        """Return the rows if the file does not have them all; usually nothing."""
        return {} if self.written else {"rows": self.rows}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the rows that the file lacks, even if no epoch is left to train."""
        rows = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("rows")
        if rows and trainer.is_global_zero:
            write_metrics(self.path, rows)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Read the rows of the epochs before the one that starts."""
        self.rows = [row for row in read_metrics(self.path) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the row of this epoch and write the file."""
        # Every rank reads the metrics, because computing them is a collective operation.
        values = {name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items()}
        if not trainer.is_global_zero:
            return
        self.rows.append({"epoch": str(trainer.current_epoch), **values})
        try:
            write_metrics(self.path, self.rows)
            self.written = True
        except OSError as error:  # the next epoch writes all rows again
            self.written = False
            log.warning("%s could not be written: %s", self.path, error.strerror or error)
