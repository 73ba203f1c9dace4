"""Prediction of all kinds of files and faults: good cases are segmented, one message names the others."""

import locale
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.io import read_image
from umamba.io.dicom import kept_locale
from umamba.labels import LabelSet
from umamba.networks import build_network

BLOCKED = ("lightning", "pytorch_lightning", "torchio", "torchmetrics", "wandb", "monai", "matplotlib", "pandas")
Predict = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def predict(command_server: Callable[..., AbstractContextManager[Predict]], project_dir: Path) -> Iterator[Predict]:
    """Return a function that runs `umamba predict` without the packages that only training needs."""
    with command_server(*BLOCKED) as run:
        yield lambda *overrides, **limit: run(["predict", *overrides, "device=cpu", "workers=1"], project_dir, **limit)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, make_model: Callable) -> dict[tuple[int, int], Path]:
    """Checkpoints with untrained weights, by dimension and number of channels."""
    folder, paths = tmp_path_factory.mktemp("runs"), {}
    labels = LabelSet(("a", "b"), ((1,), (2,)))
    for dim, channels in ((3, 1), (2, 1), (2, 3), (3, 2)):
        model = make_model(torch.nn.Identity(), (8,) * dim, 3, num_channels=channels)
        torch.manual_seed(0)
        network = build_network("unet", model.configuration, channels, 3)
        record = {
            "format": 1,
            "plan": model.plan.to_json(),
            "configuration": model.configuration.name,
            "architecture": {"name": "unet"},
            "labels": labels.to_json(),
            "channel_names": [f"channel {index}" for index in range(channels)],
            "file_ending": ".nii.gz" if dim == 3 else ".png",
            "recipe": {},
        }
        weights = {f"network.{name}": value for name, value in network.state_dict().items()}
        paths[dim, channels] = folder / f"{dim}_{channels}.ckpt"
        torch.save({"umamba": record, "state_dict": weights}, paths[dim, channels])
    return paths


def noise(*shape: int, kind: type = np.int16, top: int = 200) -> np.ndarray:
    """Return random intensities of at least 1."""
    return np.random.default_rng(0).integers(1, top, shape).astype(kind)


def write_series(folder: Path, volume: np.ndarray, skip: int | None = None) -> None:
    """Write a DICOM series of oblique slices 2.5 mm apart; the order of the file names is reversed."""
    folder.mkdir(parents=True)
    direction = [1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(volume):
        if index == skip:
            continue
        slice_ = sitk.GetImageFromArray(plane)
        slice_.SetSpacing((0.7, 0.9))
        position = [10.0, -20.0 - 0.6 * 2.5 * index, 30.0 + 0.8 * 2.5 * index]
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{index + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.100",
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(map(str, [direction[0], direction[3], direction[6], *direction[1::3]])),
            "0020|0013": str(index),
            "0018|0050": "2.5",
        }.items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{99 - index}.dcm"))
        writer.Execute(slice_)


def test_volumes_good_and_bad(predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path) -> None:
    """A DICOM series, NRRD and a 4D file of one volume are segmented; damaged, longer 4D and gappy ones are named."""
    images, output = tmp_path / "images", tmp_path / "out"
    volume = noise(6, 9, 11)
    with kept_locale():
        write_series(images / "series", volume)
        write_series(images / "gap", volume, skip=3)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(images / "nrrd_0000.nrrd"))
    whole = sitk.JoinSeries([sitk.GetImageFromArray(volume)])
    sitk.WriteImage(whole, str(images / "one_time.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(volume)] * 2), str(images / "two_times.nii.gz"))
    (images / "cut.nii.gz").write_bytes((images / "one_time.nii.gz").read_bytes()[:300])
    (images / "empty.mha").write_bytes(b"")
    (images / "notes.txt").write_text("not an image")
    result = predict(f"checkpoint={checkpoints[3, 1]}", f"input={images}", f"output={output}")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in output.glob("*.nii.gz")) == [
        "nrrd.nii.gz",
        "one_time.nii.gz",
        "series.nii.gz",
    ]
    for said in (
        "4 of 7 images",
        "gap: ",
        "not evenly spaced: 5 mm between 97.dcm and 95.dcm, 2.5 mm",
        "two_times: the image has 2 channels",
        "cut.nii.gz: the file is truncated",
        "empty.mha: the file is empty",
    ):
        assert said in result.stderr, result.stderr
    series = sitk.ReadImage(str(output / "series.nii.gz"))
    np.testing.assert_allclose(series.GetSpacing(), (0.7, 0.9, 2.5), rtol=1e-5)
    np.testing.assert_allclose(series.GetOrigin(), (10, -20, 30), rtol=1e-5)
    np.testing.assert_allclose(series.GetDirection(), (1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8), atol=1e-5)
    assert series.GetSize() == (11, 9, 6)
    encoding = locale.getencoding()
    read = read_image([images / "series"])
    assert locale.getencoding() == encoding, "GDCM leaves another locale behind"
    np.testing.assert_array_equal(read.array[0], volume)

    again = predict(f"checkpoint={checkpoints[3, 1]}", f"input={images / 'series'}", f"output={output}")
    assert again.returncode == 0, again.stderr
    assert "1 of 1 segmentations were there already" in again.stdout


def test_natural_images(predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path) -> None:
    """16-bit PNG, grey BMP and TIFF fit a network of one channel, RGB BMP one of three; colour is not taken as grey."""
    grey, colour = tmp_path / "grey", tmp_path / "colour"
    grey.mkdir()
    colour.mkdir()
    deep = noise(12, 15, kind=np.uint16, top=60000)
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(grey / "deep.png"))
    sitk.WriteImage(sitk.GetImageFromArray(noise(12, 15, kind=np.uint8)), str(grey / "flat.bmp"))
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(grey / "tall_0000.tif"))
    rgb = noise(9, 10, 3, kind=np.uint8)
    for folder in (grey, colour):
        sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(folder / "rgb.bmp"))
    assert read_image([grey / "deep.png"]).array.dtype == np.uint16
    assert read_image([grey / "flat.bmp"]).array.shape == (1, 1, 12, 15)
    result = predict(f"checkpoint={checkpoints[2, 1]}", f"input={grey}", f"output={tmp_path / 'a'}")
    assert result.returncode == 2
    assert "rgb: the image has 3 channels, the network was trained with 1" in result.stderr
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {"deep.png", "flat.png", "tall.png"}
    result = predict(f"checkpoint={checkpoints[2, 3]}", f"input={colour / 'rgb.bmp'}", f"output={tmp_path / 'b'}")
    assert result.returncode == 0, result.stderr
    assert sitk.ReadImage(str(tmp_path / "b" / "rgb.png")).GetSize() == (10, 9)


