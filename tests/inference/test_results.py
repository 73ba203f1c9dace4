"""What is written beside segmentations: names and colours of labels, volumes, forms for other programs."""

import csv
import json
import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from umamba.inference import Model, Predictor, exports
from umamba.inference.exports import outline_features
from umamba.inference.label_files import itksnap_text, label_entries, slicer_text
from umamba.inference.outlines import polygons
from umamba.inference.volumes import count_voxels
from umamba.io import UserError, read_label
from umamba.labels import LabelSet, colours
from umamba.settings import PredictionSettings

HOSTILE = LabelSet(("left  kidney", 'say "x"\n2', "NA"), ((1,), (2,), (3,)))
WHOLE = PredictionSettings(tile_step_size=1.0)


class Classes(nn.Module):
    """Returns logits that are highest for the class whose number is the intensity."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-(x - value).abs() for value in range(3)], dim=1)


def make(make_model: Callable[..., Model], patch: tuple[int, ...], *names: str, **more: Any) -> Predictor:
    return Predictor((make_model(Classes(), patch, 3, num_channels=1, names=names, **more),))


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = ()) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("most", [3, 60])
def test_voxels_of_labels_are_counted(dtype: type, most: int) -> None:
    labels = LabelSet(("both", "last"), ((1, most), (most,)), region_order=(1, most))
    segmentation: np.ndarray = np.random.default_rng(0).choice([0, 1, most], (3, 5, 7)).astype(dtype)
    assert count_voxels(segmentation, labels) == (int((segmentation > 0).sum()), int((segmentation == most).sum()))


def test_label_files_have_the_overlays_colours_and_survive_names() -> None:
    itksnap = [line for line in itksnap_text(HOSTILE).splitlines() if not line.startswith("#")]
    found = {int(line.split()[0]): (line.split()[1:4], line.split('"')[1]) for line in itksnap}
    assert all(re.fullmatch(r'\d+ \d+ \d+ \d+ [01] [01] [01] "[^"]*"', line) for line in itksnap)
    assert [name for _, name in found.values()] == ["background", "left kidney", "say 'x' 2", "NA"]
    slicer = [line.split() for line in slicer_text(HOSTILE).splitlines() if not line.startswith("#")]
    assert [fields[:2] for fields in slicer][1:] == [["1", "left_kidney"], ["2", 'say_"x"_2'], ["3", "NA"]]
    assert {len(fields) for fields in slicer} == {6}
    for value, colour in enumerate(colours(3).tolist(), start=1):
        assert found[value][0] == slicer[value][2:5] == [str(channel) for channel in colour]


def test_values_of_regions_are_named_by_their_regions() -> None:
    brats = LabelSet(("whole", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), region_order=(1, 2, 3))
    entries = label_entries(brats)
    assert [entry.name for entry in entries] == ["whole", "whole + core", "whole + core + enhancing"]
    assert [list(entry.colour) for entry in entries] == colours(3).tolist()


def test_volumes_by_hand(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """4 voxels of label 1 and 2 of label 2 in voxels of 0.5 x 2 x 3 mm; earlier cases stay, and lost rows come back."""
    array = np.zeros((8, 8, 8))
    array[2, 3, 1:5], array[4, 4, :2] = 1, 2
    write(tmp_path / "in" / "001.nii.gz", array, (0.5, 2.0, 3.0))
    write(tmp_path / "in" / "1e3.nii.gz", array * 0, (0.5, 2.0, 3.0))
    predictor, output = make(make_model, (8, 8, 8), "NA", "=1+1", spacing=(3.0, 2.0, 0.5)), tmp_path / "out"
    predictor.predict(tmp_path / "in", output, WHOLE, progress=False)
    expected = [
        {"case": "001", "label": "NA", "voxels": "4", "ml": "0.012"},
        {"case": "001", "label": "'=1+1", "voxels": "2", "ml": "0.006"},
        {"case": "1e3", "label": "NA", "voxels": "0", "ml": "0"},
        {"case": "1e3", "label": "'=1+1", "voxels": "0", "ml": "0"},
    ]
    assert table(output / "volumes.csv") == expected
    (output / "volumes.csv").unlink()
    (output / "1e3.nii.gz").unlink()
    predictor.predict(tmp_path / "in", output, WHOLE, progress=False)
    assert table(output / "volumes.csv") == expected
    write(tmp_path / "later" / "2.nii.gz", array * 0, (0.5, 2.0, 3.0))
    predictor.predict(tmp_path / "later", output, WHOLE, progress=False)
    assert [row["case"] for row in table(output / "volumes.csv")] == ["2", "2", "001", "001", "1e3", "1e3"]
    assert table(output / "volumes.csv")[2:] == expected
    (output / "001.nii.gz").unlink()
    predictor.predict(tmp_path / "later", output, WHOLE, progress=False)
    assert [row["case"] for row in table(output / "volumes.csv")] == ["2", "2", "1e3", "1e3"]


def test_a_photograph_has_no_millilitres(make_model: Callable[..., Model], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", np.ones((8, 8)))
    make(make_model, (8, 8)).predict(tmp_path / "in", tmp_path / "out", WHOLE, progress=False)
    rows = table(tmp_path / "out" / "volumes.csv")
    assert [(row["voxels"], row["ml"]) for row in rows] == [("64", ""), ("0", "")]


def shoelace(ring: list[list[int]]) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def test_areas_of_outlines_are_pixel_counts() -> None:
    """Random masks with holes and corners that touch; no ring visits a corner twice."""
    for seed in range(40):
        generator = np.random.default_rng(seed)
        mask = generator.random((9, 11)) < generator.uniform(0.2, 0.9)
        found = polygons(mask)
        areas = [shoelace(ring) for part in found for ring in part]  # type: ignore[arg-type]
        assert sum(areas) == int(mask.sum())
        for outer, *holes in found:
            assert shoelace(outer) > 0  # type: ignore[arg-type]
            assert all(shoelace(hole) < 0 for hole in holes)  # type: ignore[arg-type]
            for ring in (outer, *holes):
                assert ring[0] == ring[-1]
                assert len(set(ring[:-1])) == len(ring) - 1
                x, y = np.diff(np.array(ring), axis=0).T
                assert ((x == 0) != (y == 0)).all()


def test_cells_in_forms_for_other_programs(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """Two cells of 4x3 and 3x3 interior with a boundary: their outlines have the areas of the numbered cells."""
    classes = np.zeros((16, 16))
    for box in (np.s_[1:7, 1:6], np.s_[9:14, 8:13]):
        classes[box] = 2
    classes[2:6, 2:5], classes[10:13, 9:12] = 1, 1
    write(tmp_path / "in" / "a.png", classes)
    predictor, output = make(make_model, (16, 16), "interior", "boundary"), tmp_path / "out"
    forms = replace(WHOLE, instances="watershed", export=("geojson", "outlines", "map16", "seg_nrrd"))
    (segmentation,) = predictor.predict(tmp_path / "in", output, forms, progress=False)
    np.testing.assert_array_equal(read_label(segmentation).array[0, 0], classes)
    content = json.loads((output / "geojson" / "a.geojson").read_text())
    areas = [sum(map(shoelace, feature["geometry"]["coordinates"])) for feature in content["features"]]
    assert areas == [30, 25]
    assert content["features"][0]["geometry"]["coordinates"][0] == [[1, 1], [6, 1], [6, 7], [1, 7], [1, 1]]
    numbers = matplotlib.image.imread(output / "map16" / "a.png")  # floats: 16-bit values / 65535
    np.testing.assert_array_equal(
        np.round(numbers * 65535), np.where(classes > 0, np.where(np.mgrid[:16] < 8, 1, 2)[:, None], 0)
    )
    drawn = matplotlib.image.imread(output / "outlines" / "a.png")
    assert drawn.shape == (16, 16, 3)
    coloured = (drawn.max(-1) != drawn.min(-1)).astype(int)
    assert coloured.sum() == (30 - 12) + (25 - 9)
    assert not coloured[2:6, 2:5].any()
    assert not list(output.glob("*.png"))  # the forms are no cases of the folder
    (output / "geojson" / "a.geojson").unlink()
    predictor.predict(tmp_path / "in", output, forms, progress=False)
    assert (output / "geojson" / "a.geojson").exists()


def test_a_form_that_cannot_be_written_leaves_the_segmentation_and_the_other_forms(
    make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = np.zeros((16, 16))
    classes[1:7, 1:6] = 1
    write(tmp_path / "in" / "a.png", classes)
    predictor, output = make(make_model, (16, 16), "interior", "boundary"), tmp_path / "out"
    forms = replace(WHOLE, export=("map16", "geojson"))
    with monkeypatch.context() as patch:
        patch.setattr(exports, "_MOST", 0)
        with pytest.raises(UserError, match="is written, but not all of its exports") as raised:
            predictor.predict(tmp_path / "in", output, forms, progress=False)
    assert "the map would hold 1 cells" in str(raised.value)
    np.testing.assert_array_equal(read_label(output / f"a{predictor.file_ending}").array[0, 0], classes)
    assert (output / "geojson" / "a.geojson").exists()
    assert not (output / "map16" / "a.png").exists()
    predictor.predict(tmp_path / "in", output, forms, progress=False)
    assert (output / "map16" / "a.png").exists()


def test_outlines_of_labels() -> None:
    plane = np.array([[1, 0, 2], [0, 0, 2], [1, 1, 2]])
    features = outline_features(plane, None, HOSTILE)["features"]
    assert [feature["geometry"]["type"] for feature in features] == ["MultiPolygon", "Polygon"]
    assert features[1]["properties"]["classification"] == {"name": 'say "x" 2', "color": colours(3)[1].tolist()}


def test_slicer_segmentation_has_names_and_colours(make_model: Callable[..., Model], tmp_path: Path) -> None:
    array = np.zeros((3, 8, 8))
    array[1, 2:5, 3] = 2
    write(tmp_path / "in" / "a.nii.gz", array, (0.5, 2.0, 3.0))
    predictor = make(make_model, (8, 8, 8), "liver", "left kidney", spacing=(3.0, 2.0, 0.5))
    predictor.predict(tmp_path / "in", tmp_path / "out", replace(WHOLE, export=("seg_nrrd",)), progress=False)
    file = tmp_path / "out" / "seg_nrrd" / "a.seg.nrrd"
    header = dict(
        line.split(":=", 1) for line in file.read_bytes().split(b"\n\n")[0].decode().splitlines() if ":=" in line
    )
    assert header["Segment1_Name"] == "left kidney"
    assert header["Segment1_LabelValue"] == "2"
    assert header["Segment1_Layer"] == "0"
    np.testing.assert_allclose(
        [float(part) for part in header["Segment1_Color"].split()], colours(2)[1] / 255, atol=1e-5
    )
    image = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == (0.5, 2.0, 3.0)


def test_forms_of_flat_images_are_refused_for_volumes(make_model: Callable[..., Model], tmp_path: Path) -> None:
    flat = replace(WHOLE, export=("geojson",))
    with pytest.raises(UserError, match=r"export=\[geojson\]: is for two-dimensional images"):
        make(make_model, (8, 8, 8)).predict_cases([], tmp_path / "out", flat)
    write(tmp_path / "in" / "a.nii.gz", np.zeros((3, 8, 8)))
    write(tmp_path / "in" / "b.nii.gz", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"1 of 2 images .*\na: export=\[geojson\]: .* has 3 slices"):
        make(make_model, (8, 8)).predict(tmp_path / "in", tmp_path / "out", flat, progress=False)
    assert (tmp_path / "out" / "geojson" / "b.geojson").exists()


def test_one_image_into_one_file(
    make_model: Callable[..., Model], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    array = np.ones((8, 8, 8))
    image, output = write(tmp_path / "in" / "a_0000.nii.gz", array), tmp_path / "out" / "seg.nrrd"
    predictor = make(make_model, (8, 8, 8))
    (written,) = predictor.predict(image, output, replace(WHOLE, probabilities=True), progress=False)
    assert written == output
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(output))), array)
    assert sorted(path.name for path in output.parent.glob("[!.]*")) == [
        *("seg.npz", "seg.nrrd", "seg_labels_itksnap.txt", "seg_labels_slicer.ctbl", "seg_volumes.csv")
    ]
    caplog.set_level(logging.INFO, "umamba")
    predictor.predict(image, output, WHOLE, progress=False)
    assert "1 of 1 segmentations were there already" in caplog.text
    with pytest.raises(UserError, match=r"seg\.nrrd: holds segmentations of another network or other settings"):
        predictor.predict(image, output, replace(WHOLE, tta=True), progress=False)
    write(tmp_path / "in" / "b_0000.nii.gz", array)
    with pytest.raises(UserError, match=r"is a file, but .* holds 2 images. Give a folder"):
        predictor.predict(tmp_path / "in", output, WHOLE, progress=False)
    (tmp_path / "folder.nii.gz").mkdir()
    assert len(predictor.predict(tmp_path / "in", tmp_path / "folder.nii.gz", WHOLE, progress=False)) == 2


def test_files_that_no_prediction_made_are_kept(make_model: Callable[..., Model], tmp_path: Path) -> None:
    image, output = write(tmp_path / "in" / "a.nii.gz", np.ones((8, 8, 8))), tmp_path / "out"
    predictor = make(make_model, (8, 8, 8))
    for name in ("a.nii.gz", "volumes.csv"):
        output.mkdir()
        (output / name).write_text("mine")
        with pytest.raises(UserError, match=rf"{name} exists, and no prediction made it .*overwrite=true"):
            predictor.predict(image, output, WHOLE, progress=False)
        assert (output / name).read_text() == "mine"
        predictor.predict(image, output, replace(WHOLE, overwrite=True), progress=False)
        assert (output / name).read_bytes() != b"mine"
        output.rename(tmp_path / f"done {shlex.quote(name)}")
