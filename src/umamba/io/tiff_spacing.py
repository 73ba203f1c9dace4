"""The spacing of TIFF volumes, which nnU-Net keeps in a file CASE.json beside CASE_0000.tif or CASE.tif.

nnU-Net 2.8.1 (imageio/tif_reader_writer.py) reads {"spacing": [5, 0.5, 0.5]}, in mm in the order (Z, Y, X), and takes
1 mm without that file; the resolution tags of TIFF do not count.
"""

import math
import re
from pathlib import Path

from umamba.io.documents import read_json
from umamba.io.errors import UserError
from umamba.io.files import write_json

TIFF_ENDINGS = (".tif", ".tiff")
_CHANNEL = re.compile(r"_\d{4}$")


def spacing_file(path: Path) -> Path | None:
    """Return the file beside a TIFF file that states its spacing: CASE.json for CASE.tif and CASE_0000.tif.

    Args:
        path: an image file.

    Returns:
        The file; None if there is none, or the image is no TIFF file.
    """
    if not path.name.lower().endswith(TIFF_ENDINGS):
        return None
    for name in (path.stem, _CHANNEL.sub("", path.stem)):
        candidate = path.with_name(f"{name}.json")
        if candidate.is_file():
            return candidate
    return None


def read_spacing(path: Path) -> tuple[float, ...]:
    """Return the spacing (Z, Y, X) in mm that CASE.json states.

    Args:
        path: the JSON file.

    Raises:
        UserError: it cannot be read, or holds no three positive numbers under "spacing".
    """
    content = read_json(path)
    spacing = content.get("spacing") if isinstance(content, dict) else None
    numbers = spacing if isinstance(spacing, list) else []
    real = [float(value) for value in numbers if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 3 or len(real) != 3 or not all(math.isfinite(value) and value > 0 for value in real):
        raise UserError(
            f'{path}: must hold the spacing of the volume as three positive numbers in the order Z, Y, X: {{"spacing": '
            "[5, 0.5, 0.5]}."
        )
    return tuple(real)


def write_spacing(path: Path, spacing: tuple[float, float, float]) -> None:
    """Write the spacing of a TIFF volume beside it, as nnU-Net does.

    Args:
        path: the TIFF file CASE.tif; CASE.json is written.
        spacing: (Z, Y, X) in mm.
    """
    write_json(path.with_suffix(".json"), {"spacing": list(spacing)})
