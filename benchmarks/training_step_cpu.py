"""Time, copies and losses of training steps on a CPU, of two revisions of this project side by side in one run.

python benchmarks/training_step_cpu.py --before OTHER/src          step times and their ratio
python benchmarks/training_step_cpu.py --before OTHER/src --steps 100    and the largest difference of the losses
python benchmarks/training_step_cpu.py --profile                   the largest costs of a step, and the share of copies

OTHER is a checkout of the other revision. A step is forward, loss, backward, clipping and nnU-Net's SGD in bfloat16
autocast at the plan of the hippocampus (Decathlon Task04: patch 40 x 56 x 40, batch of 4). Each revision has its own
process; they take turns, step by step, so that what else the machine does hits both. Weights, images and labels are the
same on both sides. The losses are those of the first steps, one a batch; they differ by rounding, which a training
amplifies.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor

from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy

ARCHITECTURES = ("unet", "umamba_bot", "umamba_enc")
BATCHES = 16  # different ones, over and over
HIPPOCAMPUS = Configuration(
    name="3d_fullres",
    spacing=(1.0, 1.0, 1.0),
    median_shape=(35.5, 51.0, 35.0),
    patch_size=(40, 56, 40),
    batch_size=4,
    batch_dice=False,
    normalization=("ZScoreNormalization",),
    use_mask_for_norm=(False,),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 4,
    features_per_stage=(32, 64, 128, 256),
    encoder_blocks=(2, 2, 2, 2),
    decoder_blocks=(2, 2, 2),
    residual_encoder=False,
)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return images (B, 1, *patch) of smooth blobs in noise, and their labels (B, 1, *patch) in 0, 1, 2."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(BATCHES):
        coarse = torch.randn(HIPPOCAMPUS.batch_size, 1, 5, 7, 5, generator=generator)
        blobs = F.interpolate(coarse, size=HIPPOCAMPUS.patch_size, mode="trilinear")
        noise = torch.randn(blobs.shape, generator=generator)
        found.append((blobs + 0.5 * noise, (blobs > 0.4).long() + (blobs > 0.9).long()))
    return found


class Training:
    """A network in training.

    Args:
        architecture: its name.
        rate: learning rate.
    """

    def __init__(self, architecture: str, rate: float) -> None:
        torch.manual_seed(0)
        labels = LabelSet.from_json({"background": 0, "anterior": 1, "posterior": 2})
        self.network = build_network({"name": architecture}, HIPPOCAMPUS, 1, labels.num_classes, True)
        own: dict[str, Any] = {"lr": rate, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
        try:
            from umamba.settings import OptimizerSettings
            from umamba.training.schedules import build_optimizer

            self.optimizer = build_optimizer(self.network.parameters(), OptimizerSettings(lr=rate))
        except ImportError:
            self.optimizer = torch.optim.SGD(self.network.parameters(), **own)
        self.loss = DeepSupervisionLoss(DiceCrossEntropy(labels, batch_dice=HIPPOCAMPUS.batch_dice))
        self.batches = batches()
        self.number = 0

    def step(self) -> tuple[float, float]:
        """Train on the next batch; return seconds and loss."""
        image, label = self.batches[self.number % BATCHES]
        self.number += 1
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(self.network(image), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return time.perf_counter() - start, loss.item()


def memory_kept() -> Any:
    """Return the context in which this revision trains on a CPU."""
    try:
        from umamba.training.freed_memory import freed_memory_kept
    except ImportError:
        return nullcontext()
    return freed_memory_kept()


def serve(architecture: str, rate: float) -> None:
    """Train a step for each line of the standard input, and print seconds and loss."""
    training = Training(architecture, rate)
    with memory_kept():
        for _ in sys.stdin:
            print(json.dumps(training.step()), flush=True)


class Side:
    """A process of one revision.

    Args:
        source: its folder src.
        architecture: name of the network.
        rate: learning rate.
    """

    def __init__(self, source: Path, architecture: str, rate: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", architecture, str(rate)],
            env={**os.environ, "PYTHONPATH": str(source.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> tuple[float, float]:
        """Return seconds and loss of a step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        seconds, loss = json.loads(self.process.stdout.readline())
        return seconds, loss

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(before: Path, architecture: str, steps: int, rate: float) -> str:
    """Return a line with both times, their ratio and the largest difference of the losses."""
    ours = Path(__file__).resolve().parents[1] / "src"
    sides = [Side(before, architecture, rate), Side(ours, architecture, rate)]
    rows = [[side.step() for side in sides] for _ in range(steps)]
    for side in sides:
        side.end()
    measured = rows[2:] if len(rows) > 4 else rows
    times = [[row[k][0] for row in measured] for k in range(2)]
    ratio = statistics.median(old / new for old, new in zip(*times, strict=True))
    apart = max(abs(old - new) for (_, old), (_, new) in rows)
    return (
        f"{architecture:12}{min(times[0]):10.3f}{min(times[1]):10.3f}{min(times[0]) / min(times[1]):14.2f}{ratio:16.2f}"
        f"{rows[0][1][1]:12.4f}{rows[-1][1][1]:12.4f}{apart:14.2g}"
    )


def profile(architecture: str, rate: float) -> None:
    """Print the largest costs of a step and the share of aten::copy_."""
    training = Training(architecture, rate)
    with memory_kept():
        for _ in range(2):
            training.step()
        with torch.profiler.profile() as profiler:
            training.step()
    costs = profiler.key_averages()
    total = sum(each.self_cpu_time_total for each in costs)
    copies = sum(each.self_cpu_time_total for each in costs if each.key == "aten::copy_")
    print(f"{architecture}: {total / 1e6:.3f} s, aten::copy_ {copies / total:.1%}")
    for each in sorted(costs, key=lambda each: -each.self_cpu_time_total)[:14]:
        spent = each.self_cpu_time_total
        print(f"  {spent / total:7.1%} {spent / 1e3:9.1f} ms {each.count:5}  {each.key[:60]}")


def main() -> None:
    """Compare the revisions, or profile this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder src of the other revision")
    parser.add_argument("--architecture", choices=ARCHITECTURES, nargs="+", default=["unet", "umamba_bot"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], float(arguments.serve[1]))
        return
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.profile:
        for architecture in arguments.architecture:
            profile(architecture, arguments.rate)
        return
    if arguments.before is None:
        parser.error("give --before or --profile")
    print(
        f"{'':12}{'before s':>10}{'now s':>10}{'ratio (best)':>14}{'ratio (median)':>16}{'first loss':>12}"
        f"{'last loss':>12}{'largest diff':>14}"
    )
    for architecture in arguments.architecture:
        print(compare(arguments.before, architecture, arguments.steps, arguments.rate), flush=True)


if __name__ == "__main__":
    main()
