"""A network that OpenVINO runs on the CPU, several times faster than PyTorch."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umamba.inference import openvino_cache as cache
from umamba.inference.openvino_graph import UnconvertibleError, convert, mamba_layers, mamba_operation
from umamba.inference.openvino_runtime import inference_precision, openvino
from umamba.io.resources import available_cpus

__all__ = ["OpenVinoNetwork", "Pending", "UnconvertibleError", "compile_network"]


def compile_network(
    network: nn.Module,
    tile_shape: Sequence[int],
    precision: str,
    *,
    threads: int,
    cache_dir: Path | None,
    requests: int = 1,
) -> "OpenVinoNetwork":
    """Convert a network and compile it for this processor.

    The network is not changed, and may be deleted afterwards: OpenVINO has its own copy of the weights, except for
    those of the Mamba layers, which are small.

    Args:
        network: on the CPU, in any mode; maps (B, C, *patch) to logits, or to a list of logits with the full resolution
            first.
        tile_shape: (B, C, *patch); tiles of another shape are refused later.
        precision: Lightning's name: 32-true, bf16-mixed or 16-mixed. A half precision is used where this processor
            multiplies it in hardware, else float32.
        threads: CPU threads; never more than the CPUs that this process may use.
        cache_dir: folder where the converted network is kept; None: nowhere.
        requests: tiles in flight.

    Raises:
        UnconvertibleError: PyTorch cannot export the network, or OpenVINO lacks one of its operations.
    """
    shape = tuple(map(int, tile_shape))
    threads = max(1, min(threads, available_cpus()))
    core = openvino.Core()
    mamba = mamba_operation(mamba_layers(network))
    core.add_extension(mamba)
    name = cache.entry_name(network, shape) if cache_dir is not None else None
    graph = cache.load(core, cache_dir, name) if cache_dir is not None and name is not None else None
    if graph is None:
        graph = convert(network, shape, mamba)
        if cache_dir is not None and name is not None:
            cache.save(graph, cache_dir, name)
    hint = inference_precision(precision)
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # The threads inherit the CPUs of the allocation. Pinning each to one of them would set those of two processes
        # on the same machine on top of each other.
        "ENABLE_CPU_PINNING": False,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = core.compile_model(graph, "CPU", options)
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise UnconvertibleError(f"OpenVINO cannot compile it: {lines[-1][:300]}") from error
    return OpenVinoNetwork(compiled, hint, max(1, requests))


class OpenVinoNetwork:
    """A compiled network. Not to be used from several threads at once.

    Args:
        compiled: OpenVINO's compiled model with one input and one output.
        precision: f32, bf16 or f16.
        requests: tiles in flight.

    Attributes:
        precision: OpenVINO's name of the precision in which it computes.
        requests: tiles in flight.
        tile_shape: (B, C, *patch).
        logits_shape: (B, num_classes, *patch).
    """

    def __init__(self, compiled: Any, precision: str, requests: int) -> None:
        self.precision = precision
        self.requests = requests
        self.tile_shape = tuple(compiled.input(0).shape)
        self.logits_shape = tuple(compiled.output(0).shape)
        self._idle = [compiled.create_infer_request() for _ in range(requests)]
        self._running: deque[Pending] = deque()

    def __call__(self, tiles: Tensor) -> Tensor:
        """Map tiles (B, C, *patch), float32, to the logits (B, num_classes, *patch) at full resolution, float32.

        Raises:
            ValueError: the tiles have another shape or dtype than the network was compiled for.
        """
        return self.start(tiles).wait()

    def start(self, tiles: Tensor) -> "Pending":
        """Begin with tiles and return at once, unless as many as `requests` are in flight; then wait for the oldest.

        Args:
            tiles: as for a call. They must not change until `wait` has returned.

        Raises:
            ValueError: see `__call__`.
            RuntimeError: the network is closed.
        """
        if tuple(tiles.shape) != self.tile_shape or tiles.dtype != torch.float32:
            raise ValueError(f"tiles of shape {tuple(tiles.shape)}, {tiles.dtype}; needs float32 of {self.tile_shape}")
        while not self._idle and self._running:
            self._running[0].wait()
        if not self._idle:
            raise RuntimeError("the network is closed")
        pending = Pending(self, self._idle.pop(), tiles)
        self._running.append(pending)
        return pending

    def close(self) -> None:
        """Wait for the tiles in flight and free the memory; nothing can be started afterwards."""
        while self._running:
            self._running[0].wait()
        self._idle.clear()

    def _finished(self, pending: "Pending", request: Any) -> None:
        self._running.remove(pending)
        self._idle.append(request)


class Pending:
    """Tiles in flight.

    Args:
        network: the network, which gets its request back.
        request: an idle request of OpenVINO.
        tiles: see `OpenVinoNetwork.start`.
    """

    def __init__(self, network: OpenVinoNetwork, request: Any, tiles: Tensor) -> None:
        self._network = network
        self._request = request
        # Both arrays are used where they are, without a copy, so they have to live as long as the request runs.
        self._tiles = np.ascontiguousarray(tiles.detach().numpy())
        self._logits = torch.empty(network.logits_shape)
        request.set_input_tensor(openvino.Tensor(self._tiles, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(self._logits.numpy(), shared_memory=True))
        request.start_async()

    def wait(self) -> Tensor:
        """Return the logits (B, num_classes, *patch), float32; the tensor belongs to the caller."""
        if self._request is not None:
            request, self._request = self._request, None
            try:
                request.wait()
            finally:
                self._network._finished(self, request)
        return self._logits
