"""A pool of shared-memory slots that worker processes fill with batches and the trainer releases.

PyTorch's workers map new shared memory for each batch and send its file descriptor to the main process. Clearing and
mapping the pages takes longer than reading a CT patch, and sending the descriptor takes longer than reading a small
patch. Here the memory is mapped once, before the workers start, and a batch is sent as the number of its slot.
"""

import math
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.io import UserError

BatchLayout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape and type of each tensor of a batch

_PAGE = 4096  # bytes; every tensor starts on a page of its own

# A batch is unpickled without access to its loader, so it finds its pool here by name. The pool's owner keeps it alive.
_pools: "weakref.WeakValueDictionary[str, SlotPool]" = weakref.WeakValueDictionary()


class SlotPool:
    """Shared memory, divided into slots of one batch each.

    The main process makes the pool and receives the batches; the workers inherit it. The memory starts with one flag
    byte for each slot. A worker sets the flag when it takes the slot. The main process clears the flag when the last
    tensor in the slot's memory is gone, so a batch that somebody keeps is never overwritten.

    Args:
        layouts: tensors of a batch; several for batches of several kinds, each of which fits into a slot.
        workers: number of worker processes; each has slots of its own.
        slots_per_worker: batches of a worker that can exist at a time in shared memory. Further ones get ordinary
            memory.

    Raises:
        UserError: the machine does not have enough shared memory.
    """

    def __init__(self, layouts: Sequence[BatchLayout], workers: int, slots_per_worker: int) -> None:
        self.name = uuid.uuid4().hex
        self.layouts = [dict(layout) for layout in layouts]
        self.slots_per_worker = slots_per_worker
        self.slot_bytes = max(sum(_whole_pages(*entry) for entry in layout.values()) for layout in layouts)
        self.flag_bytes = _PAGE * math.ceil(workers * slots_per_worker / _PAGE)
        size = self.flag_bytes + workers * slots_per_worker * self.slot_bytes
        try:
            self.memory = torch.empty(size, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"data.num_workers={workers}: the batches of these processes need {size / 2**30:.2f} GiB of shared "
                "memory, more than the machine has. Use fewer workers, a smaller data.prefetch_factor, or a larger "
                "/dev/shm (docker: --shm-size)."
            ) from error
        self.memory[: self.flag_bytes] = 0
        _pools[self.name] = self

    def take(self, worker: int, layout: BatchLayout) -> "SlotBatch":
        """Return a batch of uninitialised tensors in a free slot, or in ordinary memory if no slot is free.

        Args:
            worker: number of the worker process, which calls this.
            layout: of the batch, one of the pool's.
        """
        own = range(worker * self.slots_per_worker, (worker + 1) * self.slots_per_worker)
        flags = self.memory[own.start : own.stop].tolist()
        free = [slot for slot, taken in zip(own, flags, strict=True) if not taken]
        if not free:
            return new_batch(layout)
        self.memory[free[0]] = 1
        batch = SlotBatch(_tensors(self.memory[self._bytes_of(free[0])], layout))
        batch.pool, batch.slot, batch.kind = self, free[0], self.layouts.index(dict(layout))
        return batch

    def open(self, slot: int, kind: int) -> dict[str, Tensor]:
        """Return the tensors of a filled slot; the slot is released when the last tensor in its memory is gone.

        Args:
            slot: number of the slot; the main process calls this.
            kind: number of the batch's layout.
        """
        memory = self.memory.numpy()
        array = memory[self._bytes_of(slot)]
        # Tensors made from an array, and all their views, keep this array object alive.
        weakref.finalize(array, _release, memory, slot).atexit = False
        return _tensors(torch.from_numpy(array), self.layouts[kind])

    def _bytes_of(self, slot: int) -> slice:
        return slice(self.flag_bytes + slot * self.slot_bytes, self.flag_bytes + (slot + 1) * self.slot_bytes)


class SlotBatch(dict[str, Any]):
    """A batch that is pickled as the number of its slot and arrives as an ordinary dict.

    Attributes:
        pool: the pool of the slot; None: the tensors are in ordinary memory and are pickled themselves.
        slot: number of the slot.
        kind: number of the layout among the pool's.
    """

    pool: SlotPool | None = None
    slot = kind = 0

    def __reduce__(self) -> Any:
        """Return how pickle rebuilds the batch in the main process."""
        if self.pool is None:
            return dict, (dict(self),)
        rest = {name: value for name, value in self.items() if name not in self.pool.layouts[self.kind]}
        return _opened, (self.pool.name, self.slot, self.kind, rest)


def new_batch(layout: BatchLayout) -> SlotBatch:
    """Return a batch of uninitialised tensors in ordinary memory."""
    return SlotBatch({name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()})


def _opened(pool: str, slot: int, kind: int, rest: Mapping[str, Any]) -> dict[str, Any]:
    return {**_pools[pool].open(slot, kind), **rest}


def _release(memory: np.ndarray, slot: int) -> None:
    memory[slot] = 0


def _whole_pages(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return _PAGE * math.ceil(math.prod(shape) * dtype.itemsize / _PAGE)


def _tensors(memory: Tensor, layout: BatchLayout) -> dict[str, Tensor]:
    """Return the tensors that lie one after the other in a slot's memory."""
    tensors, start = {}, 0
    for name, (shape, dtype) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        tensors[name] = memory[start : start + size].view(dtype).view(shape)
        start += _whole_pages(shape, dtype)
    return tensors
