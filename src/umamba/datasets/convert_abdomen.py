"""Convert the abdomen CT of FLARE22 and the abdomen MR of AMOS22 to the 13 organs of the paper (section 3.1)."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.datasets.convert_common import ORGANS, Converter, SourceCase, Split, by_name
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.io.decode import decode

_ENDING = ".nii.gz"
_IMAGE_ENDING = f"{FIRST_CHANNEL}{_ENDING}"
_FLARE_TRAINING = "FLARE22_Tr_"
# Values of the 13 organs in AMOS22, in the order of ORGANS. Its 14 is the bladder, its 15 the prostate or uterus.
AMOS_VALUES = (6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3)
_AMOS_NAME = re.compile(r"amos_(\d{4})\.nii\.gz$")
_AMOS_FIRST_MR = 500
_AUTHORS_LABELS = "labelsTs"  # AMOS22 publishes no labels of its imagesTs, so this folder is U-Mamba's authors'


def find_flare(source: Path) -> list[SourceCase]:
    """List the cases of FLARE22: images NAME_0000.nii.gz and labels NAME.nii.gz.

    FLARE22_Tr_* are the labelled training cases, other labelled images are test cases. Other images without a label
    are the challenge's unlabelled cases, which are not listed.

    Args:
        source: folder of the archive; its subfolders are searched, too.
    """
    files = [path for path in source.rglob(f"*{_ENDING}") if not path.name.startswith(".")]
    images = by_name((path for path in files if path.name.endswith(_IMAGE_ENDING)), _IMAGE_ENDING)
    labels = by_name((path for path in files if not path.name.endswith(_IMAGE_ENDING)), _ENDING)
    cases = []
    for name, image in images.items():
        training = name.startswith(_FLARE_TRAINING)
        if training or name in labels:
            own = (labels[name],) if name in labels else ()
            cases.append(SourceCase(name, "Tr" if training else "Ts", (image,), own))
    return cases


def find_amos(source: Path) -> list[SourceCase]:
    """List the MR cases of AMOS22, which have numbers from 500 on.

    As in the paper, imagesTr and imagesVa are the training cases. The paper's 50 test cases are not part of AMOS22:
    they are found if the folder that U-Mamba's authors published lies in the same source folder, with
    imagesTs/NAME_0000.nii.gz and labelsTs/NAME.nii.gz.

    Args:
        source: folder of the archive; its subfolders are searched, too.
    """
    cases = []
    for image in sorted(source.rglob(f"imagesTs/*{_IMAGE_ENDING}")):
        name = image.name.removesuffix(_IMAGE_ENDING)
        label = image.parent.with_name(_AUTHORS_LABELS) / f"{name}{_ENDING}"
        if label.exists():
            cases.append(SourceCase(name, "Ts", (image,), (label,)))
    for folder in ("Tr", "Va"):
        for image in sorted(source.rglob(f"images{folder}/amos_*{_ENDING}")):
            match = _AMOS_NAME.search(image.name)
            if match is None or int(match[1]) < _AMOS_FIRST_MR:
                continue
            label = image.parent.with_name(f"labels{folder}") / image.name
            split: Split = "Tr"
            cases.append(
                SourceCase(image.name.removesuffix(_ENDING), split, (image,), (label,) if label.exists() else ())
            )
    return cases


def read_organs(paths: tuple[Path, ...]) -> sitk.Image:
    """Read a label map whose values are those of the 13 organs already.

    Args:
        paths: one file.

    Returns:
        The label map, uint8.
    """
    return sitk.Cast(decode(paths[0]), sitk.sitkUInt8)


def read_amos_label(paths: tuple[Path, ...]) -> sitk.Image:
    """Read a label map of AMOS22 and convert its 15 values to those of the 13 organs.

    Args:
        paths: one file. A file of U-Mamba's authors (labelsTs) has the values of the 13 organs already.

    Returns:
        The label map, uint8; bladder and prostate or uterus are background.
    """
    if paths[0].parent.name == _AUTHORS_LABELS:
        return read_organs(paths)
    source = decode(paths[0])
    values = sitk.GetArrayFromImage(source).astype(np.int64)
    table = np.zeros(max(16, int(values.max(initial=0)) + 1), dtype=np.uint8)
    for organ, value in enumerate(AMOS_VALUES, start=1):
        table[value] = organ
    label = sitk.GetImageFromArray(table[values])
    label.CopyInformation(source)
    return label


FLARE = Converter(
    folder="Dataset701_AbdomenCT",
    channel_names=("CT",),
    labels=ORGANS,
    file_ending=_ENDING,
    published=(50, 50),
    source="zenodo.org/records/7860267 (training) and github.com/bowang-lab/U-Mamba (test)",
    licence="see flare22.grand-challenge.org",
    made_with={"archive": "flare"},
    find=find_flare,
    read_image=decode,
    read_label=read_organs,
)
AMOS = Converter(
    folder="Dataset702_AbdomenMR",
    channel_names=("MR",),
    labels=ORGANS,
    file_ending=_ENDING,
    published=(60, 50),
    source="zenodo.org/records/7262581 (training), and github.com/bowang-lab/U-Mamba (the 50 test cases)",
    licence="see amos22.grand-challenge.org",
    made_with={"archive": "amos"},
    find=find_amos,
    read_image=decode,
    read_label=read_amos_label,
)
