"""The public archives that can be converted, and their converters."""

from umamba.datasets.convert_abdomen import AMOS, FLARE
from umamba.datasets.convert_cell import CELL
from umamba.datasets.convert_common import Converter
from umamba.datasets.convert_endovis import endovis
from umamba.io import UserError

ARCHIVES = ("flare", "amos", "endovis", "cell")


def converter_of(archive: str, *, crop: bool = False, videos: str = "separate") -> Converter:
    """Return the converter of an archive.

    Args:
        archive: flare, amos, endovis or cell.
        crop: only for endovis, see `endovis`.
        videos: only for endovis, see `endovis`.

    Raises:
        UserError: `archive` or `videos` is unknown.
    """
    converters = {"flare": FLARE, "amos": AMOS, "endovis": endovis(crop, videos), "cell": CELL}
    if archive not in converters:
        raise UserError(f"archive={archive} has no converter. Choose one of {', '.join(ARCHIVES)}.")
    return converters[archive]
