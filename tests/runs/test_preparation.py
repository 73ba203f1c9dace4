"""The plan of a dataset by the rules, the paper's rows, pinned values or nnU-Net's file; and its preparation."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.cli.prepare import summary
from umamba.datasets import digest, read_dataset
from umamba.io import StorageError, UserError, read_json, write_json
from umamba.planning import Fingerprint, plan_table, to_nnunet_plans
from umamba.runs import preparation
from umamba.runs.preparation import fingerprint_dataset, make_plan, plan_of, prepare, preprocess
from umamba.settings import (
    DatasetSettings,
    DataSettings,
    InvalidSettings,
    PathsSettings,
    PlannerSettings,
    PlanSettings,
    TrainSettings,
)

SizeLimit = Callable[[int], AbstractContextManager[None]]


def write_raw(root: Path, channels: tuple[str, ...] = ("MRI",), cut: tuple[slice, ...] = ()) -> Path:
    """Write a raw dataset of five cases of 12 x 40 x 36 voxels, or a part of them."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for case_id in "abcde":
        label = np.zeros((12, 40, 36), np.uint8)
        label[3:9, 10:30, 8:28] = 1
        for folder, names, array in (
            ("imagesTr", [f"{case_id}_{number:04d}" for number in range(len(channels))], rng.normal(size=label.shape)),
            ("labelsTr", [case_id], label),
        ):
            part = array[cut].astype(np.float32 if folder == "imagesTr" else np.uint8)
            image = sitk.GetImageFromArray(part)
            image.SetSpacing((1.0, 1.0, 2.5))
            for name in names:
                sitk.WriteImage(image, str(root / folder / f"{name}.nii.gz"))
    declared = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Return the settings of a run on a small dataset."""
    tmp_path = tmp_path_factory.mktemp("plan")
    return TrainSettings(
        paths=PathsSettings(raw=tmp_path, preprocessed=tmp_path / "out", runs=tmp_path / "runs"),
        dataset=DatasetSettings(root=write_raw(tmp_path / "Dataset702_AbdomenMR")),
        planner=PlannerSettings(rules="umamba"),
        data=DataSettings(prepare_workers=1),
    )


@pytest.fixture(scope="module")
def statistics(settings: TrainSettings) -> Fingerprint:
    """Return the dataset's fingerprint."""
    return fingerprint_dataset(read_dataset(settings.dataset.root), settings.paths.preprocessed, 1)[0]


def test_given_values_replace_those_of_the_papers_row(settings: TrainSettings, statistics: Fingerprint) -> None:
    dataset = read_dataset(settings.dataset.root)
    paper = PlanSettings(configuration=None, paper=True)
    plan, name = make_plan(replace(settings, plan=paper), dataset, statistics)
    assert name == "3d_fullres"
    assert plan.configuration(name).patch_size == (48, 160, 224)
    assert "Table 2 of the paper, 3D Abdomen MR" in plan.decisions[0]
    flat = replace(paper, configuration="2d", batch_size=7)
    plan, name = make_plan(replace(settings, plan=flat), dataset, statistics)
    assert (plan.configuration(name).patch_size, plan.configuration(name).batch_size) == ((320, 320), 7)


def test_a_configuration_is_needed() -> None:
    with pytest.raises(
        InvalidSettings, match=r"plan\.configuration=null: choose 2d, 3d_fullres, 3d_lowres or 3d_cascade"
    ):
        PlanSettings(configuration=None)


