"""What a network costs, stage by stage, measured on tensors without data: any network at any plan, in no memory.

FLOPs are counted as PyTorch counts them (torch.utils.flop_counter): two for each multiply-accumulate of a convolution
or matrix product; elementwise operations, norms and resizing are left out. The selective scan is added by hand (see
`scan_flops`), as it is no matrix product. Activation memory is what autograd keeps for the backward pass in float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from umamba.networks.build import build_network
from umamba.networks.mamba import Mamba, MambaLayer
from umamba.planning import Configuration


@dataclass(frozen=True)
class StageCost:
    """Cost of a part of a network for one patch.

    Attributes:
        name: of the part in the network.
        features: channels of its output.
        size: its output's map in voxels; empty if its output is no map.
        parameters: of the part.
        flops: of its forward pass.
        activation_bytes: kept by it for the backward pass.
        scan: for a Mamba layer, whether its tokens are the map's patches (voxels) or its channels; None for others.
        tokens: number of tokens of a Mamba layer or a transformer's part, else 0.
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
    """Cost of a network for one patch of its plan; of a batch, FLOPs and activations are a multiple.

    Attributes:
        stages: its parts in the order in which they run.
        parameters: of the whole network; parts that share tensors share them here too.
        flops: of its forward pass, deep supervision included.
        activation_bytes: kept for the backward pass.
    """

    stages: tuple[StageCost, ...]
    parameters: int
    flops: int
    activation_bytes: int


def network_cost(
    architecture: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> NetworkCost:
    """Measure a network at a plan.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration; its patch is the input.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: see `build_network`.
    """
    network = without_data(architecture, configuration, in_channels, num_classes).train()
    meter = _Meter(network)
    with meter:
        network(torch.empty((1, in_channels, *configuration.patch_size), device="meta"))
    return NetworkCost(
        tuple(meter.stages), sum(p.numel() for p in network.parameters()), meter.flops, meter.activation_bytes
    )


def without_data(
    architecture: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build a network whose tensors have shapes and no data; the arguments are those of `build_network`."""
    try:
        with torch.device("meta"):
            return build_network(architecture, configuration, in_channels, num_classes)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
    # Some networks read numbers back while they are built (MONAI's SwinUNETR), which needs data for a moment.
    return build_network(architecture, configuration, in_channels, num_classes).to("meta")


def scan_flops(batch: int, channels: int, length: int, states: int) -> int:
    """Return the operations of a selective scan with D and gate.

    For each channel, token and state: delta A, its exponential, (delta u) B, the state's decay, the addition of both,
    times C, and the sum over states. For each channel and token: delta u, D u, its addition, and the gate's product.
    """
    return batch * channels * length * (7 * states + 4)


class _Meter:
    """Measures each part of a network while it runs."""

    def __init__(self, network: nn.Module) -> None:
        self.stages: list[StageCost] = []
        self.scanned = 0
        self.activation_bytes = 0
        self._kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no two share an address
        self._own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        self._counter = FlopCounterMode(display=False)
        self._saved = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks = []
        for name, module in parts(network):
            self._hooks += self._measured(name, module)
        for module in network.modules():
            if isinstance(module, Mamba):
                self._hooks.append(module.register_forward_hook(self._scan))

    @property
    def flops(self) -> int:
        """FLOPs so far."""
        return self._counter.get_total_flops() + self.scanned

    def __enter__(self) -> None:
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
        self.scanned += scan_flops(batch, len(module.D), length, module.d_state)

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
    """Return the entries of `StageCost` that a part's output tells, a map (B, C, *S) or tokens (B, L, C)."""
    if output.ndim == 3:
        return {"features": output.shape[2], "size": (), "tokens": output.shape[1], "width": output.shape[2]}
    features, voxels = output.shape[1], output[0, 0].numel()
    shape: dict[str, Any] = {"features": features, "size": tuple(output.shape[2:])}
    if not isinstance(module, MambaLayer):
        return shape
    if module.channel_token:
        return {**shape, "scan": "channel", "tokens": features, "width": voxels}
    return {**shape, "scan": "patch", "tokens": voxels, "width": features}


def parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts that are described: the network's children, those that hold lists of modules taken apart.

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
