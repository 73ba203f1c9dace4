"""The planted task: a mixer that mixes solves it, and convolutions that do not reach the landmark can only guess."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umamba.datasets import read_dataset
from umamba.datasets.planted import LANDMARKS, MARKER, planted_case, smallest_edge, write_planted
from umamba.io import UserError
from umamba.runs.planted import small_planted_configuration, train_planted

DISTANCE = 14
SIZES = {2: (32, 32), 3: (2, 32, 32)}
D_CONV = 4


@pytest.mark.parametrize("dim", [2, 3])
def test_a_label_says_which_landmark_the_row_has(dim: int) -> None:
    kinds = []
    for seed in range(20):
        image, label = planted_case(np.random.default_rng(seed), SIZES[dim], DISTANCE)
        rows_of = {}
        for value in (1, 2):
            *depth, rows, columns = np.nonzero(label == value)
            assert (len(rows), len(set(rows)), len(set(columns))) == (4, 2, 2)
            place = (*(axis[0] for axis in depth), rows.min(), columns.min())
            assert image[place] == MARKER
            landmark = (*place[:-1], place[-1] - DISTANCE)
            assert image[landmark] == LANDMARKS[value - 1]
            assert min(landmark[-2:]) >= DISTANCE // 2
            assert (np.array(SIZES[dim][-2:]) - place[-2:]).min() >= DISTANCE // 2 + 2
            rows_of[value] = place
        assert abs(rows_of[1][-2] - rows_of[2][-2]) == 16  # a multiple of 8
        assert rows_of[1][-1] == rows_of[2][-1]
        kinds.append(np.nonzero(label == 1)[-2].min() < np.nonzero(label == 2)[-2].min())
    assert 4 <= sum(kinds) <= 16  # either landmark is above
    assert smallest_edge(DISTANCE) == 32
    with pytest.raises(UserError, match="at least 32 voxels"):
        planted_case(np.random.default_rng(0), (31, 40), DISTANCE)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_dataset_is_one_of_nnunet(dim: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"num_training": 3, "num_test": 1, "seed": 4, "size": SIZES[dim], "distance": DISTANCE}
    root = write_planted(tmp_path / "Dataset900_Planted", **arguments)
    dataset = read_dataset(root)
    assert (len(dataset.training), len(dataset.test)) == (3, 1)
    assert write_planted(root, **arguments) == root
    with pytest.raises(UserError, match="Dataset900_Planted"):
        write_planted(root, **{**arguments, "distance": 12})
    with pytest.raises(UserError, match="at least 32 voxels"):
        write_planted(tmp_path / "small", **{**arguments, "size": (16, 16)})
    assert not (tmp_path / "small").exists()


def check(mixer: str, dim: int, options: dict[str, Any], **budget: Any) -> float:
    """Train a tiny U-Mamba Bot with a mixer, whose convolutions do not reach the landmark; return its accuracy."""
    configuration = small_planted_configuration(dim, SIZES[dim])
    architecture = {"name": "umamba_bot", "mixer": mixer, **options}
    result = train_planted(architecture, configuration, DISTANCE, **budget)
    assert result.reach is not None
    # Half the distance, because InstanceNorm carries what any voxel sees, such as both rows, to all others. The causal
    # convolution of a block reaches its own taps farther, two voxels a token; that must not be what solves the task.
    assert 2 * max(result.reach) < DISTANCE
    assert max(result.reach) + 2 * (D_CONV - 1) < DISTANCE
    return result.accuracy


def cases(quick: str, *others: str) -> list[Any]:
    """Return each mixer in 2D and 3D; all but one in 2D are slow."""
    return [
        pytest.param(mixer, dim, marks=() if (mixer, dim) == (quick, 2) else pytest.mark.slow)
        for dim in (2, 3)
        for mixer in (quick, *others)
    ]


@pytest.mark.parametrize(("mixer", "dim"), cases("mlstm", "mamba2", "mamba"))
def test_a_mixer_finds_the_far_landmark(mixer: str, dim: int) -> None:
    """One of two seeds: a training can stay on the plateau of guesses for longer than a test may take."""
    budget: dict[str, Any] = {"iterations": 300, "batch": 16 if dim == 2 else 8, "enough": 0.97, "test_images": 64}
    assert any(check(mixer, dim, {}, seed=seed, **budget) >= 0.95 for seed in range(2))


@pytest.mark.parametrize(("mixer", "dim"), cases("identity", "convolution"))
def test_convolutions_alone_can_only_guess(mixer: str, dim: int) -> None:
    quick = (mixer, dim) == ("identity", 2)
    options = {"mixer_kernel": 3} if mixer == "convolution" else {}
    accuracy = check(mixer, dim, options, iterations=40 if quick else 150, batch=16 if dim == 2 else 8, enough=1.1)
    assert 0.38 <= accuracy <= 0.62  # 256 markers: a guess has 0.5 with a standard deviation of 0.03
