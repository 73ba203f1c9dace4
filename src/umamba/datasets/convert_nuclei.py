"""Convert the nuclei of the 2018 Data Science Bowl (BBBC038): a mask for each nucleus becomes numbered instances.

stage1_train/ID/images/ID.png         RGB with alpha
stage1_train/ID/masks/*.png           one nucleus each
stage1_test/ID/images/ID.png
stage1_solution.csv                   ImageId, EncodedPixels (runs down the columns, from pixel 1 on), Height, Width
"""

import re
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.convert_cell import CELL, numbered
from umamba.datasets.convert_common import Converter, SourceCase
from umamba.io import UserError
from umamba.io.decode import decode
from umamba.io.rows import read_columns
from umamba.labels.instance_maps import interior_and_boundary

_TRAINING, _TEST, _SOLUTION = "stage1_train", "stage1_test", "stage1_solution.csv"
_COLUMNS = ("ImageId", "EncodedPixels", "Height", "Width")
_NUMBER = re.compile(r"[0-9]{1,9}")
Runs = dict[str, list[tuple[str, int, int]]]


def nuclei(source: Path) -> Converter:
    """Return the converter of BBBC038.

    Args:
        source: folder of the unpacked archives. The test pictures are converted if stage1_solution.csv is there.

    Raises:
        UserError: the solution cannot be read.
    """
    solutions = tuple(sorted(source.rglob(_SOLUTION))[:1])
    runs = _read_solution(solutions[0]) if solutions else {}
    return replace(
        CELL,
        folder="Dataset703_Nuclei",
        published=None,
        source="bbbc.broadinstitute.org/BBBC038 (stage1_train, stage1_test, stage1_solution.csv)",
        licence="CC0",
        made_with={"archive": "nuclei"},
        find=partial(find_nuclei, runs=runs, solutions=solutions),
        read_label=lambda paths: _classes(read_nuclei(paths, runs)),
        read_instances=lambda paths: numbered(read_nuclei(paths, runs)),
    )


def find_nuclei(source: Path, runs: Runs, solutions: tuple[Path, ...]) -> list[SourceCase]:
    """List the pictures.

    Args:
        source: folder of the unpacked archives; its subfolders are searched, too.
        runs: the solution of the test pictures; those without one are left out.
        solutions: the file of the solution, which the labels of the test pictures are made from; none if there is none.
    """
    cases = []
    for image in sorted(source.rglob(f"{_TRAINING}/*/images/*.png")):
        masks = tuple(sorted(image.parent.with_name("masks").glob("*.png")))
        cases.append(SourceCase(image.stem, "Tr", (image,), masks))
    for image in sorted(source.rglob(f"{_TEST}/*/images/*.png")):
        if image.stem in runs:
            cases.append(SourceCase(image.stem, "Ts", (image,), (image, *solutions)))
    return cases


def read_nuclei(paths: tuple[Path, ...], runs: Runs) -> np.ndarray:
    """Return the numbered nuclei of a picture.

    Args:
        paths: the mask of each nucleus; or, for a test picture, itself and the file of the solution.
        runs: the solution of the test pictures.

    Returns:
        (Y, X), 0 is background. Of two nuclei at one pixel the later one counts.

    Raises:
        UserError: a mask cannot be read or has another size.
    """
    if paths[0].parent.name == "images":
        return decoded_runs(paths[0].stem, runs[paths[0].stem])
    instances: np.ndarray | None = None
    for number, path in enumerate(paths, start=1):
        mask = sitk.GetArrayFromImage(decode(path))
        mask = mask[..., 0] if mask.ndim == 3 else mask
        if instances is None:
            instances = np.zeros(mask.shape, dtype=np.int64)
        if mask.shape != instances.shape:
            raise UserError(f"{path}: its size {mask.shape} differs from {instances.shape}, that of {paths[0].name}.")
        instances[mask != 0] = number
    assert instances is not None
    return instances


def decoded_runs(name: str, rows: list[tuple[str, int, int]]) -> np.ndarray:
    """Return numbered nuclei from runs of pixels.

    Args:
        name: the picture, for the message.
        rows: for each nucleus its runs ("first length first length ..."), and the picture's height and width. Pixels
            are numbered down the columns, from 1 on.

    Raises:
        UserError: a run lies outside the picture.

    >>> decoded_runs("a", [("1 2 6 1", 3, 2), ("3 1", 3, 2)]).tolist()
    [[1, 0], [1, 0], [2, 1]]
    """
    _, height, width = rows[0]
    flat = np.zeros(height * width, dtype=np.int64)
    for number, (text, *_) in enumerate(rows, start=1):
        pixels = [int(word) for word in text.split()]
        for first, length in zip(pixels[::2], pixels[1::2], strict=True):
            if first < 1 or length < 0 or first - 1 + length > flat.size:
                raise UserError(f"{_SOLUTION}: the run {first} {length} is outside picture {name} ({height}x{width}).")
            flat[first - 1 : first - 1 + length] = number
    return flat.reshape(width, height).T


def _classes(instances: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(interior_and_boundary(instances))


def _read_solution(path: Path) -> Runs:
    runs: Runs = defaultdict(list)
    remedy = "Get the file again."
    for line, (name, pixels, height, width) in read_columns(path, _COLUMNS, remedy=remedy):
        words = pixels.split()
        if len(words) % 2 or not all(_NUMBER.fullmatch(word) for word in (*words, height, width)):
            raise UserError(f"{path}: line {line} has no pairs of pixel numbers with height and width. {remedy}")
        runs[name].append((pixels, int(height), int(width)))
    return dict(runs)
