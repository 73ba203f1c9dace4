"""Refuse to build a network of more weights than are there, before memory is taken for them.

A plan or a checkpoint from others may ask for any number of feature maps. PyTorch's layers make their weights by a few
factory functions; inside `weight_budget` each call of them is counted before it runs.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from umamba.io import UserError

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
_RANGES = (torch.arange, torch.linspace)
_SLACK = 32 << 20  # numbers of tensors that are no weights, such as tables of positions


class _Counter(TorchFunctionMode):
    def __init__(self, most: int, message: str) -> None:
        super().__init__()
        self.left, self.message = most, message

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in _FACTORIES:
            first = named.get("size", args[0] if args else ())
            size = tuple(first) if isinstance(first, tuple | list) else args
            self.left -= math.prod(int(edge) for edge in size if isinstance(edge, int))
        elif func in _RANGES and any(isinstance(edge, int) and abs(edge) > self.left for edge in args):
            self.left = -1
        if self.left < 0:
            raise UserError(self.message)
        return func(*args, **named)


@contextmanager
def weight_budget(most: int, message: str) -> Iterator[None]:
    """Raise a UserError as soon as the layers that are made in the block have more numbers than allowed.

    Args:
        most: numbers that all weights together may have.
        message: of the error.

    Raises:
        UserError: a layer would exceed them; its memory is not taken.
    """
    with _Counter(most + _SLACK, message):
        yield


def stored_numbers(weights: Iterable[Tensor]) -> int:
    """Return how many numbers weights really store; a shape alone may claim more of them than are there.

    Args:
        weights: tensors, which may share storages.
    """
    storages = {weight.untyped_storage()._cdata: weight for weight in weights}
    return sum(weight.untyped_storage().nbytes() // weight.element_size() for weight in storages.values())
