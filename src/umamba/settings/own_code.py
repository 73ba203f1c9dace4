"""Import a function of a user's own package, and check its options against the record that the function names."""

import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from inspect import signature
from typing import Any

from umamba.io.errors import UserError
from umamba.settings.validate import Settings, parse


def own_function(name: str, key: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        name: package.module:function.
        key: the name's key on the command line, for messages.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    module, _, function = name.rpartition(":")
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        parents = [module.rsplit(".", count)[0] for count in range(module.count(".") + 1)]
        if isinstance(error, ModuleNotFoundError) and error.name in parents:
            if module.startswith("umamba."):
                remedy = f"Write it as src/{module.replace('.', '/')}.py."
            else:
                remedy = "Install its package (pip install -e FOLDER), or put its folder into PYTHONPATH."
            raise UserError(f"{key}={name}: there is no module {error.name}. {remedy}") from error
        raise UserError(f"{key}={name}: the module {module} cannot be imported ({error}).") from error
    if not callable(found):
        raise UserError(f"{key}={name}: the module {module} has no function {function}.")
    return typing.cast(Callable[..., Any], found)


def own_options(function: Callable[..., Any], name: str, values: Mapping[str, Any], key: str, page: str) -> Settings:
    """Return the options of an own function as the record that annotates its first parameter.

    Args:
        function: the function.
        name: package.module:function.
        values: the options as plain values.
        key: dotted name of the options on the command line.
        page: page of the documentation, for messages.

    Raises:
        UserError: the function's first parameter is not annotated with a settings record.
        InvalidSettings: an unknown option or a wrong value.
    """
    parameters = list(signature(function).parameters)
    record = typing.get_type_hints(function).get(parameters[0]) if parameters else None
    if not (isinstance(record, type) and issubclass(record, Settings)):
        raise UserError(
            f"{key}: the first parameter of {name} must be annotated with its settings, a frozen dataclass that "
            f"inherits umamba.settings.Settings. See {page}."
        )
    named = any(entry.name == "name" for entry in fields(record))
    return parse(record, {"name": name, **values} if named else values, key)
