"""Networks in OpenVINO compute what PyTorch computes; converted networks are kept on disk and trusted with care."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

if importlib.util.find_spec("openvino") is None:
    pytest.skip("needs openvino", allow_module_level=True)

from umamba.inference import openvino_cache as cache
from umamba.inference import openvino_graph, openvino_network
from umamba.inference.openvino_network import OpenVinoNetwork, UnconvertibleError, compile_network
from umamba.inference.openvino_runtime import inference_precision
from umamba.networks import build_network
from umamba.networks.conformance import CHANNELS, CLASSES, small_configuration
from umamba.networks.cpu_layers import ChannelsLastConv3d
from umamba.networks.mamba import MambaLayer

TOLERANCE = 1e-3  # of the largest logit

# name, options that make it small
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {}),
    "resenc_unet": ("resenc_unet", {}),
    "bot": ("umamba_bot", {"d_state": 4}),
    "bot-nearest": ("umamba_bot", {"d_state": 3, "decoder_upsampling": "nearest"}),
    "enc": ("umamba_enc", {"d_state": 4}),
    "enc-axes": ("umamba_enc", {"d_state": 4, "scan_directions": "axes", "residual": True}),
    "enc-both": ("umamba_enc", {"d_state": 4, "scan_directions": "bidirectional"}),
    "enc-mamba2": ("umamba_enc", {"mixer": "mamba2", "d_state": 4}),
    "enc-mlstm": ("umamba_enc", {"mixer": "mlstm", "scan_directions": "axes"}),
    "enc-convolution": ("umamba_enc", {"mixer": "convolution", "mixer_kernel": 3}),
    "segresnet": ("segresnet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
    "unetr": ("unetr", {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}),
    "swinunetr": ("swinunetr", {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}),
}


def built(name: str, dim: int, odd: bool = False) -> tuple[Any, Tensor]:
    """Return a small network and two tiles for it."""
    architecture, options = NETWORKS[name]
    if architecture in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")
    torch.manual_seed(3)
    configuration = small_configuration(dim, odd)
    network = build_network({"name": architecture, **options}, configuration, CHANNELS, CLASSES).eval()
    return network, torch.randn(2, CHANNELS, *configuration.patch_size)


def compiled(network: nn.Module, tiles: Tensor, **options: Any) -> OpenVinoNetwork:
    return compile_network(network, tiles.shape, **{"precision": "32-true", "threads": 1, "cache_dir": None, **options})


def by_torch(network: nn.Module, tiles: Tensor) -> Tensor:
    with torch.inference_mode():
        output = network(tiles)
    logits: Tensor = output[0] if isinstance(output, list) else output
    return logits


# Every kind of part in 2D or 3D; the other combinations are slow tests.
QUICK = {("unet", 3, True), ("resenc_unet", 2, False), ("bot", 3, False), ("enc", 2, True), ("enc-both", 2, False)}


def cases() -> list[Any]:
    """Return every network in 2D and 3D; the odd plans, with channel tokens, for those that differ most."""
    return [
        pytest.param(name, dim, odd, marks=() if (name, dim, odd) in QUICK else pytest.mark.slow)
        for name in NETWORKS
        for dim in (2, 3)
        for odd in (False, True)
        if not odd or name in ("unet", "enc", "enc-mlstm", "enc-convolution")
    ]


@pytest.mark.parametrize(("name", "dim", "odd"), cases())
def test_logits_are_those_of_torch(name: str, dim: int, odd: bool) -> None:
    network, tiles = built(name, dim, odd)
    expected = by_torch(network, tiles)
    kinds, supervision = [type(module) for module in network.modules()], network.deep_supervision
    found = compiled(network, tiles)(tiles)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE
    assert (kinds, supervision) == ([type(module) for module in network.modules()], network.deep_supervision)


class _Own(nn.Module):
    """A backbone of a user's own, with a Mamba layer among operations that only OpenVINO's converter knows."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.layer = MambaLayer(8, d_state=4, num_axes=2)
        self.last = nn.Conv2d(8, CLASSES, 1)
        self.between = forward

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.last(self.layer(self.between(self.first(x))))
        return logits


