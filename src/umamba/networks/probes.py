"""How far a trained network, or one of its layers, looks: gradients, shuffled tokens, hidden parts of the input.

All functions take a function from maps (1, C, *S) to maps (1, K, *S) of the same size: a network or a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umamba.networks.mamba import MambaLayer
from umamba.networks.mixers import is_mixer

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hidden:
    """The effect of hiding cubes of an input.

    Attributes:
        distance: of the cubes' centres from the centre of the map, in the unit of the spacing.
        change: mean absolute change of the output at the centre, in standard deviations of the output.
    """

    distance: float
    change: float


def mixers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the mixer layers of a network by their names, in the order of the network."""
    return {name: module for name, module in network.named_modules() if is_mixer(module)}


def inputs_of(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the input (1, C, *S) of each mixer layer for an image.

    Args:
        network: in evaluation mode.
        image: (1, C, *S).
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in mixers_of(network).items():

        def keep(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
            found[name] = given[0].detach()

        hooks.append(module.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gradient_map(function: Map, x: Tensor, weights: Tensor | None = None) -> np.ndarray:
    """Return the absolute gradient of the output at the centre with respect to the input, summed over its channels.

    This is the effective receptive field of Luo et al. (2016) for one input; average it over several.

    Args:
        function: the network or layer.
        x: its input, (1, C, *S).
        weights: (K,) of the output's channels; None: the largest channel at the centre alone, a network's predicted
            class.

    Returns:
        (*S), float64.
    """
    x = x.detach().clone().requires_grad_()
    centre = _at_centre(function(x))
    value = centre.max() if weights is None else (centre * weights.to(centre)).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return gradient[0].abs().sum(0).double().cpu().numpy()


def radius_holding(share: float, weights: np.ndarray, spacing: Sequence[float]) -> float:
    """Return the smallest radius around the centre that holds a share of a map's sum.

    Args:
        share: between 0 and 1.
        weights: (*S), not negative.
        spacing: of a voxel along each axis; ones give voxels.
    """
    distance = distances(weights.shape, spacing).ravel()
    order = np.argsort(distance, kind="stable")
    sums = np.cumsum(weights.ravel()[order])
    if sums[-1] <= 0:
        return 0.0
    first = int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12)))
    return float(distance[order][min(first, len(sums) - 1)])


def distances(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Return the Euclidean distance of every voxel from the centre, the voxel with the index size // 2."""
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)]
    squares = np.meshgrid(*[axis**2 for axis in axes], indexing="ij", sparse=True)
    return np.sqrt(sum(squares))  # type: ignore[no-any-return]


def share_beyond(weights: np.ndarray, reach: Sequence[int]) -> float:
    """Return the share of a map's sum that lies farther from the centre than a reach along some axis, in voxels."""
    inside = tuple(slice(max(0, n // 2 - r), n // 2 + r + 1) for n, r in zip(weights.shape, reach, strict=True))
    total = float(weights.sum())
    return 1 - float(weights[inside].sum()) / total if total > 0 else 0.0


@contextmanager
def shuffled_tokens(layers: Sequence[nn.Module], seed: int) -> Iterator[None]:
    """Let layers see their tokens in a random order, and put their outputs back in place.

    A layer that does not look at the order, or at no other token, computes the same as before.

    Args:
        layers: of a network; their tokens are channels or voxels.
        seed: of the orders.
    """
    hooks = []
    for number, layer in enumerate(layers):
        axis = 1 if isinstance(layer, MambaLayer) and layer.channel_token else 2

        def order(map_: Tensor, axis: int = axis, number: int = number) -> Tensor:
            generator = torch.Generator().manual_seed(seed + number)
            return torch.randperm(map_.flatten(2).shape[axis], generator=generator).to(map_.device)

        def before(_: nn.Module, given: tuple[Any, ...], axis: int = axis, order: Any = order) -> tuple[Any, ...]:
            (x,) = given
            return (x.flatten(2).index_select(axis, order(x)).reshape(x.shape),)

        def after(_: nn.Module, given: Any, y: Tensor, axis: int = axis, order: Any = order) -> Tensor:
            back = torch.argsort(order(y))
            return y.flatten(2).index_select(axis, back).reshape(y.shape)

        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def change_by_shuffling(network: nn.Module, image: Tensor, layers: Sequence[nn.Module], seed: int) -> float:
    """Return the mean absolute change of the logits, in standard deviations of the logits, with shuffled tokens.

    Args:
        network: in evaluation mode.
        image: (1, C, *S).
        layers: whose tokens are shuffled.
        seed: of the orders.
    """
    intact = network(image)
    with shuffled_tokens(layers, seed):
        return float((network(image) - intact).abs().mean() / intact.std().clamp_min(1e-12))


@torch.no_grad()
def hide_cubes(function: Map, x: Tensor, spacing: Sequence[float], steps: int) -> list[Hidden]:
    """Hide cubes of the input at growing distances along all axes, and measure the change at the output's centre.

    A cube has an eighth of the map's edge along each axis; its voxels get the mean of their channel. The distance of
    its centre grows evenly from one edge of the cube to the farthest that lies inside the map.

    Args:
        function: the network or layer.
        x: its input, (1, C, *S).
        spacing: of a voxel along each axis.
        steps: distances along each of the two directions of each axis.
    """
    intact = function(x)
    spread = float(intact.std().clamp_min(1e-12))
    sizes = x.shape[2:]
    edges = [max(1, n // 8) for n in sizes]
    mean = x.flatten(2).mean(-1).reshape(*x.shape[:2], *(1 for _ in sizes))
    found = []
    for axis, size in enumerate(sizes):
        nearest, farthest = edges[axis], size // 2 - (edges[axis] + 1) // 2
        offsets = sorted({round(each) for each in np.linspace(nearest, farthest, steps)}) if farthest >= nearest else []
        for offset in offsets:
            for sign in (-1, 1):
                centres = [n // 2 + (sign * offset if k == axis else 0) for k, n in enumerate(sizes)]
                starts = [max(0, c - e // 2) for c, e in zip(centres, edges, strict=True)]
                box: Any = (..., *(slice(start, start + e) for start, e in zip(starts, edges, strict=True)))
                hidden = x.clone()
                hidden[box] = mean.expand_as(x)[box]
                change = (_at_centre(function(hidden)) - _at_centre(intact)).abs().mean()
                found.append(Hidden(offset * spacing[axis], float(change) / spread))
    return found


def _at_centre(y: Tensor) -> Tensor:
    """Return the channels (K,) at the centre of (1, K, *S)."""
    centre: Any = (0, slice(None), *(n // 2 for n in y.shape[2:]))
    return y[centre]
