"""Convert a user's folder of pictures with numbered instances to a dataset of classes that a network can learn.

    NAME/imagesTr/CASE.png                picture: bmp, png, tif(f) or jp(e)g
    NAME/instancesTr/CASE_label.tiff      numbered instances, 0 is background: tif(f) or png
    NAME/imagesTs, NAME/instancesTs       optional

The result is a dataset in nnU-Net's raw layout with the labels background, interior and boundary, or with levels of
depth. It keeps the instances for the scores.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from umamba.datasets.convert_cell import CELL, ENDINGS, label_file, read_depth
from umamba.datasets.convert_common import SourceCase, Split, convert
from umamba.io import UserError, exclusive, read_json, write_json
from umamba.io.documents import OWN_BYTES
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

    Args:
        root: the folder of numbered instances.
        folder: where converted datasets are written.
        workers: threads.
        targets: boundary (the classes interior and boundary), or depth (levels of depth, see `instance_depth`).

    Returns:
        The converted dataset, folder/<name of root>, or folder/<name of root>Depth.

    Raises:
        UserError: there is no training picture, a picture has no instances, or a file cannot be read.
    """
    name = root.name + ("Depth" if targets == "depth" else "")
    target = folder / name
    listing = {
        path.relative_to(root).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
        for split in SPLITS
        for kind in ("images", "instances")
        for path in sorted((root / f"{kind}{split}").glob("*.*"))
    }
    made_from = target / "made_from.json"
    if _read(made_from) == listing:
        return target
    with exclusive(folder / f".{name}.made.lock", f"the classes of {name}"):
        if _read(made_from) == listing:
            return target
        shutil.rmtree(target, ignore_errors=True)
        converter = replace(CELL, folder=name, published=None, source=str(root), licence="", find=find_instances)
        if targets == "depth":
            converter = replace(converter, labels=DEPTH_CLASSES, read_label=read_depth)
        convert(converter, root, folder, workers)
        write_json(made_from, listing)
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


def _read(made_from: Path) -> Any:
    """Return what the classes were made from; None if the file is missing or damaged, so that they are made again."""
    try:
        return read_json(made_from, OWN_BYTES)
    except UserError:
        return None
