"""Numbered instances from maps of interior and boundary: hand-made cells, and cells that the predictor writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.evaluation.objects import match_objects
from umamba.inference import Model, Predictor
from umamba.io import UserError, read_label, write_segmentation
from umamba.io.image import Geometry
from umamba.labels import LabelSet
from umamba.labels.instance_depth import DEPTH_CLASSES, depth_levels, instances_of_depth
from umamba.labels.instance_maps import (
    BOUNDARY,
    INTERIOR,
    grouped_instances,
    interior_and_boundary,
    numbered_instances,
)
from umamba.settings import PredictionSettings

SHAPE = (40, 70)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]


def disc(y: float, x: float, radius: float) -> np.ndarray:
    return (Y - y) ** 2 + (X - x) ** 2 <= radius**2


def three_cells() -> np.ndarray:
    """Return two cells that touch, and one that stands alone."""
    cells = np.where(disc(18, 16, 10), 1, 0)
    cells[disc(20, 34, 9) & (cells == 0)] = 2
    cells[disc(20, 58, 6)] = 3
    return cells


class Classes(nn.Module):
    """Returns logits that are highest for the class whose number is the intensity."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-(x - value).abs() for value in range(self.count)], dim=1)


def test_components_are_the_interiors() -> None:
    classes = interior_and_boundary(three_cells())
    found = numbered_instances(classes, "components")
    assert found.max() == 3
    assert np.array_equal(found > 0, classes == INTERIOR)
    for number in (1, 2, 3):
        assert len(np.unique(found[(three_cells() == number) & (classes == INTERIOR)])) == 1


def test_watershed_gives_cells_back_with_their_boundaries() -> None:
    cells = three_cells()
    found = numbered_instances(interior_and_boundary(cells), "watershed")
    assert np.array_equal(found > 0, cells > 0)
    assert match_objects(cells, found, 0.9) == (3, 3, 3)
    assert np.array_equal(found[None], numbered_instances(interior_and_boundary(cells)[None], "watershed"))


def test_watershed_parts_interiors_that_touch() -> None:
    classes = np.where(disc(20, 20, 10) | disc(20, 36, 10), INTERIOR, 0).astype(np.uint8)
    assert numbered_instances(classes, "components").max() == 1
    found = numbered_instances(classes, "watershed")
    assert found.max() == 2
    assert len({found[20, 20], found[20, 36]}) == 2
    # They are separated where the discs meet.
    assert np.abs(np.flatnonzero(np.diff(found[20, 15:42]) != 0) + 15 - 27.5).max() <= 1


def test_a_long_cell_of_uneven_width_stays_whole() -> None:
    half_width = 6 + 0.8 * np.sin(X / 4.0)  # five bulges, each less than a pixel
    classes = np.where((np.abs(Y - 20) <= half_width) & (np.abs(X - 35) <= 30), INTERIOR, 0).astype(np.uint8)
    assert numbered_instances(classes, "watershed").max() == 1
    waist = np.where(np.abs(X - 35) <= 3, 2, 6)  # a narrow place, and two cells of a different depth
    assert numbered_instances(classes * (np.abs(Y - 20) <= waist), "watershed").max() == 2


def test_crumbs_are_no_cells() -> None:
    cells = three_cells()
    cells[2:4, 40:45] = 4  # 10 of about 250 pixels
    cells[34:39, 40:50] = 5  # 50
    labels = LabelSet(("interior", "boundary"), ((1,), (2,)))
    depths = LabelSet(DEPTH_CLASSES, tuple((level,) for level in range(1, len(DEPTH_CLASSES) + 1)))
    for classes, of in ((interior_and_boundary(cells), labels), (depth_levels(cells), depths)):
        found = grouped_instances(classes, of, "watershed")
        assert sorted(np.unique(found)) == [0, 1, 2, 3, 4]
        assert not found[2:4, 40:45].any()
        assert len(np.unique(found[34:39, 40:50])) == 1
    assert grouped_instances(interior_and_boundary(cells), labels, "components").max() == 5


def test_no_cells() -> None:
    for method in ("components", "watershed"):
        assert not numbered_instances(np.zeros((5, 6), np.uint8), method).any()
    # A boundary without an interior belongs to no cell.
    assert not numbered_instances(np.full((5, 6), BOUNDARY, np.uint8), "watershed").any()


def test_predictor_writes_them_beside_the_classes(make_model: Callable[..., Model], tmp_path: Path) -> None:
    classes = interior_and_boundary(three_cells())[None]
    geometry = Geometry((999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), classes.shape, True)
    write_segmentation(tmp_path / "images" / "cells.png", classes, geometry)
    predictor = Predictor((make_model(Classes(), (16, 16), 3, num_channels=1, names=("interior", "boundary")),))
    asked = PredictionSettings(tile_step_size=1.0, instances="watershed")
    (segmentation,) = predictor.predict(tmp_path / "images", tmp_path / "out", asked)
    assert np.array_equal(read_label(segmentation).array[0], classes)
    instances = tmp_path / "out" / "cells_label.tiff"
    assert np.array_equal(read_label(instances).array[0], numbered_instances(classes, "watershed"))
    instances.unlink()
    assert predictor.predict(tmp_path / "images", tmp_path / "out", asked) == [segmentation]
    assert instances.exists()
    with pytest.raises(UserError, match="other settings"):
        predictor.predict(tmp_path / "images", tmp_path / "out", replace(asked, instances="components"))


def test_levels_of_depth_become_cells_by_a_watershed(make_model: Callable[..., Model], tmp_path: Path) -> None:
    classes = depth_levels(three_cells())[None]
    geometry = Geometry((999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), classes.shape, True)
    write_segmentation(tmp_path / "images" / "cells.png", classes, geometry)
    predictor = Predictor((make_model(Classes(5), (16, 16), 5, num_channels=1, names=DEPTH_CLASSES),))
    asked = PredictionSettings(tile_step_size=1.0, instances="watershed")
    predictor.predict(tmp_path / "images", tmp_path / "out", asked)
    found = read_label(tmp_path / "out" / "cells_label.tiff").array[0]
    assert np.array_equal(found, instances_of_depth(classes))
    assert match_objects(three_cells()[None], found, 0.9) == (3, 3, 3)
    with pytest.raises(
        UserError, match=r"instances=components: is for interior and boundary.*Give instances=watershed"
    ):
        predictor.predict(tmp_path / "images", tmp_path / "other", replace(asked, instances="components"))


def test_networks_without_a_boundary_are_refused(make_model: Callable[..., Model], tmp_path: Path) -> None:
    predictor = Predictor((make_model(Classes(), (16, 16), 4, num_channels=1),))
    with pytest.raises(UserError, match=r"instances=components: .*label 3"):
        predictor.predict_cases([], tmp_path / "out", PredictionSettings(instances="components"))
    ordinary = Predictor((make_model(Classes(), (16, 16), 3, num_channels=1, names=("liver", "tumour")),))
    with pytest.raises(UserError, match=r"instances=watershed: is for cells.*this one has liver, tumour"):
        ordinary.predict_cases([], tmp_path / "out", PredictionSettings(instances="watershed"))
    assert not (tmp_path / "out").exists()
