"""The callbacks that the user asks for (trainer.callbacks): Lightning's own, or classes of installed packages."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import lightning.pytorch.callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.io import UserError


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
    return [_made(f"trainer.callbacks[{index}]", dict(entry)) for index, entry in enumerate(entries)]


def _made(where: str, arguments: dict[str, Any]) -> Callback:
    name = str(arguments.pop("name"))
    module, colon, attribute = name.partition(":")
    if not colon:
        kind = getattr(lightning.pytorch.callbacks, name)
    else:
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{where}.name={name}: {error}. Give MODULE:CLASS of a package that is installed here."
            ) from error
    if not (isinstance(kind, type) and issubclass(kind, Callback)):
        raise UserError(f"{where}.name={name}: is no class that inherits lightning.pytorch.callbacks.Callback.")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"{where}: {name} refuses its arguments: {error}") from error
