"""Convert datasets with one folder for each patient: TotalSegmentator's, BraTS's, and others alike.

SOURCE/PATIENT/ct.nii.gz, SOURCE/PATIENT/segmentations/STRUCTURE.nii.gz          TotalSegmentator
SOURCE/PATIENT/PATIENT_t1.nii.gz, PATIENT_flair.nii.gz, ..., PATIENT_seg.nii.gz  BraTS and the like
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from umamba.datasets.convert_common import Converter, SourceCase, Split
from umamba.datasets.label_values import merged, renumbered, values_in
from umamba.io import UserError
from umamba.io.decode import decode
from umamba.io.rows import read_columns

log = logging.getLogger(__name__)

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
_ENDING = ".nii.gz"
_LABEL_WORDS = re.compile(r"(^|[^a-z])(seg|segmentation|label|labels|mask|gt|dseg|ground[-_]?truth)([^a-z]|$)")
_STRUCTURES = "segmentations"


@dataclass(frozen=True)
class Layout:
    """What the user says about a folder of images that is not one of the public datasets.

    Attributes:
        name: name of the new dataset; None: the archive's own.
        channels: endings of the image files, one for each channel; empty: found out.
        label: ending of the label file; None: found out.
        labels: names of the labels; for TotalSegmentator the structures that are kept, in this order. Empty: all.
    """

    name: str | None = None
    channels: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] = ()


def total_segmentator(source: Path, layout: Layout) -> Converter:
    """Return the converter of TotalSegmentator's training data, CT or MR.

    Cases that meta.csv calls test become test cases; without this file there are none. Where masks overlap, the
    structure that is named later counts.

    Args:
        source: folder of the patients.
        layout: `name` and `labels` are read.

    Raises:
        UserError: the folder holds no such patient, a chosen structure does not exist, or meta.csv cannot be read.
    """
    patients = sorted(folder.parent for folder in source.glob(f"*/{_STRUCTURES}") if folder.is_dir())
    images = {
        name: [path / name for path in patients if (path / name).is_file()] for name in ("ct.nii.gz", "mri.nii.gz")
    }
    image = max(images, key=lambda name: len(images[name]))
    missing = [path.name for path in patients if not (path / image).is_file()]
    if not patients or missing:
        lost = f"; {', '.join(missing[:5])} have none" if patients else ""
        raise UserError(
            f"source={source}: must hold PATIENT/ct.nii.gz (or mri.nii.gz) and PATIENT/{_STRUCTURES}/*.nii.gz{lost}."
        )
    found = sorted({path.name.removesuffix(_ENDING) for folder in patients for path in _masks(folder)})
    unknown = sorted(set(layout.labels) - set(found))
    if unknown:
        raise UserError(f"labels: {', '.join(unknown)} is no structure of {source}. It has {', '.join(found)}.")
    structures = layout.labels or tuple(found)
    values = {name: value for value, name in enumerate(structures, start=1)}
    splits = _splits(source / "meta.csv", [path.name for path in patients])

    def find(_: Path) -> list[SourceCase]:
        cases = []
        for patient in patients:
            masks = {path.name.removesuffix(_ENDING): path for path in _masks(patient)}
            own = tuple(masks[name] for name in values if name in masks)
            cases.append(SourceCase(patient.name, splits.get(patient.name, "Tr"), (patient / image,), own))
        return cases

    return Converter(
        folder=_name(layout),
        channel_names=("CT" if image.startswith("ct") else "MR",),
        labels=structures,
        file_ending=_ENDING,
        published=None,
        source="zenodo.org/records/10047292 (CT) and zenodo.org/records/14710732 (MR)",
        licence="CC BY 4.0 (CT), CC BY-NC-SA 2.0 (MR)",
        made_with={"archive": "totalsegmentator", "structures": structures},
        find=find,
        read_image=decode,
        read_label=lambda paths: merged((path, values[path.name.removesuffix(_ENDING)]) for path in paths),
    )


def _masks(patient: Path) -> list[Path]:
    return sorted(path for path in (patient / _STRUCTURES).glob(f"*{_ENDING}") if not path.name.startswith("."))


def _splits(path: Path, patients: Sequence[str]) -> dict[str, Split]:
    """Return the split of each patient from meta.csv; nothing if there is no such file."""
    if not path.exists():
        return {}
    remedy = "Get the file again; without it, all cases are training cases."
    rows = read_columns(path, ("image_id", "split"), ";,", remedy)
    splits: dict[str, Split] = {name: "Ts" if split.lower() == "test" else "Tr" for _, (name, split) in rows}
    unlisted = [name for name in patients if name not in splits]
    if unlisted:
        shown = ", ".join(unlisted[:5]) + (", ..." if len(unlisted) > 5 else "")
        log.warning("%s does not list %s (patients: %d). They become training cases.", path, shown, len(unlisted))
    return splits


def patient_folders(source: Path, layout: Layout, workers: int) -> Converter:
    """Return the converter of a dataset with a folder for each patient, in which files have the same names.

    A patient's own name in the names of its files does not count. Patients without a label file become test cases.

    Args:
        source: folder of the patients.
        layout: what the user says about it.
        workers: threads that read the label values.

    Raises:
        UserError: channels and label cannot be told apart, or files are missing.
    """
    files = {folder.name: _files(folder) for folder in sorted(source.iterdir()) if folder.is_dir()}
    files = {patient: own for patient, own in files.items() if own}
    counts = Counter(key for own in files.values() for key in own)
    if not counts:
        raise UserError(f"source={source}: holds no folder PATIENT with files of {', '.join(ENDINGS)}.")
    label = layout.label and _chosen(layout.label, counts, "label")
    if label is None:
        label = _only([key for key in counts if _LABEL_WORDS.search(stem(key).lower())], counts, source)
    labelled = [patient for patient, own in files.items() if label in own]
    channels = [_chosen(ending, counts, "channels") for ending in layout.channels]
    images = [key for key in counts if key != label and not _LABEL_WORDS.search(stem(key).lower())]
    channels = channels or sorted(key for key in images if all(key in files[name] for name in labelled))
    lost = [f"{patient} has no {key}" for patient, own in files.items() for key in channels if key not in own]
    if not channels or lost:
        raise UserError(
            f"source={source}: "
            + ("; ".join(lost[:5]) or f"no image file is beside every {label}")
            + f". Say which files are the channels: channels=[ENDING,...]. Files: {_listed(counts)}."
        )
    cases = [
        SourceCase(patient, "Tr" if label in own else "Ts", tuple(own[key] for key in channels), _given(own, label))
        for patient, own in files.items()
    ]
    return generic(layout, [channel_name(key) for key in channels], lambda _: cases, cases, workers)


def generic(
    layout: Layout,
    channels: Sequence[str],
    find: Callable[[Path], list[SourceCase]],
    cases: Sequence[SourceCase],
    workers: int,
    names: dict[int, str] | None = None,
) -> Converter:
    """Return the converter of label maps whose values are found by reading all of them.

    Args:
        layout: `name` and `labels` are read.
        channels: names of the channels.
        find: lists the cases.
        cases: the cases.
        workers: threads.
        names: names of the label values, if they are known. A name that several values have, or that means the
            background, gets the value behind it.

    Raises:
        UserError: the dataset has no name, or the number of names is not that of the values.
    """
    folder = _name(layout)
    values = values_in([case.labels[0] for case in cases if case.labels], workers)
    if layout.labels and len(layout.labels) != len(values):
        found = ", ".join(map(str, values))
        raise UserError(f"labels: {len(layout.labels)} names are given, but the label maps hold the values {found}.")
    named = [(names or {}).get(value, f"label_{value}") for value in values]
    own = [
        name if named.count(name) == 1 and name != "background" else f"{name}_{value}"
        for name, value in zip(named, values, strict=True)
    ]
    if own != named and not layout.labels:
        changed = ", ".join(sorted(set(own) - set(named)))
        log.warning("labels: %s have their value behind their name, because it would not be theirs alone.", changed)
    return Converter(
        folder=folder,
        channel_names=tuple(channels),
        labels=layout.labels or tuple(own),
        file_ending=_ENDING,
        published=None,
        source="",
        licence="",
        made_with={"values": values},
        find=find,
        read_image=decode,
        read_label=lambda paths: renumbered(paths[0], values),
        channel_files=len(channels),
    )


def _name(layout: Layout) -> str:
    if layout.name is None:
        raise UserError("name: the new dataset needs a name, such as name=Dataset500_Mine.")
    return layout.name


def channel_name(key: str) -> str:
    """Return the name of a channel from the ending of its files.

    Args:
        key: the ending.

    >>> channel_name("_t1ce.nii.gz"), channel_name("ct.nii.gz")
    ('T1CE', 'CT')
    """
    return stem(key).rpartition("/")[2].strip("_-. ").upper() or "IMAGE"


def stem(name: str) -> str:
    """Return a name without its file ending.

    Args:
        name: the name of an image file.
    """
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _files(patient: Path) -> dict[str, Path]:
    """Return the image files of a patient by their names without the patient's own."""
    found = {}
    for path in sorted(patient.rglob("*")):
        if path.name.lower().endswith(ENDINGS) and not path.name.startswith("."):
            key = path.relative_to(patient).parent / path.name.removeprefix(patient.name)
            found[key.as_posix()] = path
    return found


def _chosen(ending: str, counts: Counter[str], key: str) -> str:
    found = [name for name in counts if name == ending] or [name for name in counts if name.endswith(ending)]
    if len(found) != 1:
        raise UserError(f"{key}: {ending} fits {', '.join(found) or 'no file'}. Choose one of: {_listed(counts)}.")
    return found[0]


def _only(found: list[str], counts: Counter[str], source: Path) -> str:
    if len(found) != 1:
        raise UserError(
            f"source={source}: which file is the label map? Say label=ENDING. Files, with the number of patients "
            f"that have them: {_listed(counts)}."
        )
    return found[0]


def _listed(counts: Counter[str]) -> str:
    most = [f"{key} ({count})" for key, count in counts.most_common(12)]
    return ", ".join(most) + (", ..." if len(counts) > 12 else "")


def _given(own: dict[str, Path], label: str) -> tuple[Path, ...]:
    return (own[label],) if label in own else ()
