"""A network as an OpenVINO graph: whole, with the Mamba layers as operations that call this project's compiled scan.

A network made of this project's blocks is built operation by operation, which takes a fraction of the time of
OpenVINO's own converter and gives the fused norms of its CPU plugin. Every other network goes through
`openvino.convert_model`.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umamba.inference.forward import full_resolution
from umamba.inference.openvino_runtime import openvino as ov
from umamba.networks.depth_two import DepthTwoConv3d
from umamba.networks.mamba import MambaLayer

ops = ov.opset13

_OPERATOR = "umamba::mamba_layer"  # exists in exported graphs only, so it has shapes and no kernel
torch.library.define(_OPERATOR, "(Tensor features, int number) -> Tensor")


@torch.library.register_fake(_OPERATOR)
def _same_shape(features: Tensor, number: int) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


class UnconvertibleError(Exception):
    """OpenVINO cannot run this network; the text says why."""


class _Placeholder(nn.Module):
    """Stands for the Mamba layer of this number in the exported graph."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) to (B, C, *S); the operator in between has channels last, as the layer's tokens."""
        layer = torch.ops.umamba.mamba_layer
        return layer(x.movedim(1, -1), self.number).movedim(-1, 1)


def mamba_layers(network: nn.Module) -> list[MambaLayer]:
    """Return the Mamba layers of a network; the place of a layer in this list is its number in the graph."""
    return [module for module in network.modules() if isinstance(module, MambaLayer)]


def mamba_operation(layers: Sequence[MambaLayer]) -> type[ov.Op]:
    """Return the class of the OpenVINO operation that runs the Mamba layers of one network.

    Its inputs are a feature map (B, *S, C), float32, and the number of the layer; its output is a feature map of the
    same shape. The arrays are OpenVINO's own, without a copy.

    Args:
        layers: the layers in the order of `mamba_layers`.
    """

    class MambaOperation(ov.Op):
        class_type_info = ov.DiscreteTypeInfo("MambaLayer", "umamba")

        def __init__(self, inputs: Any = None) -> None:
            super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, ov.Type.f32, self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, new_inputs: Any) -> "MambaOperation":
            return MambaOperation(new_inputs)

        def get_type_info(self) -> ov.DiscreteTypeInfo:
            return MambaOperation.class_type_info

        def visit_attributes(self, visitor: Any) -> bool:
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[ov.Tensor], inputs: list[ov.Tensor]) -> bool:
            features, out = torch.from_numpy(inputs[0].data), torch.from_numpy(outputs[0].data)
            with torch.inference_mode():
                out.movedim(-1, 1).copy_(layers[int(inputs[1].data)](features.movedim(-1, 1)))
            return True

    return MambaOperation


def convert(network: nn.Module, shape: Sequence[int], mamba: type[ov.Op]) -> ov.Model:
    """Return the OpenVINO graph of a network in evaluation mode, for tiles of one shape.

    Args:
        network: maps (B, C, *patch) to logits, or to a list of logits with the full resolution first; stays unchanged.
        shape: (B, C, *patch).
        mamba: the operation for its Mamba layers.

    Raises:
        UnconvertibleError: PyTorch cannot export the network, or OpenVINO lacks one of its operations.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # remarks of both libraries about their own code
            program = torch.export.export(_Exportable(network), (torch.zeros(*shape),), strict=False)
            model = _build(program, mamba) or _converted(program, mamba)
    except Exception as error:  # whatever the network, the exporter or the converter raises
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        known = ("No conversion rule", "Conversion is failed")
        reason = next((line for line in lines if any(each in line for each in known)), (lines or ["no message"])[0])
        raise UnconvertibleError(f"{type(error).__name__}: {reason.strip(' -')[:300]}") from error
    model.reshape([*shape])
    return model


class _Exportable(nn.Module):
    """A network as it is exported: a copy that shares the weights, with the Mamba layers and a workaround replaced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        layers = mamba_layers(network)
        shared |= {id(layer): _Placeholder(number) for number, layer in enumerate(layers)}  # type: ignore[misc]
        twin: Any = copy.deepcopy(network, shared)
        if hasattr(twin, "deep_supervision"):
            twin.deep_supervision = False
        for module in twin.modules():
            if isinstance(module, DepthTwoConv3d):
                module.__class__ = nn.Conv3d  # type: ignore[assignment]  # padding is for gradients only
        self.network = twin.eval()

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (B, C, *patch) to the logits at full resolution."""
        return full_resolution(self.network(tiles))


def _converted(program: torch.export.ExportedProgram, mamba: type[ov.Op]) -> ov.Model:
    """Return the graph by OpenVINO's converter."""
    from openvino.frontend.pytorch import ConversionExtension

    def layer(context: Any) -> list[Any]:
        number = int(context.get_values_from_const_input(1))
        outputs: list[Any] = mamba([context.get_input(0), ops.constant(np.int32(number)).output(0)]).outputs()
        return outputs

    name = f"{_OPERATOR.replace('::', '.')}.default"
    return ov.convert_model(program, extension=[ConversionExtension(name, layer)])


