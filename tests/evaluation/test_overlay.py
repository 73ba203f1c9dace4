"""Overlays: the right slices in the right proportions, labels in their colours, complete files."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.evaluation.overlay import _largest_slice, _take, overlay_figure
from umamba.labels import LabelSet

LABELS = LabelSet(("first", "second"), ((1,), (2,)))


def test_largest_slices() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[3, 1:5, 2] = True
    assert [_largest_slice(mask, axis) for axis in range(3)] == [3, 1, 2]
    assert _largest_slice(np.zeros((5, 6, 7), dtype=bool), 0) == 2


def test_head_is_up() -> None:
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert (_take(volume, 0, 1) == volume[1]).all()
    assert (_take(volume, 1, 2) == volume[::-1, 2]).all()
    assert (_take(volume, 2, 0) == volume[::-1, :, 0]).all()


@pytest.mark.parametrize(("shape", "spacing"), [((12, 20, 24), (3.0, 1.0, 1.0)), ((1, 20, 30), (999.0, 1.0, 1.0))])
def test_draws_truth_and_prediction_in_colour(
    tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    truth = np.zeros(shape, dtype=np.uint8)
    truth[:, 5:15, 5:15] = 1
    truth[:, 15:18, 5:15] = 2
    path = tmp_path / "folder" / "case.png"
    overlay_figure(np.random.default_rng(0).random((1, *shape)), truth, np.zeros_like(truth), spacing, LABELS, path)
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)[..., :3]
    assert [entry.name for entry in path.parent.iterdir()] == ["case.png"]
    # Below the titles and above the legend: only the column of the truth is coloured.
    rows = pixels[60:-60]
    colourful = rows.max(-1) - rows.min(-1) > 30
    thirds = np.array_split(colourful, 3, axis=1)
    assert thirds[1].mean() > 0.05
    assert thirds[0].mean() == thirds[2].mean() == 0
    aspect = pixels.shape[0] / pixels.shape[1]
    assert aspect > 1 if shape[0] > 1 else aspect < 0.5


def test_empty_case_and_colour_image(tmp_path: Path) -> None:
    empty = np.zeros((1, 9, 9), dtype=np.uint8)
    overlay_figure(
        np.full((3, 1, 9, 9), 200, dtype=np.uint8), empty, empty, (999.0, 1.0, 1.0), LABELS, tmp_path / "x.png"
    )
    assert (tmp_path / "x.png").stat().st_size > 1000
