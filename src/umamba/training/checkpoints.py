"""Checkpoints of a run: the last, the previous and the best one, each written atomically."""

import errno
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from umamba.io import UserError, atomic_path
from umamba.io.checksums import check_archive
from umamba.records import RunFolder, network_weights
from umamba.records.checkpoint import stored_patch_dice
from umamba.records.replacement import settle
from umamba.records.run_folder import LAST, PREVIOUS
from umamba.records.torch_file import write_torch

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it, so that a kill never leaves an incomplete checkpoint.

    The former `last.ckpt` becomes `previous.ckpt`. If the disk damages the new file, the run repeats one epoch instead
    of starting again.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`.

        Raises:
            UserError: the file cannot be written; the message names the free space. Earlier checkpoints stay.
        """
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                write_torch(checkpoint, temporary)
                if path.name == LAST and path.exists():
                    os.replace(path, path.with_name(PREVIOUS))
        except OSError as error:
            free = shutil.disk_usage(path.parent).free / 1e9
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}; {free:.2f} GB are free there. Make room "
                "(a run keeps three checkpoints); the same command then continues after the last epoch that was saved."
            ) from error


class SaveCheckpoints(Checkpoint):
    """Saves `last.ckpt` after every epoch, and `best.ckpt` when the smoothed patch Dice reaches a new maximum.

    Lightning calls its `Checkpoint` callbacks last, so that the files hold what early stopping decided in the epoch.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.best: float | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after the epoch's validation (Lightning validates before this hook).

        A run that ends before its last epoch is noted before its checkpoint, so that a continued run trains no further.
        """
        score = pl_module.ema_patch_dice
        if isinstance(score, float) and (self.best is None or score > self.best):
            self.best = score
            trainer.save_checkpoint(self.folder.best)
        if trainer.should_stop and trainer.is_global_zero:
            self.folder.set_status(ended_after=trainer.current_epoch + 1)
        trainer.save_checkpoint(self.folder.last)
        if trainer.is_global_zero:
            settle(self.folder)  # the run that restart=true replaces is deleted now

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best = state_dict["best"]


def newest_readable(folder: RunFolder) -> tuple[Path, int] | None:
    """Find the newest readable checkpoint: `last.ckpt`, or `previous.ckpt` if `last.ckpt` is damaged or missing.

    If `last.ckpt` is damaged and `previous.ckpt` is not, the damaged file is renamed to last.ckpt.damaged.

    Args:
        folder: the run folder.

    Returns:
        The file and the number of its completed epochs; None if there is no checkpoint.

    Raises:
        UserError: all checkpoints are damaged, or the disk cannot be read.
    """
    damaged = []
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            epochs = int(content["epoch"]) + 1
            stored_patch_dice(content)  # fails where the record is missing
            network_weights(content["state_dict"])
        except Exception as error:  # torch raises many kinds of error for a damaged file
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise UserError(f"{path} cannot be read: {error.strerror}. Check the disk and permissions.") from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("%s is damaged (%s); it is kept as %s.damaged.", path, reason[:120], path.name)
            damaged.append(path)
            continue
        for other in damaged:  # renamed, because the next epoch would make it previous.ckpt
            with suppress(FileNotFoundError):  # another process of this training renamed it
                os.replace(other, other.with_name(f"{other.name}.damaged"))
        return path, epochs
    if damaged:
        listed = " and ".join(str(path) for path in damaged)
        raise UserError(f"{listed}: damaged. Put back a copy, or begin afresh with restart=true.")
    return None
