"""The predictor needs a checkpoint and images, writes on each image's own grid, and continues where it stopped."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.datasets import RawCase
from umamba.inference import Model, Predictor
from umamba.inference.same_images import changed_at
from umamba.io import UserError, read_image, read_label
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Plan
from umamba.settings import PredictionSettings

LABELS = LabelSet(("a", "b"), ((1,), (2,)))


def make_plan(dim: int) -> tuple[Plan, Configuration]:
    """Return a plan with one small configuration."""
    configuration = Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=(1.5,) * dim,
        median_shape=(16.0,) * dim,
        patch_size=(8,) * dim,
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * dim, (2,) * dim),
        kernel_sizes=((3,) * dim, (3,) * dim),
        features_per_stage=(4, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
    plan = Plan(
        dataset_name="Dataset001_Test",
        rules="nnunet",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        median_spacing=(1.5, 1.5, 1.5),
        median_shape=(16.0, 16.0, 16.0),
        intensity=(),
        configurations={configuration.name: configuration},
    )
    return plan, configuration


def save_checkpoint(path: Path, dim: int = 3, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint with untrained weights, as a run writes it."""
    plan, configuration = make_plan(dim)
    torch.manual_seed(seed)
    network = build_network("unet", configuration, 1, LABELS.num_classes, deep_supervision=True)
    record = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": configuration.name,
        "architecture": {"name": "unet"},
        "labels": LABELS.to_json(),
        "channel_names": ["MRI"],
        "file_ending": ".nii.gz",
        "recipe": {"deep_supervision": True},
        **changes,
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"umamba": record, "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a 3D network."""
    return save_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, each with its own geometry."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index, name in enumerate(("a_0000.nii.gz", "b_0000.nii.gz", "c.mha")):
        image = sitk.GetImageFromArray(generator.normal(size=(9 + index, 14, 12)).astype(np.float32))
        image.SetSpacing((1.1, 1.2, 2.0 + index))
        image.SetOrigin((5.0, -3.0, 10.0 * index))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(folder / name))
    return folder


