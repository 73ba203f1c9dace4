"""What computes the networks on a CPU: PyTorch, or OpenVINO where it is faster and its logits agree with PyTorch's.

The choice depends on the network and the machine only, never on the images, so that training's own predictions and
those of a later command come from the same engine. The times of a tile are measured once for a kind of network (its
structure, tile, precision) on a machine (processor, threads, versions), the agreement once for its weights. Both are
kept in the user's cache folder, and so are compiled networks. They are not kept beside the checkpoint, because the
folder of a checkpoint may come from somebody else, and OpenVINO trusts what it reads there.
"""

import logging
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from umamba.inference.digests import weights_digest
from umamba.inference.engine_cache import Kept, cache_folder, kind_of
from umamba.inference.model import Model, refuse_openvino
from umamba.io import UserError
from umamba.io.resources import available_cpus

if TYPE_CHECKING:
    from umamba.inference.openvino_network import OpenVinoNetwork

log = logging.getLogger(__name__)

# Where PyTorch computes a pass in less time, OpenVINO is not tried: its import and compilation take seconds.
_SHORT_S = 0.02
# So many times faster must OpenVINO be. Below that a second measurement might choose otherwise.
_GAIN = 1.1
# Largest difference to PyTorch in float32 that is agreement, as root mean square over that of the logits. In half
# precision twice the difference of PyTorch's own half precision is allowed, if that is more.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 1e-2
# A measurement repeats a pass so many times, or fewer times if the repetitions take longer than this.
_PASSES, _MEASURING_S = 3, 1.0
# Passes that OpenVINO computes at a time.
_REQUESTS = 2
_ADVICE = "pip install 'umamba[cpu]' makes prediction on CPUs several times faster"

Settled = tuple["OpenVinoNetwork | None", str, int]  # the compiled network, the engine and why, level of the message


class _Refused(Exception):
    """Why OpenVINO does not compute a network, in a part of a sentence."""


def settle_engines(models: Sequence[Model], begun: str | None = None) -> None:
    """Choose what computes each model, where its settings leave it open, and log which engine it is and why.

    Args:
        models: the networks.
        begun: the engine of earlier segmentations that are continued; None: there are none.

    Raises:
        UserError: engine=openvino is asked for, and OpenVINO cannot compute the network or its logits are wrong.
    """
    lines: dict[str, int] = {}  # message -> its level; the folds of an ensemble have the same message
    for model in models:
        if model.device.type != "cpu":
            if begun == "openvino":
                lines[f"torch on {model.device}, although openvino made the segmentations so far"] = logging.WARNING
            continue
        if model.engine == "torch":
            continue
        wanted = model.engine if model.engine != "auto" else begun or "auto"
        if wanted == "torch":
            model.use(None)
            lines["torch, which made the segmentations that are there already"] = logging.INFO
        elif model.compiled is None and not (wanted == "auto" and model.torch_is_faster):
            compiled, line, level = _settled(model, wanted)
            model.use(compiled)
            model.torch_is_faster = wanted == "auto" and compiled is None
            lines[line] = level
    for line, level in lines.items():
        log.log(level, "Engine: %s.", line)


def measures_nothing(models: Sequence[Model], begun: str | None = None) -> bool:
    """Return whether `settle_engines` takes no time of a network, which other work would disturb.

    Args:
        models: the networks.
        begun: as for `settle_engines`.
    """
    open_ones = (
        model
        for model in models
        if model.device.type == "cpu" and model.engine == "auto" and not begun and model.compiled is None
    )
    return all(model.torch_is_faster or "engine" in _times(model).read() for model in open_ones)


def openvino_problem() -> str | None:
    """Return why OpenVINO does not work here, after it computed a small network; None if it works."""
    refused = _import_problem()
    if refused:
        return refused
    from umamba.inference.openvino_network import compile_network

    network, tiles = nn.Conv3d(1, 2, 3, padding=1).eval(), torch.ones(1, 1, 4, 4, 4)
    try:
        compiled = compile_network(network, tuple(tiles.shape), "32-true", threads=1, cache_dir=None)
        found = compiled.start(tiles).wait()
        compiled.close()
    except Exception as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    with torch.inference_mode():
        return None if _relative(found, network(tiles)) <= _TOLERANCE else "its result differs from PyTorch's"


def _threads() -> int:
    """Return how many threads compute a network."""
    return min(torch.get_num_threads(), available_cpus())


def _times(model: Model) -> Kept:
    """Return the record of how long a network takes by each engine."""
    return Kept(cache_folder(), kind_of(model, _threads()))


