"""Write a file by torch.save: the one place where this project does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_torch(content: Mapping[str, Any], path: Path) -> None:
    """Write a file by torch.save.

    torch gets the opened file, not the path, because it writes the name of the path into the file; that of a temporary
    file has the name of this machine in it.

    Args:
        content: tensors and plain values.
        path: the file.

    Raises:
        OSError: it cannot be written; torch itself raises RuntimeErrors of several kinds.
    """
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error).splitlines()[0]) from error
