"""Rotation, scaling and crop, against SciPy's interpolation label by label."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torchio as tio
from scipy.ndimage import map_coordinates

from umamba.patches.augmentation import is_flat, max_degrees
from umamba.patches.on_device import sample_regions
from umamba.patches.spatial import RotateScaleCrop, crop_centre, rotation_matrix
from umamba.patches.warp import resample_patch
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Rotation, Scaling

CASES = [
    ((13, 17, 14), (8, 9, 7), [0.3, -0.4, 0.2], 1.0),
    ((9, 10, 11), (8, 9, 10), [0.5, 0.1, -0.5], 1.4),  # reaches outside
    ((10, 9, 12), (6, 7, 5), [0.0, 0.0, 0.0], 0.7),
    ((4, 15, 16), (4, 9, 10), [1.2], 1.1),  # in-plane
    ((1, 15, 12), (1, 15, 12), [2.5], 1.3),
]


def source_points(matrix: np.ndarray, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Return the coordinates (3, *target) in the source, voxel by voxel."""
    whole = np.eye(3)
    whole[3 - len(matrix) :, 3 - len(matrix) :] = matrix
    centre_in, centre_out = (np.array(source) - 1) / 2, (np.array(target) - 1) / 2
    points = np.empty((3, *target))
    for voxel in np.ndindex(*target):
        points[(slice(None), *voxel)] = whole @ (np.array(voxel) - centre_out) + centre_in
    return points


def sampled(image: np.ndarray, label: np.ndarray, matrix: np.ndarray, size: Sequence[int]) -> list[np.ndarray]:
    """Return what a device samples for a batch of one patch."""
    tensors = [torch.from_numpy(array)[None] for array in (image, label)]
    found = sample_regions(tensors[0], tensors[1], torch.from_numpy(matrix).reshape(1, -1), size)
    return [tensor[0].numpy() for tensor in found]


@pytest.mark.parametrize(("source", "target", "angles", "factor"), CASES)
def test_image_is_interpolated_linearly(source, target, angles, factor) -> None:  # type: ignore[no-untyped-def]
    image = np.random.default_rng(0).normal(size=(2, *source)).astype(np.float32)
    matrix = rotation_matrix(angles) * factor
    points = source_points(matrix, source, target)
    expected = np.stack([map_coordinates(c.astype(float), points, order=1, mode="grid-constant") for c in image])
    label = np.zeros((1, *source), np.int16)
    for result in (resample_patch(image, label, matrix, target)[0], sampled(image, label, matrix, target)[0]):
        assert result.shape == (2, *target)
        np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize(("source", "target", "angles", "factor"), CASES)
def test_labels_vote(source, target, angles, factor) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(1)
    coarse = generator.integers(-1, 4, size=[-(-size // 3) for size in source])
    label = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(map(slice, source))].astype(np.int16)
    matrix = rotation_matrix(angles) * factor
    points = source_points(matrix, source, target)
    votes = np.stack(
        [
            map_coordinates((label == value).astype(float), points, order=1, mode="grid-constant", cval=value == -1)
            for value in range(-1, 4)
        ]
    )
    _, result = resample_patch(label[None].astype(np.float32), label[None], matrix, target)
    assert result.shape == (1, *target)
    assert result.dtype == np.int16
    best, second = np.sort(votes, axis=0)[[-1, -2]]
    clear = best - second > 1e-4  # a tie may fall either way
    assert clear.mean() > 0.9 if angles != [0.0, 0.0, 0.0] else True
    assert np.array_equal(result[0][clear], (votes.argmax(axis=0) - 1)[clear])


def test_nothing_beyond_the_source_is_read() -> None:
    """At right angles a position is last + 0, and sines are 6e-17 instead of 0. NaN times 0 would be NaN."""
    shape, right = (13, 17, 14), np.pi / 2
    memory = np.full(2 * np.prod(shape), np.nan, np.float32)
    image = memory[: np.prod(shape)].reshape(1, *shape)
    image[:] = 1
    label = np.zeros((1, *shape), np.int16)
    for turns in itertools.product((-right, 0.0, right, 2 * right), repeat=3):
        for size in ((11, 12, 10), (7, 15, 14), (14, 14, 14)):
            resampled = resample_patch(image, label, rotation_matrix(turns), size)[0]
            assert np.isfinite(resampled).all(), (turns, size)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((0, 0, 0), (13, 17, 14)),
        ((3, 5, 2), (9, 11, 13)),
        ((0, 16, 0), (13, 17, 1)),
        ((6, 8, 6), (7, 9, 7)),
        ((4, 4, 4), (4, 9, 9)),  # nothing
    ],
)
def test_what_lies_outside_the_image_is_the_same_without_a_look_at_it(
    low: tuple[int, ...], high: tuple[int, ...]
) -> None:
    generator, right = np.random.default_rng(2), np.pi / 2
    image, label = np.zeros((2, 13, 17, 14), np.float32), np.full((1, 13, 17, 14), -1, np.int16)
    box = tuple(map(slice, low, high))
    image[(slice(None), *box)] = generator.normal(size=image[(slice(None), *box)].shape)
    label[0][box] = generator.integers(-1, 3, size=label[0][box].shape)
    turns = [[0.0] * 3, [right, 0.0, 0.0], [0.0, right, right], [0.0, 0.0, -right]]
    turns += generator.normal(size=(12, 3)).tolist()
    for angles, factor, size in itertools.product(turns, (0.7, 1.0, 1.6), ((11, 12, 10), (7, 15, 14))):
        matrix = rotation_matrix(angles) * factor
        whole = resample_patch(image, label, matrix, size)
        part = resample_patch(image, label, matrix, size, (low, high))
        assert [array.tobytes() for array in part] == [array.tobytes() for array in whole], (angles, factor)


