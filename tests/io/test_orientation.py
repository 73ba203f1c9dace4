"""Anatomical directions against nibabel's, which uses the opposite signs of x and y (RAS)."""

import itertools

import nibabel
import numpy as np
import pytest

from umamba.io.orientation import axis_letters


def test_the_identity_is_lps() -> None:
    assert axis_letters((1, 0, 0, 0, 1, 0, 0, 0, 1)) == ("S", "P", "L")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_letters_equal_nibabels(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    rotation = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(sum(order)).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.diag(rotation))
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, order] * np.array(signs)
    direction_xyz = np.diag([-1, -1, 1]) @ affine[:3, :3]
    assert axis_letters(direction_xyz.ravel().tolist()) == nibabel.aff2axcodes(affine)[::-1]
