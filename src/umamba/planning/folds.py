"""Which cases train and which validate (nnU-Net: utilities/crossval_split.py and the trainer's handling of splits).

The folds are those of scikit-learn's KFold, shuffled with a fixed seed, on the sorted names.
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
    """Return {"train": names, "val": names} for each fold; names are sorted in both.

    Raises:
        UserError: there are fewer cases than folds.
    """
    names = sorted(case_ids)
    if len(names) < num_folds:
        raise UserError(
            f"fold: {len(names)} training case(s) cannot be split into {num_folds} folds. "
            "Train on all of them with fold=all, or give a splits file."
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
        case_ids: names of all training cases.
        fold: number of the fold; "all" trains and validates on every case. A number beyond the folds is a random
            80:20 split of its own.
        splits_file: nnU-Net's splits_final.json, which replaces the folds made here.

    Raises:
        UserError: `fold` is neither, there are too few cases, or the file does not fit the dataset.
    """
    names = sorted(case_ids)
    if fold == "all":
        return names, list(names)
    if isinstance(fold, bool) or not isinstance(fold, int) or fold < 0:
        raise UserError(f"fold={fold}: give the number of a fold, from 0 on, or fold=all.")
    folds = split_folds(names) if splits_file is None else _read_splits(Path(splits_file), set(names))
    if fold < len(folds):
        return folds[fold]["train"], folds[fold]["val"]
    log.warning("fold=%d: there are only %d folds (0 to %d); a random 80:20 split.", fold, len(folds), len(folds) - 1)
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
        raise UserError(f'{path}: must be a list of folds, like [{{"train": ["a"], "val": ["b"]}}].')
    return [_checked_fold(path, index, entry, known) for index, entry in enumerate(content)]


def _checked_fold(path: Path, index: int, entry: Any, known: set[str]) -> dict[str, list[str]]:
    checked = {}
    for part in ("train", "val"):
        names = entry.get(part) if isinstance(entry, Mapping) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f'{path}: fold {index} has no list of case names under "{part}".')
        unknown = sorted(set(names) - known)
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise UserError(f"{path}: fold {index} names cases the dataset does not have under {part}: {shown}.")
        checked[part] = list(names)
    shared = sorted(set(checked["train"]) & set(checked["val"]))
    if shared:
        log.warning("%s: fold %d trains on %d of its validation cases, e.g. %s.", path, index, len(shared), shared[0])
    return checked