def _own(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.relu(x)


def _by_the_data(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def test_a_users_network_is_converted_too() -> None:
    network, tiles = _Own(_own).eval(), torch.randn(1, CHANNELS, 8, 6)
    expected = by_torch(network, tiles)
    found = compiled(network, tiles)(tiles)
    assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def test_a_network_that_cannot_be_converted_says_why() -> None:
    with pytest.raises(UnconvertibleError, match=r"data-dependent"):
        compiled(_Own(_by_the_data).eval(), torch.randn(1, CHANNELS, 8, 6))


def test_a_map_of_depth_two_needs_no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, tiles = ChannelsLastConv3d(CHANNELS, 3, 3, padding=1).eval(), torch.randn(1, CHANNELS, 2, 5, 6)
    expected = by_torch(network, tiles)
    monkeypatch.setattr(openvino_graph, "_converted", lambda program, mamba: pytest.fail("not built here"))
    found = compiled(network, tiles)(tiles)
    assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def test_tiles_in_flight_keep_their_own_logits() -> None:
    network, tiles = built("enc", 2)
    several = [tiles * factor for factor in (1, 2, -1, 0.5)]
    by_openvino = compiled(network, tiles, requests=2)
    pending = [by_openvino.start(each) for each in several]
    found = [each.wait() for each in reversed(pending)][::-1]
    assert torch.equal(pending[0].wait(), found[0])
    for each, logits in zip(several, found, strict=True):
        assert torch.equal(logits, by_openvino(each))


def test_other_tiles_are_refused() -> None:
    network, tiles = built("unet", 2)
    by_openvino = compiled(network, tiles)
    with pytest.raises(ValueError, match=r"tiles of shape \(1,"):
        by_openvino.start(tiles[:1])
    with pytest.raises(ValueError, match=r"float64"):
        by_openvino.start(tiles.double())
    turned = tiles.transpose(-1, -2).contiguous().transpose(-1, -2)  # the same values in another order in memory
    assert torch.equal(by_openvino(turned), by_openvino(tiles))
    by_openvino.close()
    with pytest.raises(RuntimeError, match="closed"):
        by_openvino.start(tiles)


@pytest.mark.parametrize("name", ["unet", "bot"])
def test_bfloat16_gives_the_labels_of_float32(name: str) -> None:
    """The network is trained, because the labels of random weights are a matter of rounding."""
    if inference_precision("bf16-mixed") != "bf16":
        pytest.skip("this processor has no bfloat16")
    network, tiles = built(name, 2)
    height, width = tiles.shape[2:]
    labels = torch.randint(CLASSES, (2, height // 8, width // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    tiles = 0.1 * tiles + torch.nn.functional.one_hot(labels, CLASSES)[..., :CHANNELS].movedim(-1, 1)
    network.deep_supervision = False
    optimiser = torch.optim.Adam(network.train().parameters(), 0.03)
    for _ in range(80):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(tiles), labels).backward()
        optimiser.step()
    network.eval()
    probability, expected = by_torch(network, tiles).softmax(1).max(1)
    by_openvino = compiled(network, tiles, precision="bf16-mixed")
    assert by_openvino.precision == "bf16"
    logits = by_openvino(tiles)
    assert not torch.equal(logits, compiled(network, tiles)(tiles))  # half precision was computed
    equal, confident = logits.argmax(1) == expected, probability > 0.9
    assert confident.float().mean() > 0.2
    assert equal[confident].float().mean() >= 0.999
    assert equal.float().mean() >= 0.99  # about the borders of blocks the network is unsure, and rounding decides


def _unexpected(*_: Any) -> None:
    raise AssertionError("it was converted again")


@pytest.mark.parametrize("name", ["unet", "enc"])
def test_a_converted_network_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, tiles = built(name, 2)
    first = compiled(network, tiles, cache_dir=tmp_path / "kept")(tiles)
    (entry,) = (tmp_path / "kept").iterdir()
    assert entry.name == cache.entry_name(network, tiles.shape)
    with monkeypatch.context() as patch:
        patch.setattr(openvino_network, "convert", _unexpected)
        again, _ = built(name, 2)
        assert torch.equal(compiled(again, tiles, cache_dir=tmp_path / "kept")(tiles), first)
    (entry / "graph.bin").write_bytes(bytes((entry / "graph.bin").stat().st_size))
    assert torch.equal(compiled(network, tiles, cache_dir=tmp_path / "kept")(tiles), first)  # damaged: converted again


def test_the_name_of_an_entry_tells_networks_apart() -> None:
    network, tiles = built("enc", 2)
    name = cache.entry_name(network, tiles.shape)
    assert cache.entry_name(built("enc", 2)[0], tiles.shape) == name
    network.deep_supervision = not network.deep_supervision
    assert cache.entry_name(network, tiles.shape) == name
    assert cache.entry_name(network, tiles[:1].shape) != name
    assert cache.entry_name(built("enc-both", 2)[0], tiles.shape) != name
    layer = next(module for module in network.modules() if isinstance(module, MambaLayer))
    layer.residual = True  # shows in no weight and no name
    assert cache.entry_name(network, tiles.shape) != name
    layer.residual = False
    with torch.no_grad():
        layer.norm.bias[0] += 1e-6
    assert cache.entry_name(network, tiles.shape) != name
    assert cache.entry_name(_Own(_own), (1, CHANNELS, 8, 6)) is not None
    assert cache.entry_name(_Own(lambda x: x), (1, CHANNELS, 8, 6)) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permission bits")
def test_files_that_others_can_write_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, tiles = built("unet", 2)
    kept = tmp_path / "kept"
    compiled(network, tiles, cache_dir=kept)
    (entry,) = kept.iterdir()
    core, name = openvino_network.openvino.Core(), entry.name
    assert cache.load(core, kept, name) is not None
    for path in (entry / "graph.xml", entry, kept):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        assert cache.load(core, kept, name) is None
        path.chmod(mode)
    (tmp_path / "link").symlink_to(kept)
    assert cache.load(core, tmp_path / "link", name) is None
    kept.chmod(0o777)
    compiled(built("bot", 2)[0], tiles, cache_dir=kept)
    assert [each.name for each in kept.iterdir()] == [name]
    assert "other users can write this folder" in caplog.text


def test_old_entries_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ENTRIES", 1)
    network, tiles = built("unet", 2)
    for each in (tiles, tiles[:1]):
        compiled(network, each, cache_dir=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [cache.entry_name(network, tiles[:1].shape)]


@pytest.mark.slow  # a new process, because another test may have imported openvino itself
def test_openvino_sends_no_statistics() -> None:
    code = (
        "import umamba.inference.openvino_runtime\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["openvino.tools.ovc.telemetry_stub"]


def test_threads_stay_within_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tiles = built("unet", 2)
    used: list[Any] = []
    core = openvino_network.openvino.Core

    class Spy(core):  # type: ignore[misc, valid-type]
        def compile_model(self, *arguments: Any) -> Any:
            model = super().compile_model(*arguments)
            used.extend(model.get_property(name) for name in ("INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING"))
            return model

    monkeypatch.setattr(openvino_network.openvino, "Core", Spy)
    monkeypatch.setattr(openvino_network, "available_cpus", lambda: 1)
    compiled(network, tiles, threads=64)
    assert used == [1, False]