def _build(program: torch.export.ExportedProgram, mamba: type[ov.Op]) -> ov.Model | None:
    """Return the graph built here; None if the network has an operation other than those of `_OPERATIONS`."""
    values: dict[str, Any] = {}
    weights = {**program.state_dict, **program.constants}
    stored = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    if any(str(node.target) not in _OPERATIONS and str(node.target) != _MAMBA for node in calls):
        return None
    images = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in stored:
            values[node.name] = ops.constant(weights[stored[node.name]].detach().numpy(), shared_memory=True)
        elif node.op == "placeholder":
            values[node.name] = ops.parameter(list(node.meta["val"].shape), np.float32, name="tiles")
            images.append(values[node.name])
        elif node.op == "call_function":
            arguments, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: values[each.name])
            if str(node.target) == _MAMBA:
                values[node.name] = mamba([arguments[0].output(0), ops.constant(np.int32(arguments[1])).output(0)])
            else:
                values[node.name] = _OPERATIONS[str(node.target)](*arguments, **named)
    (outputs,) = program.graph.output_node().args
    return ov.Model([ops.result(values[outputs[0].name])], images, "network")


_MAMBA = "umamba.mamba_layer.default"


def _axes(value: Any, like: Any) -> list[int]:
    """Return a stride or padding with one entry for each spatial axis of `like`; torch allows one for all."""
    given = [int(each) for each in (value if isinstance(value, list | tuple) else [value])]
    return given * (len(like.get_output_shape(0)) - 2) if len(given) == 1 else given


def _over_channels(x: Any, vector: Any) -> Any:
    """Return the vector (C,) in a shape that broadcasts over x (B, C, *S)."""
    shape = [1, -1] + [1] * (len(x.get_output_shape(0)) - 2)
    return ops.reshape(vector, ops.constant(np.array(shape, np.int64)), special_zero=False)


def _biased(y: Any, bias: Any) -> Any:
    return y if bias is None else ops.add(y, _over_channels(y, bias))


