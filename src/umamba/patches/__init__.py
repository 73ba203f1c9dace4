"""Patches: where they are sampled, how they are augmented, and the LightningDataModule that feeds them.

A patch and its augmentation are a function of (seed, epoch, index). They do not depend on the number of workers or
ranks, on the order in which patches are made, or on whether a run was resumed.

    seeding.py       a random generator for each patch
    sampling.py      which voxels of a case become a patch
    spatial.py       rotation, scaling, crop and mirroring; warp.py and blur.py hold the compiled loops
    intensity.py     noise, blur, brightness, contrast, low resolution, gamma
    augmentation.py  the chain of all these transforms
    draws.py         what is drawn for a patch that another device augments
    on_device.py     the same transforms for a batch on any device
    dataset.py       patches by number, and the sampler that numbers them
    slots.py         shared memory in which worker processes make batches
    datamodule.py    the loaders for training and validation
    preview.py       a picture of augmented patches
"""

from umamba.patches.datamodule import PatchDataModule

__all__ = ["PatchDataModule"]
