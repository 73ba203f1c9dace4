"""Whether training of U-Mamba Enc stays finite on extreme inputs: this project's and the released formulation.

python benchmarks/stability.py [--steps 1000] [--loss-scale 65536]

A small 2D U-Mamba Enc is trained by the official recipe (Dice and cross-entropy, deep supervision, SGD with Nesterov
momentum 0.99, clipping at 12) with a learning rate of 0.1. The images are in turn scaled by 1e3, constant, and zero
almost everywhere. Training runs in float32, in bfloat16 autocast, and in float16 autocast with loss scaling.
"official" is the released formulation: the same network without the clamping of float16 infinities. The table counts
optimisation steps, attempts with a non-finite loss, and attempts with a non-finite (scaled) gradient. With loss
scaling, a non-finite gradient is not a step: the scale is halved and the batch is tried again. A run ends early after
100 non-finite attempts in a row.
"""

import argparse
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
from measuring import machine
from torch import Tensor
from torch.nn import functional

from umamba.labels import LabelSet
from umamba.networks import blocks, build_network, cpu_layers, mamba, unet
from umamba.planning import Configuration
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy

KINDS = ("scaled", "constant", "sparse")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE, BATCH = 32, 2
_STUCK = 100  # a run ends after so many non-finite attempts in a row


@dataclass(frozen=True)
class Outcome:
    """Result of a training.

    Attributes:
        steps: optimisation steps.
        losses: attempts with a non-finite loss.
        gradients: attempts with a non-finite gradient.
        last_loss: last finite loss.
        scale: last loss scale.
    """

    steps: int
    losses: int
    gradients: int
    last_loss: float
    scale: float


def configuration() -> Configuration:
    """Return a 2D configuration of four stages."""
    return Configuration(
        name="2d",
        spacing=(1.0, 1.0),
        median_shape=(float(SIZE), float(SIZE)),
        patch_size=(SIZE, SIZE),
        batch_size=BATCH,
        batch_dice=True,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1, 1), (2, 2), (2, 2), (2, 2)),
        kernel_sizes=((3, 3),) * 4,
        features_per_stage=(8, 16, 32, 32),
        encoder_blocks=(2,) * 4,
        decoder_blocks=(2,) * 3,
        residual_encoder=False,
    )


def draw(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return extreme images (B, 1, Y, X) of a kind, and labels that fit the images before they were made extreme."""
    image = torch.randn(BATCH, 1, SIZE, SIZE, generator=generator)
    label = (functional.avg_pool2d(image, 7, 1, 3) > 0).long()
    if kind == "scaled":
        image = image * 1e3
    elif kind == "constant":
        image = torch.full_like(image, 7.0)
    else:
        image = torch.where(torch.rand(image.shape, generator=generator) < 0.01, image * 100, 0.0)
    return image, label


def unbounded() -> AbstractContextManager[object]:
    """Return a context in which no layer clamps float16 infinities."""

    def as_it_is(x: Tensor) -> Tensor:
        return x

    stack = [patch.object(module, "saturated", as_it_is) for module in (blocks, cpu_layers, unet)]
    stack.append(patch.object(mamba, "LARGEST_HALF", math.inf))

    class All:
        def __enter__(self) -> None:
            for each in stack:
                each.start()

        def __exit__(self, *_: object) -> None:
            for each in stack:
                each.stop()

    return All()


def train(dtype: torch.dtype | None, steps: int, loss_scale: float) -> Outcome:
    """Train from seed 0 and count the steps and the non-finite attempts."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = build_network("umamba_enc", configuration(), 1, 2)
    loss_of = DeepSupervisionLoss(DiceCrossEntropy(LabelSet(("object",), ((1,),)), batch_dice=True))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.99, nesterov=True, weight_decay=3e-5)
    scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale, enabled=dtype == torch.float16)
    losses = gradients = in_a_row = done = 0
    last = math.nan
    while done < steps and in_a_row < _STUCK:
        if in_a_row == 0 or not scaler.is_enabled():
            image, label = draw(KINDS[done % len(KINDS)], generator)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logits = network(image)
        loss = loss_of(logits, label)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        finite = (bool(torch.isfinite(loss)), bool(torch.isfinite(norm)))
        losses, gradients = losses + (not finite[0]), gradients + (not finite[1])
        last = float(loss.detach()) if finite[0] else last
        in_a_row = 0 if all(finite) else in_a_row + 1
        done += all(finite) or not scaler.is_enabled()
    return Outcome(done, losses, gradients, last, scaler.get_scale())


def main() -> None:
    """Train each formulation at each precision and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--loss-scale", type=float, default=65536.0, help="initial loss scale in float16")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    arguments = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}")
    print(f"{'':22}{'steps':>8}{'loss not finite':>18}{'gradient not finite':>22}{'last finite loss':>18}{'scale':>11}")
    for precision in arguments.precision:
        for formulation, context in (("ours", nullcontext()), ("official", unbounded())):
            start = time.perf_counter()
            with context:
                found = train(PRECISIONS[precision], arguments.steps, arguments.loss_scale)
            print(
                f"{precision:10}{formulation:12}{found.steps:8}{found.losses:18}{found.gradients:22}"
                f"{found.last_loss:18.4g}{found.scale:11.3g}   ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
