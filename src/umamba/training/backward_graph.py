"""The backward pass of a network, found without data: its operations, and the parameters without gradient."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umamba.networks.build import Architecture
from umamba.networks.cost import build_without_data
from umamba.planning import Configuration
from umamba.training.losses import deep_supervision_weights

# PyTorch's operations whose gradient on CUDA has no deterministic form (documentation of
# torch.use_deterministic_algorithms), by the names of their nodes in the graph of autograd.
_NONDETERMINISTIC = re.compile(
    "AvgPool3D|AdaptiveAvgPool[23]D|AdaptiveMaxPool2D|FractionalMaxPool[23]D|ReflectionPad[123]D|GridSampler[23]D|"
    "Upsample(Linear1D|Bilinear2D|Trilinear3D|Bicubic2D)|NllLoss2D|CtcLoss|EmbeddingBag|Cumsum|MaxUnpool[23]D"
)


@dataclass(frozen=True)
class BackwardGraph:
    """The backward pass of a network with nnU-Net's deep supervision.

    Attributes:
        operations: names of autograd's nodes without "Backward" and number, such as "Convolution".
        idle: names of the parameters that no output with a weight in the loss depends on.
    """

    operations: frozenset[str]
    idle: tuple[str, ...]

    @property
    def nondeterministic(self) -> tuple[str, ...]:
        """Operations whose gradient changes from run to run on a GPU, in alphabetical order."""
        return tuple(sorted(name for name in self.operations if _NONDETERMINISTIC.fullmatch(name)))


def backward_graph(
    architecture: Architecture,
    configuration: Configuration,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool,
    *,
    encoder_only: bool = False,
) -> BackwardGraph:
    """Return what the backward pass of a training step consists of in deterministic mode.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.
        deep_supervision: whether the network is trained on the outputs of several resolutions.
        encoder_only: only a classification head is trained, on the network's bottleneck.

    Raises:
        UserError: see `build_network`.
    """
    network = build_without_data(architecture, configuration, in_channels, num_classes).train()
    supervised = deep_supervision and bool(network.supports_deep_supervision)
    network.deep_supervision = supervised  # type: ignore[assignment]
    image = torch.empty((1, in_channels, *configuration.patch_size), device="meta")
    with torch.enable_grad(), _deterministic():
        outputs = network.bottleneck(image) if encoder_only else network(image)  # type: ignore[operator]
    listed = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    weights = deep_supervision_weights(len(listed))
    operations, reached = _walk(output for output, weight in zip(listed, weights, strict=True) if weight)
    idle = [name for name, parameter in network.named_parameters() if id(parameter) not in reached]
    return BackwardGraph(operations, tuple(idle))


def freeze(network: nn.Module, names: Iterable[str]) -> None:
    """Let parameters that get no gradient ask for none, so that several devices need not look for them in each step.

    The optimiser leaves out a parameter without gradient, so that nothing else changes.

    Args:
        network: the network.
        names: its parameters `BackwardGraph.idle`.
    """
    for name in names:
        network.get_parameter(name).requires_grad_(False)


def _walk(outputs: Iterable[Tensor]) -> tuple[frozenset[str], set[int]]:
    """Return the names of all nodes that lead to the outputs, and the identities of the leaves that they reach."""
    waiting = [output.grad_fn for output in outputs]
    seen, operations, leaves = set(), set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is None:
            operations.add(re.sub(r"Backward\d*$", "", node.name()).lstrip("_"))
        else:
            leaves.add(id(variable))
        waiting.extend(following for following, _ in node.next_functions)
    return frozenset(operations), leaves


@contextmanager
def _deterministic() -> Iterator[None]:
    """Switch PyTorch's deterministic mode on within the block."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