def test_several_channels(predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path) -> None:
    """Two files, a file of vectors and a 4D file of the same image give the same segmentation."""
    images = tmp_path / "images"
    images.mkdir()
    parts = [sitk.GetImageFromArray(noise(6, 9, 11)), sitk.GetImageFromArray(noise(6, 9, 11)[::-1].copy())]
    for channel, part in enumerate(parts):
        sitk.WriteImage(part, str(images / f"files_{channel:04d}.mha"))
    sitk.WriteImage(sitk.Compose(parts), str(images / "vectors.nrrd"))
    sitk.WriteImage(sitk.JoinSeries(parts), str(images / "times.nii"))
    output = tmp_path / "out"
    pair = f"checkpoint=[{checkpoints[3, 2]},{checkpoints[3, 2]}]"
    result = predict(pair, f"input={images}", f"output={output}", "max_memory_gb=4", "probabilities=true")
    assert result.returncode == 0, result.stderr
    files, times, vectors = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"{name}.nii.gz"))) for name in ("files", "times", "vectors")
    )
    np.testing.assert_array_equal(files, times)
    np.testing.assert_array_equal(files, vectors)
    assert np.load(output / "files.npz")["probabilities"].shape == (3, 6, 9, 11)


def test_empty_folder(predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = predict(f"checkpoint={checkpoints[3, 1]}", f"input={tmp_path / 'empty'}", f"output={tmp_path / 'out'}")
    assert result.returncode == 2
    assert "no images in" in result.stderr
    assert "Traceback" not in result.stderr


def test_full_disk(predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path) -> None:
    """Small results are kept; the first one that does not fit ends the command, and the next command continues."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name, shape in (("a", (3, 4, 4)), ("b", (20, 30, 30)), ("c", (3, 4, 4))):
        sitk.WriteImage(sitk.GetImageFromArray(noise(*shape)), str(images / f"{name}.mha"))
    arguments = (f"checkpoint={checkpoints[3, 1]}", f"input={images}", f"output={output}")
    result = predict(*arguments, file_limit=2200)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "b.nii.gz: could not be written" in result.stderr
    assert (output / "a.nii.gz").exists()
    assert not (output / "b.nii.gz").exists()
    assert not list(output.glob(".*partial*"))
    result = predict(*arguments)
    assert result.returncode == 0, result.stderr
    assert sitk.ReadImage(str(output / "b.nii.gz")).GetSize() == (30, 30, 20)


@pytest.mark.slow
def test_a_full_disk_leaves_no_probabilities(
    predict: Predict, checkpoints: dict[tuple[int, int], Path], tmp_path: Path
) -> None:
    image = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(noise(20, 30, 30)), str(image))
    arguments = (f"checkpoint={checkpoints[3, 1]}", f"input={image}", f"output={tmp_path / 'out'}")
    result = predict(*arguments, "probabilities=true", file_limit=20000)
    assert result.returncode == 2, result.stderr
    assert "a.npz: could not be written" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(".prediction.lock", "labels_itksnap.txt", "labels_slicer.ctbl", "prediction.json")
    ]
