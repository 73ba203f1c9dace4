"""Whatever ends one case is named at the end, and the other cases are segmented."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from umamba.inference import Model, Predictor
from umamba.io import StorageError, UserError
from umamba.settings import PredictionSettings


class Fragile(nn.Module):
    """Returns logits of three classes; a patch that holds 1000 raises what it was given."""

    def __init__(self, error: Callable[[], BaseException] | None = None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None and (x == 1000).any():
            raise self.error()
        return torch.cat([-(x - value).abs() for value in range(3)], dim=1)


def write(folder: Path, name: str, array: np.ndarray, spacing: tuple[float, ...] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.int16))
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(folder / name))


def volume(extra: int = 0) -> np.ndarray:
    array = np.random.default_rng(0).integers(1, 3, (16, 14, 12))
    array[8, 7, 6] += extra
    return array


def segmented(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("*.nii.gz"))


def test_a_flat_image_and_slices_far_apart_among_volumes(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """The 2D image is named with its reason; 1 slice of 80 mm and 3 of 100 mm are segmented like the volume."""
    images = tmp_path / "images"
    write(images, "a_scout.nii.gz", volume()[8], (1, 1))
    write(images, "b_volume.nii.gz", volume(), (1, 1, 2))
    write(images, "c_one.nii.gz", volume()[8:9], (1, 1, 80))
    write(images, "d_three.nii.gz", volume()[6:9], (1, 1, 100))
    predictor = Predictor((make_model(Fragile(), (16, 8, 8), 3, num_channels=1, spacing=(2.0, 1.0, 1.0)),))
    with pytest.raises(UserError, match=r"1 of 4 images .*\na_scout: the image is two-dimensional") as raised:
        predictor.predict(images, tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value).partition("\n")[2]
    assert segmented(tmp_path / "out") == ["b_volume.nii.gz", "c_one.nii.gz", "d_three.nii.gz"]
    for name, expected in (("b_volume", volume()), ("c_one", volume()[8:9]), ("d_three", volume()[6:9])):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: IndexError("index 7 is out of bounds"), "IndexError: index 7 is out of bounds. This is a fault"),
        (lambda: ZeroDivisionError(), "ZeroDivisionError: no further text"),
        (lambda: MemoryError("Unable to allocate 99 GiB"), "the memory does not suffice (Unable to allocate 99 GiB)"),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "the memory does not suffice"),
        (lambda: PermissionError(errno.EACCES, "Permission denied", "lut.bin"), "lut.bin: cannot be used"),
        (lambda: UserError("the scale is missing."), "b: the scale is missing."),
    ],
)
def test_every_exception_is_a_finding_of_its_case(
    make_model: Callable[..., Model], tmp_path: Path, error: Callable[[], Exception], reason: str
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    for name, extra in (("a", 0), ("b", 999), ("c", 0)):
        write(images, f"{name}.nii.gz", np.clip(volume() + (volume() == 2) * extra, 0, 1000))
    network = Fragile(error)
    predictor = Predictor((make_model(network, (16, 8, 8), 3, num_channels=1),))
    images_b = np.where(volume() == 2, 1000, 1)
    write(images, "b.nii.gz", images_b)
    with pytest.raises(UserError, match="1 of 3 images could not be segmented") as raised:
        predictor.predict(images, output, progress=False)
    assert reason in str(raised.value)
    assert segmented(output) == ["a.nii.gz", "c.nii.gz"]
    bug = isinstance(error(), IndexError | ZeroDivisionError)
    assert (output / "prediction_errors.txt").exists() == bug
    if bug:
        written = (output / "prediction_errors.txt").read_text()
        assert "raise self.error()" in written
        assert written.startswith("b\nTraceback")
    network.error = None
    assert len(predictor.predict(images, output, progress=False)) == 3
    assert not (output / "prediction_errors.txt").exists()


def test_a_full_disk_still_ends_the_command(make_model: Callable[..., Model], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images", f"{name}.nii.gz", np.where(volume() == 2, 1000, 1))
    network = Fragile(lambda: OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    predictor = Predictor((make_model(network, (16, 8, 8), 3, num_channels=1),))
    with pytest.raises(StorageError, match="/tmp/x: could not be written"):
        predictor.predict(tmp_path / "images", tmp_path / "out", progress=False)


def test_faults_while_reading_and_writing(
    make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in a reading or a writing thread, also with a memory limit, and a name without its other channel."""
    from umamba.inference import case_queue

    images = tmp_path / "images"
    for name in ("a", "b", "c"):
        write(images, f"{name}.nii.gz", volume())
    read, write_file = case_queue.read_image, case_queue.write_segmentation

    def broken_read(paths: list[Path], **options: Any) -> Any:
        if paths[0].name == "a.nii.gz":
            raise KeyError("PixelSpacing")
        return read(paths, **options)

    def broken_write(path: Path, *rest: Any) -> None:
        if path.name == "b.nii.gz":
            raise ValueError("a label is negative")
        write_file(path, *rest)

    def broken_count(paths: list[Path]) -> int:
        raise AttributeError("no header")

    monkeypatch.setattr(case_queue, "read_image", broken_read)
    monkeypatch.setattr(case_queue, "write_segmentation", broken_write)
    monkeypatch.setattr(case_queue, "voxel_count", broken_count)
    predictor = Predictor((make_model(Fragile(), (16, 8, 8), 3, num_channels=1),))
    caplog.set_level(logging.DEBUG, "umamba")
    with pytest.raises(UserError, match=r"2 of 3 images") as raised:
        predictor.predict(images, tmp_path / "out", PredictionSettings(max_memory_gb=64), progress=False)
    assert "a: KeyError: 'PixelSpacing'" in str(raised.value)
    assert "b: ValueError: a label is negative" in str(raised.value)
    assert segmented(tmp_path / "out") == ["c.nii.gz"]
    assert sum("Traceback" in record.getMessage() for record in caplog.records) == 2


