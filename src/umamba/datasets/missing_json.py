"""Make the dataset.json of a folder that has imagesTr and labelsTr but not this file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from umamba.datasets.declared import dataset_json
from umamba.datasets.label_values import values_in
from umamba.io import UserError, read_image, supported_endings

_CHANNEL_DIGITS = 4


def proposed_json(
    root: Path, names: tuple[str, ...] = (), channels: tuple[str, ...] = (), most: int | None = None, workers: int = 1
) -> dict[str, Any]:
    """Return the content of a dataset.json that fits the files of a folder.

    Args:
        root: the folder, with imagesTr/NAME_0000.EXT and labelsTr/NAME.EXT.
        names: names of the labels in ascending order of their values; empty: label_1, label_2, ...
        channels: names of the channels; empty: channel_0, ..., or R, G and B for colour pictures.
        most: read only so many label maps for their values; None: all.
        workers: threads that read the label maps.

    Raises:
        UserError: the folder has no such files, or their number of channels or labels does not fit the names.
    """
    files = sorted(path for path in (root / "imagesTr").glob("*") if path.is_file() and not path.name.startswith("."))
    endings = Counter(ending for path in files for ending in supported_endings() if path.name.lower().endswith(ending))
    if not endings:
        raise UserError(f"{root}/imagesTr: holds no image NAME_0000.EXT of {', '.join(supported_endings())}.")
    ending = endings.most_common(1)[0][0]
    stems = [path.name[: -len(ending)] for path in files if path.name.lower().endswith(ending)]
    numbers = {stem[-_CHANNEL_DIGITS:] for stem in stems}
    if not all(number.isdecimal() and stem[-_CHANNEL_DIGITS - 1] == "_" for stem in stems for number in [stem[-4:]]):
        wrong = next(stem for stem in stems if not stem[-4:].isdecimal() or stem[-5:-4] != "_")
        raise UserError(f"{root}/imagesTr/{wrong}{ending}: has no channel number. Rename it to {wrong}_0000{ending}.")
    count = len(numbers)
    if count == 1:
        count = read_image([next(path for path in files if path.name.lower().endswith(ending))]).array.shape[0]
    own = channels or (("R", "G", "B") if count == 3 and len(numbers) == 1 else _numbered("channel", range(count)))
    if len(own) != count:
        channels_held = "1 channel" if count == 1 else f"{count} channels"
        given = "1 name is" if len(own) == 1 else f"{len(own)} names are"
        raise UserError(f"channels: {given} given, but the images have {channels_held}.")
    maps = sorted(path for path in (root / "labelsTr").glob(f"*{ending}") if not path.name.startswith("."))
    if not maps:
        raise UserError(f"{root}/labelsTr: holds no label map NAME{ending}.")
    values = values_in(maps[:most], workers)
    if values != tuple(range(1, len(values) + 1)) and most is None:
        found = ", ".join(map(str, values))
        raise UserError(
            f"{root}/labelsTr: the values are {found}, but must be 1, 2, 3, ... without gaps. Renumber them, or "
            "arrange the files as one folder for each patient, which umamba convert renumbers."
        )
    if names and len(names) != len(values):
        raise UserError(f"labels: {len(names)} names are given, but the label maps hold {len(values)} values.")
    cases = len({stem[: -_CHANNEL_DIGITS - 1] for stem in stems})
    return dataset_json(own, names or _numbered("label", range(1, max(values, default=0) + 1)), cases, ending)


def _numbered(word: str, numbers: range) -> tuple[str, ...]:
    return tuple(f"{word}_{number}" for number in numbers)


def remedy(root: Path) -> str:
    """Return what to do about a missing dataset.json: the lines to write, if the folder has the images.

    Args:
        root: the dataset's folder.
    """
    try:
        proposed = proposed_json(root, most=5)
    except UserError as error:
        return (
            "no such file, and the folder is not in nnU-Net's raw layout, from which it could be made "
            f"({str(error).removesuffix('.')}). umamba convert --help lists the layouts that can be converted."
        )
    return (
        "no such file. Write this into it, with the right names (a channel named CT is normalised as CT), or let "
        f"`umamba convert archive=folders source={root}` write it, which reads all labels:\n"
        f"{json.dumps(proposed, indent=2, ensure_ascii=False)}"
    )
