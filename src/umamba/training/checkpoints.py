"""Checkpoints of a run: complete or not there, the last and the best."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from umamba.io import atomic_path

LAST = "last.ckpt"
BEST = "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside and renames it, so that a kill at any moment leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class SaveCheckpoints(Callback):
    """Saves `last.ckpt` after every epoch, and `best.ckpt` when the smoothed patch Dice is higher than ever.

    Args:
        folder: where the two files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: float | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after the epoch's validation (Lightning validates before this hook)."""
        score = pl_module.ema_patch_dice
        if isinstance(score, float) and (self.best is None or score > self.best):
            self.best = score
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score up again."""
        self.best = state_dict["best"]
