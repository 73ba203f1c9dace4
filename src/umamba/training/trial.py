"""A Trainer for steps that are tried before a run: those of the learning rate search, and those that are measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch


@contextmanager
def trial_trainer(trainer: lightning.Trainer, **further: Any) -> Iterator[lightning.Trainer]:
    """Give a Trainer that trains like another one and leaves no files; torch's random numbers are then as before.

    Args:
        trainer: the Trainer of the run, whose device, precision and gradient clipping the trial has.
        further: arguments of Lightning's Trainer.
    """
    device = trainer.strategy.root_device
    numbered = device.index is not None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield lightning.Trainer(
            accelerator=device.type,
            devices=[device.index] if numbered else 1,
            precision=trainer.precision,
            gradient_clip_val=trainer.gradient_clip_val,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=trainer.default_root_dir,
            **further,
        )