def test_a_missing_channel_is_a_finding_of_its_case(make_model: Callable[..., Model], tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c_0001"):
        write(images, f"{name}.nii.gz", volume())
    write(images, "b_0001.mha", volume())
    (images / "d_0000.nii.gz").symlink_to(tmp_path / "absent")
    (images / "d_0001.nii.gz").symlink_to(tmp_path / "absent")

    class First(Fragile):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :1])

    predictor = Predictor((make_model(First(), (16, 8, 8), 3, num_channels=2),))
    with pytest.raises(UserError, match="3 of 4 images could not be segmented") as raised:
        predictor.predict(images, tmp_path / "out", progress=False)
    for reason in (
        "b_0001.nii.gz has the same case and channel|b_0001.mha has",
        "c_0000 are missing",
        "d_0000.nii.gz: no such|d_0000.nii.gz: is a link to a file that does not exist",
    ):
        assert any(part in str(raised.value) for part in reason.split("|")), str(raised.value)
    assert segmented(tmp_path / "out") == ["a.nii.gz"]


@pytest.mark.parametrize("name", ["seg.png", "SEG.BMP"])
def test_a_file_that_holds_no_volume_is_refused_before_the_networks(
    make_model: Callable[..., Model], tmp_path: Path, name: str
) -> None:
    write(tmp_path / "images", "a.nii.gz", np.where(volume() == 2, 1000, 1))
    network = Fragile(lambda: AssertionError("the network was asked"))
    predictor = Predictor((make_model(network, (16, 8, 8), 3, num_channels=1),))
    with pytest.raises(UserError, match=r"2D images only, and the image is a volume .* \(16, 14, 12\)") as raised:
        predictor.predict(tmp_path / "images" / "a.nii.gz", tmp_path / name, progress=False)
    assert f"{tmp_path / name}: this format holds" in str(raised.value)
    assert "output=NAME.nii.gz" in str(raised.value)


def test_a_format_without_direction_is_refused_before_the_networks(
    make_model: Callable[..., Model], tmp_path: Path
) -> None:
    network = Fragile(lambda: AssertionError("the network was asked"))
    predictor = Predictor((make_model(network, (16, 8, 8), 3, num_channels=1),))
    (tmp_path / "images").mkdir()
    image = sitk.GetImageFromArray(np.where(volume() == 2, 1000, 1).astype(np.int16))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "images" / "a.nii.gz"))
    with pytest.raises(UserError, match=r"seg\.gipl: this format cannot hold the direction"):
        predictor.predict(tmp_path / "images" / "a.nii.gz", tmp_path / "seg.gipl", progress=False)
