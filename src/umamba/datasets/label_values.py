"""Label maps whose values a network cannot use as they are: values with gaps become 1, 2, ..., masks become one map."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io import UserError
from umamba.io.decode import decode
from umamba.io.voice import tracked

_HIGHEST = 65535


def label_array(path: Path) -> tuple[np.ndarray, sitk.Image]:
    """Read a label map.

    Args:
        path: the file.

    Returns:
        Its values (Z, Y, X) or (Y, X), int64; and the image, for its geometry.

    Raises:
        UserError: the file cannot be read, has several channels, or holds other values than 0, 1, ... 65535.
    """
    image = decode(path)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() > 3:
        raise UserError(f"{path}: a label map has one channel. Store the label values as a greyscale image.")
    values = array.astype(np.int64)
    if not np.array_equal(values, array) or values.min(initial=0) < 0 or values.max(initial=0) > _HIGHEST:
        raise UserError(f"{path}: holds other values than the integers 0 to {_HIGHEST}. Export it as a label map.")
    return values, image


def values_in(paths: Sequence[Path], workers: int) -> tuple[int, ...]:
    """Return the values above 0 of label maps, in ascending order.

    Args:
        paths: the files.
        workers: threads.

    Raises:
        UserError: see `label_array`.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(lambda path: set(np.unique(label_array(path)[0]).tolist()), paths)
        values: set[int] = set().union(*tracked(found, "Label values", len(paths)))
    return tuple(sorted(values - {0}))


def renumbered(path: Path, values: Sequence[int]) -> sitk.Image:
    """Read a label map and give its values the numbers 1, 2, ...

    Args:
        path: the file.
        values: the value that becomes 1, the one that becomes 2, and so on. Others become background.

    Returns:
        The label map, uint8 or uint16, with the geometry of the file.
    """
    array, image = label_array(path)
    if array.max(initial=0) > max(values, default=0):  # a table of any value of a file might not fit into the memory
        array = np.where(array > max(values, default=0), 0, array)
    table = np.zeros(max(array.max(initial=0), *values, 0) + 1, dtype=np.uint8 if len(values) < 256 else np.uint16)
    for number, value in enumerate(values, start=1):
        table[value] = number
    return _like(table[array], image)


def mapped(path: Path, values: Mapping[int, int]) -> sitk.Image:
    """Read a label map and replace its values.

    Args:
        path: the file.
        values: the new value of each value that the file may hold.

    Returns:
        The label map, uint8 or uint16, with the geometry of the file.

    Raises:
        UserError: see `label_array`; or the file holds another value.
    """
    array, image = label_array(path)
    unknown = sorted(set(np.unique(array).tolist()) - set(values))
    if unknown:
        raise UserError(f"{path}: holds {unknown[0]}, which its dataset.json does not declare. Correct one of the two.")
    table = np.zeros(max(values) + 1, dtype=np.uint8 if max(values.values()) < 256 else np.uint16)
    table[list(values)] = list(values.values())
    return _like(table[array], image)


def merged(masks: Iterable[tuple[Path, int]]) -> sitk.Image:
    """Read masks and merge them to one label map.

    Args:
        masks: the file of each structure, whose voxels other than 0 belong to it, and its value. Where masks overlap,
            the later one counts.

    Returns:
        The label map, uint8 or uint16, with the geometry of the first mask.

    Raises:
        UserError: a mask cannot be read, or its size differs from that of the first.
    """
    masks = list(masks)
    first = decode(masks[0][0])
    kind = np.uint8 if max(value for _, value in masks) < 256 else np.uint16
    label = np.zeros(first.GetSize()[::-1], dtype=kind)
    for path, value in masks:
        mask = sitk.GetArrayFromImage(decode(path))
        if mask.shape != label.shape:
            raise UserError(f"{path}: its size {mask.shape} differs from {label.shape}, that of {masks[0][0].name}.")
        label[mask != 0] = value
    return _like(label, first)


def _like(array: np.ndarray, image: sitk.Image) -> sitk.Image:
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label
