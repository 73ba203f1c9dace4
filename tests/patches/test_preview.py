"""The picture of augmented patches: drawn for 3D and for natural 2D images, and deterministic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from umamba.labels import LabelSet
from umamba.patches.preview import draw_preview
from umamba.settings import AugmentationSettings

LABELS = LabelSet(("one", "two"), ((1,), (2,)))


class Configuration:
    """The part of a plan's configuration that the preview reads."""

    def __init__(self, patch_size: tuple[int, ...], channels: int) -> None:
        self.patch_size, self.spacing = patch_size, (1.0,) * len(patch_size)
        self.use_mask_for_norm = (False,) * channels
        self.spacing = (1.0,) * len(patch_size)


@pytest.mark.parametrize(("shape", "patch", "channels"), [((20, 40, 40), (8, 24, 24), 1), ((1, 60, 60), (32, 32), 3)])
def test_each_picture_of_a_row_is_another_draw(
    make_cases: Callable[..., Any],
    tmp_path: Path,
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    channels: int,
) -> None:
    store = make_cases([shape, shape], channels)
    configuration: Any = Configuration(patch, channels)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.png"
        draw_preview(store, configuration, LABELS, AugmentationSettings(), path, seed=seed, rows=2, columns=4)
    first, again, other = (imread(tmp_path / f"{name}.png") for name in "abc")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    width = first.shape[1] // 4
    first = first[:, : 4 * width]
    columns = [first[:, index * width : (index + 1) * width] for index in range(4)]
    assert not any(np.array_equal(columns[0], column) for column in columns[1:])
    coloured = first[..., :3].max(axis=-1) - first[..., :3].min(axis=-1) > 0.2
    assert all(coloured[:, index * width : (index + 1) * width].any() for index in range(4)), "labels are drawn"
