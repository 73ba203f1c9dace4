"""`umamba predict` as a function: pictures of the first cases, also where other cases failed."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.io import UserError
from umamba.networks import build_network
from umamba.planning import Configuration, Plan
from umamba.runs import predict
from umamba.settings import PredictSettings

INTENSITIES = np.random.default_rng(0).normal(size=(9, 14, 12)).astype(np.float32)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The checkpoint of an untrained network of one fold."""
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0, 1.0, 1.0),
        median_shape=(9.0, 14.0, 12.0),
        patch_size=(8, 8, 8),
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)),
        features_per_stage=(4, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
    axes = (0, 1, 2)
    plan = Plan(
        "Dataset001_Test", "nnunet", axes, axes, (1.0, 1.0, 1.0), (9.0, 14.0, 12.0), (), {"3d_fullres": configuration}
    )
    torch.manual_seed(0)
    network = build_network("unet", configuration, 1, 3)
    record = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": "3d_fullres",
        "architecture": {"name": "unet"},
        "labels": {"labels": {"background": 0, "a": 1, "b": 2}},
        "channel_names": ["MRI"],
        "file_ending": ".nii.gz",
        "recipe": {},
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / "A" / "3d_fullres" / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"umamba": record, "state_dict": weights}, path)
    return path


def settings(checkpoint: Path, images: Path, output: Path, **more: object) -> PredictSettings:
    return PredictSettings(
        checkpoint=checkpoint,
        input=images,
        output=output,
        device="cpu",
        tile_step_size=1.0,
        **more,  # type: ignore[arg-type]
    )


def test_the_first_images_are_drawn(checkpoint: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("b", "c", "d"):
        sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES), str(images / f"{name}.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES[4]), str(images / "a.nii.gz"))
    experiment = checkpoint.parents[4]
    with pytest.raises(UserError, match="1 of 4 images"):
        predict(settings(experiment, images, output, previews=3))
    assert sorted(path.name for path in (output / "previews").iterdir()) == ["b.png", "c.png", "d.png"]
    picture = matplotlib.image.imread(output / "previews" / "b.png")
    assert (picture[..., :3].max(-1) - picture[..., :3].min(-1) > 0.2).any()  # labels are in colour
    before = (output / "previews" / "b.png").stat().st_mtime_ns
    (output / "c.nii.gz").unlink()
    (images / "a.nii.gz").unlink()
    drawn = (output / "previews" / "c.png").stat().st_mtime_ns
    assert len(predict(settings(experiment, images, output))) == 3
    assert (output / "previews" / "b.png").stat().st_mtime_ns == before
    assert (output / "previews" / "c.png").stat().st_mtime_ns > drawn


def test_pictures_are_the_same_from_memory_and_from_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES), str(image))
    pictures = {}
    for name, more in (("memory", {}), ("files", {"max_memory_gb": 20.0})):
        output = tmp_path / name
        with monkeypatch.context() as patch:
            if name == "memory":
                patch.setattr("umamba.runs.prediction.read_label", None)  # is not needed
            predict(settings(checkpoint, image, output, **more))
        pictures[name] = matplotlib.image.imread(output / "previews" / "a.png")
        segmentation = (output / "a.nii.gz").stat().st_mtime_ns
        assert (output / "previews" / "a.png").stat().st_mtime_ns >= segmentation
    assert np.array_equal(pictures["memory"], pictures["files"])


def test_a_segmentation_that_cannot_be_written_has_no_picture(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES), str(image))

    def fail(*arguments: object) -> None:
        raise UserError("cannot be written")

    monkeypatch.setattr("umamba.inference.case_queue.write_segmentation", fail)
    with pytest.raises(UserError, match="cannot be written"):
        predict(settings(checkpoint, image, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.png"))


def test_one_file_and_no_previews(checkpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES), str(image))
    predict(settings(checkpoint, image, tmp_path / "one" / "seg.nii.gz"))
    assert (tmp_path / "one" / "seg_previews.png").exists()
    predict(settings(checkpoint, image, tmp_path / "two" / "seg.nii.gz", previews=0))
    assert not list((tmp_path / "two").glob("*.png"))
    assert (tmp_path / "one" / "seg.nii.gz").read_bytes()[20:] == (tmp_path / "two" / "seg.nii.gz").read_bytes()[20:]


def test_jpeg_files_are_named_once(checkpoint: Path, tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    images = tmp_path / "images"
    images.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(INTENSITIES), str(images / "a.nii.gz"))
    (images / "b.jpg").write_bytes(b"x")
    predict(settings(checkpoint, images, tmp_path / "out"))
    assert (tmp_path / "out" / "previews" / "a.png").exists()
    assert messages.text.count("1 JPEG files in") == 1
