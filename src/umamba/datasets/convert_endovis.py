"""EndoVis 2017: frames of surgical videos with a mask for each instrument, to seven instrument types (section 3.1).

Training sequences have a folder of masks for each instrument (ground_truth), test sequences one mask of types
(gt/TypeSegmentation). The official test frames of sequences 1 to 8 go on where their training frames end: the same
videos, other frames. That is refused unless it is asked for.
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

# What the names of mask folders contain, and the type's value (the challenge's own numbers).
_TYPES = (
    *(("bipolar", 1), ("prograsp", 2), ("needle_driver", 3), ("vessel_sealer", 4), ("grasping_retractor", 5)),
    *(("scissors", 6), ("other", 7)),
)
_SEQUENCE = re.compile(r"instrument_dataset_(\d+)$")
# The camera's picture inside the recorded frame: x, y, width, height.
_CAMERA = (320, 28, 1280, 1024)


VIDEOS = ("separate", "official", "new")


def find(source: Path, videos: str) -> list[SourceCase]:
    """List the left camera's frames of all sequences below a folder; those with ground_truth train, the others test.

    Raises:
        UserError: a video stands in training and test, and `videos` does not allow it (see `endovis`).
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
                cases.append(SourceCase(name, "Tr", frame, own))
            else:
                label = types / frame.name
                cases.append(SourceCase(name, "Ts", frame, (label,) if label.exists() else ()))
    shared = sorted(set(numbers["Tr"]) & set(numbers["Ts"]))
    if videos == "new":
        left_out = tuple(f"seq{number:02d}_" for number in shared)
        return [case for case in cases if case.split == "Tr" or not case.case_id.startswith(left_out)]
    if shared and videos == "separate":
        raise UserError(
            f"source={source}: the videos {', '.join(map(str, shared))} stand in training and test. That is the "
            "challenge's own split, which the paper used: say videos=official to keep it, or videos=new to test on the "
            "frames of other videos alone."
        )
    mixed = [number for number in shared if min(numbers["Ts"][number]) <= max(numbers["Tr"][number])]
    if mixed:
        raise UserError(
            f"source={source}: test frames of the videos {', '.join(map(str, mixed))} lie among their training frames; "
            "in the challenge's split they come after them. Take them out of one of the two."
        )
    return cases


def instrument_type(folder: str) -> int:
    """Return the type of a mask folder, such as Left_Prograsp_Forceps_labels.

    Raises:
        UserError: the name tells no type.
    """
    for text, value in _TYPES:
        if text in folder.lower():
            return value
    raise UserError(f"ground_truth/{folder}: tells no instrument type. Known are {', '.join(t for t, _ in _TYPES)}.")


def read_frame(path: Path, crop: bool) -> sitk.Image:
    """Read a frame, the whole or the camera's picture of it."""
    return _cropped(decode(path), crop)


def read_types(paths: tuple[Path, ...], crop: bool) -> sitk.Image:
    """Read the types (0 to 7) of a frame from its masks, one for each instrument, or from its one mask of types."""
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
    """Return the converter.

    Args:
        crop: keep the camera's 1280x1024 picture only; Table 2's plan needs whole frames.
        videos: what happens to a video that stands in training and test. `separate`: it is refused. `official`: its
            test frames stay, if they come after its training frames, as in the challenge's split and the paper.
            `new`: its test frames are left out.

    Raises:
        UserError: there is no such choice of videos.
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
        find=partial(find, videos=videos),
        read_image=partial(read_frame, crop=crop),
        read_label=partial(read_types, crop=crop),
    )
