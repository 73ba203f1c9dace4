"""Turning volumes into radiological convention, against SimpleITK's reorientation and by hand."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io.orientation import axis_letters
from umamba.labels.view import View, largest_slice, plane_size, planes_shown

CODES = ["".join(p) for p in itertools.permutations("LPS")]
CODES = [
    "".join(code) for each in CODES for code in itertools.product(*({"L": "LR", "P": "PA", "S": "SI"}[c] for c in each))
]


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_gives_the_same_pictures(code: str) -> None:
    image = sitk.GetImageFromArray(
        np.random.default_rng(0).integers(0, 99, (4, 5, 6))
    )  # identity: axes grow to L, P, S
    image.SetSpacing((1, 2, 3))
    stored = sitk.DICOMOrient(image, code)
    letters = axis_letters(stored.GetDirection())
    view = View.of(letters)
    feet_back_left = sitk.GetArrayFromImage(image)[::-1]
    assert (view.turn(sitk.GetArrayFromImage(stored)) == feet_back_left).all()
    assert view.turn_axes(stored.GetSpacing()[::-1]) == (3, 2, 1)
    axis = view.order[1]  # the stored axis of the coronal planes
    number = view.stored_index(1, 2, 5)
    assert (np.take(sitk.GetArrayFromImage(stored), number, axis=axis).sum() == feet_back_left[:, 2].sum()).all()


def test_letters_at_the_edges() -> None:
    view = View.of(("S", "P", "L"))
    assert [view.edges(axis) for axis in range(3)] == [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]
    assert [view.name(axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]


def test_a_photograph_is_drawn_as_stored() -> None:
    view = View.of(None)
    array = np.arange(24).reshape(1, 2, 3, 4)
    assert (view.turn(array) == array).all()
    assert view.edges(0) == ("", "", "", "")
    assert view.stored_index(0, 1, 2) == 1


def test_planes() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[3, 1:5, 2] = True
    assert [largest_slice(mask, axis) for axis in range(3)] == [3, 1, 2]
    assert largest_slice(np.zeros((5, 6, 7), dtype=bool), 0) == 2
    assert planes_shown((4, 5, 6)) == (0, 1, 2)
    assert planes_shown((4, 1, 6)) == (1,)
    assert plane_size((4, 5, 6), (3.0, 1.0, 0.5), 1) == (12.0, 3.0)
