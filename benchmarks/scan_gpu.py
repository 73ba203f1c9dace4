"""Time and memory of the selective scan on an NVIDIA GPU, in the Mamba layers of U-Mamba Enc at the plans of Table 2.

python benchmarks/scan_gpu.py                  all plans, every stage, a few minutes
python benchmarks/scan_gpu.py --plan abdomen_ct

Each row is one scan, forward and backward, in float32: ours with tokens as rows, as a Mamba layer gives them, and, in
the same run, mamba_ssm's CUDA kernels with channels as rows, as its own layer does. If those do not work, the PyTorch
reference runs on the first 256 tokens; its time and memory, which are linear in the tokens, are scaled to all tokens.

    time     median of the repetitions, by CUDA events
    GB/s     bytes that must be moved per time: inputs read twice, the output's gradient read, output and gradients
             written
    Gexp/s   exponentials of the decays that our kernels compute per time: two forward, four backward
    floor    share of the least time: the larger one of moving those bytes at the speed of a copy within the device,
             and of two exponentials for each state and token at 16 per cycle and multiprocessor
    memory   peak of the call, without its inputs
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from umamba.networks.scan import selective_scan
from umamba.networks.scan.select import why_not
from umamba.networks.unet import stage_sizes
from umamba.planning import Configuration

STATES = 16
REFERENCE_TOKENS = 256


def plan_of_table_2(patch_size: tuple[int, ...], batch_size: int, stages: int) -> Configuration:
    """Return the configuration of a row of Table 2."""
    dim = len(patch_size)
    size, strides = list(patch_size), [(1,) * dim]
    for stage in range(1, stages):
        # The CT and MR plans do not halve the coarse slice axis in the first and in the last strided stage.
        spared = dim == 3 and stage in (1, stages - 1)
        strides.append(tuple(1 if spared and axis == 0 else 2 for axis in range(dim)))
        size = [length // step for length, step in zip(size, strides[-1], strict=True)]
    widest = 512 if dim == 2 else 320
    first = (1, 3, 3) if dim == 3 else (3, 3)
    return Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=(1.0,) * dim,
        median_shape=tuple(map(float, patch_size)),
        patch_size=patch_size,
        batch_size=batch_size,
        batch_dice=True,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=tuple(strides),
        kernel_sizes=(first, *((3,) * dim for _ in range(stages - 1))),
        features_per_stage=tuple(min(widest, 32 * 2**stage) for stage in range(stages)),
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
        residual_encoder=False,
    )


PLANS = {
    "abdomen_ct": plan_of_table_2((40, 224, 192), 2, 6),
    "abdomen_mr": plan_of_table_2((48, 160, 224), 2, 6),
    "abdomen_mr_2d": plan_of_table_2((320, 320), 30, 7),
    "endoscopy": plan_of_table_2((384, 640), 13, 7),
    "microscopy": plan_of_table_2((512, 512), 12, 8),
}


@dataclass(frozen=True)
class Measured:
    """Median seconds, and the growth of the peak memory in bytes."""

    time_s: float
    memory: float


def need_gpu() -> None:
    """Stop with a message if there is no NVIDIA GPU."""
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs an NVIDIA GPU and a CUDA build of PyTorch; none was found.")


def measure(work: Callable[[], object], longest_s: float = 2.0) -> Measured:
    """Measure a call on the GPU: two calls to warm up, then 3 to 20 calls within about `longest_s` seconds."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < longest_s):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return Measured(statistics.median(times), torch.cuda.max_memory_allocated() - before)


def copy_bandwidth() -> float:
    """Return the bytes per second that a copy of 1 GiB within the device reads and writes."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / measure(lambda: target.copy_(source)).time_s


def layer_shape(configuration: Configuration, stage: int) -> tuple[int, int, int]:
    """Return batch size, inner channels and tokens of a stage's scan; with few voxels the channels are the tokens."""
    voxels = math.prod(stage_sizes(configuration)[stage])
    features = configuration.features_per_stage[stage]
    width, tokens = (voxels, features) if voxels <= features else (features, voxels)
    return configuration.batch_size, 2 * width, tokens


