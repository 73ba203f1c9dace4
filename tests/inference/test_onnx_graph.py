"""Every backbone as ONNX computes what PyTorch computes, in ONNX Runtime and in OpenVINO."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxruntime")):
    pytest.skip("needs onnx and onnxruntime", allow_module_level=True)

import onnx

from umamba.inference.onnx_builder import Builder, UnexportableError, Value
from umamba.inference.onnx_graph import OPSET, onnx_logits, onnx_model, session
from umamba.inference.onnx_scan import selective_scan, softplus
from umamba.networks import build_network
from umamba.networks.conformance import CHANNELS, CLASSES, small_configuration
from umamba.networks.mamba import MambaLayer
from umamba.networks.scan.reference import scan as reference_scan

TOLERANCE = 1e-5  # of the largest output of the scan
OF_NETWORK = 1e-4  # of the largest logit; norms of few voxels enlarge rounding

# name -> architecture, and options that make it small
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {}),
    "resenc": ("resenc_unet", {}),
    "bot": ("umamba_bot", {"d_state": 4}),
    "bot-transposed": ("umamba_bot", {"d_state": 3, "decoder_upsampling": "transposed"}),
    "enc": ("umamba_enc", {"d_state": 4}),
    "enc-axes": ("umamba_enc", {"d_state": 4, "scan_directions": "axes", "residual": True}),
    "enc-both": ("umamba_enc", {"d_state": 4, "scan_directions": "bidirectional"}),
    "mamba2": ("umamba_bot", {"mixer": "mamba2", "d_state": 4, "head_width": 8}),
    "mlstm": ("umamba_bot", {"mixer": "mlstm", "head_width": 8}),
    "convolution": ("umamba_bot", {"mixer": "convolution", "mixer_kernel": 3}),
    "segresnet": ("segresnet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
    "unetr": ("unetr", {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}),
    "swinunetr": ("swinunetr", {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 1, 1]}),
}
MONAI = ("segresnet", "unetr", "swinunetr")
QUICK = {("unet", 2), ("unet", 3), ("bot", 2), ("enc", 2), ("enc-both", 2), ("mlstm", 2)}


def built(name: str, dim: int, odd: bool = False) -> tuple[Any, Tensor]:
    """Return a small network in evaluation, and a tile for it."""
    architecture, options = NETWORKS[name]
    if architecture in MONAI:
        pytest.importorskip("monai")
    torch.manual_seed(3)
    configuration = small_configuration(dim, odd)
    network = build_network({"name": architecture, **options}, configuration, CHANNELS, CLASSES).eval()
    return network, torch.randn(1, CHANNELS, *configuration.patch_size)


def content_of(network: nn.Module, tile: Tensor) -> bytes:
    content: bytes = onnx_model(network, tile.shape, "test").SerializeToString(deterministic=True)
    return content


def by_torch(network: nn.Module, tile: Tensor) -> np.ndarray:
    with torch.inference_mode():
        output = network(tile)
    logits: np.ndarray = (output[0] if isinstance(output, list) else output).numpy()
    return logits


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "dim", "odd"),
    [
        pytest.param(name, dim, odd, marks=() if (name, dim) in QUICK else pytest.mark.slow)
        for name in NETWORKS
        for dim in (2, 3)
        for odd in (False, True)
        if not odd or name in ("unet", "enc")  # those with channel tokens, and with strides of three
    ],
)
def test_logits_are_those_of_torch(name: str, dim: int, odd: bool) -> None:
    network, tile = built(name, dim, odd)
    content = content_of(network, tile)
    model = onnx.load_from_string(content)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}  # the standard's operations only
    assert difference(onnx_logits(content, tile.numpy()), by_torch(network, tile)) <= OF_NETWORK
    assert network.deep_supervision == network.supports_deep_supervision


@pytest.mark.parametrize("name", ["unet", "bot"])
def test_the_same_weights_give_the_same_bytes(name: str) -> None:
    first, second = (content_of(*built(name, 2)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["unet", "bot", "enc-both"])
def test_openvino_reads_the_model(name: str) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    from umamba.inference.openvino_runtime import openvino

    network, tile = built(name, 2)
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(content_of(network, tile)), "CPU", exact)
    assert difference(compiled(tile.numpy())[0], by_torch(network, tile)) <= OF_NETWORK


def computed(values: dict[str, np.ndarray], add: Any) -> np.ndarray:
    """Return what ONNX Runtime computes for operations that `add` adds to a builder."""
    builder = Builder()
    result = add(builder, *(Value(name, value.shape) for name, value in values.items()))
    number = onnx.TensorProto.FLOAT
    infos = [onnx.helper.make_tensor_value_info(name, number, value.shape) for name, value in values.items()]
    outputs = [onnx.helper.make_tensor_value_info(result.name, number, result.shape)]
    graph = onnx.helper.make_graph(builder.nodes, "test", infos, outputs, builder.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    (found,) = session(model.SerializeToString()).run(None, dict(values))
    array: np.ndarray = found
    return array


@pytest.mark.parametrize(("length", "inner", "states"), [(1, 3, 2), (7, 4, 1), (301, 6, 16), (40, 700, 16)])
@pytest.mark.parametrize("largest", [0.1, 30.0])
def test_the_scan_is_the_recurrence(length: int, inner: int, states: int, largest: float) -> None:
    """Step sizes from tiny to such that a state is forgotten at once; the reference computes in float64."""
    rng = np.random.default_rng(length)
    u = rng.normal(size=(length, inner))
    delta = np.exp(rng.uniform(np.log(1e-4), np.log(largest), size=(length, inner)))
    A = -np.exp(rng.uniform(-1, 3, size=(inner, states)))
    B, C = rng.normal(size=(2, length, states))
    u32, delta32, B32, C32 = (each.astype(np.float32) for each in (u, delta, B, C))
    A32 = torch.from_numpy(A).float()
    exact = [torch.from_numpy(each.T.astype(np.float64))[None] for each in (u32, delta32, B32, C32)]
    expected, _ = reference_scan(exact[0], exact[1], A32.double(), exact[2], exact[3], None, None, None, False)
    found = computed(
        {"u": u32, "delta": delta32, "B": B32, "C": C32}, lambda b, u, d, B, C: selective_scan(b, u, d, A32, B, C)
    )
    assert difference(found, expected[0].T.numpy()) <= TOLERANCE


def test_softplus_keeps_the_precision_of_small_steps() -> None:
    x = np.linspace(-40, 40, 4001).astype(np.float32)
    found = computed({"x": x}, softplus)
    assert np.allclose(found, np.logaddexp(0, x.astype(np.float64)), rtol=1e-6, atol=0)


class _Own(nn.Module):
    """A backbone of a user's own around one Mamba layer."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.layer = MambaLayer(8, d_state=4, num_axes=2)
        self.last = nn.Conv2d(8, CLASSES, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.last(self.layer(self.between(self.first(x))))
        return logits


def test_a_users_network_is_exported() -> None:
    network, tile = _Own(lambda x: torch.sigmoid(x) * torch.roll(x, 1, -1).relu()).eval(), torch.randn(1, 2, 8, 6)
    assert difference(onnx_logits(content_of(network, tile), tile.numpy()), by_torch(network, tile)) <= OF_NETWORK


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda x: torch.cumprod(x, 2).erfinv(), r"does not support: aten\.cumprod\.default, aten\.erfinv\.default"),
        (lambda x: x if x.mean() > 0 else -x, "cannot trace"),
        (lambda x: x.double().float(), r"torch\.float64"),
    ],
)
def test_what_cannot_be_written_is_named(between: Any, said: str) -> None:
    with pytest.raises(UnexportableError, match=said):
        onnx_model(_Own(between).eval(), (1, CHANNELS, 8, 6), "test")
