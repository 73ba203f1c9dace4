"""Log the peak memory of training, which the tables of cost show."""

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from umamba.io.resources import peak_resident_bytes


class PeakMemory(Callback):
    """Logs `memory/peak_gb` each epoch: that of tensors on the GPU or, without a GPU, of the process, in GB."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the peak since the start."""
        device = pl_module.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
        pl_module.log("memory/peak_gb", peak / 1e9)
