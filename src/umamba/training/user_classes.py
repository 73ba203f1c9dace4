"""Make objects of classes that the user names: Lightning's own, or those of installed packages (module:Class)."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from umamba.io import UserError

Made = TypeVar("Made")


def user_object(where: str, entry: Mapping[str, Any], base: type[Made], offered: ModuleType) -> Made:
    """Make an object from the name and the arguments that the command line gives.

    Args:
        where: the key, for messages.
        entry: `name`, which is a name in `offered` or module:Class of an installed package, and the arguments.
        base: what the class must inherit.
        offered: Lightning's module.

    Raises:
        UserError: there is no such module or class, it does not inherit `base`, or it refuses its arguments.
    """
    arguments = dict(entry)
    name = str(arguments.pop("name", ""))
    module, colon, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute) if colon else getattr(offered, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}.name={name}: {error}. Give MODULE:CLASS of a package that is installed here, or a class of "
            f"{offered.__name__}."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError(f"{where}.name={name}: is no class that inherits {base.__module__}.{base.__name__}.")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        raise UserError(f"{where}: {name} refuses its arguments: {error}") from error
