"""Makes models of trivial networks, with the plans that they need, and teaches small networks a few labels."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from umamba.inference import Model
from umamba.inference.forward import full_resolution
from umamba.io import Geometry, Image
from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan

BACKWARD = {(0, 1, 2): (0, 1, 2), (1, 0, 2): (1, 0, 2), (2, 0, 1): (1, 2, 0), (1, 2, 0): (2, 0, 1)}


def _make_model(
    network: nn.Module,
    patch: tuple[int, ...],
    num_classes: int,
    *,
    num_channels: int | None = None,
    spacing: tuple[float, ...] | None = None,
    forward: tuple[int, int, int] = (0, 1, 2),
    precision: str = "32-true",
    regions: bool = False,
    names: tuple[str, ...] = (),
) -> Model:
    """Return a model without normalisation; it has `num_classes` channels if `num_channels` is not given."""
    dim, channels = len(patch), num_channels or num_classes
    configuration = Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=spacing or (1.0,) * dim,
        median_shape=(16.0,) * dim,
        patch_size=patch,
        batch_size=2,
        batch_dice=False,
        normalization=("NoNormalization",) * channels,
        use_mask_for_norm=(False,) * channels,
        strides=((1,) * dim, (2,) * dim),
        kernel_sizes=((3,) * dim,) * 2,
        features_per_stage=(4, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
    plan = Plan(
        dataset_name="Dataset001_Test",
        rules="nnunet",
        transpose_forward=forward,
        transpose_backward=BACKWARD[forward],  # type: ignore[arg-type]
        median_spacing=(1.0, 1.0, 1.0),
        median_shape=(16.0, 16.0, 16.0),
        intensity=(),
        configurations={configuration.name: configuration},
    )
    if regions:
        names = names or tuple(f"region {index}" for index in range(num_classes))
        values = tuple(tuple(range(index + 1, num_classes + 1)) for index in range(num_classes))
        labels = LabelSet(names, values, region_order=tuple(range(1, num_classes + 1)))
    else:
        names = names or tuple(f"label {index}" for index in range(1, num_classes))
        labels = LabelSet(names, tuple((index,) for index in range(1, num_classes)))
    return Model(network, plan, configuration, labels, channels, torch.device("cpu"), precision=precision)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Return the function that makes models."""
    return _make_model


def _learn(network: nn.Module, patch: tuple[int, ...], channels: int, *, threshold: float, steps: int) -> None:
    """Teach a network to find bright (1) and dark (2) voxels of the first channel.

    Labels of random weights depend on rounding at many voxels.
    """
    generator = np.random.default_rng(1)
    sigma = (0, 0, *(1, 3, 3)[3 - len(patch) :])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        noise = gaussian_filter(generator.normal(size=(2, channels, *patch)), sigma)
        image = torch.from_numpy(noise / noise.std()).float()
        label = (image[:, 0] > threshold).long() + 2 * (image[:, 0] < -threshold).long()
        loss = nn.functional.cross_entropy(full_resolution(network(image)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def learn() -> Callable[..., None]:
    """Return the function that teaches a network."""
    return _learn


class _Mixed(nn.Module):
    """A convolution with random weights, in two or three dimensions."""

    def __init__(self, dim: int, heads: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        kind = nn.Conv2d if dim == 2 else nn.Conv3d
        self.layer = kind(1, heads, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * self.layer(x)


@pytest.fixture
def mixed() -> Callable[[int, int, int], nn.Module]:
    """Return the function from dimension, heads and seed to a network of one random convolution."""
    return _Mixed


@pytest.fixture
def cropped_image() -> Image:
    """Return an image of 13 x 17 x 19 voxels with zeros around, so that it is cropped."""
    shape = (13, 17, 19)
    array = np.zeros((1, *shape), dtype=np.int16)
    array[:, 2:12, 1:15, 3:18] = np.random.default_rng(0).integers(1, 200, (10, 14, 15))
    return Image(array, Geometry((2.5, 1.0, 1.1), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()), shape, False))


@pytest.fixture
def members() -> Callable[..., list[Model]]:
    """Return the function that makes three models that differ in dimension, spacing, patch and order of axes."""

    def make(regions: bool = False) -> list[Model]:
        common: dict[str, Any] = {"num_channels": 1, "regions": regions}
        return [
            _make_model(_Mixed(3, 3, 0), (6, 8, 7), 3, spacing=(1.7, 1.3, 1.0), **common),
            _make_model(_Mixed(3, 3, 1), (8, 6, 5), 3, spacing=(1.0, 2.0, 1.4), forward=(1, 0, 2), **common),
            _make_model(_Mixed(2, 3, 2), (9, 8), 3, spacing=(0.9, 1.5), forward=(2, 0, 1), **common),
        ]

    return make


@pytest.fixture
def threads() -> Iterator[None]:
    """Set the number of threads back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
