"""The peak memory of a training, logged for the tables of cost."""

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from umamba.io.resources import peak_resident_bytes


class PeakMemory(Callback):
    """Logs `memory/peak_gb` each epoch: the peak of tensors on the GPU; without a GPU, that of the main process."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the peak up to now."""
        device = pl_module.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
        pl_module.log("memory/peak_gb", peak / 1e9)
