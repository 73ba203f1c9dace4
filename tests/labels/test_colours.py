"""The palette, measured for normal and colour-blind sight (Machado, Oliveira and Fernandes 2009, severity 1)."""

import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from umamba.labels import colours
from umamba.labels.colours import PALETTE_SIZE

SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(rgb: np.ndarray, sight: str) -> np.ndarray:
    """Return CIELAB of sRGB colours as they are seen; the matrices apply to linear RGB."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(SIGHT[sight]).T, 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(("count", "distance"), [(2, 30.0), (4, 20.0), (13, 13.5), (PALETTE_SIZE, 8.3)])
def test_colours_are_told_apart(sight: str, count: int, distance: float) -> None:
    lab = seen(colours(count) / 255.0, sight)
    assert min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2)) >= distance


def test_the_first_colours_stay() -> None:
    assert (colours(5) == colours(50)[:5]).all()
    assert (colours(PALETTE_SIZE + 1)[-1] == colours(1)[0]).all()
    assert len(np.unique(colours(PALETTE_SIZE), axis=0)) == PALETTE_SIZE