def test_identity_is_the_crop() -> None:
    image = torch.randn(2, 9, 12, 11)
    label = torch.randint(-1, 3, (1, 9, 12, 11)).short()
    size = (5, 6, 7)
    assert torch.equal(crop_centre(image, size), image[:, 2:7, 3:9, 2:9])
    for way in (resample_patch, sampled):
        for found, source in zip(way(image.numpy(), label.numpy(), np.eye(3), size), (image, label), strict=True):
            assert np.array_equal(found, source[:, 2:7, 3:9, 2:9])


def test_a_quarter_turn_is_rot90() -> None:
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    matrix = rotation_matrix([np.pi / 2])
    for way in (resample_patch, sampled):
        turned, voted = way(image.numpy(), image.numpy().astype(np.int16), matrix, (1, 5, 5))
        assert any(np.allclose(turned, np.rot90(image, k, (2, 3)), atol=1e-4) for k in (1, 3))
        np.testing.assert_array_equal(voted, turned.round().astype(np.int16))


@pytest.mark.parametrize("angles", [[0.4], [0.3, -0.2, 0.5]])
def test_rotations_are_rotations(angles: list[float]) -> None:
    matrix = rotation_matrix(angles)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_a_factor_above_one_shows_more() -> None:
    label = np.zeros((1, 20, 20, 20), np.int16)
    label[:, 6:14, 6:14, 6:14] = 1
    smaller, larger = (
        resample_patch(label.astype(np.float32), label, np.eye(3) * factor, (20, 20, 20))[1].clip(0).sum()
        for factor in (1.4, 0.7)
    )
    assert smaller < 512 < larger


@pytest.mark.parametrize(
    ("patch", "flat", "degrees"),
    [
        ((40, 56, 40), False, 30),
        ((16, 48, 48), False, 30),  # exactly 3 is not flat
        ((15, 48, 48), True, 180),
        ((64, 64), False, 180),
        ((64, 96), False, 180),  # exactly 1.5 is not elongated
        ((64, 97), False, 15),
    ],
)
def test_angles_by_shape(patch: tuple[int, ...], flat: bool, degrees: float) -> None:
    assert is_flat(patch) == flat
    assert max_degrees(AugmentationSettings(), patch) == degrees


@pytest.mark.parametrize("in_plane", [False, True])
def test_probabilities_and_ranges(in_plane: bool) -> None:
    transform = RotateScaleCrop((4, 4, 4), in_plane, 30.0, Rotation(p=0.2), Scaling(p=0.2))
    torch.manual_seed(0)
    dims, draws = (2, 4000) if in_plane else (3, 4000)
    matrices = [transform.draw_matrix() for _ in range(draws)]
    moved = [matrix for matrix in matrices if matrix is not None]
    factors = np.array([np.linalg.det(matrix) ** (1 / dims) for matrix in moved])
    scaled = np.abs(factors - 1) > 1e-9
    rotated = np.array([np.abs(m / f - np.eye(dims)).max() > 1e-9 for m, f in zip(moved, factors, strict=True)])
    for share, expected in (
        (len(moved), 0.36),
        (scaled.sum(), 0.2),
        (rotated.sum(), 0.2),
        ((scaled & rotated).sum(), 0.04),
    ):
        assert abs(share / draws - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)
    inside = factors[scaled]
    assert 0.7 <= inside.min() < 0.73
    assert 1.37 < inside.max() <= 1.4
    assert inside.mean() == pytest.approx(1.05, abs=4 * 0.202 / np.sqrt(len(inside)))
    if in_plane:
        angles = np.rad2deg([np.arctan2(m[1, 0], m[0, 0]) for m in moved])[rotated]
        assert -30 <= angles.min() < -28
        assert 28 < angles.max() <= 30


def test_it_is_a_torchio_transform() -> None:
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.randn(1, 8, 8, 8)),
        label=tio.LabelMap(tensor=torch.zeros(1, 8, 8, 8, dtype=torch.int16)),
    )
    result = RotateScaleCrop((4, 5, 6), False, 30.0, Rotation(p=1), Scaling(p=1))(subject)
    assert result.get_image("image").data.shape == result.get_image("label").data.shape == (1, 4, 5, 6)


@pytest.mark.parametrize("in_plane", [False, True])
def test_no_more_is_read_than_the_drawn_matrix_needs(in_plane: bool) -> None:
    patch, largest = (9, 12, 10), (9, 25, 24) if in_plane else (21, 24, 23)
    transform = RotateScaleCrop(patch, in_plane, 30.0, Rotation(p=0.5), Scaling(p=0.5))
    generator = np.random.default_rng(0)
    image = generator.normal(size=(1, *largest)).astype(np.float32)
    label = generator.integers(-1, 3, size=(1, *largest)).astype(np.int16)
    torch.manual_seed(0)
    smaller = 0
    for _ in range(60):
        matrix = transform.draw_matrix()
        size = transform.source_size(matrix, largest)
        smaller += size < largest
        whole, part = (
            transform(
                tio.Subject(
                    image=tio.ScalarImage(tensor=crop_centre(torch.from_numpy(image), box).contiguous()),
                    label=tio.LabelMap(tensor=crop_centre(torch.from_numpy(label), box).contiguous()),
                    matrix=matrix,
                )
            )
            for box in (largest, size)
        )
        torch.testing.assert_close(whole.get_image("image").data, part.get_image("image").data, rtol=0, atol=1e-5)
        assert (whole.get_image("label").data != part.get_image("label").data).float().mean() < 0.002, "except ties"
    assert smaller > 40
