"""Convert a dataset in the Brain Imaging Data Structure (bids.neuroimaging.io).

    sub-ID/[ses-ID/]anat/sub-ID[_ses-ID]_T1w.nii.gz     images; their kinds are the channels
    derivatives/PIPELINE/sub-ID/.../sub-ID_dseg.nii.gz  label maps (dseg or mask); choose one of several kinds
    derivatives/PIPELINE/[..._]dseg.tsv                 names of the label values: columns index, name

A name that several label values have gets the value behind it. The sessions of a subject are one group, so that they
are in one fold.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from umamba.datasets.convert_common import Converter, SourceCase
from umamba.datasets.convert_patients import Layout, generic
from umamba.io import UserError
from umamba.io.rows import find_columns

_IMAGE = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>[A-Za-z0-9]+)\.nii(\.gz)?")
_INDEX = re.compile(r"[0-9]{1,9}")
_LABEL_SUFFIXES = ("dseg", "mask")
_NOT_RAW = ("derivatives", "sourcedata", "code")
# These entities say which subject and session it is, or from which image a label map was made; the others are the kind.
_NOT_KIND = ("sub", "ses", "run", "space", "acq")
Files = dict[tuple[str, str], dict[str, list[Path]]]


def bids(source: Path, layout: Layout, workers: int) -> Converter:
    """Return the converter of a BIDS dataset.

    Subjects without a label map become test cases.

    Args:
        source: folder of the dataset.
        layout: `channels` are kinds such as T1w, `label` is a kind such as dseg or label-lesion_mask.
        workers: threads that read the label values.

    Raises:
        UserError: channels and label map cannot be told apart, files are missing or not unique, or a table of names
            cannot be read.
    """
    images, labels = _files(source, raw=True), _files(source, raw=False)
    kinds = Counter(kind for own in labels.values() for kind in own)
    label = layout.label or (next(iter(kinds)) if len(kinds) == 1 else None)
    if label is None or label not in kinds:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items())) or "none"
        raise UserError(f"source={source}: which label maps? Say label=KIND. Kinds below derivatives: {listed}.")
    labelled = [subject for subject, own in labels.items() if label in own]
    common = set.intersection(*(set(images.get(subject, {})) for subject in labelled))
    channels = layout.channels or tuple(sorted(common))
    missing = [
        f"{'_'.join(filter(None, subject))} has no {kind}"
        for subject in labelled
        for kind in channels
        if kind not in images.get(subject, {})
    ]
    if not channels or missing:
        listed = ", ".join(sorted({kind for own in images.values() for kind in own})) or "none"
        problem = "; ".join(missing[:5]) or "no kind of image is there for every label map"
        raise UserError(f"source={source}: {problem}. Say channels=[KIND,...]. Kinds of images: {listed}.")
    cases = []
    for subject in sorted(images):
        if all(kind in images[subject] for kind in channels):
            own = tuple(_one(images[subject][kind]) for kind in channels)
            map_ = labels.get(subject, {}).get(label)
            name = "_".join(filter(None, subject))
            cases.append(SourceCase(name, "Tr" if map_ else "Ts", own, (_one(map_),) if map_ else (), subject[0]))
    names = {} if layout.labels else _names(source)
    return generic(layout, channels, lambda _: cases, cases, workers, names)


def _files(source: Path, raw: bool) -> Files:
    """Return the files of each subject and session by their kind: raw images, or label maps below derivatives."""
    found: Files = defaultdict(lambda: defaultdict(list))
    for path in sorted(source.rglob("sub-*.nii*")):
        match = _IMAGE.fullmatch(path.name)
        derived = path.relative_to(source).parts[0] in _NOT_RAW
        if match is None or derived == raw or (not raw and match["suffix"] not in _LABEL_SUFFIXES):
            continue
        entities = dict(part.split("-", 1) for part in match["entities"].split("_"))
        kind = "_".join(
            [f"{key}-{value}" for key, value in entities.items() if key not in _NOT_KIND] + [match["suffix"]]
        )
        session = f"ses-{entities['ses']}" if "ses" in entities else ""
        found[f"sub-{entities['sub']}", session][kind].append(path)
    return found


def _one(paths: list[Path]) -> Path:
    if len(paths) > 1:
        listed = ", ".join(path.name for path in paths)
        raise UserError(f"{paths[0].parent}: several files are of the same kind: {listed}. Keep one of them.")
    return paths[0]


def _names(source: Path) -> dict[int, str]:
    """Return the names of the label values from the first table of them."""
    for path in sorted(source.rglob("*dseg.tsv")):
        rows = None if path.name.startswith(".") else find_columns(path, ("index", "name"), "\t")
        if rows is None:
            continue
        names: dict[int, str] = {}
        for line, (index, name) in rows:
            if _INDEX.fullmatch(index) and name and names.setdefault(int(index), name) != name:
                first = names[int(index)]
                raise UserError(
                    f"{path}: line {line} names {index} {name}, an earlier one {first}. Keep one of the two."
                )
        return names
    return {}
