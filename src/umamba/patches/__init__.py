"""Patches: where they are taken, how they are augmented, and the LightningDataModule that streams them."""

from umamba.patches.datamodule import PatchDataModule

__all__ = ["PatchDataModule"]
