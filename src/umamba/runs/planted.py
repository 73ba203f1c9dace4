"""Train a small network on the planted task for some seconds, and count how many markers it names rightly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umamba.datasets.planted import BACKGROUND, planted_case
from umamba.networks import build_network
from umamba.networks.build import Architecture
from umamba.networks.receptive_field import convolutional_reach
from umamba.planning import Configuration

_EVERY = 20  # steps between two measurements
_SCALE = 50.0  # grey values become multiples of this number around the background


@dataclass(frozen=True)
class PlantedResult:
    """What a network learnt of the planted task.

    Attributes:
        accuracy: share of the markers of unseen images that it names rightly; a guess has 0.5.
        iterations: training steps.
        reach: of its convolutions along each axis, voxels; see `convolutional_reach`.
    """

    accuracy: float
    iterations: int
    reach: tuple[int, ...] | None


def train_planted(
    architecture: Architecture,
    configuration: Configuration,
    distance: int,
    *,
    iterations: int = 300,
    batch: int = 16,
    lr: float = 2e-2,
    seed: int = 0,
    test_images: int = 128,
    enough: float = 1.0,
) -> PlantedResult:
    """Train a network from random weights on new images in every step, on the CPU, with Adam.

    Args:
        architecture: see `build_network`.
        configuration: its patch size is that of the images.
        distance: see `planted_case`.
        iterations: most training steps.
        batch: images of a step.
        lr: learning rate.
        seed: of the weights and the images.
        test_images: images that the accuracy is measured on, two markers each; they are not trained on.
        enough: stop as soon as this accuracy is measured, which happens every 20 steps.

    Raises:
        UserError: the network cannot be built, or the patch does not hold the distance.
    """
    torch.manual_seed(seed)
    network: Any = build_network(architecture, configuration, 1, 3, deep_supervision=False)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=lr / 20)
    test = _draw(np.random.default_rng([seed, 1]), test_images, configuration, distance)
    rng = np.random.default_rng([seed, 0])
    accuracy, step = 0.0, 0
    for step in range(1, iterations + 1):
        images, labels = _draw(rng, batch, configuration, distance)
        loss = F.cross_entropy(network(images)[:, 1:], labels, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % _EVERY == 0 or step == iterations:
            accuracy = _accuracy(network, *test)
            if accuracy >= enough:
                break
    return PlantedResult(accuracy, step, convolutional_reach(architecture, configuration))


def _draw(rng: np.random.Generator, count: int, configuration: Configuration, distance: int) -> tuple[Tensor, Tensor]:
    """Return images (B, 1, *S), and labels (B, *S): 0 and 1 at the markers, -1 elsewhere."""
    cases = [planted_case(rng, configuration.patch_size, distance) for _ in range(count)]
    images = np.stack([image for image, _ in cases]).astype(np.float32)
    labels = np.stack([label for _, label in cases]).astype(np.int64) - 1
    return torch.from_numpy((images[:, None] - BACKGROUND) / _SCALE), torch.from_numpy(labels)


@torch.no_grad()
def _accuracy(network: Any, images: Tensor, labels: Tensor) -> float:
    """Return the share of markers whose voxels, together, prefer the right class."""
    network.eval()
    differences = []
    for part, truth in zip(images.split(16), labels.split(16), strict=True):
        logits = network(part)
        difference = logits[:, 2] - logits[:, 1]
        axes = tuple(range(1, difference.ndim))
        differences += [((difference * (truth == kind)).sum(axes) > 0) == bool(kind) for kind in (0, 1)]
    network.train()
    return float(torch.cat(differences).double().mean())


def small_planted_configuration(dim: int, size: Sequence[int]) -> Configuration:
    """Return a configuration of two stages whose convolutions reach a few voxels only.

    Args:
        dim: 2 or 3.
        size: (Z, Y, X) or (Y, X) in voxels, the last two even.
    """
    flat = (1,) * (dim - 2)
    return Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        patch_size=tuple(size),
        spacing=(1.0,) * dim,
        median_shape=tuple(map(float, size)),
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * dim, (*flat, 2, 2)),
        kernel_sizes=((1,) * dim, (3,) * dim),
        features_per_stage=(8, 16),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