def _convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    sides = _axes(padding, x)
    options = (_axes(stride, x), sides, sides, _axes(dilation, x))
    if groups == 1:
        return _biased(ops.convolution(x, weight, *options), bias)
    outputs, *rest = weight.get_output_shape(0)
    by_group = ops.constant(np.array([groups, outputs // groups, *rest], np.int64))
    return _biased(ops.group_convolution(x, ops.reshape(weight, by_group, special_zero=False), *options), bias)


def _instance_norm(x, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn):  # type: ignore[no-untyped-def]
    if not use_input_stats:
        raise ValueError("an instance norm with running statistics")
    axes = ops.constant(np.arange(2, len(x.get_output_shape(0)), dtype=np.int64))
    y = ops.mvn(x, axes, True, eps, "inside_sqrt")
    y = y if weight is None else ops.multiply(y, _over_channels(x, weight))
    return _biased(y, bias)


def _plus(y, bias):  # type: ignore[no-untyped-def]
    return y if bias is None else ops.add(y, bias)


def _layer_norm(x, shape, weight=None, bias=None, eps=1e-5, cudnn=True):  # type: ignore[no-untyped-def]
    axes = ops.constant(np.arange(-len(shape), 0, dtype=np.int64))
    y = ops.mvn(x, axes, True, eps, "inside_sqrt")
    y = y if weight is None else ops.multiply(y, weight)
    return _plus(y, bias)


def _leaky_relu(x, slope=0.01):  # type: ignore[no-untyped-def]
    return ops.prelu(x, ops.constant(np.array([slope], np.float32)))


def _average(x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor=None):  # type: ignore[no-untyped-def]
    if divisor is not None:
        raise ValueError("average pooling with a divisor")
    sides, size = _axes(padding, x), _axes(kernel, x)
    steps = _axes(stride, x) if stride else size
    rounding = "ceil_torch" if ceil_mode else "floor"
    return ops.avg_pool(x, steps, sides, sides, size, not count_include_pad, rounding)


def _transposed(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):  # type: ignore[no-untyped-def]
    if groups != 1:
        raise ValueError("a transposed convolution in groups")
    sides = _axes(padding, x)
    y = ops.convolution_backprop_data(
        x, weight, _axes(stride, x), None, sides, sides, _axes(dilation, x), "explicit", _axes(output_padding, x)
    )
    return _biased(y, bias)


def _nearest(x, size, factors):  # type: ignore[no-untyped-def]
    shape = x.get_output_shape(0)[2:]
    wanted = size or [int(axis * factor) for axis, factor in zip(shape, factors, strict=True)]
    whole = all(after % before == 0 for after, before in zip(wanted, shape, strict=True))
    if not whole:
        raise ValueError("nearest-neighbour upsampling by a fraction")
    axes = ops.constant(np.arange(2, 2 + len(shape), dtype=np.int64))
    return ops.interpolate(
        x, ops.constant(np.array(wanted, np.int64)), "nearest", "sizes", axes=axes,
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def _concatenated(parts, dim=0):  # type: ignore[no-untyped-def]
    return ops.concat(list(parts), dim)


def _sum(x, y, alpha=1):  # type: ignore[no-untyped-def]
    if alpha != 1:
        raise ValueError("a weighted sum")
    return ops.add(x, y)


def _permuted(x, order):  # type: ignore[no-untyped-def]
    return ops.transpose(x, ops.constant(np.array(order, np.int64)))


# PyTorch's operation -> the function that adds it to the graph. Arguments are those of PyTorch.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{f"aten.conv{dim}d.default": _convolution for dim in (2, 3)},
    **{f"aten.conv_transpose{dim}d.input": _transposed for dim in (2, 3)},
    **{f"aten.avg_pool{dim}d.default": _average for dim in (2, 3)},
    **{f"aten.upsample_nearest{dim}d.vec": _nearest for dim in (2, 3)},
    "aten.instance_norm.default": _instance_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.linear.default": lambda x, weight, bias=None: _plus(ops.matmul(x, weight, False, True), bias),
    "aten.contiguous.default": lambda x: x,
    "aten.clone.default": lambda x, memory_format=None: x,
    "aten.silu.default": lambda x: ops.swish(x),
    "aten.mul.Tensor": lambda x, y: ops.multiply(x, y),
    "aten.leaky_relu.default": _leaky_relu,
    "aten.leaky_relu_.default": _leaky_relu,
    "aten.add.Tensor": _sum,
    "aten.add_.Tensor": _sum,
    "aten.cat.default": _concatenated,
    "aten.permute.default": _permuted,
    "aten.movedim.int": lambda x, source, target: _permuted(x, _moved(len(x.get_output_shape(0)), source, target)),
}


def _moved(rank: int, source: int, target: int) -> list[int]:
    order = [axis for axis in range(rank) if axis != source % rank]
    order.insert(target % rank, source % rank)
    return order
