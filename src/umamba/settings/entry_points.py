"""Names of functions in a user's own package: `package.module:function`, or an entry point that the package declares.

A name on the command line is the user's own choice. A name in a file from elsewhere is not: a checkpoint whose network
is built outside this project is refused unless the user trusts that package.
"""

import re
from collections.abc import Sequence
from importlib.metadata import entry_points

BACKBONES = "umamba.backbones"  # group of entry points: name -> function that builds a network
LOSSES = "umamba.losses"  # group of entry points: name -> function that makes a loss
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_INSIDE = re.compile(r"umamba\.networks\.[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")


def installed(group: str) -> dict[str, tuple[str, ...]]:
    """Return the entry points of all installed packages: name -> package.module:function, several if they clash.

    Args:
        group: `BACKBONES` or `LOSSES`.
    """
    found: dict[str, set[str]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, set()).add(f"{entry.module}:{entry.attr}")
    return {name: tuple(sorted(values)) for name, values in sorted(found.items())}


def resolved(name: str, group: str) -> str:
    """Return package.module:function of an entry point; any other name as it is.

    Args:
        name: an entry point's name, or package.module:function.
        group: `BACKBONES` or `LOSSES`.
    """
    values = () if ":" in name else installed(group).get(name, ())
    return values[0] if len(values) == 1 else name


def name_problem(name: str, key: str, group: str) -> str | None:
    """Return what is wrong with the name of an own function.

    Args:
        name: what `resolved` returned.
        key: the name's key on the command line, for the message.
        group: `BACKBONES` or `LOSSES`.

    Returns:
        A sentence; None: the name can be imported, if it exists.
    """
    offered = installed(group)
    if name in offered:
        return f"{key}={name}: several packages offer it. Give one of {', '.join(offered[name])}."
    if not _FUNCTION.fullmatch(name):
        return f"{key}={name}: must be package.module:function, or the name of an installed entry point of {group}."
    if module_of(name).split(".")[0] == "umamba" and not _INSIDE.fullmatch(name):
        return f"{key}={name}: inside this project only umamba.networks.MODULE:FUNCTION can be named."
    return None


def module_of(name: str) -> str:
    """Return the module of package.module:function; empty for a name without a module.

    Args:
        name: the function.

    >>> module_of("mypackage.networks:build")
    'mypackage.networks'
    """
    return name.rpartition(":")[0]


def is_trusted(name: str, trust: str | Sequence[str]) -> bool:
    """Return whether a function that a file names may run.

    Args:
        name: a built-in name, or package.module:function.
        trust: packages or modules that the user trusts; trusting a package includes its modules.

    >>> is_trusted("unet", ()), is_trusted("mine.nets:build", ()), is_trusted("mine.nets:build", "mine")
    (True, False, True)
    >>> is_trusted("mineral:build", "mine"), is_trusted("umamba.networks.plain_net:build", ())
    (False, True)
    """
    if ":" not in name or _INSIDE.fullmatch(name):
        return True
    module = module_of(name)
    trusted = [trust] if isinstance(trust, str) else trust
    return any(module == each or module.startswith(f"{each}.") for each in trusted if each)
