"""Batches in shared-memory slots: a kept batch is never overwritten, and released slots are used again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.patches.slots import SlotPool

Make = Callable[..., Any]

ITERATIONS, SLOTS = 14, 4  # slots of a worker: two for batches made ahead, two for batches in use


@pytest.fixture
def make_loader(make_module: Make, store: Any) -> Callable[[int], Any]:
    """Return a maker of loaders that make the same batches with any number of workers."""
    return lambda workers: make_module(store, iterations=ITERATIONS, num_workers=workers).train_dataloader()


def in_slot(tensor: torch.Tensor, pool: SlotPool) -> bool:
    """Return whether a tensor is in the pool's memory."""
    return 0 <= tensor.data_ptr() - pool.memory.data_ptr() < pool.memory.nbytes


def test_kept_batches_are_never_overwritten(make_loader: Callable[[int], Any]) -> None:
    """Keep a view of one patch of each batch, for more batches than there are slots."""
    expected = [batch["label"][1].clone() for batch in make_loader(0)]
    loader = make_loader(1)
    kept = [batch["label"][1] for batch in loader]
    assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))
    assert sum(in_slot(view, loader.dataset.slots) for view in kept) == SLOTS, "further batches are in ordinary memory"


@pytest.mark.parametrize("workers", [1, 2])
def test_released_slots_are_used_again(make_loader: Callable[[int], Any], workers: int) -> None:
    loader = make_loader(workers)
    addresses = set()
    for _epoch in range(2):
        for batch in loader:
            assert in_slot(batch["image"], loader.dataset.slots)
            assert in_slot(batch["label"], loader.dataset.slots)
            addresses.add(batch["image"].data_ptr())
    assert 1 < len(addresses) <= workers * SLOTS


def test_batches_of_an_abandoned_epoch_release_their_slots(make_loader: Callable[[int], Any]) -> None:
    loader = make_loader(1)
    for _abandoned_epoch in range(SLOTS):
        next(iter(loader))
    assert all(in_slot(batch["image"], loader.dataset.slots) for batch in loader)


def test_two_loaders_of_one_stream_share_no_slots(make_module: Make, store: Any) -> None:
    module = make_module(store, num_workers=1)
    expected = [batch["image"] for batch in make_module(store).train_dataloader()]
    first = iter(module.train_dataloader())
    second = iter(module.train_dataloader())
    for image in expected:
        one, other = next(first)["image"], next(second)["image"]
        assert torch.equal(one, image)
        assert torch.equal(other, image)


def test_too_little_shared_memory_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"data.num_workers=3.*shared memory.*data.prefetch_factor"):
        SlotPool([{"image": ((2**50,), torch.float32)}], workers=3, slots_per_worker=4)
