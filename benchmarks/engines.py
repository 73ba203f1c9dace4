"""The engines of prediction side by side on one tile; benchmarks/networks.py --engines runs this."""

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import machine
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from umamba.inference.openvino_network import available_cpus, compile_network
from umamba.inference.openvino_runtime import inference_precision, openvino
from umamba.networks import build_network
from umamba.planning import Configuration

Pass = Callable[[], object]


def ct_plan(tile: tuple[int, ...]) -> Configuration:
    """Return a configuration like nnU-Net's for abdominal CT: six stages of 32 to 320 features, thick slices."""
    return Configuration(
        name="3d_fullres",
        spacing=(3.0, 0.8, 0.8),
        median_shape=tuple(map(float, tile)),
        patch_size=tile,
        batch_size=2,
        batch_dice=False,
        normalization=("CTNormalization",),
        use_mask_for_norm=(False,),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 5),
        features_per_stage=(32, 64, 128, 256, 320, 320),
        encoder_blocks=(2,) * 6,
        decoder_blocks=(2,) * 5,
        residual_encoder=False,
    )


def by_torch(network: nn.Module, image: Tensor, precision: str) -> Pass:
    """Return a pass of this revision's network in PyTorch."""

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            network(image)

    return run


def by_openvino_alone(network: nn.Module, image: Tensor, precision: str, threads: int) -> Pass:
    """Return a pass of OpenVINO's own conversion, as its benchmark_app would run it."""
    with torch.no_grad():
        graph = openvino.convert_model(torch.export.export(network, (image,), strict=False))
    options = {"INFERENCE_PRECISION_HINT": inference_precision(precision), "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(graph, "CPU", {**options, "NUM_STREAMS": 1}).create_infer_request()
    request.set_input_tensor(openvino.Tensor(image.numpy(), shared_memory=True))
    return request.infer


def by_onnxruntime(network: nn.Module, image: Tensor, threads: int) -> Pass:
    """Return a pass of onnxruntime, which has no bfloat16 kernels on CPUs."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.onnx")
        torch.onnx.export(network, (image,), path, dynamo=False)  # the other exporter needs one more package
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)


@contextlib.contextmanager
def by_another_revision(source: Path, name: str, tile: tuple[int, ...], precision: str) -> Iterator[Pass]:
    """Yield a pass of PyTorch in a process of another revision, which waits while it is not its turn."""
    # Only `umamba.networks` and `umamba.planning` of that revision are used, because it has no engines.
    code = (
        "import dataclasses, sys, torch\n"
        f"sys.path.insert(0, {str(source)!r})\n"
        "from umamba.networks import build_network\n"
        "from umamba.planning import Configuration\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"values = {ct_plan(tile).__dict__!r}\n"
        "known = {field.name for field in dataclasses.fields(Configuration)}\n"
        "plan = Configuration(**{key: value for key, value in values.items() if key in known})\n"
        f"network = build_network({{'name': {name!r}}}, plan, 1, 14).eval()\n"
        "network.deep_supervision = False\n"
        f"image = torch.randn(1, 1, *{tile!r})\n"
        f"enabled = {precision == 'bf16-mixed'!r}\n"
        "for _ in sys.stdin:\n"
        "    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=enabled): network(image)\n"
        "    print(flush=True)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run() -> None:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        if not process.stdout.readline():  # type: ignore[union-attr]
            raise SystemExit(f"{source}: the process of the other revision ended")

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()


def matrix_products(precision: str) -> Pass:
    """Return a pass of 2 * 2048^3 operations whose best time gives the machine's peak."""
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return lambda: torch.mm(a, b)


def compare(names: list[str], tile: tuple[int, ...], precision: str, passes: int, before: Path | None = None) -> None:
    """Print the seconds of one tile by every engine and their ratios, all measured in turn.

    Args:
        names: architectures.
        tile: (Z, Y, X), voxels.
        precision: 32-true or bf16-mixed.
        passes: measured passes of each engine; the best one counts.
        before: src folder of another revision, whose PyTorch is measured too.
    """
    threads = min(torch.get_num_threads(), available_cpus())
    print(f"{machine()}, torch {torch.__version__}, openvino {openvino.__version__}, {threads} threads, {precision}")
    for name in names:
        torch.manual_seed(0)
        network = build_network(name, ct_plan(tile), 1, 14).eval()
        network.deep_supervision = False
        image = torch.randn(1, 1, *tile)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(image)
        flops = counter.get_total_flops()
        ours = compile_network(network, image.shape, precision, threads=threads, cache_dir=None)
        sides: dict[str, Pass] = {
            "ours, openvino": functools.partial(ours, image),
            "ours, torch": by_torch(network, image, precision),
        }
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            if name in ("unet", "resenc_unet"):
                sides["OpenVINO alone"] = by_openvino_alone(network, image, precision, threads)
                if precision == "32-true":
                    sides["onnxruntime"] = by_onnxruntime(network, image, threads)
            if before is not None:
                sides["torch before"] = stack.enter_context(by_another_revision(before, name, tile, precision))
            sides["matrix product"] = matrix_products(precision)
            best = dict.fromkeys(sides, float("inf"))
            for number in range(passes + 1):  # the first pass warms up
                for side, run in sides.items():
                    start = time.perf_counter()
                    run()
                    best[side] = min(best[side], time.perf_counter() - start) if number else best[side]
        peak = 2 * 2048**3 / best.pop("matrix product")
        print(f"\n{name}, tile {' x '.join(map(str, tile))}, {flops / 1e12:.3f} TFLOP; peak {peak / 1e12:.2f} TFLOP/s")
        print(f"  {'':16}{'seconds':>9}{'ours is':>10}{'of the peak':>13}")
        for side, seconds in best.items():
            ratio = seconds / best["ours, openvino"]
            print(f"  {side:16}{seconds:9.3f}{ratio:9.2f}x{flops / seconds / peak:12.0%}", flush=True)
