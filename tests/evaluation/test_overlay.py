"""Overlays: the right slices, the right way up, labels and errors in their colours, complete files."""

import itertools
from pathlib import Path

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure

from umamba.evaluation.overlay import case_figure, overlay_figure, write_overlay
from umamba.evaluation.rules import Rules
from umamba.io import Geometry, Image, read_image
from umamba.labels import LabelSet, colours
from umamba.labels.painting import scaled, scaling
from umamba.labels.view import letters_of

LABELS = LabelSet(("first", "second"), ((1,), (2,)))
MISSED, FALSE = (0, 114, 178), (213, 94, 0)


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def truth_of(shape: tuple[int, int, int]) -> np.ndarray:
    truth = np.zeros(shape, dtype=np.uint8)
    truth[:, 5:15, 5:15] = 1
    truth[:, 15:18, 5:15] = 2
    return truth


@pytest.mark.parametrize(("shape", "rows"), [((12, 20, 24), 3), ((1, 20, 30), 1)])
def test_the_columns_show_what_they_say(tmp_path: Path, shape: tuple[int, int, int], rows: int) -> None:
    truth = truth_of(shape)
    figure = overlay_figure(np.random.default_rng(0).random((1, *shape)), truth, 0 * truth, (3.0, 1.0, 1.0), LABELS)
    assert len(figure.axes) == rows * 4
    picture = pixels(figure)
    for axes, coloured in zip(figure.axes[:4], (False, True, False, True), strict=True):
        box = np.round(axes.get_window_extent().extents).astype(int)
        inside = picture[len(picture) - box[3] + 5 : len(picture) - box[1] - 5, box[0] + 5 : box[2] - 5]
        assert ((inside.max(-1) - inside.min(-1)) > 30).any() == coloured
    assert legend(figure) == ["first", "second", "false", "missed", "another label"]
    write_overlay(figure, tmp_path / "folder" / "case.png")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["case.png"]


@pytest.mark.parametrize("code", ["RAS", "LAI", "SPR", "PIR", "ALS"])
def test_the_picture_does_not_depend_on_the_stored_order(tmp_path: Path, code: str) -> None:
    random = np.random.default_rng(0)
    array, truth = random.random((8, 12, 10)).astype(np.float32), np.zeros((8, 12, 10), dtype=np.uint8)
    truth[2:5, 3:8, 1:4] = 1
    truth[5, 8, 6] = 2
    pictures = []
    for name in ("LPS", code):
        files = []
        for number, each in enumerate([array, truth.astype(np.float32)]):
            stored = sitk.GetImageFromArray(each)
            stored.SetSpacing((1.0, 2.0, 3.0))
            files.append(tmp_path / f"{name}_{number}.nii.gz")
            sitk.WriteImage(sitk.DICOMOrient(stored, name), str(files[-1]))
        image, label = (read_image([file]) for file in files)
        letters, spacing = letters_of(image.geometry), image.geometry.spacing
        figure = overlay_figure(image.array, label.array[0], label.array[0], spacing, LABELS, letters=letters)
        for axes in figure.axes:
            axes.set_ylabel("")  # the number of the slice counts along the file's own axis
        pictures.append(pixels(figure))
    assert (pictures[0] == pictures[1]).all()


def test_right_is_left_and_the_head_is_up() -> None:
    # Axes grow to the head, back and left (LPS, the identity); the bright voxel is the patient's upper front right.
    image = np.zeros((1, 6, 6, 6))
    image[0, 5, 0, 0] = 1
    figure = overlay_figure(
        image, None, np.zeros((6, 6, 6), int), (1, 1, 1), LABELS, letters=("S", "P", "L"), window=(0, 1)
    )
    shown = {axes.get_ylabel().split()[0]: axes for axes in figure.axes if axes.get_ylabel()}
    assert list(shown) == ["axial", "coronal", "sagittal"]
    assert [text.get_text() for text in shown["axial"].texts] == ["R", "L", "A", "P"]
    assert [text.get_text() for text in shown["coronal"].texts] == ["R", "L", "S", "I"]
    assert [text.get_text() for text in shown["sagittal"].texts] == ["A", "P", "S", "I"]
    for place, wanted in itertools.product(((5, 0, 0),), ("axial", "coronal", "sagittal")):
        truth = np.zeros((6, 6, 6), int)
        truth[place] = 1  # chooses the slice of the bright voxel
        figure = overlay_figure(image, truth, truth, (1, 1, 1), LABELS, letters=("S", "P", "L"), window=(0, 1))
        axes = next(axes for axes in figure.axes if axes.get_ylabel().startswith(wanted))
        plane = np.asarray(axes.images[0].get_array())
        assert np.argwhere(plane == 1).tolist() == [[0, 0]]


def test_a_false_positive_in_another_slice_is_seen() -> None:
    truth, prediction = np.zeros((10, 20, 20), int), np.zeros((10, 20, 20), int)
    truth[2, 2:8, 2:8] = prediction[2, 2:8, 2:8] = 1
    assert not (pixels(overlay_figure(truth[None], truth, prediction, (1, 1, 1), LABELS)) == FALSE).all(-1)[:300].any()
    prediction[8, 12:18, 12:18] = 1
    figure = overlay_figure(np.zeros((1, 10, 20, 20)), truth, prediction, (1, 1, 1), LABELS)
    layer = np.asarray(figure.axes[3].images[-1].get_array())
    assert (layer[12:18, 12:18, :3] == np.array(FALSE) / 255).all()
    assert np.count_nonzero(layer[..., 3]) == 36


