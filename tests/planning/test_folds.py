"""Folds against the rules of scikit-learn and nnU-Net, and splits files."""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from umamba.io import UserError
from umamba.planning import fold_cases, held_out_cases, split_folds

NAMES = [f"case_{number:03d}" for number in range(23)]


def kfold(count: int) -> list[list[int]]:
    """Return the held-out indices of KFold(5, shuffle=True, random_state=12345), written out."""
    indices = np.arange(count)
    np.random.RandomState(12345).shuffle(indices)
    sizes = [count // 5 + (fold < count % 5) for fold in range(5)]
    edges = np.cumsum([0, *sizes])
    return [sorted(indices[a:b].tolist()) for a, b in itertools.pairwise(edges)]


def test_folds_are_nnunets() -> None:
    folds = split_folds(list(reversed(NAMES)))
    assert [fold["val"] for fold in folds] == [[NAMES[index] for index in held] for held in kfold(len(NAMES))]
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == NAMES
    assert sorted(name for fold in folds for name in fold["val"]) == NAMES


PATIENTS = {name: f"patient {number // 3}" for number, name in enumerate(NAMES[:17])}


def test_a_group_is_in_one_fold() -> None:
    folds = split_folds(NAMES, groups=PATIENTS)
    assert sorted(name for fold in folds for name in fold["val"]) == NAMES
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == NAMES
        groups = [{PATIENTS.get(name, name) for name in fold[part]} for part in ("train", "val")]
        assert not groups[0] & groups[1]
    assert sorted(len(fold["val"]) for fold in folds) == [4, 4, 5, 5, 5]
    assert fold_cases(NAMES, 1, groups=PATIENTS) == (folds[1]["train"], folds[1]["val"])
    train, val = fold_cases(NAMES, 9, groups=PATIENTS)  # 80:20
    assert sorted(train + val) == NAMES
    assert not {PATIENTS.get(name, name) for name in train} & {PATIENTS.get(name, name) for name in val}
    assert 16 <= len(train) <= 18


def test_groups_of_one_case_leave_nnunets_folds() -> None:
    alone = {name: f"patient {hash(name)}" for name in NAMES}
    assert split_folds(NAMES, groups=alone) == split_folds(NAMES)
    assert fold_cases(NAMES, 7, groups=alone) == fold_cases(NAMES, 7)


def test_too_few_groups() -> None:
    with pytest.raises(UserError, match="4 groups of cases cannot be split into 5"):
        split_folds(NAMES, groups={name: str(number % 4) for number, name in enumerate(NAMES)})


def test_a_splits_file_that_divides_a_group_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": NAMES[:20], "val": NAMES[20:]}, {"train": NAMES[1:], "val": NAMES[:1]}]))
    with caplog.at_level(logging.WARNING):
        fold_cases(NAMES, 0, path, PATIENTS)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: fold 1 trains on and validates with cases of the same group, e.g. patient 0."
    ]


def test_fold_all_and_a_number_beyond(caplog: pytest.LogCaptureFixture) -> None:
    assert fold_cases(NAMES, "all") == (NAMES, NAMES)
    assert fold_cases(NAMES, 2) == (split_folds(NAMES)[2]["train"], split_folds(NAMES)[2]["val"])
    with caplog.at_level(logging.WARNING):
        train, val = fold_cases(NAMES, 7)
    assert "80:20" in caplog.text
    assert (len(train), len(val)) == (18, 5)
    assert sorted(train + val) == NAMES


def test_a_splits_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": NAMES[:20], "val": NAMES[20:]}]))
    assert fold_cases(NAMES, 0, path) == (NAMES[:20], NAMES[20:])
    assert held_out_cases(NAMES, 0, path) == NAMES[20:]
    path.write_text(json.dumps([{"train": NAMES[:22], "val": NAMES[20:]}]))
    assert held_out_cases(NAMES, 0, path) == NAMES[22:], "the network has seen the other two"
    assert held_out_cases(NAMES, "all") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a list of folds"),
        ([{"train": NAMES}], 'fold 0 has no list of case names under "val"'),
        ([{"train": NAMES, "val": ["other"]}], 'lists under "val" cases that the dataset does not have: other'),
    ],
)
def test_a_bad_splits_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        fold_cases(NAMES, 0, path)


@pytest.mark.parametrize("fold", [-1, True, "first", 1.5])
def test_invalid_folds(fold: object) -> None:
    with pytest.raises(UserError, match="fold="):
        fold_cases(NAMES, fold)  # type: ignore[arg-type]


def test_too_few_cases() -> None:
    with pytest.raises(UserError, match=r"3 training case\(s\) cannot be split into 5"):
        fold_cases(NAMES[:3], 0)
