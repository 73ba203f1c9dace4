"""The names of a sweep's runs: readable, the same for the same values, different for different ones, safe anywhere."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from umamba.records.swept_name import swept_name
from umamba.settings import DatasetSettings, PlanSettings, TrainSettings, UNetSettings

NAMED = TrainSettings(dataset=DatasetSettings(root=Path("Dataset001_A")), name="base", architecture=UNetSettings())
UNNAMED = replace(NAMED, name=None)


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ([("recipe.optimizer.lr", 0.01)], "base__optimizer.lr-0.01"),
        ([("recipe.optimizer.lr", 1e-2), ("augmentation", "light")], "base__augmentation-light__optimizer.lr-0.01"),
        ([("augmentation", "light"), ("recipe.optimizer.lr", 0.01)], "base__augmentation-light__optimizer.lr-0.01"),
        ([("augmentation.rotation.p", 0), ("augmentation.scaling.p", 1)], "base__rotation.p-0__scaling.p-1"),
        ([("a.b.p", 0), ("c.b.p", 1)], "base__a.b.p-0__c.b.p-1"),
        ([("architecture", "unet"), ("fold", 1), ("seed", 2)], "base__architecture-unet"),
        ([("recipe.gradient_clip_norm", None), ("trainer.compile", True)], "base__recipe.gradient_clip_norm-null__"),
        ([("data.num_workers", 4)], "base__data.num_workers-4"),
        ([("plan.patch_size", [16, 32, 32])], "base__plan.patch_size-16x32x32"),
        ([("plan", "paper")], "base__plan-paper"),
    ],
)
def test_names_say_what_is_swept(swept: list[tuple[str, Any]], name: str) -> None:
    found = swept_name(NAMED, swept)
    assert found is not None
    assert found == name or (name.endswith("__") and found.startswith(name))


@pytest.mark.parametrize(
    ("settings", "swept"),
    [
        (NAMED, [("fold", 1), ("seed", 3), ("name", "base")]),
        (NAMED, [("experiment", "base")]),
        (NAMED, [("plan", "3d_fullres")]),
        (replace(NAMED, plan=PlanSettings(configuration="2d")), [("plan.configuration", "2d")]),
        (UNNAMED, [("architecture", "unet"), ("dataset.root", "Dataset001_A")]),
        (NAMED, []),
    ],
)
def test_what_the_path_tells_apart_is_not_repeated(settings: TrainSettings, swept: list[tuple[str, Any]]) -> None:
    assert swept_name(settings, swept) is None


def test_an_experiment_that_gives_no_name_of_its_own_is_told() -> None:
    assert swept_name(NAMED, [("experiment", "other")]) == "base__experiment-other"
    assert swept_name(UNNAMED, [("recipe", "unetr")]) == "Dataset001_A_unet__recipe-unetr"
    assert swept_name(UNNAMED, [("architecture", "mine")]) == "Dataset001_A_unet__architecture-mine"


HARD = [
    "a/b",
    "a-b",
    "a b",
    "é",
    "e",
    "../x",
    "",
    "x" * 300,
    "y" * 300,
    [[1, 2], [3]],
    [[1], [2, 3]],
    {"p": 0.5},
    "a__b",
]


def test_hard_values_have_different_names_that_are_safe_everywhere() -> None:
    names = [swept_name(NAMED, [("dataset.source", value)]) for value in HARD]
    assert len(set(names)) == len(HARD)
    for name in names:
        assert name is not None
        assert re.fullmatch(r"base__dataset\.source-[A-Za-z0-9._-]+", name), name
        assert len(name) <= 140
    assert names == [swept_name(NAMED, [("dataset.source", value)]) for value in HARD]


def test_many_keys_stay_short_and_different() -> None:
    keys = [f"augmentation.kind{index}.probability" for index in range(9)]
    names = {
        swept_name(NAMED, list(zip(keys, values, strict=True))) for values in itertools.product((0.1, 0.2), repeat=9)
    }
    assert len(names) == 2**9
    assert max(len(str(name)) for name in names) <= 4 + 2 + 120
