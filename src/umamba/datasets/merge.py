"""Join raw datasets whose cases carry different labels into one partly labelled dataset.

The images stay where they are: the "dataset" entry of the new dataset.json names their files relative to the new
folder. The label maps are written again with the values of the joint labels, and `annotated_labels` says which of these
each case carries. dataset.json is written last, so a folder with this file is complete.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba.datasets.convert_common import content_digest, in_threads
from umamba.datasets.declared import dataset_json
from umamba.datasets.label_values import mapped
from umamba.datasets.nnunet_raw import RawCase, RawDataset, read_dataset
from umamba.io import UserError, below, exclusive, make_folder, write_image, write_json
from umamba.io.tiff_spacing import read_spacing, spacing_file, write_spacing
from umamba.labels import LabelSet

log = logging.getLogger(__name__)

_LEAST = 2  # datasets


def merge_datasets(source: Path, names: Sequence[str], raw: Path, name: str, workers: int) -> Path:
    """Join the training cases of raw datasets.

    A case is called DATASET_CASE. Labels are the same if their names are. An image that is in several datasets gets one
    group, so that it is never in training and validation at once. Test images stay with their datasets.

    Args:
        source: folder that holds the datasets.
        names: folders of the datasets.
        raw: folder of all raw datasets.
        name: folder of the new dataset.
        workers: threads.

    Returns:
        The new dataset's folder.

    Raises:
        UserError: fewer than two datasets, one has mistakes, they cannot be joined (regions, channels, file endings,
            readers, names of labels), or the new dataset exists.
    """
    target = below(raw, name)
    if (target / "dataset.json").exists():
        raise UserError(f"name={name}: {target} is a dataset already. Give another name, or delete that folder.")
    if len(set(names)) < _LEAST:
        there = ", ".join(sorted(path.parent.name for path in source.glob("*/dataset.json"))) or "none"
        raise UserError(f"datasets: name two or more to join, as in datasets=[A,B]. {source} holds: {there}.")
    datasets = [read_dataset(below(source, folder)) for folder in dict.fromkeys(names)]
    _check(datasets)
    labels = joint_labels([dataset.labels for dataset in datasets])
    pairs = [(dataset, case) for dataset in datasets for case in dataset.training]
    ids = [f"{dataset.name}_{case.case_id}" for dataset, case in pairs]
    if len(set(ids)) < len(ids):
        raise UserError(f"{max(ids, key=ids.count)}: two cases would have this name. Rename one of their datasets.")
    with exclusive(raw / f".{name}.lock", f"the joining of {name}"):
        make_folder(target / "labelsTr")
        in_threads(lambda pair: _write_label(*pair, labels, target), pairs, workers, "Joining")
        digests = in_threads(lambda pair: content_digest(*pair[1].images), pairs, workers, "Comparing")
        groups = joint_groups(ids, [_group(*pair) for pair in pairs], digests)
        content = {
            **dataset_json(datasets[0].channel_names, labels.names, len(pairs), datasets[0].file_ending),
            "labels": labels.to_json()["labels"],
            "dataset": {case_id: _entry(*pair, target) for case_id, pair in zip(ids, pairs, strict=True)},
            "annotated_labels": {
                case_id: list(dataset.annotated.get(case.case_id, dataset.labels.names))
                for case_id, (dataset, case) in zip(ids, pairs, strict=True)
            },
        }
        if groups:
            content["groups"] = groups
        if datasets[0].reader is not None:
            content["overwrite_image_reader_writer"] = datasets[0].reader
        write_json(target / "dataset.json", content)
    counts = ", ".join(f"{dataset.name} ({len(dataset.training)})" for dataset in datasets)
    log.info("%s: the cases of %s. Labels: %s.", name, counts, ", ".join(labels.names))
    return target


def joint_labels(sets: Sequence[LabelSet]) -> LabelSet:
    """Return the labels of several datasets with the values 1, 2, ... in the order in which they first occur.

    Args:
        sets: the label sets, plain labels only. If one has an ignore label, so has the result.

    Raises:
        UserError: a label set has regions, or two names differ only in upper and lower case.

    >>> joint_labels([LabelSet(("liver", "spleen"), ((1,), (2,))), LabelSet(("spleen", "aorta"), ((1,), (2,)))]).names
    ('liver', 'spleen', 'aorta')
    """
    if any(labels.has_regions for labels in sets):
        raise UserError("labels: regions cannot be joined with other labels. Declare plain labels in dataset.json.")
    names = tuple(dict.fromkeys(name for labels in sets for name in labels.names))
    spelled: dict[str, str] = {}
    for name in names:
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"labels: {other} and {name} differ only in upper and lower case. Give them one spelling.")
    ignore = len(names) + 1 if any(labels.ignore is not None for labels in sets) else None
    return LabelSet(names, tuple((value,) for value in range(1, len(names) + 1)), ignore)


def joint_groups(ids: Sequence[str], groups: Sequence[str | None], digests: Sequence[str]) -> dict[str, str]:
    """Return the group of each case that shares its own group or its image with another case.

    Args:
        ids: names of the cases.
        groups: of each case, None for a case without one.
        digests: hash of each case's image.

    >>> joint_groups(["a", "b", "c", "d"], ["p", "p", None, None], ["1", "2", "2", "3"])
    {'a': 'a', 'b': 'a', 'c': 'a'}
    """
    first: dict[str, str] = {}
    leader = {case_id: case_id for case_id in ids}

    def leader_of(case_id: str) -> str:
        while leader[case_id] != case_id:
            case_id = leader[case_id]
        return case_id

    for case_id, group, digest in zip(ids, groups, digests, strict=True):
        for shared in (f"image {digest}", *(() if group is None else (f"group {group}",))):
            leader[leader_of(case_id)] = leader_of(first.setdefault(shared, case_id))
    leaders = [leader_of(case_id) for case_id in ids]
    counts = Counter(leaders)
    return {case_id: one for case_id, one in zip(ids, leaders, strict=True) if counts[one] > 1}


def _check(datasets: Sequence[RawDataset]) -> None:
    """Refuse datasets whose images do not fit together."""
    first = datasets[0]
    for other in datasets[1:]:
        for what, one, two in (
            ("channel_names", first.channel_names, other.channel_names),
            ("file_ending", first.file_ending, other.file_ending),
            ("overwrite_image_reader_writer", first.reader, other.reader),
        ):
            if one != two:
                raise UserError(
                    f"{what}: {first.name} has {_text(one)}, {other.name} has {_text(two)}. Only datasets that "
                    "have the same can be joined."
                )


def _text(value: str | Iterable[str] | None) -> str:
    return str(value) if value is None or isinstance(value, str) else ", ".join(value)


def _group(dataset: RawDataset, case: RawCase) -> str | None:
    group = dataset.groups.get(case.case_id)
    return None if group is None else f"{dataset.name}/{group}"


def _label_path(dataset: RawDataset, case: RawCase, target: Path) -> Path:
    return below(target, "labelsTr", f"{dataset.name}_{case.case_id}{dataset.file_ending}")


def _entry(dataset: RawDataset, case: RawCase, target: Path) -> dict[str, Any]:
    """Return the entry of a case in dataset.json."""
    folder = target.resolve()  # because ".." is the parent of the real folder
    images = [Path(os.path.relpath(image.parent.resolve() / image.name, folder)).as_posix() for image in case.images]
    return {"images": images, "label": _label_path(dataset, case, target).relative_to(target).as_posix()}


def values_in_joint(own: LabelSet, joint: LabelSet) -> Mapping[int, int]:
    """Return the joint value of each value of a dataset.

    Args:
        own: the dataset's labels.
        joint: the joint labels.

    >>> own, joint = LabelSet(("spleen",), ((1,),), ignore=2), LabelSet(("liver", "spleen"), ((1,), (2,)), ignore=3)
    >>> values_in_joint(own, joint)
    {0: 0, 1: 2, 2: 3}
    """
    values = {0: 0} | {
        value: joint.values[joint.names.index(name)][0] for name, (value,) in zip(own.names, own.values, strict=True)
    }
    return values if own.ignore is None or joint.ignore is None else values | {own.ignore: joint.ignore}


def _write_label(dataset: RawDataset, case: RawCase, labels: LabelSet, target: Path) -> None:
    """Write the label map of a case, and the spacing of a TIFF volume beside it."""
    if case.label is None:
        raise UserError(f"{dataset.root}: {case.case_id} has no label map. Add it, or remove the image.")
    path = _label_path(dataset, case, target)
    write_image(path, mapped(case.label, values_in_joint(dataset.labels, labels)))
    beside = spacing_file(case.label)
    if beside is not None:
        z, y, x = read_spacing(beside)
        write_spacing(path, (z, y, x))
