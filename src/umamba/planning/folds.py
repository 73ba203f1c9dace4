"""Choose the training and validation cases of a fold (nnU-Net: utilities/crossval_split.py and its trainer).

The folds equal those of scikit-learn's KFold on the sorted names, shuffled with a fixed seed. Where groups are given,
such as the patients of several images, the cases of a group are in one fold: the groups are shuffled with the same
seed, and each, the largest first, goes to the fold that has the fewest cases (as in scikit-learn's GroupKFold).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from umamba.io import UserError, read_json

log = logging.getLogger(__name__)

SEED = 12345
NUM_FOLDS = 5
_TRAIN_SHARE = 0.8
NO_GROUPS: Mapping[str, str] = MappingProxyType({})


def split_folds(
    case_ids: Sequence[str],
    num_folds: int = NUM_FOLDS,
    seed: int = SEED,
    groups: Mapping[str, str] = NO_GROUPS,
) -> list[dict[str, list[str]]]:
    """Split cases into folds for cross-validation.

    Args:
        case_ids: names of all training cases, in any order.
        num_folds: number of folds.
        seed: seed of the shuffle; nnU-Net's by default.
        groups: case -> name of its group. A case that is not named is a group of its own; without any group of two
            cases, the folds are nnU-Net's.

    Returns:
        {"train": names, "val": names} for each fold, with sorted names.

    Raises:
        UserError: there are fewer cases than folds, or fewer groups.

    Example:
        >>> split_folds(["a", "b", "c", "d"], num_folds=2)
        [{'train': ['b', 'c'], 'val': ['a', 'd']}, {'train': ['a', 'd'], 'val': ['b', 'c']}]
        >>> split_folds(["a", "b", "c", "d"], num_folds=2, groups={"a": "patient 1", "b": "patient 1"})
        [{'train': ['c', 'd'], 'val': ['a', 'b']}, {'train': ['a', 'b'], 'val': ['c', 'd']}]
    """
    names = sorted(case_ids)
    if len(names) < num_folds:
        raise UserError(
            f"fold: {len(names)} training case(s) cannot be split into {num_folds} folds. "
            "Train on all of them with fold=all, or pass a splits file."
        )
    members = _members(names, groups)
    if len(members) < num_folds:
        raise UserError(
            f"fold: {len(members)} groups of cases cannot be split into {num_folds} folds. Train on all cases with "
            "fold=all, or pass a splits file."
        )
    shuffled = np.random.RandomState(seed).permutation(len(members))
    held_out: list[list[str]]
    if len(members) == len(names):
        held_out = [[names[index] for index in part] for part in np.array_split(shuffled, num_folds)]
    else:
        held_out = [[] for _ in range(num_folds)]
        for index in sorted(shuffled, key=lambda index: -len(members[index])):
            min(held_out, key=len).extend(members[index])
    chosen = [set(part) for part in held_out]
    return [
        {"train": [name for name in names if name not in part], "val": [name for name in names if name in part]}
        for part in chosen
    ]


def _members(names: Sequence[str], groups: Mapping[str, str]) -> list[list[str]]:
    """Return the cases of each group, in the order of the groups' first cases; other cases are alone."""
    members: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        members.setdefault((name in groups, groups.get(name, name)), []).append(name)
    return list(members.values())


def held_out_cases(
    case_ids: Sequence[str],
    fold: int | Literal["all"],
    splits_file: Path | None = None,
    groups: Mapping[str, str] = NO_GROUPS,
) -> list[str]:
    """Return the validation cases of a fold that its network does not train on; none with fold=all.

    A splits file may have a case in both parts.

    Args:
        case_ids: as for `fold_cases`.
        fold: as for `fold_cases`.
        splits_file: as for `fold_cases`.
        groups: as for `fold_cases`.
    """
    train, val = fold_cases(case_ids, fold, splits_file, groups)
    seen = set(train)
    return [case_id for case_id in val if case_id not in seen]


def fold_cases(
    case_ids: Sequence[str],
    fold: int | Literal["all"],
    splits_file: Path | None = None,
    groups: Mapping[str, str] = NO_GROUPS,
) -> tuple[list[str], list[str]]:
    """Return the training and validation cases of a fold.

    Args:
        case_ids: names of all training cases, in any order.
        fold: number of the fold from 0 on, or "all" to train and validate on all cases. A number beyond the last fold
            gives a random 80:20 split with a seed of its own, as in nnU-Net.
        splits_file: a file like nnU-Net's splits_final.json, whose folds are used instead of those of `split_folds`.
        groups: case -> name of its group, whose cases are never in training and validation; see `split_folds`. If the
            splits file divides a group, a warning says so.

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
    if splits_file is None:
        folds = split_folds(names, groups=groups)
    else:
        folds = _read_splits(Path(splits_file), set(names))
        _warn_of_divided_groups(Path(splits_file), folds, groups)
    if fold < len(folds):
        return folds[fold]["train"], folds[fold]["val"]
    message = "fold=%d: there are only %d folds (0 to %d), so this fold is a random 80:20 split."
    log.warning(message, fold, len(folds), len(folds) - 1)
    return _random_split(names, SEED + fold, groups)


def _random_split(names: Sequence[str], seed: int, groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
    members = _members(names, groups)
    if len(members) < len(names):
        return _random_groups(names, members, seed)
    drawn = np.random.RandomState(seed).choice(len(names), int(len(names) * _TRAIN_SHARE), replace=False).tolist()
    chosen = set(drawn)
    if not 0 < len(chosen) < len(names):
        raise UserError(f"fold: {len(names)} training case(s) cannot be split 80:20. Train on all with fold=all.")
    return [names[index] for index in drawn], [name for index, name in enumerate(names) if index not in chosen]


def _random_groups(names: Sequence[str], members: list[list[str]], seed: int) -> tuple[list[str], list[str]]:
    """Draw groups as long as at most 80 % of the cases are for training."""
    train: list[str] = []
    for index in np.random.RandomState(seed).permutation(len(members)):
        if len(train) + len(members[index]) <= len(names) * _TRAIN_SHARE:
            train += members[index]
    if not train:
        raise UserError(f"fold: {len(members)} groups of cases cannot be split 80:20. Train on all with fold=all.")
    chosen = set(train)
    return train, [name for name in names if name not in chosen]


def _warn_of_divided_groups(path: Path, folds: list[dict[str, list[str]]], groups: Mapping[str, str]) -> None:
    for index, fold in enumerate(folds):
        train, val = ({groups[name] for name in fold[part] if name in groups} for part in ("train", "val"))
        if train & val:
            message = "%s: fold %d trains on and validates with cases of the same group, e.g. %s."
            log.warning(message, path, index, min(train & val))


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
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(f'{path}: fold {index} lists {twice[:60]} twice under "{part}". Keep one.')
        if unknown:
            shown = ", ".join(name[:60] for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise UserError(
                f'{path}: fold {index} lists under "{part}" cases that the dataset does not have: {shown}. Remove them.'
            )
        checked[part] = list(names)
    shared = sorted(set(checked["train"]) & set(checked["val"]))
    if shared:
        log.warning("%s: fold %d trains on %d of its validation cases, e.g. %s.", path, index, len(shared), shared[0])
    return checked
