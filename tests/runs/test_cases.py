"""The training cases of a run: those of the fold, or some of them."""

from collections.abc import Callable

import pytest

from umamba.io import UserError
from umamba.planning import fold_cases
from umamba.runs import PreparedDataset
from umamba.runs.cases import drawn_cases, run_cases
from umamba.runs.fit import split_name
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
