"""Convert a task of the Medical Segmentation Decathlon (medicaldecathlon.com): Task04_Hippocampus and the nine others.

TaskNN_NAME/dataset.json              modality, labels, training (image and label of each case), test
TaskNN_NAME/imagesTr/CASE.nii.gz      several channels are the last axis of a 4D image
TaskNN_NAME/labelsTr/CASE.nii.gz
TaskNN_NAME/imagesTs/CASE.nii.gz      without labels
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from umamba.datasets.convert_common import Converter, SourceCase, Split
from umamba.datasets.label_values import renumbered
from umamba.io import UserError, below, read_json
from umamba.io.decode import decode

_TASK = re.compile(r"Task(\d+)_(\w+)$")
_ENDING = ".nii.gz"


def decathlon(source: Path, folder: str | None) -> Converter:
    """Return the converter of a task.

    Args:
        source: folder of the task, or one that holds a single task.
        folder: name of the converted dataset; None: Dataset<number>_<name> of the task, as nnU-Net names it.

    Raises:
        UserError: the folder holds no task or several, or its dataset.json is not the Decathlon's.
    """
    root = _task(source)
    facts = read_json(root / "dataset.json")
    if not isinstance(facts, Mapping) or not isinstance(facts.get("training"), list):
        raise UserError(f"{root / 'dataset.json'}: is not the Decathlon's, because it lists no training cases.")
    match = _TASK.search(root.resolve().name)
    if folder is None and match is None:
        raise UserError(f"source={root}: is not named TaskNN_NAME. Name the new dataset: name=Dataset123_NAME.")
    channels, labels = (_numbered(root, facts, key) for key in ("modality", "labels"))
    values = sorted(set(labels) - {0})
    names = tuple(labels[value] for value in values)
    return Converter(
        folder=folder or (f"Dataset{int(match[1]):03d}_{match[2]}" if match else ""),
        channel_names=tuple(channels[index] for index in sorted(channels)),
        labels=names,
        file_ending=_ENDING,
        published=None,
        source="medicaldecathlon.com",
        licence=str(facts.get("licence", "CC-BY-SA 4.0")),
        made_with={"archive": "msd", "values": values},
        find=partial(_cases, root, facts),
        read_image=decode,
        read_label=lambda paths: renumbered(paths[0], values),
        channel_files=len(channels),
    )


def _task(source: Path) -> Path:
    if (source / "dataset.json").is_file():
        return source
    tasks = sorted(path for path in source.glob("Task*") if (path / "dataset.json").is_file())
    if len(tasks) != 1:
        found = ", ".join(path.name for path in tasks) or "none"
        raise UserError(
            f"source={source}: must hold the dataset.json of one task (tasks found: {found}). Name its folder."
        )
    return tasks[0]


def _numbered(root: Path, facts: Mapping[str, Any], key: str) -> dict[int, str]:
    """Return an entry of dataset.json that maps numbers, which are written as text, to names."""
    entry = facts.get(key)
    if not isinstance(entry, Mapping) or not entry or not all(re.fullmatch(r"[0-9]{1,5}", number) for number in entry):
        raise UserError(f'{root / "dataset.json"}: {key} must map numbers to names, like {{"0": "CT"}}.')
    return {int(number): str(name) for number, name in entry.items()}


def _cases(root: Path, facts: Mapping[str, Any], _: Path) -> list[SourceCase]:
    cases = []
    tests = facts.get("test") or []
    entries: list[tuple[Split, Any]] = [("Tr", entry) for entry in facts["training"]]
    entries += [("Ts", {"image": entry}) for entry in tests] if isinstance(tests, list) else []
    for split, entry in entries:
        image = entry.get("image") if isinstance(entry, Mapping) else None
        label = entry.get("label") if isinstance(entry, Mapping) else None
        if not isinstance(image, str) or not (isinstance(label, str) or (label is None and split == "Ts")):
            raise UserError(f"{root / 'dataset.json'}: {entry!r} names no image and label. Correct that entry.")
        labels = () if label is None else (_file(root, label),)
        cases.append(SourceCase(PurePosixPath(image).name.removesuffix(_ENDING), split, (_file(root, image),), labels))
    return cases


def _file(root: Path, text: str) -> Path:
    return below(root, *PurePosixPath(text).parts)
