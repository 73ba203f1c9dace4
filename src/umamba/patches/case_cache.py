"""The most recently used cases, kept open."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba.preprocessing import CaseStore, StoredCase


class CaseCache:
    """Opens the cases of a store and keeps the most recently used ones open.

    Args:
        store: the preprocessed cases.
        capacity: maximum number of open cases; each has two open files.
        capacity_bytes: maximum memory of their lists of foreground voxels.
    """

    def __init__(self, store: "CaseStore", capacity: int = 256, capacity_bytes: int = 2**26) -> None:
        self.store = store
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.cases: OrderedDict[str, StoredCase] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out when the cache is sent to another process."""
        return {**self.__dict__, "cases": OrderedDict(), "held_bytes": 0}

    def load(self, case_id: str) -> "StoredCase":
        """Return a case; open it if it is not open."""
        if case_id in self.cases:
            self.cases.move_to_end(case_id)
            return self.cases[case_id]
        case = self.store.load(case_id)
        self.cases[case_id] = case
        self.held_bytes += _foreground_bytes(case)
        while len(self.cases) > 1 and (len(self.cases) > self.capacity or self.held_bytes > self.capacity_bytes):
            self.held_bytes -= _foreground_bytes(self.cases.popitem(last=False)[1])
        return case


def _foreground_bytes(case: "StoredCase") -> int:
    """Return the memory of a case's lists of foreground voxels."""
    return sum(voxels.nbytes for voxels in case.foreground.values())
