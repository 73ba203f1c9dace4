"""Batches with the regions of the components: the same as found in the finished patches, for any number of workers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.labels import LabelSet
from umamba.labels.component_regions import component_regions
from umamba.settings import AugmentationSettings

Make = Callable[..., Any]
LABELS = LabelSet(("one", "two"), ((1,), (2,)))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_regions_of_their_patches(
    make_module: Make, store: Any, often: AugmentationSettings, workers: int
) -> None:
    module = make_module(store, augmentation=often, num_workers=workers, component_regions=True)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch["components"].shape == (3, 2, 8, 10, 6)
            assert batch["component_count"] == batch["components"].max()
            for label, found in zip(batch["label"], batch["components"], strict=True):
                assert torch.equal(found, torch.from_numpy(component_regions(label[0].numpy(), LABELS, (1, 1, 1))))


def test_images_have_them_too(make_module: Make, make_cases: Make, often: AugmentationSettings) -> None:
    module = make_module(make_cases([(1, 40, 30)], 3), (16, 12), augmentation=often, mask=(False,) * 3,
                         component_regions=True)  # fmt: skip
    batch = next(iter(module.train_dataloader()))
    assert batch["components"].shape == (3, 2, 16, 12)
    assert batch["components"].any()


def test_the_cpu_augments_then(make_module: Make, store: Any) -> None:
    automatic = AugmentationSettings(device="auto")
    assert make_module(store, augmentation=automatic).automatic
    assert not make_module(store, augmentation=automatic, component_regions=True).automatic
