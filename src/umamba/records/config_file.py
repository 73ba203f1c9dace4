"""Read YAML files within bounds; read and write the config.yaml of a run: the settings with which it began."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umamba.io import UserError, atomic_path
from umamba.io.documents import MOST_DEPTH, bounded_text, check_values

_MOST_BYTES = 128 << 10  # read by Python code, which is slow


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values, with omegaconf's rules for numbers; interpolations stay text.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, too large, not text, not valid YAML, nested too deeply, or holds aliases, which
            may stand for more values than memory can hold.
    """
    path = Path(path)
    text = bounded_text(path, _MOST_BYTES)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path}: line {event.start_mark.line + 1} holds an alias (*). Write the values there.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise UserError(f"{path}: is nested more than {MOST_DEPTH} deep. Check that it is the right file.")
        content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else None
    except (
        *(yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, AssertionError),
        RecursionError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a valid YAML file ({reason[:200]}). Correct it.") from None
    check_values(content, str(path))
    return content


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the settings in a config.yaml.

    Args:
        path: the file.

    Returns:
        Nested plain values; None: there is no such file, or it cannot be read.
    """
    try:
        content: Any = read_yaml(path)
    except UserError:
        return None
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else None


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write settings.

    Args:
        path: the file.
        values: nested plain values.
    """
    with atomic_path(path) as temporary:
        OmegaConf.save(OmegaConf.create(json.loads(json.dumps(dict(values)))), temporary)
