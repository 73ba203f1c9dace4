"""Patches: where they are taken, how they are augmented, and the LightningDataModule that streams them."""

from umamba.patches.datamodule import PatchDataModule
from umamba.patches.settings import mirrored_axes

__all__ = ["PatchDataModule", "mirrored_axes"]
