"""The cost of a network, part by part: parameters, FLOPs, activations.

The forward pass runs on tensors without data (device "meta"), so that a network of any size needs no memory. FLOPs are
counted as PyTorch counts them (torch.utils.flop_counter): two for each multiply-accumulate of a convolution or matrix
product; elementwise operations, norms and resizing are left out. `scan_flops` adds those of the selective scan, which
PyTorch does not know. Activations are what autograd keeps for the backward pass in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from umamba.io import UserError
from umamba.networks.build import Architecture, build_network
from umamba.networks.mamba import Mamba, MambaLayer
from umamba.planning import Configuration


@dataclass(frozen=True)
class StageCost:
    """Cost of one part of a network for one patch.

    Attributes:
        name: name of the part in the network.
        features: channels of its output.
        size: size of its output in voxels; empty if the output is no feature map.
        parameters: number of its parameters.
        flops: FLOPs of its forward pass.
        activation_bytes: bytes that it keeps for the backward pass.
        scan: "patch" for a layer of Mamba, Mamba-2 or mLSTM whose tokens are voxels, "channel" for one whose tokens are
            channels, else None.
        tokens: number of tokens of such a layer or of a transformer's part, else 0.
        width: width of a token, else 0.
    """

    name: str
    features: int
    size: tuple[int, ...]
    parameters: int
    flops: int
    activation_bytes: int
    scan: Literal["patch", "channel"] | None = None
    tokens: int = 0
    width: int = 0


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network for one patch; multiply FLOPs and activations by the batch size for a batch.

    Attributes:
        stages: its parts in the order in which they run.
        parameters: number of parameters; parameters that several parts share count once.
        flops: FLOPs of the forward pass, deep supervision included.
        activation_bytes: bytes that are kept for the backward pass.
    """

    stages: tuple[StageCost, ...]
    parameters: int
    flops: int
    activation_bytes: int


def network_cost(
    architecture: Architecture, configuration: Configuration, in_channels: int, num_classes: int
) -> NetworkCost:
    """Measure the cost of a network for one patch of a configuration.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration, or that of `configuration_for_patch`; its patch is the input.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: see `build_network`.

    >>> from umamba.networks import configuration_for_patch
    >>> cost = network_cost("unet", configuration_for_patch((16, 16)), in_channels=1, num_classes=2)
    >>> cost.parameters == sum(stage.parameters for stage in cost.stages)
    True
    """
    network = build_without_data(architecture, configuration, in_channels, num_classes).train()
    meter = _Meter(network)
    with meter:
        network(torch.empty((1, in_channels, *configuration.patch_size), device="meta"))
    return NetworkCost(
        tuple(meter.stages), sum(p.numel() for p in network.parameters()), meter.flops, meter.activation_bytes
    )


def build_without_data(
    architecture: Architecture, configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build a network on the device "meta": its tensors have shapes and no data.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: see `build_network`.
    """
    too_large = f"plan.{configuration.name}: no machine holds the weights of this network. Check its feature maps."
    try:
        with torch.device("meta"):
            return build_network(architecture, configuration, in_channels, num_classes)
    except RuntimeError as error:
        if "overflow" in str(error):
            raise UserError(too_large) from None
        if "meta" not in str(error):
            raise
    # MONAI's SwinUNETR reads values of torch.linspace while it is built, so ranges have data.
    try:
        with torch.device("meta"), _RangesWithData():
            return build_network(architecture, configuration, in_channels, num_classes).to("meta")
    except RuntimeError as error:
        if "overflow" in str(error):
            raise UserError(too_large) from None
        raise


class _RangesWithData(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = {"device": "cpu"} if func in (torch.linspace, torch.arange) else {}
        return func(*args, **{**place, **(kwargs or {})})


def scan_flops(batch: int, channels: int, length: int, states: int) -> int:
    """Return the FLOPs of a selective scan with D and gate.

    Seven for each channel, token and state: delta A, its exponential, (delta u) B, the decayed state, their sum, the
    product with C, and the sum over states. Four for each channel and token: delta u, D u, its sum, and the gate.

    Args:
        batch: samples.
        channels: channels of the scan (the inner width of the Mamba block).
        length: tokens.
        states: state size of each channel.
    """
    return batch * channels * length * (7 * states + 4)


class _Meter:
    """Measures each part of a network that runs inside this context."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.stages: list[StageCost] = []
        self.scan_flops = 0
        self.activation_bytes = 0
        self._kept: dict[int, torch.UntypedStorage] = {}  # kept alive, because a freed address could be used again
        self._own: set[int] = set()
        self._counter = FlopCounterMode(display=False)
        self._saved = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks: list[Any] = []

    @property
    def flops(self) -> int:
        """FLOPs so far."""
        return self._counter.get_total_flops() + self.scan_flops

    def __enter__(self) -> None:
        tensors = (*self.network.parameters(), *self.network.buffers())
        self._own = {tensor.untyped_storage()._cdata for tensor in tensors}
        for name, module in _parts(self.network):
            self._hooks += self._measured(name, module)
        for module in self.network.modules():
            if isinstance(module, Mamba):
                self._hooks.append(module.register_forward_hook(self._scan))
        self._counter.__enter__()
        self._saved.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._saved.__exit__(*error)
        self._counter.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._own and address not in self._kept:
            self._kept[address] = storage
            self.activation_bytes += storage.nbytes()
        return tensor

    def _scan(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Mamba)
        batch, length, _ = inputs[0].shape
        self.scan_flops += scan_flops(batch, len(module.D), length, module.d_state)

    def _measured(self, name: str, module: nn.Module) -> list[Any]:
        before: list[int] = []

        def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            before[:] = (self.flops, self.activation_bytes)

        def end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            self.stages.append(
                StageCost(
                    name,
                    **_shape(module, output),
                    parameters=sum(p.numel() for p in module.parameters()),
                    flops=self.flops - before[0],
                    activation_bytes=self.activation_bytes - before[1],
                )
            )

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]


def _shape(module: nn.Module, output: Tensor) -> dict[str, Any]:
    """Return the entries of `StageCost` that follow from a part's output, (B, C, *S) or (B, L, C)."""
    if output.ndim == 3:
        return {"features": output.shape[2], "size": (), "tokens": output.shape[1], "width": output.shape[2]}
    features, voxels = output.shape[1], output[0, 0].numel()
    shape: dict[str, Any] = {"features": features, "size": tuple(output.shape[2:])}
    if not isinstance(module, MambaLayer):
        return shape
    if module.channel_token:
        return {**shape, "scan": "channel", "tokens": features, "width": voxels}
    return {**shape, "scan": "patch", "tokens": voxels, "width": features}


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts that get a row: the network's children, or the children's children if they hold module lists.

    Parts without parameters are left out.
    """
    for name, child in network.named_children():
        held = [grandchild for grandchild in child.children() if isinstance(grandchild, nn.ModuleList)]
        yield from _unpacked(name, child, depth=1 if held and not isinstance(child, MambaLayer) else 0)


def _unpacked(name: str, module: nn.Module, depth: int) -> Iterator[tuple[str, nn.Module]]:
    if not any(True for _ in module.parameters()):
        return
    if depth or isinstance(module, nn.ModuleList):
        for key, child in module.named_children():
            yield from _unpacked(f"{name}.{key}", child, 0)
    else:
        yield name, module
