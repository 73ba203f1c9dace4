"""Randomness without state: every patch has generators of its own, seeded by what it is (architecture, contract 5)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """Return 63 bits that depend on every part and on their order, the same on every machine and Python."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: int | str) -> np.random.Generator:
    """Return a generator of its own for these parts."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))


@contextmanager
def seeded_torch(*parts: int | str) -> Iterator[None]:
    """Let torch's global CPU generator, which TorchIO draws from, be that of these parts; restore it afterwards.

    torch.manual_seed would also reseed CUDA's generators. One thread within: how many share an operation decides how a
    sum is rounded, and worker processes have one, so that patches made in the main process would differ from theirs.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
