"""Label sets against hand-written dataset.json entries (nnU-Net's documented forms)."""

from typing import Any

import pytest

from umamba.io import UserError
from umamba.labels import LabelSet


def test_plain_labels() -> None:
    labels = LabelSet.from_json({"background": 0, "liver": 1, "spleen": 2})
    assert labels.names == ("liver", "spleen")
    assert labels.values == ((1,), (2,))
    assert (labels.num_classes, labels.num_entries, labels.all_values) == (3, 3, (0, 1, 2))
    assert not labels.has_regions


def test_ignore_counts_as_an_entry_but_not_as_an_output() -> None:
    labels = LabelSet.from_json({"background": 0, "liver": 1, "ignore": 2})
    assert (labels.num_classes, labels.num_entries, labels.all_values, labels.ignore) == (2, 3, (0, 1, 2), 2)


def test_regions_of_brats() -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    labels = LabelSet.from_json(regions, [1, 2, 3])
    assert labels.has_regions
    assert (labels.num_classes, labels.num_entries, labels.all_values) == (3, 4, (0, 1, 2, 3))
    assert labels.region_order == (1, 2, 3)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1, "ignore": 2}, None),
        ({"background": 0, "all": [1, 2], "b": 2, "ignore": 3}, [1, 2]),
    ],
)
def test_round_trip(labels: dict, order: list[int] | None) -> None:
    label_set = LabelSet.from_json(labels, order)
    written = label_set.to_json()
    assert written == {"labels": labels, "regions_class_order": order}
    assert LabelSet.from_json(written) == label_set
    assert LabelSet.from_json(written["labels"], written["regions_class_order"]) == label_set


@pytest.mark.parametrize(
    ("labels", "order", "word"),
    [
        ({}, None, "labels"),
        ({"0": "background", "1": "liver"}, None, "Write name: value"),
        ({"liver": 1}, None, "background"),
        ({"background": 1, "liver": 0}, None, "background"),
        ({"background": 0}, None, "only background"),
        ({"background": 0, "liver": 0}, None, "includes 0"),
        ({"background": 0, "a": 1, "b": 1}, None, "both have the value 1"),
        ({"background": 0, "a": 1, "b": 3}, None, r"\[2\] are missing"),
        ({"background": 0, "a": 2, "ignore": 1}, None, "above the others: 3"),
        ({"background": 0, "a": "1"}, None, "'1'"),
        ({"background": 0, "a": True}, None, "True"),
        ({"background": 0, "a": [1, 1]}, None, "twice"),
        ({"background": 0, "a": [1, 2], "b": 2}, None, "regions_class_order: missing"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "1 values for 2 regions"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, 7], r"\[7\]"),
    ],
)
def test_mistakes_are_named(labels: dict, order: list[int] | None, word: str) -> None:
    with pytest.raises(UserError, match=word):
        LabelSet.from_json(labels, order)


@pytest.mark.parametrize("order", [7, "12", [1, 2, 3], [[1]], {"a": 1}])
def test_an_order_of_regions_that_names_no_labels_is_refused_also_without_regions(order: Any) -> None:
    assert LabelSet.from_json({"background": 0, "a": 1, "b": 2}, [2, 1]).region_order is None
    with pytest.raises(UserError, match="regions_class_order"):
        LabelSet.from_json({"background": 0, "a": 1, "b": 2}, order)
    with pytest.raises(UserError, match="regions_class_order"):
        LabelSet.from_json({"background": 0, "a": [1, 2], "b": 2}, order)


@pytest.mark.parametrize("value", [4_000_000_000, 10**18, 32_768])
def test_values_that_no_label_map_holds_are_refused_at_once(value: int) -> None:
    with pytest.raises(UserError, match="largest possible one is 32767"):
        LabelSet.from_json({"background": 0, "a": value})
    with pytest.raises(UserError, match="must be consecutive"):
        LabelSet.from_json({"background": 0, "a": 30_000})


def test_labels_in_any_order_are_those_of_their_values() -> None:
    """As in nnU-Net: the k-th output of a network is the value k, wherever its name stands in the file."""
    shuffled = LabelSet.from_json({"tumour": 2, "ignore": 3, "background": 0, "kidney": 1})
    assert shuffled == LabelSet(("kidney", "tumour"), ((1,), (2,)), ignore=3)
    with pytest.raises(ValueError, match=r"1, 2, 3, \.\.\. in this order, not \(\(2,\), \(1,\)\)"):
        LabelSet(("tumour", "kidney"), ((2,), (1,)))
    regions = {"background": 0, "core": 2, "whole": [1, 2]}
    assert LabelSet.from_json(regions, [2, 1]).names == ("core", "whole")  # regions have outputs of their own
