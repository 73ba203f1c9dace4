"""Write a synthetic, CT-like abdomen dataset in nnU-Net's raw layout, so that everything runs without a download.

Cases differ in anatomy, pose, contrast, field of view, spacing and direction. A voxel's intensity is the mean over its
volume (partial volume effect); its label is the organ that fills more than half of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from umamba.datasets.anatomy import PHANTOM_ORGANS, Patient, draw_patient, layers
from umamba.datasets.declared import dataset_json
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.datasets.shapes import Grid
from umamba.io import UserError, atomic_directory, exclusive, read_json, remove_stale, write_image, write_json

PHANTOM_LICENCE = "synthetic, CC0"
_SUBSLICES = 3
_FIELD_MM = (160.0, 262.0, 318.0)
_DIRECTIONS = ((1, 1, 1), (-1, -1, 1), (1, 1, -1), (1, 1, 1), (-1, 1, 1), (1, 1, 1))

VOXEL_MM = 3.5  # edge of a voxel where none is asked for, mm


@dataclass(frozen=True)
class PhantomCase:
    """One case of the phantom.

    Attributes:
        image: (Z, Y, X) int16 in HU.
        label: (Z, Y, X) uint8.
        spacing_xyz: spacing in mm, in SimpleITK's order.
        origin_xyz: origin in mm, in SimpleITK's order.
        direction_xyz: direction cosines row by row, as SimpleITK has them.
    """

    image: np.ndarray
    label: np.ndarray
    spacing_xyz: tuple[float, ...]
    origin_xyz: tuple[float, ...]
    direction_xyz: tuple[float, ...]

    def on_grid(self, array: np.ndarray) -> sitk.Image:
        """Return a SimpleITK image with this case's geometry.

        Args:
            array: voxels (Z, Y, X).
        """
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing_xyz)
        image.SetOrigin(self.origin_xyz)
        image.SetDirection(self.direction_xyz)
        return image


def phantom_case(seed: int, index: int, voxel_mm: float = VOXEL_MM) -> PhantomCase:
    """Return a case of the phantom; equal arguments give equal cases.

    Args:
        seed: seed of the dataset.
        index: number of the case.
        voxel_mm: mean in-plane spacing in mm; the distance of slices is about 1.6 times as large.
    """
    rng = np.random.default_rng([seed, index])
    patient = draw_patient(rng)
    spacing = voxel_mm * rng.uniform((0.92, 0.92, 1.45), (1.08, 1.08, 1.75))
    spacing[1] = spacing[0]
    size = np.round(np.array(_FIELD_MM[::-1]) * rng.uniform(0.96, 1.04, 3) / spacing).astype(int)
    tilt = np.deg2rad(rng.uniform(-12, 12)) if index % 3 == 2 else 0.0
    gantry = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    direction = gantry @ np.diag(np.array(_DIRECTIONS[index % len(_DIRECTIONS)], dtype=float))
    centre = rng.uniform(-60, 60, 3)
    origin = centre - direction @ (spacing * (size - 1) / 2)

    to_world = direction * spacing
    pose = _rotation(np.deg2rad(rng.normal(0, (2.5, 2.5, 5)))) / rng.uniform(0.92, 1.04)
    matrix = pose @ to_world
    offset = pose @ (origin - centre - rng.normal(0, 5, 3))
    columns, rows, slices = (int(count) for count in size)
    image, label = _render(Grid(matrix, offset, (columns, rows, slices), _SUBSLICES, float(spacing[0])), patient)

    noise = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (0.3, 0.6, 0.6))
    texture = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (1.5, 3, 3))
    image += noise * (rng.uniform(14, 20) / noise.std()) + texture * (4 / texture.std())
    image = np.clip(np.round(image), -1024, 3071).astype(np.int16)
    return PhantomCase(image, label, tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist()))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the matrix of rotations by three angles (radians) around x, then y, then z."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        step = np.eye(3)
        first, second = (other for other in range(3) if other != axis)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        total = step @ total
    return total


def _render(grid: Grid, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """Paint the layers with edges as wide as a voxel and average the sub-slices; return image in HU and label."""
    image = np.full(grid.shape, -1000, dtype=np.float32)
    share = np.zeros((len(PHANTOM_ORGANS), *grid.shape), dtype=np.float32)
    painted: set[int] = set()
    for layer in layers(grid, patient):
        window = layer.shape.window
        cover = np.clip(0.5 - layer.shape.distance / grid.edge_mm, 0, 1)
        intensity = layer.intensity if isinstance(layer.intensity, np.ndarray) else np.float32(layer.intensity)
        image[window] += cover * (intensity - image[window])
        for organ in painted:
            share[organ - 1, *window] *= 1 - cover
        if layer.organ:
            share[layer.organ - 1, *window] += cover
            painted.add(layer.organ)
    columns, rows, slices = grid.size
    by_slice = slices, grid.subslices, rows, columns
    mean_share = share.reshape(len(PHANTOM_ORGANS), *by_slice).mean(axis=2)
    label = np.where(mean_share.max(axis=0) > 0.5, mean_share.argmax(axis=0) + 1, 0).astype(np.uint8)
    return image.reshape(by_slice).mean(axis=1), label


def write_phantom(root: Path, *, num_training: int, num_test: int, seed: int, voxel_mm: float = VOXEL_MM) -> Path:
    """Write the abdomen phantom as a dataset, unless a phantom with the same arguments exists.

    Several processes may call this at once: one writes while the others wait.

    Args:
        root: the dataset's folder, which appears complete or not at all.
        num_training: number of training cases, at least 1.
        num_test: number of test cases, which have labels (labelsTs).
        seed: seed of all cases; case k depends only on the seed, k and voxel_mm.
        voxel_mm: mean in-plane spacing in mm.

    Returns:
        `root`.

    Raises:
        UserError: `root` holds something else, or a number is out of range.
    """
    root = Path(root)
    if num_training < 1 or num_test < 0 or voxel_mm <= 0:
        raise UserError("phantom: num_training must be at least 1, num_test at least 0, and voxel_mm above 0.")
    made_with: dict[str, float] = {
        "num_training": num_training,
        "num_test": num_test,
        "seed": seed,
        "voxel_mm": voxel_mm,
    }

    def write(folder: Path) -> None:
        for index in range(num_training + num_test):
            split = "Tr" if index < num_training else "Ts"
            _write_case(folder, split, f"phantom_{index:03d}", phantom_case(seed, index, voxel_mm))
        content = dataset_json(
            ("CT",),
            PHANTOM_ORGANS,
            num_training,
            ".nii.gz",
            description="Synthetic CT-like abdomen; no patient data.",
            licence=PHANTOM_LICENCE,
            phantom=made_with,
        )
        write_json(folder / "dataset.json", content)

    return write_once(root, made_with, write)


def write_once(root: Path, made_with: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Write a phantom atomically, unless a phantom with the same arguments exists.

    Several processes may call this at once: one writes while the others wait.

    Args:
        root: the dataset's folder.
        made_with: the phantom's arguments, to compare with those of an existing phantom.
        write: fills a folder, which is then renamed to `root`. Its dataset.json must hold `made_with` as "phantom".

    Returns:
        `root`.

    Raises:
        UserError: `root` holds something else.
    """
    if _holds(root, made_with):
        return root
    with exclusive(root.parent / f".{root.name}.lock", f"the phantom {root.name}"):
        if _holds(root, made_with):
            return root
        if root.exists():
            raise UserError(
                f"{root}: holds another dataset, or a phantom made with other settings. Move it or rename this one."
            )
        remove_stale(root.parent, root.name)
        with atomic_directory(root) as folder:
            write(folder)
    return root


def _holds(root: Path, made_with: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the phantom with these arguments."""
    path = root / "dataset.json"
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and content.get("phantom") == made_with


def _write_case(folder: Path, split: str, case_id: str, case: PhantomCase) -> None:
    for kind, suffix, array in (("images", FIRST_CHANNEL, case.image), ("labels", "", case.label)):
        write_image(folder / f"{kind}{split}" / f"{case_id}{suffix}.nii.gz", case.on_grid(array))