def test_a_written_plans_file_is_read_back_and_prepares_the_same_store(
    settings: TrainSettings, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "nnUNetPlans.json"
    first = prepare(settings, explain=True, nnunet_plans=path)
    for words in ("Decisions", "target spacing 2.5, 1, 1 mm", "axis order", "patch 12, 40, 40", "batch ", "poolings"):
        assert words in messages.text
    assert f"paths.preprocessed: {settings.paths.preprocessed}" in messages.messages
    content = read_json(path)
    assert content["image_reader_writer"] == "SimpleITKIO"
    assert content["plans_name"] == "nnUNetPlans"
    content["configurations"]["3d_fullres"]["batch_size"] = 3
    path.write_text(json.dumps(content))
    second = prepare(replace(settings, plan=PlanSettings(from_file=path)), explain=True)
    assert f"all values: read from {path}" in messages.text
    assert second.configuration == replace(first.configuration, batch_size=3)
    assert second.store == first.store  # the batch size does not change the preprocessed voxels


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spacings": [[1', "\0"])
def test_damaged_statistics_are_computed_again(
    settings: TrainSettings, statistics: Fingerprint, content: str, messages: pytest.LogCaptureFixture
) -> None:
    folder = settings.paths.preprocessed / settings.dataset.root.name
    dataset = read_dataset(settings.dataset.root)
    for pattern in ("fingerprint_*.json", "files.json", "findings_*.json"):
        (file,) = folder.glob(pattern)
        before = read_json(file)
        file.write_text(content)
        assert fingerprint_dataset(dataset, settings.paths.preprocessed, 1)[0] == statistics
        plan_of(settings)
        if pattern.startswith("fingerprint"):
            assert "is damaged" in messages.text
            assert read_json(file) == before
        else:
            file.write_text(json.dumps(before))


def test_levels_of_depth_need_numbered_instances(settings: TrainSettings) -> None:
    dataset = replace(settings.dataset, instance_targets="depth")
    with pytest.raises(UserError, match=r"instance_targets=depth: .*Dataset702_AbdomenMR holds no numbered instances"):
        plan_of(replace(settings, dataset=dataset))


def test_a_plan_needs_no_preprocessing(settings: TrainSettings, tmp_path: Path) -> None:
    paths = replace(settings.paths, preprocessed=tmp_path / "out")
    planned = plan_of(replace(settings, paths=paths))
    assert planned.labels.names == ("organ",)
    assert planned.num_channels == 1
    made = sorted(path.name for path in (tmp_path / "out" / planned.dataset.name).iterdir())
    key = planned.digest[:8]
    assert made == [".fingerprint.lock", "files.json", f"findings_{key}.json", f"fingerprint_{key}.json"]
    prepared = preprocess(planned, replace(settings, paths=paths))
    assert prepared.store.case_ids == tuple("abcde")
    assert (prepared.plan, prepared.digest) == (planned.plan, planned.digest)
    assert plan_table(prepared.plan).row_count >= 1


def test_a_full_disk_ends_in_one_message_and_the_next_command_continues(
    settings: TrainSettings, tmp_path: Path, file_size_limit: SizeLimit
) -> None:
    whole = prepare(settings)
    full = replace(settings, paths=replace(settings.paths, preprocessed=tmp_path / "out"))
    for limit in (0, 20, 300, 2000, 20_000, 60_000):
        with file_size_limit(limit), pytest.raises(StorageError, match=f"{tmp_path}/out/.*could not be written"):
            prepare(full)
        assert not list(tmp_path.rglob("*partial*"))
    again = prepare(full)
    for case_id in again.store.case_ids:
        ours, theirs = again.store.load(case_id), whole.store.load(case_id)
        assert np.array_equal(ours.image[:], theirs.image[:])
        assert np.array_equal(ours.label[:], theirs.label[:])


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that refuses to make files and folders below a folder, as a read-only disk does."""

    def apply(root: Path) -> None:
        def refusing(function: Callable[..., Any], creates: Callable[..., bool]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **options: Any) -> Any:
                if creates(*arguments) and Path(path).is_relative_to(root):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return function(path, *arguments, **options)

            return call

        monkeypatch.setattr(os, "open", refusing(os.open, lambda flags, *_: bool(flags & os.O_CREAT)))
        monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, lambda *_: True))

    return apply


def test_a_prepared_dataset_on_a_read_only_disk_can_be_used(
    settings: TrainSettings, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    other = replace(settings, paths=replace(settings.paths, preprocessed=tmp_path / "out"))
    prepared = prepare(other)
    read_only(tmp_path)
    assert prepare(other) == prepared
    (tmp_path / "out" / prepared.dataset.name / "files.json").unlink()  # the hashes are computed again, not stored
    assert prepare(other) == prepared
    (tmp_path / "out" / prepared.dataset.name / f"fingerprint_{prepared.digest[:8]}.json").unlink()
    with pytest.raises(StorageError, match=f"{tmp_path}/out/.*Read-only file system"):
        prepare(other)


def test_the_same_image_twice_is_found_whatever_its_header_and_groups_keep_it_in_one_fold(
    settings: TrainSettings, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    root = write_raw(tmp_path / "Dataset001_Twins")
    image = sitk.ReadImage(str(root / "imagesTr" / "a_0000.nii.gz"))
    image.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), str(root / "imagesTr" / "d_0000.nii.gz"))
    (root / "imagesTs").mkdir()
    shutil.copy(root / "imagesTr" / "b_0000.nii.gz", root / "imagesTs" / "z_0000.nii.gz")
    own = replace(
        settings,
        dataset=DatasetSettings(root=root),
        paths=replace(settings.paths, preprocessed=tmp_path / "out"),
    )
    planned = plan_of(own)
    assert "the same image as case a" in messages.text
    assert planned.findings is not None
    found = {(finding.case_id, finding.file) for finding in planned.findings if "the same" in finding.message}
    assert found == {("d", "imagesTr/d_0000.nii.gz"), ("z", "imagesTs/z_0000.nii.gz")}
    assert plan_of(own).findings == planned.findings  # they are kept beside the fingerprint
    (root / "groups.csv").write_text("case,group\na,patient 1\nd,patient 1\n")
    assert same(own) == {"z"}
    last = summary(prepare(own), 12.3)
    words = r"Prepared Dataset001_Twins: 5 training and 1 test cases, 1 label \(organ\), \d findings?, 12 s, in "
    assert re.match(words + re.escape(str(tmp_path / "out")), last)


def same(settings: TrainSettings) -> set[str]:
    """Return the cases whose image has another name, too, as the findings of the plan say."""
    findings = plan_of(settings).findings
    assert findings is not None
    return {finding.case_id for finding in findings if "the same" in finding.message}


def test_groups_and_test_images_that_come_later_are_noticed_without_decoding_again(
    settings: TrainSettings,
    tmp_path: Path,
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    read_only: Callable[[Path], None],
) -> None:
    root = write_raw(tmp_path / "Dataset001_Later")
    shutil.copy(root / "imagesTr" / "a_0000.nii.gz", root / "imagesTr" / "d_0000.nii.gz")
    own = replace(
        settings, dataset=DatasetSettings(root=root), paths=replace(settings.paths, preprocessed=tmp_path / "out")
    )
    assert same(own) == {"d"}
    monkeypatch.setattr(preparation, "inspect_dataset", None)  # whoever calls it fails
    (root / "groups.csv").write_text("case,group\na,patient 1\nd,patient 1\n")
    messages.clear()
    assert same(own) == set()
    assert "the same image" not in messages.text
    (root / "imagesTs").mkdir()
    shutil.copy(root / "imagesTr" / "b_0000.nii.gz", root / "imagesTs" / "z_0000.nii.gz")
    content = bytearray((root / "imagesTr" / "b_0000.nii.gz").read_bytes())
    content[-1] ^= 1
    (root / "imagesTs" / "y_0000.nii.gz").write_bytes(content)  # as large, but another file
    assert same(own) == {"z"}
    assert "the same file as an image of training case b" in messages.text
    read: list[str] = []
    genuine = digest.file_digest

    def recorded(path: Path) -> str:
        read.append(path.name)
        return genuine(path)

    monkeypatch.setattr(digest, "file_digest", recorded)
    assert same(own) == {"z"}
    assert read == []  # the hashes of test files are kept
    read_only(tmp_path)
    (root / "imagesTs" / "z_0000.nii.gz").write_bytes(content)
    shutil.copy(root / "imagesTr" / "c_0000.nii.gz", root / "imagesTs" / "y_0000.nii.gz")
    assert same(own) == {"y"}


def test_the_findings_of_an_earlier_version_are_made_again(
    settings: TrainSettings, tmp_path: Path, messages: pytest.LogCaptureFixture, read_only: Callable[[Path], None]
) -> None:
    root = write_raw(tmp_path / "Dataset001_Earlier")
    shutil.copy(root / "imagesTr" / "a_0000.nii.gz", root / "imagesTr" / "d_0000.nii.gz")
    (root / "groups.csv").write_text("case,group\na,patient 1\nd,patient 1\n")
    own = replace(
        settings, dataset=DatasetSettings(root=root), paths=replace(settings.paths, preprocessed=tmp_path / "out")
    )
    planned = plan_of(own)
    (file,) = (tmp_path / "out" / root.name).glob("findings_*.json")
    stale = {"case_id": "d", "file": "imagesTr/d_0000.nii.gz", "severity": "warning", "message": "the same image as a"}
    write_json(file, [stale])
    assert plan_of(own) == planned
    assert "an earlier version wrote it" in messages.text
    assert isinstance(read_json(file), dict)
    write_json(file, [stale])
    read_only(tmp_path)
    assert plan_of(own) == replace(planned, findings=None)


def test_nothing_is_printed(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(settings, explain=True)
    assert capsys.readouterr() == ("", "")


def test_a_plans_file_stands_alone_and_fits_the_dataset(
    settings: TrainSettings, statistics: Fingerprint, tmp_path: Path
) -> None:
    path, dataset = tmp_path / "nnUNetPlans.json", read_dataset(settings.dataset.root)
    path.write_text(json.dumps(to_nnunet_plans(make_plan(settings, dataset, statistics)[0])))
    for pinned, key in (({"batch_size": 4}, "batch_size"), ({"paper": True}, "paper")):
        with pytest.raises(InvalidSettings, match=rf"plan\.from_file.*plan\.{key} cannot be given as well"):
            replace(PlanSettings(from_file=path), **pinned)
    content = read_json(path)
    write_json(path, {**content, "foreground_intensity_properties_per_channel": {}})  # where nothing is clipped by them
    make_plan(replace(settings, plan=PlanSettings(from_file=path)), dataset, statistics)
    other = read_dataset(write_raw(tmp_path / "Dataset002_Two", ("T1", "T2")))
    with pytest.raises(UserError, match=r"made for 1 channel\(s\), Dataset002_Two has 2"):
        make_plan(replace(settings, plan=PlanSettings(from_file=path)), other, statistics)


@pytest.mark.parametrize(
    ("ending", "reader"),
    [(".png", "NaturalImage2DIO"), (".tif", "Tiff3DIO"), (".tiff", "Tiff3DIO"), (".mha", "SimpleITKIO")],
)
def test_the_reader_follows_the_file_ending(
    settings: TrainSettings, statistics: Fingerprint, ending: str, reader: str
) -> None:
    plan, _ = make_plan(settings, read_dataset(settings.dataset.root), statistics)
    assert to_nnunet_plans(plan, ending)["image_reader_writer"] == reader


def test_slices_along_another_axis_are_no_lines(tmp_path: Path) -> None:
    cut = (slice(None), slice(15, 16))  # one coronal slice in each file
    root = write_raw(tmp_path / "Dataset001_Coronal", cut=cut)
    settings = TrainSettings(
        dataset=DatasetSettings(root=root),
        paths=PathsSettings(preprocessed=tmp_path / "preprocessed", runs=tmp_path / "runs"),
        plan=PlanSettings(configuration="2d"),
    )
    with pytest.raises(UserError, match=r"lines of 1 x \d+ voxels.*Store them as two-dimensional files"):
        plan_of(settings)
