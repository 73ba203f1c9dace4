"""A generated dataset whose labels depend on landmarks that are far away, as a test of whether a network mixes.

Each image has two rows. A row has a landmark, bright or dark, and behind it along the last axis, at a fixed distance,
a marker; all markers look the same. The label of a marker says which landmark its row has. One row has the bright
landmark and the other one the dark one, so that mean, variance and every other statistic of the whole image, which
InstanceNorm would carry everywhere, tells nothing. For the same reason, rows begin at the same column and are a
multiple of 8 voxels apart, so that both fall on the same places of the network's coarser grids. Rows are at least as
far apart as a marker from its landmark, and half as far from the borders along both axes. So a network whose
convolutions reach less than half the distance can only guess.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.declared import dataset_json
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.datasets.phantom import PHANTOM_LICENCE, write_once
from umamba.datasets.phantom_2d import write_picture
from umamba.io import UserError, write_image, write_json

BACKGROUND, NOISE = 100, 2  # grey value of the background and standard deviation of its noise
MARKER, LANDMARKS = 150, (220, 10)  # grey values
CLASSES = ("after bright", "after dark")
_EDGE = 2  # voxels of an object along the last two axes
_GRID = 8  # rows are a multiple of so many voxels apart


def planted_case(rng: np.random.Generator, size: Sequence[int], distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its labels.

    Args:
        rng: the generator.
        size: (Z, Y, X) or (Y, X) in voxels.
        distance: voxels between a landmark and its marker along the last axis, from 3 on.

    Returns:
        The image, uint8, and its labels, uint8: 0 is background; 1 and 2 are markers behind a bright and a dark
        landmark.

    Raises:
        UserError: the size does not hold two rows of this distance.
    """
    least, apart = smallest_edge(distance), _between_rows(distance)
    if distance <= _EDGE or len(size) not in (2, 3) or min(size[-2:]) < least:
        raise UserError(
            f"planted: size={list(size)} and distance={distance}: the last two axes need at least {least} voxels, and "
            f"the distance must be more than {_EDGE}."
        )
    image = BACKGROUND + NOISE * rng.standard_normal(size)
    label = np.zeros(size, dtype=np.uint8)
    height, width = size[-2:]
    margin = distance // 2
    above = int(rng.integers(margin, height - margin - apart - _EDGE + 1))
    start = int(rng.integers(margin, width - margin - distance - _EDGE + 1))
    depth = int(rng.integers(size[0])) if len(size) == 3 else 0
    kinds = rng.permutation(2)
    for row, kind in zip((above, above + apart), kinds, strict=True):
        for first, value in ((start, LANDMARKS[kind]), (start + distance, MARKER)):
            voxels = (depth,) * (len(size) - 2) + (slice(row, row + _EDGE), slice(first, first + _EDGE))
            image[voxels] = value
            if value == MARKER:
                label[voxels] = 1 + kind
    return np.clip(np.round(image), 0, 255).astype(np.uint8), label


def smallest_edge(distance: int) -> int:
    """Return the smallest edge of an image, in voxels, that holds two rows of this distance."""
    return 2 * (distance // 2) + _between_rows(distance) + _EDGE


def _between_rows(distance: int) -> int:
    return -(-distance // _GRID) * _GRID


def write_planted(
    root: Path, *, num_training: int, num_test: int, seed: int, size: Sequence[int], distance: int
) -> Path:
    """Write the dataset in nnU-Net's raw layout, unless one with the same arguments exists.

    Args:
        root: the dataset's folder, which appears complete or not at all.
        num_training: number of training images, at least 1.
        num_test: number of test images, which have labels (labelsTs).
        seed: seed of all images; image k depends only on the seed, k, the size and the distance.
        size: (Z, Y, X) in voxels of 1 mm, or (Y, X) in pixels.
        distance: see `planted_case`.

    Returns:
        `root`.

    Raises:
        UserError: `root` holds something else, or an argument is out of range.
    """
    if num_training < 1 or num_test < 0:
        raise UserError("planted: num_training must be at least 1, and num_test at least 0.")
    planted_case(np.random.default_rng(seed), size, distance)  # refuse a wrong size before a folder is made
    made_with = {
        "scene": "planted",
        "num_training": num_training,
        "num_test": num_test,
        "seed": seed,
        "size": list(size),
        "distance": distance,
    }
    write = partial(_write, counts=(num_training, num_test), seed=seed, size=size, distance=distance, made=made_with)
    return write_once(Path(root), made_with, write)


def _write(
    folder: Path, counts: tuple[int, int], seed: int, size: Sequence[int], distance: int, made: dict[str, object]
) -> None:
    ending = ".png" if len(size) == 2 else ".nii.gz"
    for split in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if counts[1] else ())):
        (folder / split).mkdir()
    for index in range(sum(counts)):
        split, name = ("Tr" if index < counts[0] else "Ts"), f"planted_{index:03d}"
        image, label = planted_case(np.random.default_rng([seed, index]), size, distance)
        for path, array in (
            (folder / f"images{split}" / f"{name}{FIRST_CHANNEL}{ending}", image),
            (folder / f"labels{split}" / f"{name}{ending}", label),
        ):
            if len(size) == 2:
                write_picture(path, array)
            else:
                write_image(path, sitk.GetImageFromArray(array))
    content = dataset_json(
        ("grey",),
        CLASSES,
        counts[0],
        ending,
        description=f"Markers whose label is {distance} voxels away; no patient data.",
        licence=PHANTOM_LICENCE,
        phantom=made,
    )
    write_json(folder / "dataset.json", content)
