"""Code that is loaded when it is needed, and not before: names of a package, and modules beside other work."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: module of the package -> the names that it defines. No name may equal a module's, because the module
            would hide it once it is loaded.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getter(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def lister() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return getter, lister


def load_beside(module: str) -> None:
    """Begin to load a module in a thread, so that other work need not wait for it later.

    Args:
        module: its full name. If it cannot be loaded, the import that needs it says so.
    """

    def load() -> None:
        with suppress(ImportError):
            import_module(module)

    threading.Thread(target=load, name=f"load {module}").start()
