"""One forward pass over tiles, which prediction and the validation of whole cases during training share."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from umamba.inference.precision import autocast
from umamba.planning import Configuration

Forward = Callable[[Tensor], Tensor]
Axes = tuple[int, int, int]
UNCHANGED: Axes = (0, 1, 2)


def tile_window(configuration: Configuration, transpose_backward: Axes = UNCHANGED) -> tuple[int, int, int]:
    """Return the size of a tile.

    Args:
        configuration: the plan's configuration.
        transpose_backward: the plan's transposition from the network's axes to those of the tiles.

    Returns:
        Voxels along the axes of the tiles; 1 across the slices of a 2D network.
    """
    patch = (1,) * (3 - configuration.dim) + tuple(configuration.patch_size)
    z, y, x = (patch[axis] for axis in transpose_backward)
    return z, y, x


def tile_forward(
    network: nn.Module,
    configuration: Configuration,
    device: torch.device,
    precision: str,
    *,
    transpose_forward: Axes = UNCHANGED,
    transpose_backward: Axes = UNCHANGED,
    flipped_axes: Sequence[int] = (),
) -> Forward:
    """Return the function that computes the logits of tiles without gradients.

    Args:
        network: maps (B, C, *patch) to logits, or to a list of logits with the full resolution first.
        configuration: the plan's configuration; a 2D network gets each slice without its first axis.
        device: where the network is; the tiles are copied to it, the logits stay on it.
        precision: Lightning's name of the precision.
        transpose_forward: from the axes of the tiles to the network's.
        transpose_backward: from the network's axes to those of the tiles.
        flipped_axes: axes of the patch for test-time augmentation: the logits are the float32 mean over the flips along
            every combination of these axes. Empty: no augmentation.

    Returns:
        A function from tiles (B, C, Z, Y, X) of the size `tile_window` to logits (B, num_classes, Z, Y, X).
    """
    forth = (0, 1, *(axis + 2 for axis in transpose_forward))
    back = (0, 1, *(axis + 2 for axis in transpose_backward))
    flat = configuration.dim == 2

    def full_resolution(tiles: Tensor) -> Tensor:
        output = network(tiles)
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        return logits

    def forward(tiles: Tensor) -> Tensor:
        tiles = tiles.permute(forth).to(device).contiguous()
        tiles = tiles.squeeze(2) if flat else tiles
        with torch.inference_mode(), _deterministic_cudnn(), autocast(device, precision):
            logits = _mean_of_flips(full_resolution, tiles, flipped_axes)
        return (logits.unsqueeze(2) if flat else logits).permute(back)

    return forward


def _mean_of_flips(network: Forward, tiles: Tensor, axes: Sequence[int]) -> Tensor:
    if not axes:
        return network(tiles)
    share = 0.5 ** len(axes)
    flips = _flipped(network, tiles, axes)
    mean = next(flips).float() * share
    for logits in flips:
        mean.add_(logits, alpha=share)
    return mean


def _flipped(network: Forward, tiles: Tensor, axes: Sequence[int]) -> Iterator[Tensor]:
    """Yield the logits of tiles (B, C, *patch) for every combination of flipped patch axes, flipped back."""
    dims = [axis + 2 for axis in axes]
    for number in range(len(dims) + 1):
        for flip in itertools.combinations(dims, number):
            yield network(tiles.flip(flip)).flip(flip) if flip else network(tiles)


def _deterministic_cudnn() -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)
