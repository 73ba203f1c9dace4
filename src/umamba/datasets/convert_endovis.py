"""Convert EndoVis 2017, frames of surgical videos, to seven instrument types (paper, section 3.1).

A training sequence has a folder of masks for each instrument (ground_truth), a test sequence one mask of types
(gt/TypeSegmentation). The official test frames of sequences 1 to 8 continue the videos of the training frames. Training
and testing on the same videos is refused unless the user asks for it.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.convert_common import Converter, SourceCase
from umamba.datasets.phantom_2d import INSTRUMENTS
from umamba.io import UserError
from umamba.io.decode import decode

# A part of the mask folders' names, and the value of the instrument type (the challenge's numbers).
_TYPES = (
    *(("bipolar", 1), ("prograsp", 2), ("needle_driver", 3), ("vessel_sealer", 4), ("grasping_retractor", 5)),
    *(("scissors", 6), ("other", 7)),
)
_SEQUENCE = re.compile(r"instrument_dataset_(\d+)$")
# The camera's picture inside the recorded frame: x, y, width, height in pixels.
_CAMERA = (320, 28, 1280, 1024)
VIDEOS = ("separate", "official", "new")


def find_frames(source: Path, videos: str) -> list[SourceCase]:
    """List the frames of the left camera; sequences with ground_truth are for training, the others for test.

    Args:
        source: folder of the archives; its subfolders are searched, too.
        videos: how to treat a video that is in training and test, see `endovis`.

    Raises:
        UserError: a video is in training and test, and `videos` does not allow it.
    """
    cases = []
    numbers: dict[str, dict[int, list[str]]] = {"Tr": {}, "Ts": {}}
    for sequence in sorted(path for path in source.rglob("instrument_dataset_*") if _SEQUENCE.search(path.name)):
        match = _SEQUENCE.search(sequence.name)
        assert match is not None
        masks = sorted(path for path in (sequence / "ground_truth").glob("*") if path.is_dir())
        types = sequence / "gt" / "TypeSegmentation"
        for frame in sorted((sequence / "left_frames").glob("frame*.png")):
            name = f"seq{int(match[1]):02d}_{frame.stem}"
            numbers["Tr" if masks else "Ts"].setdefault(int(match[1]), []).append(frame.stem)
            if masks:
                own = tuple(folder / frame.name for folder in masks if (folder / frame.name).exists())
                cases.append(SourceCase(name, "Tr", (frame,), own))
            else:
                label = types / frame.name
                cases.append(SourceCase(name, "Ts", (frame,), (label,) if label.exists() else ()))
    shared = sorted(set(numbers["Tr"]) & set(numbers["Ts"]))
    if videos == "new":
        left_out = tuple(f"seq{number:02d}_" for number in shared)
        return [case for case in cases if case.split == "Tr" or not case.case_id.startswith(left_out)]
    if shared and videos == "separate":
        raise UserError(
            f"source={source}: the videos {', '.join(map(str, shared))} are in training and test. That is the "
            "challenge's own split, which the paper used: pass videos=official to keep it, or videos=new to test only "
            "on the frames of other videos."
        )
    mixed = [number for number in shared if min(numbers["Ts"][number]) <= max(numbers["Tr"][number])]
    if mixed:
        raise UserError(
            f"source={source}: test frames of the videos {', '.join(map(str, mixed))} lie among their training frames; "
            "in the challenge's split they come after them. Remove them from training or test."
        )
    return cases


def instrument_type(folder: str) -> int:
    """Return the value of the instrument type that a mask folder's name contains.

    Args:
        folder: name of the folder, such as "Left_Prograsp_Forceps_labels".

    Raises:
        UserError: the name contains no known type.

    Example:
        >>> instrument_type("Left_Prograsp_Forceps_labels")
        2
    """
    for text, value in _TYPES:
        if text in folder.lower():
            return value
    known = ", ".join(text for text, _ in _TYPES)
    raise UserError(f"ground_truth/{folder}: names no instrument type. Rename it so that it contains one of {known}.")


def read_frame(path: Path, crop: bool) -> sitk.Image:
    """Read a frame.

    Args:
        path: the file.
        crop: return only the camera's picture.

    Raises:
        UserError: the file cannot be decoded, or is too small to crop.
    """
    return _cropped(decode(path), crop)


def read_types(paths: tuple[Path, ...], crop: bool) -> sitk.Image:
    """Read the instrument types of a frame.

    Args:
        paths: one mask per instrument, or one mask of types.
        crop: return only the camera's picture.

    Returns:
        The types, uint8: 0 is background, 1 to 7 are instruments.

    Raises:
        UserError: a file cannot be decoded or is too small to crop, or a folder names no instrument type.
    """
    if paths[0].parent.name == "TypeSegmentation":
        return _cropped(sitk.Cast(decode(paths[0]), sitk.sitkUInt8), crop)
    masks = [sitk.GetArrayFromImage(decode(path)) for path in paths]
    masks = [mask.max(axis=-1) if mask.ndim == 3 else mask for mask in masks]
    types = np.zeros(masks[0].shape, dtype=np.uint8)
    for path, mask in zip(paths, masks, strict=True):
        types[mask > 0] = instrument_type(path.parent.name)
    return _cropped(sitk.GetImageFromArray(types), crop)


def _cropped(image: sitk.Image, crop: bool) -> sitk.Image:
    if not crop:
        return image
    x, y, width, height = _CAMERA
    if image.GetWidth() < x + width or image.GetHeight() < y + height:
        raise UserError(
            f"crop=true: a frame of {image.GetSize()} pixels is too small for the camera's picture. Use crop=false."
        )
    return image[x : x + width, y : y + height]


def endovis(crop: bool, videos: str) -> Converter:
    """Return the converter of EndoVis 2017.

    Args:
        crop: keep only the camera's picture of 1280x1024 pixels. The plan of the paper's Table 2 needs whole frames.
        videos: how to treat a video that is in training and test. "separate" refuses it. "official" keeps its test
            frames if they come after its training frames, as in the challenge's split and the paper. "new" omits its
            test frames.

    Raises:
        UserError: `videos` is unknown.
    """
    if videos not in VIDEOS:
        raise UserError(f"videos={videos} is unknown. Choose one of {', '.join(VIDEOS)}.")
    return Converter(
        folder="Dataset704_Endovis17",
        channel_names=("R", "G", "B"),
        labels=INSTRUMENTS,
        file_ending=".png",
        published=(1800, 1200),
        source="endovissub2017-roboticinstrumentsegmentation.grand-challenge.org",
        licence="see endovissub2017-roboticinstrumentsegmentation.grand-challenge.org",
        made_with={"archive": "endovis", "crop": crop},
        find=partial(find_frames, videos=videos),
        read_image=partial(read_frame, crop=crop),
        read_label=partial(read_types, crop=crop),
    )
