"""Convert the NeurIPS 2022 cell segmentation challenge: numbered cells to interior and boundary (paper, section 3.1).

Images become 8-bit RGB. 8-bit values are kept. Wider values are stretched between their 1st and 99th percentile, each
channel alone, as in the challenge's baseline. A grey image becomes three equal channels.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.convert_common import Converter, SourceCase, Split
from umamba.datasets.phantom_2d import CELL_CLASSES
from umamba.io import UserError
from umamba.io.decode import decode
from umamba.io.image import NATURAL_ENDINGS
from umamba.labels.instance_depth import depth_levels
from umamba.labels.instance_maps import interior_and_boundary

ENDINGS = (*NATURAL_ENDINGS, ".jpg", ".jpeg")
# Beginnings of the folder names in the archives. The paper's 101 test images are the challenge's tuning set.
_SPLITS: tuple[tuple[str, Split], ...] = (("train", "Tr"), ("tuning", "Ts"))


def find_cells(source: Path) -> list[SourceCase]:
    """List the cases of the challenge: images/NAME.* and labels/NAME_label.tiff.

    Args:
        source: folder of the archives. A folder above images whose name begins with Training or Tuning tells the
            split; folders of unlabelled images are skipped.
    """
    cases = []
    for image in sorted(source.rglob("images/*")):
        split = _split(image.relative_to(source))
        if split is None or image.suffix.lower() not in ENDINGS:
            continue
        found = label_file(image.parent.with_name("labels"), image.stem)
        if found or split == "Ts":
            cases.append(SourceCase(image.stem, split, (image,), found))
    return cases


def label_file(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the file of numbered instances of a picture.

    Args:
        folder: where the files NAME_label.tiff (or tif, png) are.
        name: NAME of the picture.

    Returns:
        One path, or none if there is no such file.
    """
    labels = (folder / f"{name}_label{ending}" for ending in (".tiff", ".tif", ".png"))
    return tuple(path for path in labels if path.exists())[:1]


def _split(relative: Path) -> Split | None:
    for part in relative.parts[:-2]:
        for name, split in _SPLITS:
            if part.lower().startswith(name) and "unlabel" not in part.lower():
                return split
    return None


def read_picture(path: Path) -> sitk.Image:
    """Read a picture as 8-bit RGB.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be decoded, or is a volume.
    """
    source = decode(path)
    array = sitk.GetArrayFromImage(source)
    if source.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise UserError(f"{path}: has {array.ndim - 1} dimensions; a picture has two. Remove it from the archive.")
    array = np.repeat(array[..., :1], 3, axis=-1) if array.shape[-1] < 3 else array[..., :3]
    if array.dtype != np.uint8:
        array = np.stack([_stretched(array[..., channel]) for channel in range(3)], axis=-1)
    return sitk.GetImageFromArray(array, isVector=True)


def _stretched(channel: np.ndarray) -> np.ndarray:
    """Stretch a channel so that the percentiles 1 and 99 of its nonzero pixels become 0 and 255; return it as uint8."""
    occupied = channel[channel != 0]
    if not occupied.size:
        return np.zeros(channel.shape, dtype=np.uint8)
    low, high = np.percentile(occupied, (1, 99))
    scaled = (channel.astype(np.float64) - low) / max(float(high - low), 1e-8)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def read_classes(paths: tuple[Path, ...]) -> sitk.Image:
    """Read numbered cells and convert them to background, interior and boundary.

    Args:
        paths: one file.

    Returns:
        The classes, uint8; see `interior_and_boundary`.
    """
    instances = sitk.GetArrayFromImage(read_instances(paths))
    return sitk.GetImageFromArray(interior_and_boundary(instances.astype(np.int64)))


def read_depth(paths: tuple[Path, ...]) -> sitk.Image:
    """Read numbered cells and convert them to levels of depth.

    Args:
        paths: one file.

    Returns:
        The classes, uint8; see `depth_levels`.
    """
    instances = sitk.GetArrayFromImage(read_instances(paths))
    return sitk.GetImageFromArray(depth_levels(instances.astype(np.int64)))


def read_instances(paths: tuple[Path, ...]) -> sitk.Image:
    """Read numbered cells.

    Args:
        paths: one file.

    Returns:
        The numbers (Y, X), uint16 or uint32.
    """
    numbers = sitk.GetArrayFromImage(decode(paths[0]))
    return numbered(numbers[0] if numbers.ndim == 3 else numbers)


def numbered(instances: np.ndarray) -> sitk.Image:
    """Return numbered instances as an image.

    Args:
        instances: (Y, X), integers from 0 (background) on.
    """
    wide = int(instances.max(initial=0)) > np.iinfo(np.uint16).max
    return sitk.GetImageFromArray(instances.astype(np.uint32 if wide else np.uint16))


CELL = Converter(
    folder="Dataset703_NeurIPSCell",
    channel_names=("R", "G", "B"),
    labels=CELL_CLASSES,
    file_ending=".png",
    published=(1000, 101),
    source="zenodo.org/records/10719375 (Training-labeled and Tuning), neurips22-cellseg.grand-challenge.org",
    licence="see neurips22-cellseg.grand-challenge.org",
    made_with={"archive": "cell"},
    find=find_cells,
    read_image=read_picture,
    read_label=read_classes,
    read_instances=read_instances,
)
