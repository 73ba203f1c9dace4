"""A whole training step of each architecture at each plan of the paper's Table 2, and of U-Mamba as it was published.

python benchmarks/training_step.py                                      everything, a few minutes
python benchmarks/training_step.py --plan abdomen_ct --architecture umamba_enc

A step is forward, loss, backward and optimiser in bfloat16 autocast with the architecture's own recipe. The published
formulation is the same network with mamba_ssm's Mamba modules and CUDA kernels in the place of ours, loaded with the
same weights; without a working mamba_ssm it is not measured, and said so. Images and labels are random; 14 classes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from scan_gpu import PLANS, measure, need_gpu
from torch import nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.mamba import MambaLayer
from umamba.networks.scan.select import why_not
from umamba.planning import Configuration
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy
from umamba.training.schedules import build_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = {"segresnet": "segresnet", "unetr": "unetr", "swinunetr": "swinunetr"}  # the others train as nnU-Net does
ARCHITECTURES = ("umamba_bot", "umamba_enc", "unet", "segresnet", "unetr", "swinunetr")
LABELS = LabelSet(tuple(f"organ_{k}" for k in range(1, 14)), tuple((k,) for k in range(1, 14)))


def settings(group: str, name: str) -> dict[str, Any]:
    """Return a file of a configuration group as a plain dict."""
    found = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def published(network: nn.Module) -> None:
    """Put mamba_ssm's modules, with the same weights, in the place of ours."""
    from mamba_ssm import Mamba

    for layer in network.modules():
        if isinstance(layer, MambaLayer):
            ours = layer.mamba
            official = Mamba(ours.in_proj.in_features, d_state=ours.d_state, d_conv=ours.conv1d.kernel_size[0])
            official.load_state_dict(ours.state_dict())
            layer.mamba = official


def line(architecture: str, configuration: Configuration, official: bool) -> str:
    """Measure the step and return time and peak memory, or why there is none."""
    torch.manual_seed(0)
    recipe = settings("recipe", RECIPES.get(architecture, "nnunet"))
    try:
        network = build_network(
            settings("architecture", architecture), configuration, 1, LABELS.num_classes, recipe["deep_supervision"]
        )
        if official:
            published(network)
        network.cuda()
        optimizer = build_optimizer(network.parameters(), recipe["optimizer"])
        loss = DeepSupervisionLoss(DiceCrossEntropy(LABELS, configuration.batch_dice, **recipe["loss"]))
        images = torch.randn(configuration.batch_size, 1, *configuration.patch_size, device="cuda")
        labels = torch.randint(0, LABELS.num_classes, images.shape, device="cuda")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                outputs = network(images)
            loss(outputs, labels).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe["gradient_clip_norm"])
            optimizer.step()

        measured = measure(step, longest_s=4.0)
    except torch.cuda.OutOfMemoryError:
        return "needs more memory than this GPU has"
    except UserError as error:
        return f"not possible: {error}"
    return f"{measured.time_s * 1e3:10.1f} ms {torch.cuda.max_memory_allocated() / 2**30:8.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=[*PLANS, "all"], default="all", help="row of Table 2")
    parser.add_argument("--architecture", choices=[*ARCHITECTURES, "all"], default="all", help="network")
    arguments = parser.parse_args()
    need_gpu()
    if not torch.cuda.is_bf16_supported():
        sys.exit("error: this GPU has no bfloat16.")
    torch.backends.cudnn.benchmark = True
    refusal = why_not("cuda", "cuda")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    if refusal:
        print(f"the published formulation is not measured; mamba_ssm: {refusal}")
    for plan in PLANS if arguments.plan == "all" else [arguments.plan]:
        for architecture in ARCHITECTURES if arguments.architecture == "all" else [arguments.architecture]:
            variants = (False, True) if refusal is None and architecture.startswith("umamba") else (False,)
            for official in variants:
                name = f"{architecture} as published" if official else architecture
                print(f"{plan:14} {name:24} {line(architecture, PLANS[plan], official)}", flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
