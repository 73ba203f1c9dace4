"""One forward pass over tiles, which prediction and the validation of whole cases during training share."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from umamba.inference.device_work import fetch, on_device, pinned
from umamba.inference.precision import autocast
from umamba.io import UserError
from umamba.planning import Configuration

if TYPE_CHECKING:
    from umamba.inference.model import Model
    from umamba.inference.openvino_network import OpenVinoNetwork

Forward = Callable[[Tensor], Tensor]
# Begins a pass over tiles and returns the function that waits for their logits.
Start = Callable[[Tensor], Callable[[], Tensor]]
Axes = tuple[int, int, int]
UNCHANGED: Axes = (0, 1, 2)
HOST_PASSES = 2  # of a GPU at a time, where the sums over tiles are on the CPU: one computes, one is added


def tile_window(
    configuration: Configuration, transpose_backward: Axes = UNCHANGED, scale: int = 1
) -> tuple[int, int, int]:
    """Return the size of a tile.

    Args:
        configuration: the plan's configuration.
        transpose_backward: the plan's transposition from the network's axes to those of the tiles.
        scale: edge of a tile in patches of training.

    Returns:
        Voxels along the axes of the tiles; 1 across the slices of a 2D network.
    """
    patch = (1,) * (3 - configuration.dim) + tuple(scale * edge for edge in configuration.patch_size)
    z, y, x = (patch[axis] for axis in transpose_backward)
    return z, y, x


def full_resolution(output: Any) -> Tensor:
    """Return the logits at full resolution of what a network returned.

    Args:
        output: logits, or a list of logits with the full resolution first.
    """
    logits: Tensor = output[0] if isinstance(output, list | tuple) else output
    return logits


def refuse_scale(network: nn.Module, scale: int) -> None:
    """Refuse tiles of several patches for a network whose weights are tied to its patch.

    Args:
        network: any network.
        scale: edge of a tile in patches of training.

    Raises:
        UserError: the network takes its own patch only.
    """
    patch = getattr(network, "fixed_patch_size", None)
    if scale != 1 and patch is not None:
        size = " x ".join(map(str, patch))
        raise UserError(f"tile_scale={scale}: the weights of this network are tied to its patch of {size} voxels. Give "
                        "tile_scale=1.")  # fmt: skip


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
    """Return the function that computes the logits of tiles by PyTorch, without gradients.

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
    to_network, to_tiles = _turns(configuration, transpose_forward, transpose_backward)

    def logits_of(tiles: Tensor) -> Tensor:
        return full_resolution(network(tiles))

    def forward(tiles: Tensor) -> Tensor:
        with torch.inference_mode(), on_device(device), _deterministic_cudnn(), autocast(device, precision):
            return to_tiles(_mean_of_flips(at_once(logits_of), to_network(tiles, device), flipped_axes))

    return forward


def pooled_forward(model: "Model", tta: bool) -> Forward:
    """Return the function that computes the logits of a classification head for tiles by PyTorch, without gradients.

    Args:
        model: a network with a head.
        tta: average over all flips of the patch axes that training mirrored.

    Returns:
        A function from tiles (B, C, *window) to the logits of all tasks side by side, (B, classes) float32.
    """
    to_network, _ = _turns(model.configuration, model.plan.transpose_forward, model.plan.transpose_backward)
    network: Any = model.network
    head = model.case_head
    assert head is not None
    dims = [axis + 2 for axis in model.flipped_axes(tta)]
    flips = [flip for number in range(len(dims) + 1) for flip in itertools.combinations(dims, number)]

    def forward(tiles: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            on_device(model.device),
            _deterministic_cudnn(),
            autocast(model.device, model.precision),
        ):
            given = to_network(tiles, model.device)
            found = [torch.cat(head(network.bottleneck(given.flip(flip) if flip else given)), dim=1) for flip in flips]
            return torch.stack(found).mean(0)

    return forward


