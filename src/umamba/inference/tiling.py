"""Logits of a whole image from a network that sees patches: overlapping tiles under Gaussian weights (nnU-Net's rule).

Tiles are spread evenly with at most `tile_step_size` of a patch between them; weights are a Gaussian with sigma =
patch / 8 around the patch's centre. Weights and sums are float32 (nnU-Net: float16). A 2D configuration sees each slice
on its own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from umamba.planning import Configuration

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Free GPU memory that the sums over an image may take; more than that and they are kept in main memory.
_GPU_SHARE = 0.6


def tile_starts(length: int, patch: int, tile_step_size: float) -> list[int]:
    """Return where the tiles of one axis begin: evenly spread, the first at 0, the last ending at `length`.

    Args:
        length: voxels of the image, at least `patch`.
        patch: voxels of a tile.
        tile_step_size: largest step as a fraction of the patch, above 0 and at most 1.
    """
    if not 0 < tile_step_size <= 1:
        raise ValueError(f"tile_step_size={tile_step_size} must be above 0 and at most 1")
    if length < patch:
        raise ValueError(f"an image of {length} voxels is smaller than the patch of {patch}: pad it first")
    steps = math.ceil((length - patch) / (patch * tile_step_size))
    return [round((length - patch) / steps * index) for index in range(steps + 1)] if steps else [0]


def gaussian_weights(patch_size: Sequence[int]) -> Tensor:
    """Return the weights of a tile's voxels (*patch_size) float32: largest at the centre, where they are 1, all > 0."""
    weights = torch.ones(())
    for length in patch_size:
        position = torch.arange(length, dtype=torch.float64) - length // 2
        weights = weights[..., None] * torch.exp(-0.5 * (position / (length / 8)) ** 2)
    return weights.float()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which the network runs, for Lightning's name of a precision; ValueError for other names."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    if precision in ("32-true", "32"):
        return nullcontext()
    raise ValueError(f"precision {precision} is not one of 32-true, {', '.join(_AUTOCAST)}")


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    image: Tensor,
    configuration: Configuration,
    *,
    num_classes: int,
    tile_step_size: float = 0.5,
    tta: bool = False,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    tiles_at_once: int | None = None,
) -> Tensor:
    """Run the network over an image and return its logits (num_classes, Z, Y, X), float32, on the CPU.

    Args:
        network: in evaluation mode and on `device`; full-resolution logits, or a list that begins with them.
        image: preprocessed image (C, Z, Y, X); smaller than the patch is padded with zeros on both sides.
        configuration: its patch size, two entries for a network that sees slices.
        num_classes: outputs of the network.
        tile_step_size: largest step between tiles as a fraction of the patch.
        tta: average the logits over all flips of the patch's axes.
        device: where the network is.
        precision: Lightning's name, 32-true, bf16-mixed or 16-mixed.
        tiles_at_once: tiles in one pass; None: 8 slices; in 3D 1 on a GPU, and 4 on a CPU, whose convolutions are slow
            with a batch of one.
    """
    device = torch.device(device)
    patch = tuple(configuration.patch_size)
    flat = len(patch) == 2
    window = (1, *patch) if flat else patch
    image, inner = _pad(image.float(), window)
    shape = image.shape[1:]
    per_axis = [tile_starts(length, size, tile_step_size) for length, size in zip(shape, window, strict=True)]
    if flat:
        per_axis[0] = list(range(shape[0]))

    sums_on = _accumulation_device(device, num_classes + 1, shape)
    logits = torch.zeros((num_classes, *shape), device=sums_on)
    total = torch.zeros(shape, device=sums_on)
    weights = gaussian_weights(window).to(sums_on)
    image = image.to(sums_on)
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)
    with cudnn, autocast(device, precision):
        for starts in _batched(itertools.product(*per_axis), tiles_at_once or _tiles_at_once(device, flat)):
            places = [tuple(slice(a, a + size) for a, size in zip(start, window, strict=True)) for start in starts]
            tiles = torch.stack([image[(slice(None), *place)] for place in places]).to(device)
            output = _forward(network, tiles.squeeze(2) if flat else tiles, tta).to(sums_on)
            if output.shape[1] != num_classes:
                raise ValueError(f"the network has {output.shape[1]} outputs, not {num_classes}")
            for place, tile in zip(places, output.unsqueeze(2) if flat else output, strict=True):
                logits[(slice(None), *place)] += tile * weights
                total[place] += weights
    logits /= total
    return logits[(slice(None), *inner)].cpu()


def _forward(network: nn.Module, tiles: Tensor, tta: bool) -> Tensor:
    """Return the logits (B, K, *patch) in float32, averaged over all flips with `tta`."""
    axes = range(2, tiles.ndim)
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)] if tta else [()]
    total: Tensor | None = None
    for flip in flips:
        output = network(tiles.flip(flip) if flip else tiles)
        full = (output[0] if isinstance(output, (list, tuple)) else output).float()
        full = full.flip(flip) if flip else full
        total = full if total is None else total + full
    assert total is not None
    return total / len(flips)


def _pad(image: Tensor, window: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, Z, Y, X) with zeros to at least the window, a surplus voxel at the end; return where the image lies."""
    padding, inner = [], []
    for length, size in zip(image.shape[1:], window, strict=True):
        before = max(size - length, 0) // 2
        padding.append((before, max(size - length, 0) - before))
        inner.append(slice(before, before + length))
    flat = [amount for pair in reversed(padding) for amount in pair]
    return functional.pad(image, flat), tuple(inner)


def _tiles_at_once(device: torch.device, flat: bool) -> int:
    if flat:
        return 8
    return 4 if device.type == "cpu" else 1


def _batched(starts: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while batch := list(itertools.islice(starts, size)):
        yield batch


def _accumulation_device(device: torch.device, volumes: int, shape: Sequence[int]) -> torch.device:
    """Return the network's device if the sums fit beside it, else the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    needed = 4 * volumes * math.prod(shape)
    return device if needed < _GPU_SHARE * torch.cuda.mem_get_info(device)[0] else torch.device("cpu")
