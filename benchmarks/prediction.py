"""How much faster images are segmented than by nnU-Net with the same weights, and in how much memory, in one run.

python benchmarks/prediction.py --nnunet-bin ENVIRONMENT/bin --dataset PATH/Dataset004_Hippocampus
python benchmarks/prediction.py --nnunet-bin ENVIRONMENT/bin --phantoms 2
python benchmarks/prediction.py --phantoms 1 --slices 300 --classes 14 --architecture umamba_bot

ENVIRONMENT has nnunetv2 2.8.1; without it, or with another architecture than unet, the engines are compared with each
other. A network of the dataset's plan (for the CT phantoms: of a small plan that resamples their 512 x 512 x 100
voxels) is trained for some iterations, because an untrained one gives noise, and written as a checkpoint of this
project and of nnU-Net. Then nnUNetv2_predict and predict.py segment the same images on the CPU with the same step and
mirroring, nnU-Net in float32 and predict.py in float32 and bfloat16, by both engines. OpenVINO runs twice: the first
command converts and compares the network, the second finds it in the cache. The whole commands are measured:

    voxels/s       voxels of all images on their own grids, divided by the wall time
    in turn        with --rounds: nnU-Net and the last of our commands again, one after the other, so many times
    CPU time       of the command's process tree, which other work on the machine disturbs less
    peak memory    of the process tree: proportional set size, sampled near its peak (Linux)
    agreement      share of voxels with the same label: as nnU-Net, and as our torch engine in the same precision
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preprocessing import Measured, machine, measure, write_phantoms
from torch import nn

from umamba.datasets import RawDataset, read_dataset
from umamba.io import read_image, read_label
from umamba.networks import build_network
from umamba.planning import Configuration, Plan, compute_fingerprint, plan_dataset, to_nnunet_plans
from umamba.preprocessing import preprocess_case
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import NETWORK, store_record
from umamba.settings import read_architecture

PREDICT = Path(__file__).resolve().parents[1] / "predict.py"
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}
# The plan of the phantoms: two CPU cores run its network in a minute.
SMALL_PLAN = {
    "spacing": (3.0, 1.5, 1.5),
    "patch_size": (32, 96, 96),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernel_sizes": ((3, 3, 3),) * 4,
    "features_per_stage": (16, 32, 64, 128),
    "encoder_blocks": (2, 2, 2, 2),
    "decoder_blocks": (2, 2, 2),
}


def planned(dataset: RawDataset, pinned: dict[str, Any]) -> tuple[Plan, Configuration]:
    """Return the dataset's plan and its configuration with some values replaced."""
    plan = plan_dataset(
        compute_fingerprint(dataset, 2),
        dataset_name=dataset.name,
        channel_names=dataset.channel_names,
        num_training=dataset.num_training,
        num_label_entries=dataset.labels.num_entries,
        overrides={},
    )
    configuration = replace(plan.configuration("3d_fullres"), **pinned)
    return replace(plan, configurations={"3d_fullres": configuration}), configuration