def _settled(model: Model, wanted: str) -> Settled:
    """Return the engine of a model that PyTorch computes until now."""
    strict, auto = model.engine == "openvino", wanted == "auto"
    if strict:
        refuse_openvino(model.device)
    folder, threads, times = cache_folder(), _threads(), _times(model)
    agreed = Kept(folder, f"{times.name}-{weights_digest(model.network.state_dict())}")
    known = times.read() if auto else {}

    def by_torch(reason: str, level: int = logging.INFO, *, keep: bool = auto) -> Settled:
        line = f"torch, {reason}"
        if keep:
            times.write({"engine": "torch", "line": line, "loud": level > logging.INFO})
        return None, line, level

    if known.get("engine") == "torch":
        return None, str(known.get("line")), logging.WARNING if known.get("loud") else logging.INFO
    torch_s, openvino_s = float(known.get("torch_s", 0)), float(known.get("openvino_s", 0))
    if auto and not torch_s:
        tiles, forward = example_tiles(model), model.torch_forward(tta=False)
        torch_s = _fastest(lambda: forward(tiles))
        if torch_s < _SHORT_S:
            return by_torch(f"because a pass of the network takes only {torch_s * 1000:.0f} ms")
    try:
        compiled = _compiled(model, folder, threads)
    except _Refused as error:
        if strict:
            raise UserError(f"engine=openvino: {error}. Give engine=auto or engine=torch.") from None
        installed = find_spec("openvino") is not None
        return by_torch(f"because {error}", logging.WARNING if installed or not auto else logging.INFO)
    difference = _difference(model, compiled, agreed)
    if difference:
        compiled.close()
        if strict:
            raise UserError(f"engine=openvino: {difference}. Give engine=auto or engine=torch.")
        return by_torch(f"because {difference}", logging.WARNING, keep=False)
    if not auto:
        return (
            compiled,
            "openvino, as asked for" if strict else "openvino, which made the segmentations so far",
            logging.INFO,
        )
    if not openvino_s:
        openvino_s = _openvino_seconds(model, compiled)
        if openvino_s * _GAIN > torch_s:
            compiled.close()
            return by_torch(f"{_rate(model, torch_s)} a tile against {_rate(model, openvino_s)} by openvino")
        times.write({"engine": "openvino", "torch_s": torch_s, "openvino_s": openvino_s})
    line = f"openvino, {_rate(model, openvino_s)} a tile against {_rate(model, torch_s)} by torch"
    return compiled, line, logging.INFO


def example_tiles(model: Model) -> Tensor:
    """Return the tiles of one pass, always the same ones: coarse and fine structures, and a part of zeros.

    Args:
        model: whose channels and tiles are taken.

    Returns:
        (tiles_per_pass, C, *window) float32, of mean 0 and standard deviation near 1.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (model.tiles_per_pass, model.input_channels, *model.window)
    coarse = torch.randn((*shape[:2], *(-(-size // 16) for size in model.window)), generator=generator)
    tiles = functional.interpolate(coarse, size=model.window, mode="trilinear", align_corners=False)
    tiles += 0.5 * torch.randn(shape, generator=generator)
    tiles[..., : model.window[2] // 8] = 0
    return tiles


def _compiled(model: Model, folder: Path | None, threads: int) -> "OpenVinoNetwork":
    refused = _import_problem()
    if refused:
        raise _Refused(refused)
    from umamba.inference.openvino_network import UnconvertibleError, compile_network

    try:
        return compile_network(
            model.network,
            model.tile_shape,
            model.precision,
            threads=threads,
            cache_dir=folder,
            requests=_REQUESTS,
        )
    except UnconvertibleError as error:
        raise _Refused(f"OpenVINO cannot compute this network ({str(error).rstrip('.')})") from None


def _import_problem() -> str | None:
    if find_spec("openvino") is None:
        return f"openvino is not installed; {_ADVICE}"
    try:
        import_module("umamba.inference.openvino_network")
    except (ImportError, OSError) as error:  # an installation that does not fit this system
        return f"openvino cannot be loaded ({error})"
    return None


def _difference(model: Model, compiled: "OpenVinoNetwork", agreed: Kept) -> str | None:
    """Return how the logits of a tile differ from PyTorch's; None: they agree."""
    if agreed.read().get("agrees"):
        return None
    tiles = example_tiles(model)
    reference = model.torch_forward(False, "32-true")(tiles)
    allowed = _TOLERANCE
    if model.precision != "32-true":
        allowed = max(_HALF_TOLERANCE, 2 * _relative(model.torch_forward(False)(tiles), reference))
    difference = _relative(model.openvino_start(compiled, False)(tiles)(), reference)
    if difference <= allowed:
        agreed.write({"agrees": True, "difference": difference, "allowed": allowed})
        return None
    return f"the logits of openvino differ from PyTorch's by {difference:.1e} of their size ({allowed:.1e} is allowed)"


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def _openvino_seconds(model: Model, compiled: "OpenVinoNetwork") -> float:
    tiles, start = example_tiles(model), model.openvino_start(compiled, False)

    def passes() -> None:
        for wait in [start(tiles) for _ in range(compiled.requests)]:
            wait()

    return _fastest(passes) / compiled.requests


def _fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest pass. The first one may compile the selective scan, so that it is repeated."""
    seconds: list[float] = []
    while not seconds or (min(seconds) > _SHORT_S and len(seconds) <= _PASSES and sum(seconds[1:]) < _MEASURING_S):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _rate(model: Model, seconds: float) -> str:
    """Return the time of a tile in words."""
    return f"{seconds / model.tiles_per_pass:.2g} s"
