"""Time and memory of a training step's forward and backward pass of every architecture, side by side in one run.

python benchmarks/networks.py                  # on a CPU: a patch of 32 x 64 x 64, and of 256 x 256
python benchmarks/networks.py --device cuda    # on a GPU: larger ones
python benchmarks/networks.py --engines        # prediction on a CPU: PyTorch, OpenVINO, onnxruntime, one tile
python benchmarks/networks.py --engines --before REVISION/src   # ... and PyTorch of another revision

Each architecture has its default options. Times are the best of several passes. Memory is the growth of the peak by the
first pass of a new process: of the process itself on a CPU (Linux), of PyTorch's allocator on a GPU.

--engines compares the engines of prediction, in turn within one process, on networks of a CT-like plan of six stages,
with the same weights and the same tile. "OpenVINO alone" is the graph of OpenVINO's own converter, without anything of
this project; it cannot convert a Mamba layer. The last column is the share of the largest rate of matrix products that
this machine reaches with the same threads. The networks are not trained, because time does not depend on the weights.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import machine
from scan import resident_kb
from torch import Tensor, nn

from umamba.networks import architecture_names, build_network
from umamba.planning import Configuration

PATCHES = {"cpu": ((32, 64, 64), (256, 256)), "cuda": ((64, 128, 128), (512, 512))}
FEATURES = {2: (32, 64, 128, 256, 512), 3: (32, 64, 128, 256, 320)}


def configuration(patch: tuple[int, ...]) -> Configuration:
    """Return a configuration of five stages that halve every axis of a patch."""
    dim = len(patch)
    return Configuration(
        name=f"{dim}d",
        spacing=(1.0,) * dim,
        median_shape=tuple(map(float, patch)),
        patch_size=patch,
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * dim, *((2,) * dim,) * 4),
        kernel_sizes=((3,) * dim,) * 5,
        features_per_stage=FEATURES[dim],
        encoder_blocks=(2,) * 5,
        decoder_blocks=(2,) * 4,
        residual_encoder=False,
    )


def one_pass(network: nn.Module, image: Tensor, autocast: bool) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass."""
    device = image.device.type

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    network.zero_grad(set_to_none=True)
    start = now()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        outputs = network(image)
    between = now()
    logits = outputs if isinstance(outputs, list) else [outputs]
    torch.stack([each.float().square().mean() for each in logits]).sum().backward()
    return between - start, now() - between


def memory_mb(network: nn.Module, image: Tensor, autocast: bool) -> float:
    """Return the growth of the peak memory by a pass; on a CPU correct only for the first large pass of a process."""
    if image.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(network, image, autocast)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    resident = resident_kb("VmRSS")
    one_pass(network, image, autocast)
    return (resident_kb("VmHWM") - resident) / 1024


def network_and_image(name: str, patch: tuple[int, ...], device: str) -> tuple[nn.Module, Tensor]:
    """Return a network and a random image for it."""
    torch.manual_seed(0)
    network = build_network(name, configuration(patch), 1, 14)
    return network.to(device).train(), torch.randn(1, 1, *patch, device=device)


def main() -> None:
    """Measure every architecture in 3D and 2D and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=PATCHES, default="cpu")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="without bfloat16 autocast")
    parser.add_argument("--engines", action="store_true", help="compare the engines of prediction")
    parser.add_argument("--before", type=Path, help="src folder of another revision, for --engines")
    parser.add_argument("--tile", type=int, nargs=3, default=(40, 160, 160), help="for --engines")
    parser.add_argument("--networks", nargs="+", default=["unet", "umamba_bot", "umamba_enc"], help="for --engines")
    parser.add_argument(
        "--memory", nargs=2, help="print the memory of one architecture at a patch (0 or 1), nothing else"
    )
    arguments = parser.parse_args()
    device, autocast = arguments.device, not arguments.float32
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here.")
    if arguments.engines:
        from engines import compare

        precision = "32-true" if arguments.float32 else "bf16-mixed"
        compare(arguments.networks, tuple(arguments.tile), precision, arguments.passes, arguments.before)
        return
    if arguments.memory:
        name, number = arguments.memory
        print(memory_mb(*network_and_image(name, PATCHES[device][int(number)], device), autocast))
        return
    print(f"{machine()}, torch {torch.__version__}, {'bfloat16 autocast' if autocast else 'float32'}")
    names = sorted(architecture_names(), key=lambda name: (name != "unet", name))
    for number, patch in enumerate(PATCHES[device]):
        print(f"\npatch {' x '.join(map(str, patch))}, batch of one")
        print(f"  {'':14}{'parameters':>12}{'forward (s)':>13}{'backward (s)':>14}{'memory (MB)':>13}{'to unet':>9}")
        unet = 0.0
        for name in names:
            command = [sys.executable, __file__, *sys.argv[1:], "--memory", name, str(number)]
            memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            network, image = network_and_image(name, patch, device)
            one_pass(network, image, autocast)
            times = [one_pass(network, image, autocast) for _ in range(arguments.passes)]
            forward, backward = (min(each) for each in zip(*times, strict=True))
            unet = unet or forward + backward
            parameters = sum(p.numel() for p in network.parameters())
            ratio = (forward + backward) / unet
            print(f"  {name:14}{parameters:12,}{forward:13.3f}{backward:14.3f}{memory:13.0f}{ratio:9.2f}", flush=True)


if __name__ == "__main__":
    main()
