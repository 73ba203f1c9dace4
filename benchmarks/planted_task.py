"""How far each mixer finds a landmark: accuracy on the planted task over the distance, in one table.

python benchmarks/planted_task.py [--distances 4 8 14 20] [--iterations 400] [--seeds 1] [--dim 2] [--match none]

A tiny U-Mamba Bot is trained on new images in every step, with each mixer in turn (see umamba/datasets/planted.py and
umamba/runs/planted.py). "reach" is how far its convolutions can look, in voxels; half the distance must exceed it
before InstanceNorm, too, has nothing to tell, and a guess has an accuracy of 0.5. "ms" is the wall time of a training
step on this machine with one thread.
"""

import argparse
import time
from typing import Any

import torch
from measuring import machine

from umamba.datasets.planted import smallest_edge
from umamba.networks import build_network
from umamba.runs.planted import small_planted_configuration, train_planted

MIXERS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba2": {},
    "mlstm": {},
    "convolution": {"mixer_kernel": 7},
    "identity": {},
}


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distances", type=int, nargs="+", default=[4, 8, 14, 20])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--match", choices=("none", "parameters"), default="none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; {arguments.iterations} steps at most, {arguments.seeds} seed(s), {arguments.dim}D\n")
    print("| mixer | parameters | reach | ms | " + " | ".join(f"distance {d}" for d in arguments.distances) + " |")
    print("| --- " * (4 + len(arguments.distances)) + "|")
    for mixer, options in MIXERS.items():
        match = arguments.match if mixer != "identity" else "none"
        architecture = {"name": "umamba_bot", "mixer": mixer, "match": match, **options}
        cells, steps, seconds, reach, parameters = [], 0, 0.0, "", 0
        for distance in arguments.distances:
            edge = smallest_edge(distance) + 2 + smallest_edge(distance) % 2
            size = (edge, edge) if arguments.dim == 2 else (4, edge, edge)
            configuration = small_planted_configuration(arguments.dim, size)
            parameters = sum(p.numel() for p in build_network(architecture, configuration, 1, 3).parameters())
            accuracies = []
            for seed in range(arguments.seeds):
                began = time.perf_counter()
                result = train_planted(
                    architecture, configuration, distance, iterations=arguments.iterations, seed=seed, enough=0.99
                )
                seconds, steps = seconds + time.perf_counter() - began, steps + result.iterations
                accuracies.append(result.accuracy)
                reach = str(max(result.reach or (0,)))
            cells.append(" ".join(f"{accuracy:.2f}" for accuracy in accuracies))
        row = [mixer, f"{parameters:,}", reach, f"{1000 * seconds / steps:.0f}", *cells]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