def tile_start(
    network: "OpenVinoNetwork",
    configuration: Configuration,
    *,
    batch: int,
    in_flight: int,
    transpose_forward: Axes = UNCHANGED,
    transpose_backward: Axes = UNCHANGED,
    flipped_axes: Sequence[int] = (),
) -> Start:
    """Return the function that begins the computation of the logits of tiles by OpenVINO.

    Args:
        network: compiled for batches of `batch` tiles and `in_flight` passes at a time.
        configuration: see `tile_forward`.
        batch: tiles of a pass; fewer are filled up with zeros, whose logits are left out.
        in_flight: passes at a time. Flips of the same tiles are such passes, so that with `flipped_axes` only one call
            may be begun before the logits of the one before are there.
        transpose_forward: see `tile_forward`.
        transpose_backward: see `tile_forward`.
        flipped_axes: see `tile_forward`.

    Returns:
        A function from tiles (B, C, Z, Y, X), B at most `batch`, to a function that waits for their logits
        (B, num_classes, Z, Y, X) float32.
    """
    to_network, to_tiles = _turns(configuration, transpose_forward, transpose_backward)

    def begin(tiles: Tensor) -> Callable[[], Tensor]:
        return network.start(tiles).wait

    def start(tiles: Tensor) -> Callable[[], Tensor]:
        given = len(tiles)
        tiles = to_network(tiles, torch.device("cpu"))
        if given < batch:
            tiles = torch.cat([tiles, tiles.new_zeros((batch - given, *tiles.shape[1:]))])
        wait = begin(tiles) if not flipped_axes else partial(_mean_of_flips, begin, tiles, flipped_axes, in_flight)
        return lambda: to_tiles(wait()[:given])

    return start


def at_once(forward: Forward) -> Start:
    """Return a forward pass in the form of `Start`; it is computed when its logits are asked for.

    Args:
        forward: the pass.
    """
    return lambda tiles: partial(forward, tiles)


def fetched(start: Start) -> Start:
    """Return passes whose logits are copied to the CPU while the next pass is computed.

    Args:
        start: the passes on a GPU.
    """
    return lambda tiles: fetch(start(tiles)())


def mirrored(start: Start, axis: int) -> Start:
    """Return passes over mirrored tiles, whose logits are mirrored back.

    Args:
        start: the passes.
        axis: of the file, 0 to 2.
    """
    dims = (axis + 2,)

    def begin(tiles: Tensor) -> Callable[[], Tensor]:
        wait = start(tiles.flip(dims))
        return lambda: wait().flip(dims)

    return begin


def by_single_threads(forward: Forward, threads: int) -> Start:
    """Return a forward pass in the form of `Start`; each pass is computed by one thread, several passes at a time.

    PyTorch's convolutions and matrix products add in an order that depends on the number of threads that compute them.

    Args:
        forward: the pass, on the CPU.
        threads: passes at a time.
    """
    before, ready = torch.get_num_threads(), Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, initializer=_compute_alone)
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # threads that begin later take the number that was set last
    return lambda tiles: pool.submit(forward, tiles).result


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # this first call in a thread fixes its number, which other threads could change before


def _turns(
    configuration: Configuration, transpose_forward: Axes, transpose_backward: Axes
) -> tuple[Callable[[Tensor, torch.device], Tensor], Forward]:
    """Return the functions from tiles to the network's input, and from its output to logits along the tiles' axes."""
    forth = (0, 1, *(axis + 2 for axis in transpose_forward))
    back = (0, 1, *(axis + 2 for axis in transpose_backward))
    flat = configuration.dim == 2

    def to_network(tiles: Tensor, device: torch.device) -> Tensor:
        tiles = tiles.permute(forth)
        if tiles.device != device:
            tiles = pinned(tiles, device).to(device, non_blocking=True)
        tiles = tiles.contiguous()
        return tiles.squeeze(2) if flat else tiles

    def to_tiles(logits: Tensor) -> Tensor:
        return (logits.unsqueeze(2) if flat else logits).permute(back)

    return to_network, to_tiles


def _mean_of_flips(start: Start, tiles: Tensor, axes: Sequence[int], in_flight: int = 1) -> Tensor:
    """Return the mean of the logits of tiles (B, C, *patch) over all combinations of flipped patch axes."""
    if not axes:
        return start(tiles)()
    dims, share = [axis + 2 for axis in axes], 0.5 ** len(axes)
    flips = [flip for number in range(len(dims) + 1) for flip in itertools.combinations(dims, number)]
    begun: deque[tuple[tuple[int, ...], Callable[[], Tensor]]] = deque()
    mean: Tensor | None = None
    while flips or begun:
        while flips and len(begun) < in_flight:
            flip = flips.pop(0)
            begun.append((flip, start(tiles.flip(flip) if flip else tiles)))
        flip, wait = begun.popleft()
        logits = wait().flip(flip) if flip else wait()
        mean = logits.float() * share if mean is None else mean.add_(logits, alpha=share)
    assert mean is not None
    return mean


def _deterministic_cudnn() -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)
