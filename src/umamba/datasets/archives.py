"""The archives and layouts that can be converted, and their converters."""

from collections.abc import Sequence
from pathlib import Path

from umamba.datasets.convert_abdomen import AMOS, FLARE
from umamba.datasets.convert_bids import bids
from umamba.datasets.convert_cell import CELL
from umamba.datasets.convert_common import Converter, convert
from umamba.datasets.convert_endovis import endovis
from umamba.datasets.convert_msd import decathlon
from umamba.datasets.convert_nuclei import nuclei
from umamba.datasets.convert_patients import Layout, patient_folders, total_segmentator
from umamba.datasets.merge import merge_datasets
from umamba.datasets.missing_json import proposed_json
from umamba.io import UserError, write_json

ARCHIVES = ("flare", "amos", "endovis", "cell")  # those of the paper
LAYOUTS = ("nuclei", "msd", "totalsegmentator", "bids", "folders", "merge")


def converter_of(archive: str, *, crop: bool = False, videos: str = "separate") -> Converter:
    """Return the converter of an archive of the paper.

    Args:
        archive: flare, amos, endovis or cell.
        crop: only for endovis, see `endovis`.
        videos: only for endovis, see `endovis`.

    Raises:
        UserError: `archive` or `videos` is unknown.
    """
    converters = {"flare": FLARE, "amos": AMOS, "endovis": endovis(crop, videos), "cell": CELL}
    if archive not in converters:
        raise UserError(f"archive={archive} has no converter. Choose one of {', '.join(ARCHIVES)}.")
    return converters[archive]


def convert_archive(
    archive: str,
    source: Path,
    raw: Path,
    workers: int,
    *,
    layout: Layout,
    crop: bool = False,
    videos: str = "separate",
    datasets: Sequence[str] = (),
) -> Path:
    """Convert an archive, or any dataset in one of the layouts, to nnU-Net's raw layout.

    With archive=folders, a folder that has imagesTr and labelsTr only gets its dataset.json. With archive=merge, raw
    datasets are joined.

    Args:
        archive: one of `ARCHIVES` or `LAYOUTS`.
        source: folder of the unpacked archive, or of the dataset.
        raw: folder of all raw datasets.
        workers: threads.
        layout: what the user says about a dataset that is not one of the public ones.
        crop: only for endovis, see `endovis`.
        videos: only for endovis, see `endovis`.
        datasets: only for merge, see `merge_datasets`.

    Returns:
        The dataset's folder.

    Raises:
        UserError: see `convert`, and the converters.
    """
    if not source.is_dir():
        raise UserError(f"source={source}: no such folder. Unpack the archive and pass its folder.")
    if archive == "merge":
        if layout.name is None:
            raise UserError("name: give the new dataset a name, such as name=Dataset700_Joined.")
        return merge_datasets(source, datasets, raw, layout.name, workers)
    if archive == "folders" and (source / "imagesTr").is_dir():
        path = source / "dataset.json"
        if path.exists():
            raise UserError(f"{path}: exists already, so {source} needs no conversion.")
        write_json(path, proposed_json(source, layout.labels, layout.channels, workers=workers))
        return source
    if archive == "nuclei":
        converter = nuclei(source)
    elif archive == "msd":
        converter = decathlon(source, layout.name)
    elif archive == "totalsegmentator":
        converter = total_segmentator(source, layout)
    elif archive == "bids":
        converter = bids(source, layout, workers)
    elif archive == "folders":
        converter = patient_folders(source, layout, workers)
    else:
        converter = converter_of(archive, crop=crop, videos=videos)
    return convert(converter, source, raw, workers)
