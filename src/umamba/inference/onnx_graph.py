"""A network as an ONNX model: traced by torch.export, then built operation by operation.

All shapes are fixed. Whatever does not depend on the image, such as the attention masks of SwinUNETR, is computed by
PyTorch now and stored as a constant. The operations are those of the standard, so that every runtime can read them.
"""

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from umamba.inference.forward import full_resolution
from umamba.inference.onnx_builder import Builder, UnexportableError, Value
from umamba.inference.onnx_operations import OPERATIONS
from umamba.networks.mamba import Mamba
from umamba.networks.scan import resolve_backend

OPSET = 18
_IR_VERSION = 9  # the first that has this opset; older runtimes refuse newer ones
INPUT, OUTPUT = "tiles", "logits"
_MOST_BYTES = 2**31 - 2**20  # of a protobuf message
# Operators that run a part of the graph under another mode -> number of arguments before that part.
_WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
# They change nothing in a graph of fixed types.
_IGNORED = ("aten._assert_tensor_metadata.default", "aten._assert_scalar.default")


def onnx_model(network: nn.Module, tile_shape: Sequence[int], producer_version: str) -> Any:
    """Return the ONNX model of a network; the same weights give the same bytes.

    Args:
        network: float32 on the CPU; maps (B, C, *patch) to logits, or to a list of logits with the full resolution
            first.
        tile_shape: (1, C, *patch).
        producer_version: is written into the model.

    Returns:
        An `onnx.ModelProto` that onnx.checker accepts, with the input `INPUT` and the output `OUTPUT`.

    Raises:
        UnexportableError: PyTorch cannot trace the network, or it has operations that this module does not support.
    """
    blocks = [module for module in network.modules() if isinstance(module, Mamba)]
    for block in blocks:
        block.scan_backend = "auto"
    # Asked for before tracing, because the first answer rests on a computation, which cannot be traced.
    if blocks and resolve_backend("cpu", "auto") != "cpu":
        raise UnexportableError("its Mamba blocks are traced with the compiled scan for CPUs, which does not work here")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # remarks of PyTorch about its own code
            program = torch.export.export(_FullResolution(network).eval(), (torch.zeros(*tile_shape),), strict=False)
    except Exception as error:  # whatever a network of a user raises while it is traced
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UnexportableError(f"PyTorch cannot trace it: {lines[0][:300]}") from error
    stored = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    stored |= program.graph_signature.inputs_to_lifted_tensor_constants
    weights = {**program.state_dict, **program.constants}
    builder = Builder()
    given: dict[str, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            named = node.name in stored
            given[node.name] = weights[stored[node.name]] if named else Value(INPUT, tuple(node.meta["val"].shape))
    unknown: set[str] = set()
    with torch.no_grad():
        (logits,) = _run(program.graph_module, given, builder, unknown)
    if unknown:
        raise UnexportableError(f"it has operations that the export does not support: {', '.join(sorted(unknown))}")
    builder.add("Identity", [logits], logits.shape, name=OUTPUT)
    if builder.constant_bytes > _MOST_BYTES:
        raise UnexportableError(f"its weights take {builder.constant_bytes / 1e9:.3g} GB, an ONNX file holds 2 GB")
    tensors = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        builder.nodes,
        "network",
        [onnx.helper.make_tensor_value_info(INPUT, tensors, list(tile_shape))],
        [onnx.helper.make_tensor_value_info(OUTPUT, tensors, list(logits.shape))],
        builder.initializers,
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="umamba",
        producer_version=producer_version,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _FullResolution(nn.Module):
    """A network without the further outputs of deep supervision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (B, C, *patch) to the logits at full resolution."""
        return full_resolution(self.network(tiles))


def _run(module: torch.fx.GraphModule, given: Mapping[str, Any], builder: Builder, unknown: set[str]) -> Sequence[Any]:
    """Go through a part of the traced network.

    Args:
        module: the part.
        given: its placeholders: a tensor where the value is known now, a `Value` where it depends on the image.
        builder: receives the operations.
        unknown: receives the names of operations that cannot be written, so that one message has all of them.

    Returns:
        The outputs of the part.
    """
    values: dict[str, Any] = dict(given)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node.name] = operator.attrgetter(node.target)(module)
        elif node.op == "output":
            outputs = torch.fx.node.map_arg(node.args[0], lambda each: values[each.name])
            return outputs if isinstance(outputs, tuple | list) else [outputs]
        elif node.op == "call_function":
            arguments, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: values[each.name])
            values[node.name] = _call(node, arguments, named, builder, unknown)
            name = str(node.target).rsplit(".", 1)[0]
            if name.endswith("_") and node.all_input_nodes:  # in place: who reads the input afterwards reads the result
                values[node.args[0].name] = values[node.name]
    raise UnexportableError("the traced network has no output")


def _call(node: torch.fx.Node, arguments: Any, named: Any, builder: Builder, unknown: set[str]) -> Any:
    """Return the result of a call: computed now, or as operations of the model."""
    wrapper = getattr(node.target, "__name__", "")
    if wrapper in _WRAPPERS:
        part, *operands = arguments[_WRAPPERS[wrapper] :]
        places = [each.name for each in part.graph.nodes if each.op == "placeholder"]
        return _run(part, dict(zip(places, operands, strict=True)), builder, unknown)
    if node.target is operator.getitem:
        return arguments[0][arguments[1]]
    if str(node.target) in _IGNORED:
        return None
    if not _holds_value((arguments, named)):
        return node.target(*arguments, **named)  # type: ignore[operator]
    if str(node.target) not in OPERATIONS:
        unknown.add(str(node.target))
        return torch.utils._pytree.tree_map(lambda each: Value("", _shape(each)), node.meta["val"])
    return OPERATIONS[str(node.target)](builder, _shape(node.meta.get("val")), *arguments, **named)


def _holds_value(arguments: Any) -> bool:
    if isinstance(arguments, Mapping):
        return any(map(_holds_value, arguments.values()))
    if isinstance(arguments, tuple | list):
        return any(map(_holds_value, arguments))
    return isinstance(arguments, Value)


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a call's only output; of several outputs the empty one, because they know their own."""
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def session(model: bytes, threads: int | None = None) -> Any:
    """Return the session of ONNX Runtime on the CPU that computes a model.

    Args:
        model: content of the file.
        threads: CPU threads; None: ONNX Runtime's choice.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_logits(model: bytes, tiles: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime computes for tiles.

    Args:
        model: content of the file.
        tiles: (1, C, *patch) float32.

    Returns:
        (1, num_classes, *patch) float32.
    """
    (logits,) = session(model).run([OUTPUT], {INPUT: tiles})
    found: np.ndarray = logits
    return found
