"""Shared memory that worker processes make batches in, used again when the main process has let go of a batch.

PyTorch's workers map new shared memory for each batch and send its file descriptor. To have the pages cleared and
mapped takes longer than to read a CT patch, and the descriptor's way longer than to read a small one; so here memory is
mapped once, before the workers start, and a batch is sent as the number of its place.
"""

import math
import uuid
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.io import UserError

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape and type of each tensor of a batch

_PAGE = 4096

# Unpickling knows nothing of the loader that it works for, so that a batch finds its memory by name; how long the
# memory lives is decided by its owner.
_memories: "weakref.WeakValueDictionary[str, LendingMemory]" = weakref.WeakValueDictionary()


class LendingMemory:
    """Memory for batches of one layout, made by the process that receives them and known to the workers.

    It begins with a byte for each place that says whether it is lent: the worker sets it, the receiver clears it once
    no tensor shares the place's memory. Who keeps batches thus keeps them unharmed.

    Args:
        layout: of a batch.
        workers: processes, each with places of its own.
        places: batches of each that can be out at a time. While all are, further ones get memory of their own.

    Raises:
        UserError: there is not so much shared memory.
    """

    def __init__(self, layout: Layout, workers: int, places: int) -> None:
        self.name = uuid.uuid4().hex
        self.layout = dict(layout)
        self.places = places
        self.first = _PAGE * math.ceil(workers * places / _PAGE)
        self.length = sum(_whole_pages(*what) for what in layout.values())
        size = self.first + workers * places * self.length
        try:
            self.memory = torch.empty(size, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"data.num_workers={workers}: their batches need {size / 2**30:.2f} GiB of shared memory, which is not "
                "to be had. Use fewer workers, a smaller data.prefetch_factor, or a larger /dev/shm (docker: "
                "--shm-size)."
            ) from error
        self.memory[: self.first] = 0
        _memories[self.name] = self

    def take(self, worker: int) -> "Batch":
        """Return a batch of uninitialised tensors, in a place of this worker if one is free."""
        own = range(worker * self.places, (worker + 1) * self.places)
        lent = self.memory[own.start : own.stop].tolist()
        free = [place for place, taken in zip(own, lent, strict=True) if not taken]
        if not free:
            return new_batch(self.layout)
        self.memory[free[0]] = 1
        batch = Batch(_tensors(self.memory[self._part(free[0])], self.layout))
        batch.memory, batch.place = self, free[0]
        return batch

    def receive(self, place: int) -> dict[str, Tensor]:
        """Return the tensors of a batch; its place is given back when the last one that shares its memory is gone."""
        whole = self.memory.numpy()
        lent = whole[self._part(place)]
        # A tensor made of an array holds that very array for as long as any view of the tensor lives.
        weakref.finalize(lent, _give_back, whole, place).atexit = False
        return _tensors(torch.from_numpy(lent), self.layout)

    def _part(self, place: int) -> slice:
        return slice(self.first + place * self.length, self.first + (place + 1) * self.length)


class Batch(dict[str, Any]):
    """A batch; one in lent memory is pickled as its place, and received as an ordinary dict."""

    memory: LendingMemory | None = None
    place = 0

    def __reduce__(self) -> Any:
        """Say how the receiver makes the batch."""
        if self.memory is None:
            return dict, (dict(self),)
        rest = {name: value for name, value in self.items() if name not in self.memory.layout}
        return _received, (self.memory.name, self.place, rest)


def new_batch(layout: Layout) -> Batch:
    """Return a batch of uninitialised tensors in memory of its own."""
    return Batch({name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()})


def _received(name: str, place: int, rest: Mapping[str, Any]) -> dict[str, Any]:
    return {**_memories[name].receive(place), **rest}


def _give_back(memory: np.ndarray, place: int) -> None:
    memory[place] = 0


def _whole_pages(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return _PAGE * math.ceil(math.prod(shape) * dtype.itemsize / _PAGE)


def _tensors(memory: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors that lie one after the other in a place, each from the beginning of a page."""
    tensors, start = {}, 0
    for name, (shape, dtype) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        tensors[name] = memory[start : start + size].view(dtype).view(shape)
        start += _whole_pages(shape, dtype)
    return tensors
