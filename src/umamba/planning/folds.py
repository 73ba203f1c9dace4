"""Choose the training and validation cases of a fold (nnU-Net: utilities/crossval_split.py and its trainer).

The folds equal those of scikit-learn's KFold on the sorted names, shuffled with a fixed seed.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from umamba.io import UserError, read_json

log = logging.getLogger(__name__)

SEED = 12345
NUM_FOLDS = 5
_TRAIN_SHARE = 0.8


def split_folds(case_ids: Sequence[str], num_folds: int = NUM_FOLDS, seed: int = SEED) -> list[dict[str, list[str]]]:
    """Split cases into folds for cross-validation.

    Args:
        case_ids: names of all training cases, in any order.
        num_folds: number of folds.
        seed: seed of the shuffle; nnU-Net's by default.

    Returns:
        {"train": names, "val": names} for each fold, with sorted names.

    Raises:
        UserError: there are fewer cases than folds.

    Example:
        >>> split_folds(["a", "b", "c", "d"], num_folds=2)
        [{'train': ['b', 'c'], 'val': ['a', 'd']}, {'train': ['a', 'd'], 'val': ['b', 'c']}]
    """
    names = sorted(case_ids)
    if len(names) < num_folds:
        raise UserError(
            f"fold: {len(names)} training case(s) cannot be split into {num_folds} folds. "
            "Train on all of them with fold=all, or pass a splits file."
        )
    shuffled = np.random.RandomState(seed).permutation(len(names))
    folds = []
    for held_out in np.array_split(shuffled, num_folds):
        chosen = set(held_out.tolist())
        folds.append(
            {
                "train": [name for index, name in enumerate(names) if index not in chosen],
                "val": [name for index, name in enumerate(names) if index in chosen],
            }
        )
    return folds


def fold_cases(
    case_ids: Sequence[str], fold: int | Literal["all"], splits_file: Path | None = None
) -> tuple[list[str], list[str]]:
    """Return the training and validation cases of a fold.

    Args:
        case_ids: names of all training cases, in any order.
        fold: number of the fold from 0 on, or "all" to train and validate on all cases. A number beyond the last fold
            gives a random 80:20 split with a seed of its own, as in nnU-Net.
        splits_file: a file like nnU-Net's splits_final.json, whose folds are used instead of those of `split_folds`.

    Returns:
        The names of the training cases, and those of the validation cases.

    Raises:
        UserError: `fold` is invalid, there are too few cases, or the file does not fit the dataset.

    Example:
        >>> fold_cases(["case_1", "case_2", "case_3", "case_4", "case_5"], fold=0)
        (['case_2', 'case_3', 'case_4', 'case_5'], ['case_1'])
        >>> fold_cases(["case_1", "case_2"], fold="all")
        (['case_1', 'case_2'], ['case_1', 'case_2'])
    """
    names = sorted(case_ids)
    if fold == "all":
        return names, list(names)
    if isinstance(fold, bool) or not isinstance(fold, int) or fold < 0:
        raise UserError(f"fold={fold}: is not a fold. Choose a number from 0 on, or fold=all.")
    folds = split_folds(names) if splits_file is None else _read_splits(Path(splits_file), set(names))
    if fold < len(folds):
        return folds[fold]["train"], folds[fold]["val"]
    message = "fold=%d: there are only %d folds (0 to %d), so this fold is a random 80:20 split."
    log.warning(message, fold, len(folds), len(folds) - 1)
    return _random_split(names, SEED + fold)


def _random_split(names: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    drawn = np.random.RandomState(seed).choice(len(names), int(len(names) * _TRAIN_SHARE), replace=False).tolist()
    chosen = set(drawn)
    if not 0 < len(chosen) < len(names):
        raise UserError(f"fold: {len(names)} training case(s) cannot be split 80:20. Train on all with fold=all.")
    return [names[index] for index in drawn], [name for index, name in enumerate(names) if index not in chosen]


def _read_splits(path: Path, known: set[str]) -> list[dict[str, list[str]]]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f'{path}: must hold a list of folds, like [{{"train": ["a"], "val": ["b"]}}].')
    return [_checked_fold(path, index, entry, known) for index, entry in enumerate(content)]


def _checked_fold(path: Path, index: int, entry: Any, known: set[str]) -> dict[str, list[str]]:
    checked = {}
    for part in ("train", "val"):
        names = entry.get(part) if isinstance(entry, Mapping) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f'{path}: fold {index} has no list of case names under "{part}". Add it.')
        unknown = sorted(set(names) - known)
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise UserError(
                f'{path}: fold {index} lists under "{part}" cases that the dataset does not have: {shown}. Remove them.'
            )
        checked[part] = list(names)
    shared = sorted(set(checked["train"]) & set(checked["val"]))
    if shared:
        log.warning("%s: fold %d trains on %d of its validation cases, e.g. %s.", path, index, len(shared), shared[0])
    return checked
