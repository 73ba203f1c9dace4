"""Cases that declare which labels they carry: what is read, what is refused, and that a change is noticed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import dataset_digest, inspect_case, list_findings, read_dataset
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.annotated import annotated_beside, annotated_mask, values_of


def declare(root: Path, entry: Any) -> None:
    """Write annotated_labels into dataset.json."""
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, "annotated_labels": entry}))


def keep(root: Path, case_id: str, value: int) -> None:
    """Leave only one value in a label map."""
    path = root / "labelsTr" / f"{case_id}.nii.gz"
    label = sitk.ReadImage(str(path))
    kept = sitk.GetArrayFromImage(label)
    kept[kept != value] = 0
    changed = sitk.GetImageFromArray(kept)
    changed.CopyInformation(label)
    sitk.WriteImage(changed, str(path))


def test_json_and_csv_say_the_same(raw: Path) -> None:
    assert read_dataset(raw).annotated == {}
    declare(raw, {"a": ["tumour", "liver"], "b": ["tumour"]})
    assert read_dataset(raw).annotated == {"b": ("tumour",)}  # a carries all labels
    declare(raw, ["liver"])
    assert read_dataset(raw).annotated == dict.fromkeys("abc", ("liver",))
    content = json.loads((raw / "dataset.json").read_text())
    del content["annotated_labels"]
    (raw / "dataset.json").write_text(json.dumps(content))
    (raw / "annotated_labels.csv").write_text("case,label\nb,tumour\na,liver\na,tumour\n")
    assert read_dataset(raw).annotated == {"b": ("tumour",)}
    assert annotated_beside(raw / "dataset.json", read_dataset(raw).labels, ["a", "b"]) == {"b": ("tumour",)}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"a": ["livr"]}, "Did you mean liver?"),
        (["livr"], "a and 2 more: livr is none of the labels"),
        ({"a": []}, "a carries no label"),
        ({"d": ["liver"]}, "the dataset does not have d (cases: 1)"),
        ({"a": "liver"}, "must map each partly labelled case to its labels"),
        (7, "must map each partly labelled case to its labels"),
    ],
)
def test_mistakes_are_named(raw: Path, entry: Any, said: str) -> None:
    declare(raw, entry)
    with pytest.raises(UserError, match="annotated_labels") as caught:
        read_dataset(raw)
    assert said in " ".join(str(caught.value).replace("|", " ").replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,label\na,\n", "annotated_labels.csv: line 2"),
        ("case,label\na,liver\n\n\nb,\n", "annotated_labels.csv: line 5"),  # as an editor counts: blank ones, too
        ("case;label\na;liver\n", "annotated_labels.csv: its first line must name the columns"),
        ("case,label\nx,liver\n", "x"),
    ],
)
def test_mistakes_of_the_table_are_named(raw: Path, text: str, said: str) -> None:
    (raw / "annotated_labels.csv").write_text(text)
    messages = [finding.message for finding in list_findings(raw)[1] if finding.severity == "error"]
    assert len(messages) == 1
    assert said in messages[0]
    declare(raw, {"a": ["liver"]})
    assert any("Keep one of the two" in finding.message for finding in list_findings(raw)[1])


def test_a_label_that_the_case_does_not_carry_is_refused(raw: Path) -> None:
    declare(raw, {"b": ["tumour"]})
    dataset = read_dataset(raw)
    found = inspect_case(dataset, dataset.training[1]).findings
    assert [(finding.severity, "holds 1" in finding.message) for finding in found] == [("error", True)]
    keep(raw, "b", 2)
    assert inspect_case(dataset, dataset.training[1]).findings == ()
    assert inspect_case(dataset, dataset.training[0]).findings == ()


def test_the_table_belongs_to_the_content_of_the_dataset(raw: Path) -> None:
    before = dataset_digest(read_dataset(raw), None)
    (raw / "annotated_labels.csv").write_text("case,label\nb,tumour\n")
    after = dataset_digest(read_dataset(raw), None)
    (raw / "annotated_labels.csv").write_text("case,label\nb,liver\n")
    assert len({before, after, dataset_digest(read_dataset(raw), None)}) == 3


def test_regions_share_values() -> None:
    labels = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    assert values_of(labels, ["whole"]) == {0, 1, 2}
    assert values_of(labels, ["core"]) == {0, 2}
    mask = annotated_mask(labels, {"x": ("core",)}, ["y", "x"])
    assert np.array_equal(mask, [[True, True], [False, True]])
