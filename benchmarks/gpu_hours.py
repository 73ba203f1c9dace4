"""Estimate the cost of the paper's thirty trainings without a GPU: parameters, FLOPs of a training step, GPU hours.

python benchmarks/gpu_hours.py > experiments/gpu_hours.csv
python benchmarks/gpu_hours.py --peak-tflops 989 --utilisation 0.15      an H100 in bfloat16

FLOPs are counted for forward and backward of a batch at the plan of Table 2 (torch.utils.flop_counter, on fake tensors
that need no memory); a multiplication and an addition are two. The counter does not know the selective scan, so it is
counted here: 9 per token, channel and state forward, twice that backward. Hours are

    1000 epochs x (250 training steps + 50 forward passes of validation) / (peak x utilisation)

with the peak of an A100 (312 TFLOP/s in bfloat16, 156 where the recipe trains in float32 with TF32 convolutions). The
utilisation is an assumption, not a measurement. Normalisation, upsampling and the scan take longer than this estimate
because memory bandwidth limits them, not FLOPs. benchmarks/training_step.py measures the step itself on a GPU.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from scan_gpu import PLANS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_step import ARCHITECTURES

from umamba.networks import build_network
from umamba.planning import Configuration

# Title of the plan, prefix of its experiments, image channels, classes with background.
DATASETS = (
    ("abdomen_ct", "flare", 1, 14),
    ("abdomen_mr", "amos", 1, 14),
    ("abdomen_mr_2d", "amos2d", 1, 14),
    ("endoscopy", "endovis", 3, 8),
    ("microscopy", "cell", 3, 3),
)
# Name of the experiment after its dataset, architecture, and options that differ (the study ablation_mamba).
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((name, name, {}) for name in ARCHITECTURES),
    ("umamba_bot_identity", "umamba_bot", {"mamba": "identity"}),
    ("umamba_enc_identity", "umamba_enc", {"mamba": "identity"}),
)
FLOAT32 = ("segresnet", "unetr", "swinunetr")
EPOCHS, TRAINING_STEPS, VALIDATION_STEPS = 1000, 250, 50
SCAN_FLOPS = 9


@contextmanager
def counted_scans(counts: list[float]) -> Iterator[None]:
    """Replace the scan by one that appends its forward FLOPs to `counts` and returns the right shape."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, *_: Any, **__: Any) -> Tensor:
        counts.append(SCAN_FLOPS * u.numel() * A.shape[1])
        return u * delta

    layer = "umamba.networks.mamba"
    with patch(f"{layer}.selective_scan", scan), patch(f"{layer}.resolve_backend", lambda *_: "reference"):
        yield


def step_flops(
    name: str, configuration: Configuration, channels: int, classes: int, own: Mapping[str, Any] | None = None
) -> tuple[int, float, float]:
    """Count the parameters of a network and the FLOPs of one batch.

    Args:
        name: the architecture's name.
        configuration: the plan's configuration; its batch and patch size are the input.
        channels: image channels.
        classes: classes with background.
        own: options of the architecture that differ from its defaults.

    Returns:
        Parameters, FLOPs of a forward pass, FLOPs of a training step (forward and backward).
    """
    network = build_network({"name": name, **(own or {})}, configuration, channels, classes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.randn(configuration.batch_size, channels, *configuration.patch_size)
        scans: list[float] = []
        with counted_scans(scans), FlopCounterMode(display=False) as forward:
            outputs = network(images)
        with FlopCounterMode(display=False) as backward:
            sum(output.sum() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)).backward()
    one_way = forward.get_total_flops() + sum(scans)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters, one_way, one_way + backward.get_total_flops() + 2 * sum(scans)


def main() -> None:
    """Print a row for each architecture at each plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak-tflops", type=float, default=312.0, help="of the GPU in bfloat16; half in float32")
    parser.add_argument("--utilisation", type=float, default=0.2, help="share of the peak that is reached")
    arguments = parser.parse_args()
    print("experiment,parameters,tflop_per_step,gpu_hours")
    for title, prefix, channels, classes in DATASETS:
        for experiment, name, own in VARIANTS:
            parameters, forward, step = step_flops(name, PLANS[title], channels, classes, own)
            peak = arguments.peak_tflops * 1e12 * arguments.utilisation / (2 if name in FLOAT32 else 1)
            hours = EPOCHS * (TRAINING_STEPS * step + VALIDATION_STEPS * forward) / peak / 3600
            print(f"{prefix}_{experiment},{parameters},{step / 1e12:.2f},{hours:.1f}", flush=True)


if __name__ == "__main__":
    main()
