"""The cases that patches are drawn from: small ones stay in memory, and the most recently used others stay open."""

import math
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba.preprocessing import CaseStore, StoredCase


class CaseCache:
    """Opens the cases of a store; keeps small ones in memory, and the most recently used others open.

    A small case is decoded once, because decoding takes several times as long as copying a patch out of memory.

    Args:
        store: the preprocessed cases.
        capacity: maximum number of open cases; each has two open files.
        capacity_bytes: maximum memory of their lists of foreground voxels.
        small_bytes: a case is small if its voxels and its lists of foreground voxels take no more than this. All small
            cases stay, so choose it by their number.
    """

    def __init__(
        self, store: "CaseStore", capacity: int = 256, capacity_bytes: int = 2**26, small_bytes: int = 0
    ) -> None:
        self.store = store
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.small_bytes = small_bytes
        self.held_bytes = 0
        self.cases: OrderedDict[str, StoredCase] = OrderedDict()
        self.small: dict[str, StoredCase] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and voxels out when the cache is sent to another process."""
        return {**self.__dict__, "cases": OrderedDict(), "small": {}, "held_bytes": 0}

    def load(self, case_id: str) -> "StoredCase":
        """Return a case; open it if it is not open."""
        if case_id in self.small:
            return self.small[case_id]
        if case_id in self.cases:
            self.cases.move_to_end(case_id)
            return self.cases[case_id]
        case = self.store.load(case_id)
        if _case_bytes(case) <= self.small_bytes:
            previous = None if case.previous is None else case.previous[:]
            self.small[case_id] = whole = replace(case, image=case.image[:], label=case.label[:], previous=previous)
            return whole
        self.cases[case_id] = case
        self.held_bytes += _foreground_bytes(case)
        while len(self.cases) > 1 and (len(self.cases) > self.capacity or self.held_bytes > self.capacity_bytes):
            self.held_bytes -= _foreground_bytes(self.cases.popitem(last=False)[1])
        return case


def _foreground_bytes(case: "StoredCase") -> int:
    """Return the memory of a case's lists of foreground voxels."""
    return sum(voxels.nbytes for voxels in case.foreground.values())


def _case_bytes(case: "StoredCase") -> int:
    """Return the memory of a whole case."""
    arrays = (case.image, case.label, *([] if case.previous is None else [case.previous]))
    voxels = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    return voxels + _foreground_bytes(case)
