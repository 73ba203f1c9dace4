"""Training: the LightningModule, losses, schedules, callbacks and the folder of a run."""