def test_folder_in_the_images_own_space(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    written = predictor.predict(images, tmp_path / "out")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    seen = set()
    for source, target in zip(sorted(images.iterdir()), written, strict=True):
        image, segmentation = sitk.ReadImage(str(source)), sitk.ReadImage(str(target))
        assert segmentation.GetSize() == image.GetSize()
        np.testing.assert_allclose(segmentation.GetSpacing(), image.GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(segmentation.GetOrigin(), image.GetOrigin(), rtol=1e-6)
        assert segmentation.GetDirection() == image.GetDirection()
        array = sitk.GetArrayFromImage(segmentation)
        seen |= set(np.unique(array).tolist())
        np.testing.assert_array_equal(array, predictor.predict_image(read_image([source])))
    assert len(seen) > 1


def test_any_construction_and_worker_number_gives_the_same(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    loaded = Predictor.from_checkpoint(checkpoint, device="cpu")
    plan, configuration = make_plan(3)
    torch.manual_seed(0)
    network = build_network("unet", configuration, 1, LABELS.num_classes, deep_supervision=True).train()
    built = Predictor((Model(network, plan, configuration, LABELS, 1, torch.device("cpu")),))
    first = loaded.predict(images, tmp_path / "first", PredictionSettings(tta=True, workers=1))
    cases = [RawCase(path.name.split("_")[0].split(".")[0], (path,), None) for path in sorted(images.iterdir())]
    second = built.predict_cases(cases, tmp_path / "second", PredictionSettings(tta=True, workers=3))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(read_label(ours).array, read_label(theirs).array)


def test_only_missing_ones_are_segmented_and_all_are_returned(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    output = tmp_path / "out"
    written = predictor.predict(images, output)
    assert "Predicting" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in written]
    written[1].unlink()
    assert predictor.predict(images, output) == written
    assert f"2 of 3 segmentations were there already, in {output}" in capsys.readouterr().out
    after = [path.stat().st_mtime_ns for path in written]
    assert [new > old for new, old in zip(after, before, strict=True)] == [False, True, False]
    assert predictor.predict(images, output, progress=False) == written
    assert [path.stat().st_mtime_ns for path in written] == after
    overwrite = PredictionSettings(overwrite=True)
    assert predictor.predict(images, output, overwrite, progress=False) == written
    assert all(path.stat().st_mtime_ns > old for path, old in zip(written, after, strict=True))
    assert capsys.readouterr().out == ""


def test_another_image_of_the_same_name_is_not_taken_for_segmented(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    """A fixed output file, a file that is replaced, and a folder whose image lies elsewhere now."""
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    first, second = images / "a_0000.nii.gz", images / "b_0000.nii.gz"
    (one,) = predictor.predict(first, tmp_path / "seg.nii.gz", progress=False)
    made = one.read_bytes()
    with pytest.raises(UserError, match=r"segmentations of other images than these.*seg\.nii\.gz.*overwrite=true"):
        predictor.predict(second, one, progress=False)
    assert one.read_bytes() == made
    renamed = shutil.copy(first, tmp_path / "renamed_0000.nii.gz")
    predictor.predict(renamed, one, progress=False)  # the same image
    (again,) = predictor.predict(second, one, PredictionSettings(overwrite=True), progress=False)
    assert sitk.ReadImage(str(again)).GetSize() == sitk.ReadImage(str(second)).GetSize()

    output = tmp_path / "out"
    written = predictor.predict(images, output, progress=False)
    elsewhere = shutil.copytree(images, tmp_path / "elsewhere")  # the same images, written later
    assert predictor.predict(elsewhere, output, progress=False) == written
    shutil.copy(elsewhere / "a_0000.nii.gz", elsewhere / "b_0000.nii.gz")
    shutil.copy(first, second)
    for folder in (images, elsewhere):
        with pytest.raises(UserError, match=r"other images than these, or of an earlier content.*: \S*b\.nii\.gz\."):
            predictor.predict(folder, output, progress=False)
    (output / "b.nii.gz").unlink()  # what is deleted is made of the new image
    predictor.predict(images, output, progress=False)
    np.testing.assert_array_equal(read_label(output / "b.nii.gz").array, read_label(output / "a.nii.gz").array)


def test_a_replaced_slice_of_a_series_is_another_image(tmp_path: Path) -> None:
    """What counts is when a file of the folder changed, also if the time that it carries is old."""
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"a")
    before = changed_at(folder)
    time.sleep(0.02)
    (tmp_path / "2.dcm").write_bytes(b"b")
    os.utime(tmp_path / "2.dcm", (1e9, 1e9))
    (tmp_path / "2.dcm").rename(folder / "1.dcm")
    assert changed_at(folder) > before


def test_segmentations_of_different_networks_are_not_mixed(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    Predictor.from_checkpoint(checkpoint, device="cpu").predict(images, output)
    other = Predictor.from_checkpoint(save_checkpoint(tmp_path / "other.ckpt", seed=1), device="cpu")
    with pytest.raises(UserError, match="another network"):
        other.predict(images, output)
    assert len(other.predict(images, output, PredictionSettings(overwrite=True))) == 3


def test_what_is_not_made_again_stays_what_it_is(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    """Of the same network it stays with its entry and volumes; that of another one would pass as made by this one."""
    output, again = tmp_path / "out", PredictionSettings(overwrite=True)
    first = Predictor.from_checkpoint(checkpoint, device="cpu")
    first.predict(images, output, progress=False)
    volumes, before = (output / "volumes.csv").read_text(), json.loads((output / "prediction.json").read_text())
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(images / "a_0000.nii.gz", some)
    first.predict(some, output, again, progress=False)
    assert sorted((output / "volumes.csv").read_text().splitlines()) == sorted(volumes.splitlines())
    after = json.loads((output / "prediction.json").read_text())
    assert {name: entry["result"] for name, entry in after["cases"].items()} == {
        name: entry["result"] for name, entry in before["cases"].items()
    }
    other = Predictor.from_checkpoint(save_checkpoint(tmp_path / "other.ckpt", seed=1), device="cpu")
    made = {path: path.read_bytes() for path in output.glob("*.nii.gz")}
    with pytest.raises(
        UserError, match=r"by another network.*does not make again.*b\.nii\.gz, \S*c\.nii\.gz\. Give another"
    ):
        other.predict(some, output, again, progress=False)
    assert {path: path.read_bytes() for path in output.glob("*.nii.gz")} == made
    for name in "bc":
        (output / f"{name}.nii.gz").unlink()
    other.predict(some, output, again, progress=False)
    assert list(json.loads((output / "prediction.json").read_text())["cases"]) == ["a"]


def test_the_folder_of_the_images_is_no_output(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    (tmp_path / "link").symlink_to(images)
    for output in (images, tmp_path / "link", images / "seg.nii.gz"):
        with pytest.raises(UserError, match="is the folder of the images"):
            predictor.predict(images, output, progress=False)
    predictor.predict(images / "a_0000.nii.gz", images / "seg.nii.gz", progress=False)  # one file beside the other


def test_good_images_are_done_and_bad_ones_named(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (images / "b_0000.nii.gz").write_bytes((images / "b_0000.nii.gz").read_bytes()[:500])
    vectors = sitk.GetImageFromArray(np.zeros((4, 6, 6, 3), dtype=np.float32), isVector=True)
    sitk.WriteImage(vectors, str(images / "colour.mha"))
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    with pytest.raises(UserError) as raised:
        predictor.predict(images, tmp_path / "out")
    message = str(raised.value)
    assert "2 of 4" in message
    assert "b_0000.nii.gz" in message
    assert "colour: the image has 3 channels" in message
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_images_are_never_overwritten(checkpoint: Path, images: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    (images / "a_0000.nii.gz").rename(images / "a.nii.gz")
    before = (images / "a.nii.gz").read_bytes()
    with pytest.raises(UserError, match="another folder"):
        predictor.predict(images, images, PredictionSettings(overwrite=True))
    assert (images / "a.nii.gz").read_bytes() == before


def test_slices_of_volumes_and_natural_images(tmp_path: Path) -> None:
    predictor = Predictor.from_checkpoint(save_checkpoint(tmp_path / "2d.ckpt", dim=2), device="cpu")
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    volume = sitk.GetImageFromArray(generator.normal(size=(3, 10, 12)).astype(np.float32))
    volume.SetSpacing((1.5, 1.5, 9.0))
    sitk.WriteImage(volume, str(folder / "volume_0000.nii.gz"))
    sitk.WriteImage(
        sitk.GetImageFromArray(generator.integers(1, 255, (11, 9)).astype(np.uint8)), str(folder / "flat.png")
    )
    flat, deep = (read_label(path).array for path in predictor.predict(folder, tmp_path / "out"))
    assert flat.shape == (1, 1, 11, 9)
    assert deep.shape == (1, 3, 10, 12)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.ckpt", channel_names=["T1", "T2"])
    with pytest.raises(UserError, match="channel_names: has 2 entries"):
        Predictor.from_checkpoint(path, device="cpu")
    path = save_checkpoint(tmp_path / "a.ckpt", labels={"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}})
    with pytest.raises(UserError, match="do not fit"):
        Predictor.from_checkpoint(path, device="cpu")


def test_unusable_devices_and_precisions_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="device=nonsense"):
        Predictor.from_checkpoint(checkpoint, device="nonsense")
    with pytest.raises(UserError, match=r"precision=bf16-mix: must be one of auto.*Did you mean bf16-mixed\?"):
        Predictor.from_checkpoint(checkpoint, device="cpu", precision="bf16-mix")
    with pytest.raises(UserError, match="none is given"):
        Predictor.from_checkpoint([])


def test_values_that_are_not_finite_are_reported(images: Path, tmp_path: Path, checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    with torch.no_grad():
        next(iter(predictor.models[0].network.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        predictor.predict(images, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["tta"] is False
