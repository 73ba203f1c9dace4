"""The training cases of a run: those of the fold, or some of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from umamba.io import UserError
from umamba.planning import fold_cases
from umamba.records.identity import identity_differences
from umamba.runs import PreparedDataset
from umamba.runs.cases import drawn_cases, run_cases
from umamba.runs.identity import checkpoint_record, run_identity, split_name
from umamba.settings import TrainSettings

Make = Callable[..., TrainSettings]
NAMES = [f"case_{number:02d}" for number in range(40)]


def test_a_larger_number_adds_cases() -> None:
    sets = [set(drawn_cases(NAMES, number, seed=0)) for number in (5, 10, 20, 40)]
    assert [len(found) for found in sets] == [5, 10, 20, 40]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert drawn_cases(NAMES[::-1], 5, seed=0) == sorted(sets[0])
    assert set(drawn_cases(NAMES, 5, seed=1)) != sets[0]


def test_a_run_trains_on_some_cases_and_validates_on_all(make_settings: Make, prepared: PreparedDataset) -> None:
    train, val = fold_cases(prepared.store.case_ids, 0)
    whole, some = make_settings(), make_settings("dataset.num_training=2")
    assert run_cases(whole, prepared) == (train, val)
    assert run_cases(some, prepared) == (drawn_cases(train, 2, 0), val)
    assert split_name(some, prepared, 0).startswith("2 to train, 1 to validate")
    assert split_name(whole, prepared, 0).startswith("4 to train, 1 to validate")
    with pytest.raises(UserError, match=r"dataset\.num_training=5: fold 0 of .* has 4 training cases"):
        run_cases(make_settings("dataset.num_training=5"), prepared)


def test_other_groups_of_cases_make_another_run(make_settings: Make, prepared: PreparedDataset) -> None:
    settings, names = make_settings("fold=all"), prepared.store.case_ids

    def identity(groups: dict[str, str]) -> dict[str, Any]:
        grouped = replace(prepared, dataset=replace(prepared.dataset, groups=groups))
        return run_identity(settings, grouped, checkpoint_record(settings, grouped))

    alone = identity({})
    pairs = identity(dict(_pairs(names)))
    others = identity({name: f"patient {(index + 1) // 2}" for index, name in enumerate(names)})
    for before, now in ((alone, pairs), (pairs, others), (pairs, alone)):
        (line,) = identity_differences(before, now)
        assert line.startswith("groups of cases (groups.csv, or groups in dataset.json): was ")
    assert identity_differences(pairs, identity(dict(reversed(_pairs(names))))) == []
    former = {key: value for key, value in alone.items() if key != "groups"}  # of a version that did not record them
    assert identity_differences(former, pairs) == []


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, f"patient {index // 2}") for index, name in enumerate(names)]