def train(
    architecture: str, dataset: RawDataset, plan: Plan, configuration: Configuration, iterations: int
) -> nn.Module:
    """Return a network after some iterations of Adam on random patches around foreground."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    network = build_network(
        architecture, configuration, len(dataset.channel_names), dataset.labels.num_classes, deep_supervision=False
    )
    cases = []
    for case in dataset.training[:6]:
        assert case.label is not None
        image, label, _ = preprocess_case(
            read_image(case.images), read_label(case.label), plan, configuration, dataset.labels
        )
        assert label is not None
        padding = [
            (0, 0),
            *(
                (0, max(0, size - length))
                for size, length in zip(configuration.patch_size, image.shape[1:], strict=True)
            ),
        ]
        cases.append((np.pad(image, padding), np.pad(np.maximum(label, 0), padding)[0]))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(iterations):
        image, label = cases[generator.integers(len(cases))]
        inside = np.argwhere(label > 0)
        centre = inside[generator.integers(len(inside))]
        place = tuple(
            slice(start, start + size)
            for start, size in (
                (int(np.clip(middle - size // 2, 0, length - size)), size)
                for middle, size, length in zip(centre, configuration.patch_size, label.shape, strict=True)
            )
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(torch.from_numpy(image[(slice(None), *place)].copy())[None]).float()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(label[place].astype(np.int64))[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {iterations} iterations, loss {loss.item():.3f}")
    return network


def write_ours(
    path: Path, architecture: str, dataset: RawDataset, plan: Plan, weights: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint of this project."""
    record = CheckpointRecord(
        plan=plan,
        configuration_name="3d_fullres",
        architecture=read_architecture({"name": architecture}),
        labels=dataset.labels,
        channel_names=dataset.channel_names,
        file_ending=dataset.file_ending,
    )
    content: dict[str, Any] = {"state_dict": {f"{NETWORK}{key}": value for key, value in weights.items()}}
    store_record(content, record)
    torch.save(content, path)


