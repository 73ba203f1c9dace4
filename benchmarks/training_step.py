"""Time and memory of a training step of each architecture at each plan of the paper's Table 2.

python benchmarks/training_step.py                                      everything, a few minutes
python benchmarks/training_step.py --plan abdomen_ct --architecture umamba_enc

A step is forward, loss, backward and the fused optimiser in bfloat16 autocast with the architecture's own recipe.
"separate norms" has PyTorch's operators in place of our kernel of norm, sum and LeakyReLU. "as published" is the same
U-Mamba with the Mamba modules and CUDA kernels of mamba_ssm, loaded with the same weights; it is left out if mamba_ssm
does not work. Images and labels are random; there are 14 classes.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scan_gpu import PLANS, measure, need_gpu
from torch import nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.mamba import MambaLayer
from umamba.networks.scan.select import why_not
from umamba.planning import Configuration
from umamba.settings import RecipeSettings, parse
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy
from umamba.training.schedules import build_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OWN_RECIPE = ("segresnet", "unetr", "swinunetr")  # the other architectures train with nnU-Net's
SELECTION = "umamba.networks.cpu_layers.fused_on_gpu"
ARCHITECTURES = ("umamba_bot", "umamba_enc", "unet", "segresnet", "unetr", "swinunetr")
LABELS = LabelSet(tuple(f"organ_{k}" for k in range(1, 14)), tuple((k,) for k in range(1, 14)))


def recipe_of(architecture: str) -> RecipeSettings:
    """Return the recipe that an architecture is trained with."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        found = compose(f"recipe/{architecture if architecture in OWN_RECIPE else 'nnunet'}")
    values = OmegaConf.to_container(found.recipe)
    assert isinstance(values, dict)
    return parse(RecipeSettings, {str(key): value for key, value in values.items()})


def published(network: nn.Module) -> None:
    """Replace our Mamba modules by those of mamba_ssm with the same weights."""
    from mamba_ssm import Mamba

    for layer in network.modules():
        if isinstance(layer, MambaLayer):
            ours = layer.mamba
            official = Mamba(ours.in_proj.in_features, d_state=ours.d_state, d_conv=ours.conv1d.kernel_size[0])
            official.load_state_dict(ours.state_dict())
            layer.mamba = official


def line(architecture: str, configuration: Configuration, official: bool) -> str:
    """Measure the step; return its time and peak memory, or why it cannot be measured."""
    torch.manual_seed(0)
    recipe = recipe_of(architecture)
    try:
        network = build_network(architecture, configuration, 1, LABELS.num_classes, recipe.deep_supervision)
        if official:
            published(network)
        network.cuda()
        optimizer = build_optimizer(network.parameters(), recipe.optimizer, fused=True)
        loss = DeepSupervisionLoss(DiceCrossEntropy(LABELS, batch_dice=configuration.batch_dice))
        images = torch.randn(configuration.batch_size, 1, *configuration.patch_size, device="cuda")
        labels = torch.randint(0, LABELS.num_classes, images.shape, device="cuda")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                outputs = network(images)
            loss(outputs, labels).backward()
            if recipe.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip_norm)
            optimizer.step()

        measured = measure(step, longest_s=4.0)
    except torch.cuda.OutOfMemoryError:
        return "needs more memory than this GPU has"
    except UserError as error:
        return f"not possible: {error}"
    return f"{measured.time_s * 1e3:10.1f} ms {torch.cuda.max_memory_allocated() / 2**30:8.2f} GiB"


def main() -> None:
    """Measure the step of every architecture at every plan and print a row for each."""
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
            ours = ["", *(["separate norms"] if architecture not in OWN_RECIPE else [])]
            peers = ["as published"] if refusal is None and architecture.startswith("umamba") else []
            for variant in (*ours, *peers):
                with patch(SELECTION, lambda x: False) if variant == "separate norms" else nullcontext():
                    measured = line(architecture, PLANS[plan], official=variant == "as published")
                print(f"{plan:14} {architecture:12} {variant:16} {measured}", flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
