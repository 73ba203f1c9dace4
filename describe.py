"""Describe a network at a plan, stage by stage: maps, tokens, parameters, FLOPs, memory, and paper against code.

python describe.py experiment=flare_umamba_enc
python describe.py architecture=unet plan.from_file=nnUNetPlans.json num_classes=14
python describe.py checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from umamba.config import DescribeConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Find the plan, measure the network on tensors without data, and print the table."""
    if OmegaConf.is_missing(composed.dataset, "root"):
        composed.dataset.root = ""  # a checkpoint or a plans file needs no dataset
    config = typed(composed, DescribeConfig)
    from umamba.describe import print_description

    print_description(config)


if __name__ == "__main__":
    launch(main, "describe", Path(__file__).parent / "configs")
