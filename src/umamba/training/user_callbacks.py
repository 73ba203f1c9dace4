"""The callbacks that the user asks for (trainer.callbacks): Lightning's own, or classes of installed packages."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import lightning.pytorch.callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping

from umamba.training.user_classes import user_object


class AskedPatience(Callback):
    """Sets the patience that the command asks for, because Lightning restores that of the checkpoint.

    Args:
        callbacks: the user's callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.asked = [(callback, callback.patience) for callback in callbacks if isinstance(callback, EarlyStopping)]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the patience, after Lightning has restored the callbacks."""
        for callback, patience in self.asked:
            callback.patience = patience


def user_callbacks(entries: Sequence[Mapping[str, Any]]) -> list[Callback]:
    """Make the callbacks of trainer.callbacks.

    Args:
        entries: the name and the arguments of each.

    Raises:
        UserError: there is no such module or class, it is no Lightning callback, or it refuses its arguments.

    >>> [made] = user_callbacks([{"name": "EarlyStopping", "monitor": "val/patch_dice", "mode": "max"}])
    >>> made.mode
    'max'
    """
    return [
        user_object(f"trainer.callbacks[{index}]", entry, Callback, lightning.pytorch.callbacks)
        for index, entry in enumerate(entries)
    ]
