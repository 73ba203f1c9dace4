"""Write synthetic 2D datasets in nnU-Net's raw layout: surgical instruments in endoscopy, and cells in microscopy.

Images are RGB. An instrument is a rod from the edge of the frame over reddish tissue with highlights; the colour and
length of its head show its type. Cells are ellipses on a dark background, labelled as interior and boundary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from umamba.datasets.declared import dataset_json
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.datasets.phantom import PHANTOM_LICENCE, write_once
from umamba.io import UserError, write_image, write_json
from umamba.labels.instance_maps import interior_and_boundary

INSTRUMENTS = (
    "bipolar forceps",
    "prograsp forceps",
    "large needle driver",
    "vessel sealer",
    "grasping retractor",
    "monopolar curved scissors",
    "ultrasound probe",
)
CELL_CLASSES = ("interior", "boundary")
# Colour (RGB) of each type's head. All shafts have one colour.
_HEADS = (
    (210, 190, 90),
    (120, 170, 220),
    (235, 235, 235),
    (90, 200, 120),
    (200, 110, 210),
    (70, 90, 200),
    (40, 40, 40),
)
_TISSUE = np.array((168, 72, 60), dtype=np.float32)

LabelledPicture = tuple[np.ndarray, np.ndarray]


def endoscopy_frame(rng: np.random.Generator, size: tuple[int, int]) -> LabelledPicture:
    """Draw a frame with one to three instruments.

    Args:
        rng: the generator.
        size: (Y, X) in pixels.

    Returns:
        The frame (Y, X, 3) uint8, and its instrument types (Y, X) uint8: 0 is background, 1 to 7 are instruments.
    """
    texture = np.stack([gaussian_filter(rng.standard_normal(size), sigma) for sigma in (2.0, 8.0)])
    texture /= texture.std(axis=(1, 2), keepdims=True)
    image = _TISSUE * (1 + 0.08 * texture[0] + 0.12 * texture[1])[..., None]
    image[texture[1] > 2.2] += 70
    label = np.zeros(size, dtype=np.uint8)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    for kind in rng.choice(len(INSTRUMENTS), size=rng.integers(1, 4), replace=False):
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array((np.sin(angle), np.cos(angle)))
        tip = np.array(size) * rng.uniform(0.3, 0.7, 2)
        along = (y - tip[0]) * direction[0] + (x - tip[1]) * direction[1]
        across = np.abs((x - tip[1]) * direction[0] - (y - tip[0]) * direction[1])
        width = min(size) * rng.uniform(0.05, 0.09)
        head_length = width * (2.0 + 0.4 * kind)
        rod = (along > 0) & (across < width * np.clip(0.35 + along / head_length, 0, 1))
        head = rod & (along < head_length)
        shade = (1.1 - 0.5 * (across / width) ** 2)[..., None]
        image = np.where(rod[..., None], np.array((75, 75, 80)) * shade, image)
        image = np.where(head[..., None], np.array(_HEADS[kind]) * shade, image)
        label[rod] = kind + 1
    image += 4 * rng.standard_normal(image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def cell_instances(rng: np.random.Generator, size: tuple[int, int]) -> LabelledPicture:
    """Draw an image of cells.

    Args:
        rng: the generator.
        size: (Y, X) in pixels.

    Returns:
        The image (Y, X, 3) uint8, and its numbered cells (Y, X) uint16; 0 is background.
    """
    instances = np.zeros(size, dtype=np.uint16)
    brightness = np.full(size, 0.12, dtype=np.float32)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    for _ in range(int(size[0] * size[1] / 900)):
        centre = rng.uniform(0, 1, 2) * size
        angle, radii = rng.uniform(0, np.pi), rng.uniform(7, 14, 2)
        along = (y - centre[0]) * np.sin(angle) + (x - centre[1]) * np.cos(angle)
        across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
        distance = (along / radii[0]) ** 2 + (across / radii[1]) ** 2
        cell = distance < 1
        if (instances[cell] > 0).any():
            continue  # cells may touch, but not overlap
        instances[cell] = instances.max() + 1
        brightness[cell] = 0.45 + 0.35 * distance[cell] + rng.uniform(-0.1, 0.1)
    tint = rng.uniform(0.4, 1.0, 3)
    grey = gaussian_filter(brightness, 0.7) + 0.03 * rng.standard_normal(size)
    return np.clip(255 * grey[..., None] * tint, 0, 255).astype(np.uint8), instances


def cell_image(rng: np.random.Generator, size: tuple[int, int]) -> LabelledPicture:
    """Draw an image of cells with its classes.

    Args:
        rng: the generator.
        size: (Y, X) in pixels.

    Returns:
        The image (Y, X, 3) uint8, and its classes (Y, X) uint8: background, interior, boundary.
    """
    image, instances = cell_instances(rng, size)
    return image, interior_and_boundary(instances)


SCENES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], LabelledPicture], tuple[str, ...]]] = {
    "endoscopy": (endoscopy_frame, INSTRUMENTS),
    "cells": (cell_image, CELL_CLASSES),
}


def write_phantom_2d(
    root: Path, *, scene: str, num_training: int, num_test: int, seed: int, size: tuple[int, int] = (96, 128)
) -> Path:
    """Write a 2D phantom of PNG files as a dataset, unless a phantom with the same arguments exists.

    Args:
        root: the dataset's folder, which appears complete or not at all.
        scene: endoscopy or cells.
        num_training: number of training images, at least 1.
        num_test: number of test images, which have labels (labelsTs).
        seed: seed of all images; image k depends only on the seed, k and the size.
        size: (Y, X) in pixels, each at least 32.

    Returns:
        `root`.

    Raises:
        UserError: `root` holds something else, the scene is unknown, or a number is out of range.
    """
    if scene not in SCENES:
        raise UserError(f"dataset.phantom.scene={scene} is unknown. Choose abdomen, {' or '.join(SCENES)}.")
    if num_training < 1 or num_test < 0 or min(size) < 32:
        raise UserError("phantom: num_training must be at least 1, num_test at least 0, and size at least 32.")
    made_with = {
        "scene": scene,
        "num_training": num_training,
        "num_test": num_test,
        "seed": seed,
        "size": list(size),
    }
    return write_once(Path(root), made_with, partial(_write, made_with=made_with))


def _write(folder: Path, made_with: dict[str, object]) -> None:
    draw, names = SCENES[str(made_with["scene"])]
    num_training, num_test, seed, size = (made_with[key] for key in ("num_training", "num_test", "seed", "size"))
    assert isinstance(num_training, int)
    assert isinstance(num_test, int)
    assert isinstance(seed, int)
    assert isinstance(size, list)
    for split in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if num_test else ())):
        (folder / split).mkdir()
    for index in range(num_training + num_test):
        split, name = ("Tr" if index < num_training else "Ts"), f"phantom_{index:03d}"
        image, label = draw(np.random.default_rng([seed, index]), (size[0], size[1]))
        write_picture(folder / f"images{split}" / f"{name}{FIRST_CHANNEL}.png", image)
        write_picture(folder / f"labels{split}" / f"{name}.png", label)
    content = dataset_json(
        ("R", "G", "B"),
        names,
        num_training,
        ".png",
        description=f"Synthetic {made_with['scene']} pictures; no patient data.",
        licence=PHANTOM_LICENCE,
        phantom=made_with,
    )
    write_json(folder / "dataset.json", content)


def write_picture(path: Path, array: np.ndarray) -> None:
    """Write a picture.

    Args:
        path: the file; its ending chooses the format.
        array: RGB (Y, X, 3) or grey (Y, X).
    """
    write_image(path, sitk.GetImageFromArray(array, isVector=array.ndim == 3))