def scan_inputs(batch: int, channels: int, length: int, rows: bool) -> dict[str, Tensor]:
    """Return inputs as a Mamba layer with initial weights gives them, stored with tokens or with channels as rows."""
    torch.manual_seed(0)
    draw = {"u": (channels,), "delta": (channels,), "B": (STATES,), "C": (STATES,), "z": (channels,)}
    inputs = {name: torch.randn(batch, length, *width, device="cuda").transpose(1, 2) for name, width in draw.items()}
    inputs["delta"] *= 0.1
    if not rows:
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    inputs["A"] = -torch.arange(1.0, STATES + 1, device="cuda").repeat(channels, 1)
    inputs["D"] = torch.ones(channels, device="cuda")
    inputs["delta_bias"] = torch.empty(channels, device="cuda").uniform_(-6.9, -2.2)
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def bytes_to_move(batch: int, channels: int, length: int) -> int:
    """Return the bytes that any scan in float32 must move, forward and backward.

    Forward reads u, delta, z, B and C and writes the output; backward reads those and the output's gradient and writes
    five gradients.
    """
    inputs = 3 * channels + 2 * STATES
    return 4 * batch * length * (3 * inputs + 2 * channels)


def floor_s(moved: int, elements: int, copy: float, multiprocessors: int, clock_hz: float) -> float:
    """Return the least seconds of a scan, forward and backward.

    Args:
        moved: bytes that must be moved.
        elements: states of all tokens and channels; each needs an exponential forward and one backward.
        copy: bytes per second of a copy within the device.
        multiprocessors: of the device; each computes 16 exponentials in a cycle.
        clock_hz: of the multiprocessors.
    """
    return max(moved / copy, 2 * elements / (16 * multiprocessors * clock_hz))


def step(inputs: dict[str, Tensor], grad: Tensor, backend: str) -> Callable[[], object]:
    """Return a function that runs the scan forward and backward."""

    def work() -> object:
        out = selective_scan(**inputs, delta_softplus=True, backend=backend)
        return torch.autograd.grad(out, list(inputs.values()), grad)

    return work


def row(batch: int, channels: int, length: int, peer: str, copy: float) -> str:
    """Measure the scan of one shape and return its line of the table."""
    inputs = scan_inputs(batch, channels, length, rows=True)
    grad = torch.randn(batch, length, channels, device="cuda").transpose(1, 2)
    ours = measure(step(inputs, grad, "triton"))
    del inputs
    tokens = length if peer == "cuda" else min(length, REFERENCE_TOKENS)
    try:
        short = scan_inputs(batch, channels, tokens, rows=False)
        theirs = measure(step(short, grad[..., :tokens].contiguous(), peer))
        ratio = f"{theirs.time_s * length / tokens * 1e3:10.2f} {theirs.time_s * length / tokens / ours.time_s:8.2f}"
        memory = f"{theirs.memory * length / tokens / 2**30:10.2f}"
    except torch.cuda.OutOfMemoryError:
        ratio, memory = f"{'no memory':>10} {'':8}", f"{'':10}"
    device = torch.cuda.get_device_properties("cuda")
    moved, elements = bytes_to_move(batch, channels, length), batch * channels * length * STATES
    least = floor_s(moved, elements, copy, device.multi_processor_count, 1000 * device.clock_rate)
    rates = f"{moved / ours.time_s / 1e9:6.0f} {6 * elements / ours.time_s / 1e9:7.0f} {least / ours.time_s:6.0%}"
    return f"{ours.time_s * 1e3:10.3f} {ratio} {rates} {ours.memory / 2**30:10.3f} {memory}"


def main() -> None:
    """Measure the scan of every stage and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=[*PLANS, "all"], default="all", help="row of Table 2")
    chosen = parser.parse_args().plan
    need_gpu()
    if reason := why_not("triton", "cuda"):
        sys.exit(f"error: the Triton backend does not work here: {reason}")
    refusal = why_not("cuda", "cuda")
    peer = "cuda" if refusal is None else "reference"
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; a copy moves {copy / 1e9:.0f} GB/s")
    if peer == "cuda":
        print("peer: mamba_ssm's CUDA kernels")
    else:
        print(f"peer: the PyTorch reference on {REFERENCE_TOKENS} tokens, scaled up; mamba_ssm: {refusal}")
    print(
        f"{'plan':14} stage {'B':>3} {'D':>5} {'L':>8}    ours ms    peer ms    ratio"
        "   GB/s  Gexp/s  floor   ours GiB   peer GiB"
    )
    for name in PLANS if chosen == "all" else [chosen]:
        for stage in range(PLANS[name].num_stages):
            batch, channels, length = layer_shape(PLANS[name], stage)
            line = row(batch, channels, length, peer, copy)
            print(f"{name:14} {stage:5} {batch:3} {channels:5} {length:8} {line}", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
