"""Processes that train together must continue from the same checkpoint, and each looks for it on its own."""

from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from umamba.io import UserError


class SameStart(Callback):
    """Refuses to train if the processes found different checkpoints, as a slow network disk may show them.

    Args:
        folder: the run folder, for the message.
        epochs: completed epochs of the checkpoint that this process found; 0: it found none.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Compare the processes, which are connected now.

        Raises:
            UserError: they differ; every process raises it, so that none waits for another one.
        """
        own = torch.tensor(self.epochs, device=trainer.strategy.root_device)
        found = [int(epochs) for epochs in trainer.strategy.all_gather(own).reshape(-1)]
        if len(set(found)) > 1:
            raise UserError(
                f"{self.folder}: the processes of this training found different checkpoints, of "
                f"{', '.join(map(str, found))} completed epochs. The disk shows them a file at different times, or "
                "restart=true moved it while they looked. Give the same command again, without restart=true."
            )
