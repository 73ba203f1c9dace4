"""Batches in lent memory: nobody's is written over, and the memory is used again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.patches.lending import LendingMemory

Make = Callable[..., Any]

ITERATIONS, PLACES = 14, 4  # two batches ahead, and two


@pytest.fixture
def make_loader(make_module: Make, store: Any) -> Callable[[int], Any]:
    """Return a maker of loaders of the same batches by a number of workers."""
    return lambda workers: make_module(store, iterations=ITERATIONS, num_workers=workers).train_dataloader()


def is_lent(tensor: torch.Tensor, memory: LendingMemory) -> bool:
    """Return whether a tensor lies in the memory."""
    return 0 <= tensor.data_ptr() - memory.memory.data_ptr() < memory.memory.nbytes


def test_what_is_kept_of_a_batch_stays_as_it_was(make_loader: Callable[[int], Any]) -> None:
    """Only a view of one patch is kept of each batch, of more batches than there are places."""
    expected = [batch["label"][1].clone() for batch in make_loader(0)]
    loader = make_loader(1)
    kept = [batch["label"][1] for batch in loader]
    assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))
    assert sum(is_lent(view, loader.dataset.memory) for view in kept) == PLACES, "further ones have memory of their own"


@pytest.mark.parametrize("workers", [1, 2])
def test_places_are_used_again(make_loader: Callable[[int], Any], workers: int) -> None:
    loader = make_loader(workers)
    places = set()
    for _epoch in range(2):
        for batch in loader:
            assert is_lent(batch["image"], loader.dataset.memory)
            assert is_lent(batch["label"], loader.dataset.memory)
            places.add(batch["image"].data_ptr())
    assert 1 < len(places) <= workers * PLACES


def test_batches_that_nobody_took_give_their_places_back(make_loader: Callable[[int], Any]) -> None:
    loader = make_loader(1)
    for _abandoned_epoch in range(PLACES):
        next(iter(loader))
    assert all(is_lent(batch["image"], loader.dataset.memory) for batch in loader)


def test_two_loaders_of_one_stream_do_not_meet(make_module: Make, store: Any) -> None:
    module = make_module(store, num_workers=1)
    expected = [batch["image"] for batch in make_module(store).train_dataloader()]
    first = iter(module.train_dataloader())
    second = iter(module.train_dataloader())
    for image in expected:
        one, other = next(first)["image"], next(second)["image"]
        assert torch.equal(one, image)
        assert torch.equal(other, image)


def test_too_little_shared_memory_is_said() -> None:
    with pytest.raises(UserError, match=r"data.num_workers=3.*shared memory.*data.prefetch_factor"):
        LendingMemory({"image": ((2**50,), torch.float32)}, workers=3, places=4)
