"""Making a plan from nnU-Net's file, the paper's rows and pinned values, and the output of prepare.py."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from umamba.config import DataConfig, DatasetConfig, PathsConfig, PlanConfig, PlannerConfig, TrainConfig
from umamba.pipeline import fingerprint_dataset, make_plan, prepare

from umamba.datasets import read_dataset
from umamba.io import UserError, read_json
from umamba.planning import Fingerprint, to_nnunet_plans


def write_raw(root: Path, channels: tuple[str, ...] = ("MRI",)) -> Path:
    """Write a raw dataset of five cases of 12 x 40 x 36 voxels."""
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
            image = sitk.GetImageFromArray(array.astype(np.float32 if folder == "imagesTr" else np.uint8))
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
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the configuration of a run on a small dataset."""
    tmp_path = tmp_path_factory.mktemp("plan")
    return TrainConfig(
        paths=PathsConfig(raw=str(tmp_path), preprocessed=str(tmp_path / "out"), runs=str(tmp_path / "runs")),
        dataset=DatasetConfig(kind="nnunet", root=str(write_raw(tmp_path / "Dataset702_AbdomenMR"))),
        planner=PlannerConfig(rules="umamba"),
        data=DataConfig(prepare_workers=1),
    )


@pytest.fixture(scope="module")
def statistics(config: TrainConfig) -> Fingerprint:
    """Return the dataset's statistics."""
    return fingerprint_dataset(read_dataset(Path(config.dataset.root)), Path(config.paths.preprocessed), 1)[0]


def test_given_values_replace_those_of_the_papers_row(config: TrainConfig, statistics: Fingerprint) -> None:
    dataset = read_dataset(Path(config.dataset.root))
    paper = PlanConfig(configuration=None, paper=True)
    plan, name = make_plan(replace(config, plan=paper), dataset, statistics)
    assert name == "3d_fullres"
    assert plan.configuration(name).patch_size == (48, 160, 224)
    assert "Table 2 of the paper, 3D Abdomen MR" in plan.decisions[0]
    flat = replace(paper, configuration="2d", batch_size=7)
    plan, name = make_plan(replace(config, plan=flat), dataset, statistics)
    assert (plan.configuration(name).patch_size, plan.configuration(name).batch_size) == ((320, 320), 7)


def test_a_configuration_is_needed(config: TrainConfig, statistics: Fingerprint) -> None:
    dataset = read_dataset(Path(config.dataset.root))
    with pytest.raises(UserError, match=r"plan\.configuration is not given"):
        make_plan(replace(config, plan=PlanConfig(configuration=None)), dataset, statistics)


def test_a_written_plans_file_is_read_back_and_prepares_the_same_store(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nnUNetPlans.json"
    first = prepare(config, explain=True, nnunet_plans=path)
    printed = capsys.readouterr().out
    for told in ("Decisions", "target spacing 2.5, 1, 1 mm", "axis order", "patch 12, 40, 40", "batch ", "poolings"):
        assert told in printed
    content = read_json(path)
    assert content["image_reader_writer"] == "SimpleITKIO"
    assert content["plans_name"] == "nnUNetPlans"
    content["configurations"]["3d_fullres"]["batch_size"] = 3
    path.write_text(json.dumps(content))
    second = prepare(replace(config, plan=PlanConfig(from_file=str(path))), explain=True)
    assert f"all values: read from {path}" in capsys.readouterr().out
    assert second.configuration == replace(first.configuration, batch_size=3)
    assert second.store == first.store  # the batch size does not change the preprocessed voxels


def test_a_plans_file_stands_alone_and_fits_the_dataset(
    config: TrainConfig, statistics: Fingerprint, tmp_path: Path
) -> None:
    path, dataset = tmp_path / "nnUNetPlans.json", read_dataset(Path(config.dataset.root))
    path.write_text(json.dumps(to_nnunet_plans(make_plan(config, dataset, statistics)[0])))
    for plan, key in ((PlanConfig(batch_size=4), "batch_size"), (PlanConfig(paper=True), "paper")):
        with pytest.raises(UserError, match=rf"plan\.from_file.*plan\.{key} cannot be pinned beside"):
            make_plan(replace(config, plan=replace(plan, from_file=str(path))), dataset, statistics)
    other = read_dataset(write_raw(tmp_path / "Dataset002_Two", ("T1", "T2")))
    with pytest.raises(UserError, match=r"made for 1 channel\(s\), Dataset002_Two has 2"):
        make_plan(replace(config, plan=PlanConfig(from_file=str(path))), other, statistics)


@pytest.mark.parametrize(
    ("ending", "reader"),
    [(".png", "NaturalImage2DIO"), (".tif", "Tiff3DIO"), (".tiff", "Tiff3DIO"), (".mha", "SimpleITKIO")],
)
def test_the_reader_follows_the_file_ending(
    config: TrainConfig, statistics: Fingerprint, ending: str, reader: str
) -> None:
    plan, _ = make_plan(config, read_dataset(Path(config.dataset.root)), statistics)
    assert to_nnunet_plans(plan, ending)["image_reader_writer"] == reader
