"""Convert a user's folder of pictures with numbered instances to a dataset of classes that a network can learn.

    NAME/imagesTr/CASE.png                picture: bmp, png, tif(f) or jp(e)g
    NAME/instancesTr/CASE_label.tiff      numbered instances, 0 is background: tif(f) or png
    NAME/imagesTs, NAME/instancesTs       optional

The result is a dataset in nnU-Net's raw layout with the labels background, interior and boundary, or with levels of
depth. It keeps the instances for the scores.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from umamba.datasets.convert_cell import CELL, ENDINGS, label_file, read_depth
from umamba.datasets.convert_common import SourceCase, Split, convert, planned_files
from umamba.datasets.made_from import is_made_from
from umamba.io import exclusive
from umamba.labels.instance_depth import DEPTH_CLASSES

SPLITS: tuple[Split, ...] = ("Tr", "Ts")


def holds_instances(root: Path) -> bool:
    """Return whether a folder holds numbered instances and no dataset.json.

    Args:
        root: the folder.
    """
    return (root / "instancesTr").is_dir() and not (root / "dataset.json").exists()


def classes_of_instances(root: Path, folder: Path, workers: int, targets: str = "boundary") -> Path:
    """Convert a folder of numbered instances, unless that is done and the folder has not changed since.

    If it has changed, only the classes of the changed pictures are made again, because others may be reading the rest.

    Args:
        root: the folder of numbered instances.
        folder: where converted datasets are written.
        workers: threads.
        targets: boundary (the classes interior and boundary), or depth (levels of depth, see `instance_depth`).

    Returns:
        The converted dataset, folder/<name of root>_<hash of its path>/<name of root>, or .../<name of root>Depth. The
        hash keeps folders of one name apart.

    Raises:
        UserError: there is no training picture, a picture has no instances, or a file cannot be read.
    """
    name = root.name + ("Depth" if targets == "depth" else "")
    place = folder / f"{root.name}_{hashlib.blake2b(bytes(root.resolve()), digest_size=4).hexdigest()}"
    target = place / name
    converter = replace(
        CELL,
        folder=name,
        published=None,
        source=str(root),
        licence="",
        made_with={"archive": "instances", "targets": targets},
        find=find_instances,
    )
    if targets == "depth":
        converter = replace(converter, labels=DEPTH_CLASSES, read_label=read_depth)

    def is_done() -> bool:
        return is_made_from(target, planned_files(converter, target, find_instances(root)))

    if is_done():
        return target
    with exclusive(place / f".{name}.made.lock", f"the classes of {name}"):
        if not is_done():
            convert(converter, root, place, workers)
    return target


def find_instances(root: Path) -> list[SourceCase]:
    """List the pictures of a folder of numbered instances.

    Args:
        root: the folder.
    """
    return [
        SourceCase(image.stem, split, (image,), label_file(root / f"instances{split}", image.stem))
        for split in SPLITS
        for image in sorted((root / f"images{split}").glob("*.*"))
        if image.suffix.lower() in ENDINGS
    ]