def test_what_is_not_annotated_is_no_error() -> None:
    labels = LabelSet(("first",), ((1,),), ignore=2)
    truth, prediction = np.full((1, 9, 9), 2), np.ones((1, 9, 9), int)
    figure = overlay_figure(np.zeros((1, 1, 9, 9)), truth, prediction, (1, 1, 1), labels)
    assert not any(np.asarray(image.get_array())[..., 3].any() for image in figure.axes[3].images[1:])


def test_numbered_cells_and_the_score_of_the_table() -> None:
    truth = np.zeros((1, 30, 30), int)
    truth[0, 2:8, 2:8], truth[0, 8:14, 2:8], truth[0, 20:26, 20:26] = 1, 2, 3
    image = read_like(np.full((3, 1, 30, 30), 200, np.uint8))
    scores = pandas.DataFrame({"case": ["a"], "label": ["cells"], "f1": [0.8], "precision": [1.0]})
    figure = case_figure(image, truth, np.minimum(truth, 1), Rules(LABELS, "cell"), scores, "a")
    assert [axes.get_title() for axes in figure.axes] == [
        *("image", "truth, 3 instances", "prediction, 2 instances, F1 0.800", "errors")
    ]
    layer = np.asarray(figure.axes[1].images[1].get_array())
    assert (layer[4, 4, :3] == colours(3)[0] / 255).all()
    assert (layer[10, 4, :3] == colours(3)[1] / 255).all()
    assert layer[7, 4, 3] == 1, "the border between touching cells is drawn"


def read_like(array: np.ndarray) -> Image:
    depth, height, width = array.shape[1:]
    return Image(array, Geometry((999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), (depth, height, width), True))


def test_the_window_of_a_large_volume_is_that_of_a_sample() -> None:
    rng = np.random.default_rng(0)
    grey = rng.normal(0, 100, (200, 200, 201)).astype(np.float32)  # twice the size that is looked at whole
    organ = np.zeros(grey.shape, dtype=bool)
    organ[50:100, 50:100, 50:100] = True
    grey[organ] = rng.normal(50, 10, organ.sum())
    speck = np.zeros(grey.shape, dtype=bool)
    speck[101, 100:140, 100] = True  # in no voxel of the sample: every second of each axis
    grey[speck] = np.linspace(20, 59, 40)
    for mask, tolerance in ((organ, 1.0), (speck, 1e-3)):
        darkest, brightest = np.percentile(grey[mask], (0.5, 99.5))
        margin = (brightest - darkest) / 2
        shown = scaling(grey[None], None, mask)[0](np.array([[darkest - margin, darkest, brightest + margin]]))
        at_quarter = margin / (brightest - darkest + 2 * margin)
        assert shown[0] == pytest.approx(0, abs=tolerance / 40)
        assert shown[1] == pytest.approx(at_quarter, abs=tolerance / 40)
        assert shown[2] == pytest.approx(1, abs=tolerance / 40)


def test_dark_photographs_are_stretched() -> None:
    dark = np.random.default_rng(0).integers(0, 40, (3, 1, 50, 50), dtype=np.uint8)
    picture, words = scaled(dark)
    assert picture.min() == 0
    assert picture.max() == 1
    assert words == "colours stretched from 0 to 39"
    bright = np.random.default_rng(0).integers(0, 255, (3, 1, 50, 50), dtype=np.uint8)
    picture, words = scaled(bright)
    assert (picture == np.moveaxis(bright, 0, -1) / 255).all()
    assert words == "colours as stored"


def test_names_and_numbers_of_many_labels() -> None:
    names = tuple(f"l{number}" for number in range(1, 31))
    labels = LabelSet(names, tuple((number,) for number in range(1, 31)))
    truth = np.kron(np.arange(31).reshape(1, 31, 1), np.ones((1, 4, 30), int))
    truth[truth == 7] = 0
    figure = overlay_figure(np.zeros((1, *truth.shape)), truth, truth, (1, 1, 1), labels, title="costs $5")
    assert [text for text in legend(figure) if text[0].isdigit()] == [f"{n} l{n}" for n in range(1, 31) if n != 7]
    assert {text.get_text() for text in figure.axes[1].texts} == {str(n) for n in range(1, 31) if n != 7}
    pixels(figure)


def test_pictures_of_a_thousand_labels_are_bounded() -> None:
    truth = np.kron(np.arange(1000).reshape(10, 10, 10), np.ones((4, 4, 4), int))
    labels = LabelSet(tuple(f"l{i}" for i in range(1, 1000)), tuple((i,) for i in range(1, 1000)))
    figure = overlay_figure(truth[None], truth, truth, (1, 1, 1), labels)
    assert max(len(axes.collections) for axes in figure.axes) == 60, "outlines of a plane"
    assert legend(figure)[36:] == ["and 235 more", "false", "missed", "another label"]  # 3 x 100 - 3 x 10 + 1 - 36


def test_empty_case_and_colour_image(tmp_path: Path) -> None:
    empty = np.zeros((1, 9, 9), dtype=np.uint8)
    figure = overlay_figure(np.full((3, 1, 9, 9), 200, dtype=np.uint8), empty, empty, (999.0, 1.0, 1.0), LABELS)
    write_overlay(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
