"""Write the phantoms in the layout of the four public archives: with their folders, names, formats and label values.

A smoke run (smoke=true) starts from such an archive, so that it takes the same steps as a run on a downloaded one.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.anatomy import PHANTOM_ORGANS
from umamba.datasets.archives import ARCHIVES, converter_of
from umamba.datasets.convert_abdomen import AMOS_VALUES
from umamba.datasets.convert_common import ORGANS, convert
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.datasets.phantom import PHANTOM_LICENCE, phantom_case, write_once
from umamba.datasets.phantom_2d import cell_instances, endoscopy_frame, write_picture
from umamba.io import UserError, make_folder, write_image, write_json

_VOXEL_MM = 6.0
_PICTURE = (96, 128)
_HU_OF_AIR = 1024
# Names of the mask folders in EndoVis's training sequences, for the types 1 to 7.
_MASKS = (
    *("Maryland_Bipolar_Forceps_labels", "Left_Prograsp_Forceps_labels", "Large_Needle_Driver_Right_labels"),
    *("Right_Vessel_Sealer_labels", "Grasping_Retractor_labels", "Monopolar_Curved_Scissors_labels", "Other_labels"),
)
_NEW_VIDEO = 9
_SHAFT = 20  # value of the shaft in EndoVis's masks, which number the parts of an instrument
# Format, dtype and channels of the microscopy images; image k has those of entry k modulo 5.
_MICROSCOPES = (
    *(("bmp", np.uint8, 3), ("tiff", np.uint16, 1), ("png", np.uint16, 3)),
    *(("tif", np.uint8, 1), ("png", np.uint8, 3)),
)


def converted_phantom(root: Path, *, archive: str, num_training: int, num_test: int, seed: int, workers: int) -> Path:
    """Write the phantom of an archive, unless it exists, and convert it to a dataset.

    Args:
        root: the dataset's folder. The archive is written beside it, to archives/<name of root>.
        archive: flare, amos, endovis or cell.
        num_training: number of training cases, at least 2.
        num_test: number of test cases.
        seed: seed of all cases; case k depends only on the seed and k.
        workers: threads of the conversion.

    Returns:
        `root`.

    Raises:
        UserError: the archive is unknown, a number is out of range, or the folder of the archive holds something else.
    """
    if archive not in ARCHIVES:
        raise UserError(f"dataset.phantom.archive={archive} is unknown. Choose one of {', '.join(ARCHIVES)}.")
    if num_training < 2 or num_test < 0:
        raise UserError("phantom: num_training must be at least 2, and num_test at least 0.")
    root = Path(root)
    source = root.parent / "archives" / root.name
    made_with = {"archive": archive, "num_training": num_training, "num_test": num_test, "seed": seed}

    def write(folder: Path) -> None:
        WRITERS[archive](folder, num_training, num_test, seed)
        facts = {"description": f"Phantom in the layout of {archive}.", "licence": PHANTOM_LICENCE}
        write_json(folder / "dataset.json", {**facts, "phantom": made_with})

    make_folder(source.parent)
    write_once(source, made_with, write)
    if (root / "dataset.json").exists():
        return root
    return convert(replace(converter_of(archive, videos="official"), folder=root.name), source, root.parent, workers)


def _write_flare(folder: Path, num_training: int, num_test: int, seed: int) -> None:
    """Write CT cases in the layout of FLARE22: images NAME_0000.nii.gz, labels NAME.nii.gz, 13 organs."""
    for index in range(num_training + num_test):
        training = index < num_training
        part = folder / ("FLARE22Train" if training else "Testing")
        name = f"FLARE22_Tr_{index + 1:04d}" if training else f"FLARETs_{index - num_training + 1:04d}"
        image, label = _abdomen(seed, index)
        write_image(part / "images" / f"{name}{FIRST_CHANNEL}.nii.gz", image)
        write_image(part / "labels" / f"{name}.nii.gz", label)


def _write_amos(folder: Path, num_training: int, num_test: int, seed: int) -> None:
    """Write MR cases in the layout of AMOS22 (the last in its validation part), and the authors' test cases."""
    to_amos = np.array((0, *AMOS_VALUES), dtype=np.uint8)
    for index in range(num_training + num_test):
        image, label = _abdomen(seed, index)
        image = sitk.Cast(sitk.Clamp(image, lowerBound=-_HU_OF_AIR) + _HU_OF_AIR, sitk.sitkUInt16)
        if index < num_training:
            split, name = "Tr" if index < num_training - 1 else "Va", f"amos_{507 + index:04d}.nii.gz"
            values = sitk.GetImageFromArray(to_amos[sitk.GetArrayFromImage(label)])
            values.CopyInformation(label)
            write_image(folder / "amos22" / f"images{split}" / name, image)
            write_image(folder / "amos22" / f"labels{split}" / name, values)
        else:
            own, name = folder / "Dataset702_AbdomenMR", f"mr_{index - num_training + 1:04d}"
            write_image(own / "imagesTs" / f"{name}{FIRST_CHANNEL}.nii.gz", image)
            write_image(own / "labelsTs" / f"{name}.nii.gz", label)


