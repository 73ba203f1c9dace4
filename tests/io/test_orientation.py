"""Anatomical directions against nibabel's, which uses the opposite signs of x and y (RAS)."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from umamba.io import orientation_of, oriented_like, ras_turn, read_image, turned
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


ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "IS")) for letters in itertools.product(*axes)
]


def stored(letters: str, skew: bool = False) -> nibabel.Nifti1Image:
    """Return an image of distinct voxels stored in an orientation, slightly oblique if `skew`."""
    affine = np.diag([0.7, 0.9, 3.0, 1.0])
    affine[:3, 3] = (5, -7, 11)
    if skew:
        affine[:3, :3] = Rotation.from_euler("xyz", (10, -15, 20), degrees=True).as_matrix() @ affine[:3, :3]
    ras = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), affine)
    ornt = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(letters))
    )
    return ras.as_reoriented(ornt)


@pytest.mark.parametrize("skew", [False, True])
@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_turn_to_ras_is_nibabel_s(tmp_path: Path, letters: str, skew: bool) -> None:
    source = stored(letters, skew)
    nibabel.save(source, tmp_path / "a.nii")
    image = read_image([tmp_path / "a.nii"])
    assert orientation_of(image.geometry) == letters == "".join(nibabel.aff2axcodes(source.affine))
    turn = ras_turn(image.geometry)
    ras, expected = turned(image, turn), nibabel.as_closest_canonical(source)
    np.testing.assert_array_equal(ras.array[0], expected.get_fdata().transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0])
    axes = lps @ np.reshape(ras.geometry.direction_xyz, (3, 3)) * ras.geometry.spacing[::-1]
    np.testing.assert_allclose(axes, expected.affine[:3, :3], atol=1e-5)
    np.testing.assert_allclose(lps @ ras.geometry.origin_xyz, expected.affine[:3, 3], atol=1e-5)
    back = turned(ras, turn.back)
    np.testing.assert_array_equal(back.array, image.array)
    assert (back.geometry.shape, back.geometry.spacing) == (image.geometry.shape, image.geometry.spacing)
    np.testing.assert_allclose(back.geometry.origin_xyz, image.geometry.origin_xyz, atol=1e-5)
    np.testing.assert_allclose(back.geometry.direction_xyz, image.geometry.direction_xyz, atol=1e-7)


@pytest.mark.parametrize("letters", ORIENTATIONS[::7])
def test_channels_in_different_orientations(tmp_path: Path, letters: str) -> None:
    nibabel.save(stored("PSR"), tmp_path / "a.nii")
    nibabel.save(stored(letters), tmp_path / "b.nii")
    image = read_image([tmp_path / "a.nii", tmp_path / "b.nii"], turn_channels=True)
    np.testing.assert_array_equal(image.array[1], image.array[0])
    assert orientation_of(image.geometry) == "PSR"


def test_only_images_of_the_same_place_are_turned_to_each_other(tmp_path: Path) -> None:
    nibabel.save(stored("RAS"), tmp_path / "a.nii")
    nibabel.save(stored("PSR"), tmp_path / "b.nii")
    lost = nibabel.Nifti1Image(np.asarray(stored("RAS").dataobj), np.diag([-0.7, -0.9, 3, 1]))
    nibabel.save(lost, tmp_path / "c.nii")  # LPS, with the voxels of the RAS file
    first, second, other = (read_image([tmp_path / f"{name}.nii"]) for name in "abc")
    np.testing.assert_array_equal(oriented_like(second, first.geometry).array, first.array)
    assert oriented_like(other, first.geometry) is other
    assert oriented_like(first, first.geometry) is first
