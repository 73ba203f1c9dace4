"""Training: the LightningModule, losses, schedules, and the callbacks of a run."""
