"""Read and write the config.yaml of a run: the settings with which it began."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from umamba.io import UserError, atomic_path, read_yaml


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
