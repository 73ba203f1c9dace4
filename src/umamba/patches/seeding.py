"""Stateless randomness: every patch has its own generators, seeded by what identifies the patch.

This is what makes a patch a function of (seed, epoch, index).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order, the same on every machine.

    Args:
        parts: what identifies the use, such as run seed, stream, epoch, index and purpose.

    >>> seed_of(0, "train", 1) == seed_of(0, "train", 1) != seed_of(0, "train", 2)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by `seed_of` these parts."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))


@contextmanager
def kept_torch() -> Iterator[None]:
    """Restore the state of torch's global CPU generator afterwards, and run the code inside on one thread.

    One thread because the number of threads decides how a sum is rounded: worker processes have one thread, and the
    main process must make the same patches.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)


def seed_torch(*parts: int | str) -> None:
    """Seed torch's global CPU generator, from which the transforms draw; use it inside `kept_torch`.

    `torch.manual_seed` is not used because it would also seed CUDA's generators.

    Args:
        parts: see `seed_of`.
    """
    torch.default_generator.manual_seed(seed_of(*parts))


def draw_uniform(low: float, high: float) -> float:
    """Draw a number between `low` and `high` from torch's global CPU generator, as TorchIO draws it."""
    return torch.empty(1).uniform_(low, high).item()
