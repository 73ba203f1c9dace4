"""Time of a Mamba block as ONNX in ONNX Runtime, compared with this project's compiled block in PyTorch, on a CPU.

python benchmarks/onnx_scan.py
python benchmarks/onnx_scan.py --threads 2 --rounds 10

The sizes are those of the stages of the plans of Table 2, for one image; the first ones are cut to what is measured
quickly. Both sides run in turns in one process; times are the best of the rounds.
"""

import argparse
import time

import numpy as np
import torch
from measuring import machine
from torch import Tensor, nn

from umamba.inference.onnx_graph import INPUT, OUTPUT, onnx_model, session
from umamba.networks.mamba import Mamba

# name -> width of a token, tokens
STAGES = {
    "CT 1, part": (32, 65_536),
    "CT 3": (128, 20 * 56 * 48),
    "CT bottleneck": (320, 5 * 7 * 6),
    "MR 2D 2, part": (64, 160 * 160),
    "endoscopy 4": (256, 48 * 80),
    "microscopy 6": (512, 16 * 16),
}


class Block(nn.Module):
    """A Mamba block as a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mamba = Mamba(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (1, L, width) to the same shape."""
        return self.mamba(tokens)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("stages", nargs="*", help="part of the names")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    import onnxruntime

    print(f"{machine()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {given.threads} thread(s)")
    print("stage, width, tokens: thousands of tokens a second by torch, by onnxruntime, ratio, largest difference")
    for name, (width, length) in STAGES.items():
        if given.stages and not any(part in name for part in given.stages):
            continue
        torch.manual_seed(0)
        block, tokens = Block(width).eval(), torch.randn(1, length, width)
        model = onnx_model(block, tokens.shape, "benchmark").SerializeToString()
        runtime, array = session(model, given.threads), tokens.numpy()
        times: dict[str, list[float]] = {"torch": [], "onnx": []}
        for _ in range(given.rounds):
            start = time.perf_counter()
            with torch.inference_mode():
                expected = block(tokens).numpy()
            times["torch"].append(time.perf_counter() - start)
            start = time.perf_counter()
            (found,) = runtime.run([OUTPUT], {INPUT: array})
            times["onnx"].append(time.perf_counter() - start)
        rates = {side: length / min(each) / 1000 for side, each in times.items()}
        print(
            f"{name}, {width}, {length}: {rates['torch']:.4g}, {rates['onnx']:.4g}, "
            f"{rates['torch'] / rates['onnx']:.3g}, {np.abs(found - expected).max():.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