def _write_endovis(folder: Path, num_training: int, num_test: int, seed: int) -> None:
    """Write frames in the layout of EndoVis 2017: two training videos; for test, the end of the first and a new one."""
    first = num_training // 2
    continued = num_test // 2
    sequences = (
        ("instrument_1_4_training", 1, 0, first),
        ("instrument_1_4_training", 2, 0, num_training - first),
        ("instrument_2017_test", 1, first, continued),
        ("instrument_2017_test", _NEW_VIDEO, 0, num_test - continued),
    )
    index = 0
    for part, sequence, begin, count in sequences:
        own = folder / part / f"instrument_dataset_{sequence}"
        for frame in range(begin, begin + count):
            image, types = endoscopy_frame(np.random.default_rng([seed, index]), _PICTURE)
            index += 1
            name = f"frame{frame:03d}.png"
            write_picture(own / "left_frames" / name, image)
            if part.endswith("test"):
                write_picture(own / "gt" / "TypeSegmentation" / name, types)
                continue
            for kind, masks in enumerate(_MASKS, start=1):
                write_picture(own / "ground_truth" / masks / name, np.where(types == kind, _SHAFT, 0).astype(np.uint8))


def _write_cell(folder: Path, num_training: int, num_test: int, seed: int) -> None:
    """Write microscopy images with numbered cells in the layout and formats of the NeurIPS 2022 challenge."""
    for index in range(num_training + num_test):
        ending, dtype, channels = _MICROSCOPES[index % len(_MICROSCOPES)]
        image, cells = cell_instances(np.random.default_rng([seed, index]), _PICTURE)
        wide = image if dtype is np.uint8 else image.astype(np.uint16) * 200
        part = folder / ("Training-labeled" if index < num_training else "Tuning")
        write_picture(part / "images" / f"cell_{index:05d}.{ending}", wide if channels == 3 else wide[..., 0])
        write_picture(part / "labels" / f"cell_{index:05d}_label.tiff", cells)


# Each writes the archive into a folder: (folder, num_training, num_test, seed).
WRITERS: dict[str, Callable[[Path, int, int, int], None]] = {
    "flare": _write_flare,
    "amos": _write_amos,
    "endovis": _write_endovis,
    "cell": _write_cell,
}


def _abdomen(seed: int, index: int) -> tuple[sitk.Image, sitk.Image]:
    """Return the image (HU) of a case, and its label map with the values of the paper's 13 organs."""
    case = phantom_case(seed, index, _VOXEL_MM)
    values = np.array((0, *(1 + ORGANS.index(name) for name in PHANTOM_ORGANS)), dtype=np.uint8)
    return case.on_grid(case.image), case.on_grid(values[case.label])