def write_nnunet(results: Path, dataset: RawDataset, plan: Plan, weights: dict[str, torch.Tensor]) -> None:
    """Write nnU-Net's folder of a trained model, where convolutions and the encoder are stored under several names."""
    state = dict(weights)
    for key, value in weights.items():
        for own, number in ((".conv.", 0), (".norm.", 1)):
            if own in key:
                state[key.replace(own, f".all_modules.{number}.")] = value
    state |= {f"decoder.{key}": value for key, value in state.items() if key.startswith("encoder.")}
    folder = results / dataset.name / MODEL
    (folder / "fold_0").mkdir(parents=True)
    shutil.copy(dataset.root / "dataset.json", folder)
    (folder / "plans.json").write_text(json.dumps(to_nnunet_plans(plan, dataset.file_ending)))
    content = {
        "network_weights": state,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")


def agreement(first: Path, second: Path, ending: str) -> tuple[float, float]:
    """Return the share of equal voxels in the segmentations of two folders, and the share of foreground voxels."""
    equal = total = foreground = 0
    for path in sorted(first.glob(f"*{ending}")):
        ours, theirs = (read_label(folder / path.name).array for folder in (first, second))
        equal += int((ours == theirs).sum())
        foreground += int((theirs > 0).sum())
        total += ours.size
    return equal / total, foreground / total


def compare(root: Path, images: Path, pinned: dict[str, Any], scratch: Path, arguments: argparse.Namespace) -> None:
    """Train, write the checkpoints, run the programs and print the figures."""
    architecture, nnunet_bin, tta = arguments.architecture, arguments.nnunet_bin, arguments.tta
    dataset = read_dataset(root)
    plan, configuration = planned(dataset, pinned)
    weights = dict(train(architecture, dataset, plan, configuration, arguments.iterations).state_dict())
    scratch.mkdir(parents=True)
    write_ours(scratch / "ours.ckpt", architecture, dataset, plan, weights)
    files = sorted(images.glob(f"*{dataset.file_ending}"))
    voxels = sum(read_image([path]).array.size for path in files)

    measured: dict[str, Measured] = {}
    environment = os.environ | {"XDG_CACHE_HOME": str(scratch / "cache")}
    if nnunet_bin and architecture == "unet":
        write_nnunet(scratch / "results", dataset, plan, weights)
        environment |= {name: str(scratch) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
        environment["nnUNet_results"] = str(scratch / "results")
        theirs = [str(nnunet_bin / "nnUNetv2_predict"), "-i", str(images), "-o", str(scratch / "theirs")]
        theirs += ["-d", dataset.name, "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-step_size", "0.5"]
        theirs += [] if tta else ["--disable_tta"]
        measured["nnU-Net, float32"] = measure(theirs, environment)

    ours = [sys.executable, str(PREDICT), f"checkpoint={scratch / 'ours.ckpt'}", f"input={images}", "device=cpu"]
    ours += [f"tta={str(tta).lower()}", "tile_step_size=0.5"]
    for precision, engine in itertools.product(PRECISIONS, ("torch", "openvino")):
        command = [*ours, f"precision={precision}", f"engine={engine}", f"output={scratch / precision / engine}"]
        title = f"{engine}, {PRECISIONS[precision]}"
        measured[title] = measure(command, environment)
        if engine == "openvino":
            measured[f"{title}, again"] = measure([*command, "overwrite=true"], environment)

    print(
        f"{dataset.name}: {architecture}, {len(files)} images, {voxels / 1e6:.1f} million voxels, patch "
        f"{configuration.patch_size}, {dataset.labels.num_classes} classes, mirroring {tta}"
    )
    base_title, base = next(iter(measured.items()))
    for title, each in measured.items():
        print(
            f"  {title:25} {voxels / each.seconds / 1e3:9.0f} thousand voxels/s ({base.seconds / each.seconds:.1f} x), "
            f"wall {each.seconds:.1f} s, CPU {each.cpu_seconds:.1f} s ({base.cpu_seconds / each.cpu_seconds:.1f} x), "
            f"peak memory {each.peak_gb:.2f} GB ({each.peak_gb / base.peak_gb:.2f} of {base_title})"
        )
    if "nnU-Net, float32" in measured:
        for number in range(arguments.rounds):
            seconds = [measure(each, environment).seconds for each in (theirs, [*command, "overwrite=true"])]
            print(
                f"  in turn, {number + 1}: nnU-Net {seconds[0]:.1f} s, {title} {seconds[1]:.1f} s "
                f"({seconds[0] / seconds[1]:.2f} x)"
            )
    for precision, engine in itertools.product(PRECISIONS, ("torch", "openvino")):
        found = scratch / precision / engine
        for other in (scratch / "theirs", scratch / precision / "torch"):
            if other.is_dir() and other != found:
                equal, foreground = agreement(found, other, dataset.file_ending)
                title = "nnU-Net" if other.name == "theirs" else "torch"
                print(
                    f"  {engine}, {PRECISIONS[precision]}: {100 * equal:.4f} % of voxels as {title} "
                    f"({100 * foreground:.2f} % are foreground)"
                )


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-bin", type=Path, help="bin folder of an environment with nnunetv2")
    parser.add_argument("--dataset", type=Path, help="raw dataset in a folder named DatasetNNN_NAME")
    parser.add_argument("--phantoms", type=int, default=0, help="compare on so many CT-sized phantoms")
    parser.add_argument("--slices", type=int, default=100, help="of each phantom")
    parser.add_argument("--classes", type=int, default=6, help="of the phantoms, background included")
    parser.add_argument("--architecture", default="unet", help="unet, umamba_bot, umamba_enc, ...")
    parser.add_argument("--images", type=int, help="how many of the dataset's training images; all if not given")
    parser.add_argument("--iterations", type=int, default=60, help="training iterations before")
    parser.add_argument("--rounds", type=int, default=0, help="of nnU-Net and our last command in turn")
    parser.add_argument("--tta", action="store_true", help="mirror along all axes")
    arguments = parser.parse_args()
    if not arguments.dataset and not arguments.phantoms:
        parser.error("give --dataset, --phantoms, or both")
    print(f"{machine()}, PyTorch {torch.__version__}")
    scratch = Path(tempfile.mkdtemp(prefix="benchmark_"))
    try:
        if arguments.dataset:
            root = arguments.dataset.absolute()
            images = scratch / "images"
            images.mkdir()
            for path in sorted((root / "imagesTr").iterdir())[: arguments.images]:
                shutil.copy(path, images)
            compare(root, images, {}, scratch / "dataset", arguments)
        if arguments.phantoms:
            root = scratch / "raw" / "Dataset901_CTPhantoms"
            write_phantoms(root, arguments.phantoms, arguments.slices, arguments.classes)
            compare(root, root / "imagesTr", SMALL_PLAN, scratch / "phantoms", arguments)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
