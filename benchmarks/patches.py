"""Augmented patches a second, compared with nnU-Net's loader and TorchIO's queue in one run.

python benchmarks/patches.py --nnunet-python ENVIRONMENT/bin/python --dataset PATH/Dataset004_Hippocampus
python benchmarks/patches.py --nnunet-python ENVIRONMENT/bin/python --phantoms 3

ENVIRONMENT has nnunetv2 2.8.1. All sides read the same preprocessed voxels with the same patch size, batch size and
number of worker processes (one thread each), and augment with the same kinds and probabilities. TorchIO's queue applies
its own transforms to whole volumes, as its documentation shows. Nothing consumes the batches, so the workers are the
limit. Ours is measured in its second epoch: the cases are open, and small ones are in memory, as in all but the first
of a training's epochs. The files of all sides are in the machine's file cache.

    patches a second    after the first tenth of the batches
    longest wait        for a batch, as a multiple of the median wait
    memory              of the process tree (proportional set size), after a quarter of the batches and at the end
    reading alone       the regions of the stream without augmentation, read from opened files in a bare loop
    share of ideal      ours without augmentation, relative to reading alone. It can be more than 100 %, because patches
                        of small cases are copied from memory; "copying alone" does that in a bare loop
    on a GPU            with --gpu: the augmentation of a whole batch there, with the device waited for only to measure

The CT phantoms have 512 x 512 x 100 voxels and the patch 40 x 224 x 192.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

CT_SHAPE, CT_PATCH = (100, 512, 512), (40, 224, 192)


def drain(batches: Iterable[Any], count: int) -> list[float]:
    """Take batches and return the wait for each of them, seconds.

    After a quarter of the batches and before the last one, print a line that asks the parent process to measure the
    memory, and wait for its answer.
    """
    iterator, waits = iter(batches), []
    for index in range(count):
        if index in (count // 4, count - 1):
            print("memory", flush=True)
            sys.stdin.readline()
        start = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - start)
    return waits


def ours(job: dict[str, Any]) -> list[float]:
    """Measure this project's datamodule in its second epoch."""
    import torch

    torch.set_num_threads(1)
    loader = our_module(job, job["augment"]).train_dataloader()
    for _batch in loader:
        pass
    loader.sampler.set_epoch(1)
    return drain(loader, job["batches"])


def our_module(job: dict[str, Any], augment: bool, device: Literal["cpu", "gpu"] = "cpu") -> Any:
    """Return the datamodule of a job, with nnU-Net's augmentation on a device or none."""
    from umamba.labels import LabelSet
    from umamba.patches import PatchDataModule
    from umamba.planning import Plan
    from umamba.preprocessing.store import open_store
    from umamba.settings import AugmentationSettings

    folder = Path(job["store"])
    content = json.loads((folder / "store.json").read_text())
    store = open_store(folder)
    return PatchDataModule(
        store,
        Plan.from_json(content["plan"]).configuration(content["configuration"]),
        LabelSet.from_json(content["labels"]),
        store.case_ids,
        store.case_ids,
        seed=0,
        iterations=job["batches"],
        augmentation=AugmentationSettings(device=device) if augment else AugmentationSettings.off(),
        num_workers=job["workers"],
    )


def on_gpu(job: dict[str, Any]) -> list[float]:
    """Measure the augmentation of batches on the GPU (augmentation.device=gpu), without making and moving them."""
    import torch

    device = torch.device("cuda")
    module = our_module(job, True, "gpu")
    waits = []
    for batch in module.train_dataloader():
        moved = module.transfer_batch_to_device(batch, device, 0)
        torch.cuda.synchronize()
        start = time.perf_counter()
        module.train_patches.transform_batch(moved)
        torch.cuda.synchronize()
        waits.append(time.perf_counter() - start)
    return waits


def reading(job: dict[str, Any]) -> list[float]:
    """Read the regions of the stream without augmentation in a bare loop, always into the same memory.

    The cases are opened before. With `in_memory` small ones are in memory, as in our stream.
    """
    from umamba.patches.sampling import read_region
    from umamba.preprocessing.store import open_store

    patches, store = our_module({**job, "workers": 0}, False).train_patches, open_store(Path(job["store"]))
    places = [patches.region_of(len(patches) + number) for number in range(len(patches))]  # of the second epoch
    opened = {case.case_id: case if job["in_memory"] else store.load(case.case_id) for case, _voxel in places}
    regions = [(opened[case.case_id], voxel) for case, voxel in places]
    channels, waits = regions[0][0].image.shape[0], []
    image = np.zeros((patches.batch_size, channels, *patches.read_size), np.float32)
    label = np.zeros((patches.batch_size, 1, *patches.read_size), np.int16)
    for first in range(0, len(regions), patches.batch_size):
        start = time.perf_counter()
        for index, (case, voxel) in enumerate(regions[first : first + patches.batch_size]):
            read_region(case.image, voxel, patches.read_size, 0, image[index])
            read_region(case.label, voxel, patches.read_size, -1, label[index])
        waits.append(time.perf_counter() - start)
    return waits


def torchio_queue(job: dict[str, Any]) -> list[float]:
    """Measure TorchIO's queue over whole volumes, with its own transforms of the same kinds."""
    import torch
    import torchio as tio

    torch.set_num_threads(1)
    subjects = [
        tio.Subject(image=tio.ScalarImage(folder / "image.nii"), label=tio.LabelMap(folder / "label.nii"))
        for folder in sorted(Path(job["volumes"]).iterdir())
    ]
    transform = tio.Compose(
        [
            tio.CropOrPad(tuple(int(edge) for edge in np.maximum(job["patch"], job["largest"])[::-1])),
            tio.RandomAffine(scales=(0.7, 1.4), degrees=30, isotropic=True, p=0.36),
            tio.RandomNoise(std=(0, 0.1), p=0.1),
            tio.RandomBlur(std=(0.5, 1), p=0.1),
            tio.RandomAnisotropy(downsampling=(1, 2), p=0.12),
            tio.RandomGamma(log_gamma=(-0.35, 0.4), p=0.4),
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5),
        ]
    )
    queue = tio.Queue(
        tio.SubjectsDataset(subjects, transform=transform),
        max_length=8 * job["batch"],
        samples_per_volume=4,
        sampler=tio.data.UniformSampler(tuple(job["patch"][::-1])),
        num_workers=job["workers"],
    )

    def endless() -> Iterable[Any]:
        while True:
            yield from tio.SubjectsLoader(queue, batch_size=job["batch"], num_workers=0)

    return drain(endless(), job["batches"])


def nnunet(job: dict[str, Any]) -> list[float]:
    """Measure nnU-Net's own loader, transforms and processes."""
    from types import SimpleNamespace

    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    torch.set_num_threads(1)
    folder, patch = Path(job["folder"]), tuple(job["patch"])
    for arrays in sorted(Path(job["arrays"]).iterdir()):
        image, label = np.load(arrays / "image.npy"), np.load(arrays / "label.npy")
        found = {
            value: np.argwhere(label == value)[:: max(1, (label == value).sum() // 10_000)]
            for value in range(1, job["classes"] + 1)
        }
        blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
        places = {"chunks": chunks, "blocks": blocks, "chunks_seg": chunks, "blocks_seg": blocks}
        target = str(folder / arrays.name)
        nnUNetDatasetBlosc2.save_case(image, label, {"class_locations": found}, target, **places)
    labels = LabelManager({"background": 0, **{f"l{i}": i for i in range(1, job["classes"] + 1)}}, None)
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch),
        print_to_log_file=lambda *_, **__: None,
        inference_allowed_mirroring_axes=None,
    )
    rotation, dummy_2d, read, mirror = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    transforms = nnUNetTrainer.get_training_transforms(
        patch,
        rotation,
        None,
        mirror,
        dummy_2d,
        use_mask_for_norm=[False],
        foreground_labels=labels.foreground_labels,
    )
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        job["batch"],
        read,
        patch,
        labels,
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )
    workers = job["workers"]
    batches = NonDetMultiThreadedAugmenter(
        loader, None, workers, num_cached=max(6, workers // 2), seeds=None, pin_memory=False, wait_time=0.002
    )
    try:
        return drain(batches, job["batches"])
    finally:
        batches._finish()


SIDES = {"ours": ours, "nnunet": nnunet, "queue": torchio_queue, "reading": reading, "gpu": on_gpu}


def tree_memory(pid: int) -> float:
    """Return the proportional set size of a process and its descendants, bytes."""
    total = 0.0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total = 1024.0 * int(rollup.split("Pss:")[1].split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_memory(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):
        return total
    return total


def measure(python: str, side: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a side in a process of its own; return its rate, waits and memory."""
    process = subprocess.Popen(
        [python, __file__, "--side", side, "--job", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    memory: list[float] = []
    waits: list[float] = []
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("memory"):
            # Not at fixed times, because measuring stops the processes and would lengthen the longest wait.
            memory.append(tree_memory(process.pid) / 1e9)
            print(file=process.stdin, flush=True)
        elif line.startswith("waits"):
            waits = json.loads(line.removeprefix("waits"))
    if process.wait() or not waits:
        raise SystemExit(f"{side} failed")
    late = waits[len(waits) // 10 :]
    return {
        "rate": job["batch"] * len(late) / sum(late),
        "stall": max(late) / max(float(np.median(late)), 1e-9),
        "memory": memory or [float("nan")] * 2,
    }


def write_phantoms(root: Path, count: int) -> Path:
    """Write a raw dataset of CT-sized cases: smooth noise with two organs."""
    folder, generator = root / "raw" / "Dataset998_CTSized", np.random.default_rng(0)
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in CT_SHAPE], indexing="ij", sparse=True)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        noise = ndimage.zoom(generator.normal(0, 200, [size // 4 for size in CT_SHAPE]), 4, order=1)
        label = np.zeros(CT_SHAPE, np.uint8)
        for value, centre in ((1, -0.3), (2, 0.4)):
            label[(grid[0] ** 2 + (grid[1] - centre) ** 2 + grid[2] ** 2) < 0.08] = value
        for array, place in (
            (noise.astype(np.int16) + 100 * label, f"imagesTr/ct_{number}_0000.nii.gz"),
            (label, f"labelsTr/ct_{number}.nii.gz"),
        ):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((0.8, 0.8, 2.5))
            sitk.WriteImage(image, str(folder / place))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def prepared_store(dataset: Path, root: Path, plan: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Preprocess a dataset and export its cases for all sides.

    Args:
        dataset: the raw dataset.
        root: folder of everything that is written.
        plan: pinned values of the plan.

    Returns:
        The store's folder, and the facts that the jobs need.
    """
    from umamba.runs import prepare
    from umamba.settings import TrainSettings, parse

    paths = {name: root / name for name in ("raw", "preprocessed", "runs")}
    prepared = prepare(parse(TrainSettings, {"dataset": {"root": dataset}, "paths": paths, "plan": plan}))
    largest = np.zeros(3, int)
    for case_id in prepared.store.case_ids:
        case = prepared.store.load(case_id)
        largest = np.maximum(largest, case.image.shape[1:])
        arrays, volumes = (root / kind / case_id for kind in ("arrays", "volumes"))
        for folder in (arrays, volumes):
            folder.mkdir(parents=True)
        np.save(arrays / "image.npy", case.image[:])
        np.save(arrays / "label.npy", case.label[:])
        sitk.WriteImage(sitk.GetImageFromArray(case.image[:][0]), str(volumes / "image.nii"))
        sitk.WriteImage(sitk.GetImageFromArray(np.maximum(case.label[:][0], 0)), str(volumes / "label.nii"))
    configuration = prepared.configuration
    facts = {"batch": configuration.batch_size, "patch": list(configuration.patch_size), "largest": largest.tolist()}
    (root / "nnunet").mkdir()
    return prepared.store.path, {**facts, "classes": len(prepared.labels.names)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", help="interpreter of the environment with nnunetv2 2.8.1")
    parser.add_argument("--dataset", type=Path, help="a raw dataset; default: CT-sized phantoms")
    parser.add_argument("--phantoms", type=int, default=3, help="number of phantoms")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of each side")
    parser.add_argument("--patches", type=int, default=None, help="default: 2000, or 240 of the phantoms")
    parser.add_argument("--queue-patches", type=int, default=None, help="for TorchIO's queue; default: a tenth")
    parser.add_argument("--gpu", action="store_true", help="measure the augmentation on the GPU, too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print("waits", json.dumps(SIDES[arguments.side](json.loads(arguments.job))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ct = arguments.dataset is None
        dataset = write_phantoms(root, arguments.phantoms) if ct else arguments.dataset.absolute()
        pinned = {"patch_size": CT_PATCH, "batch_size": 2} if ct else {}
        store, facts = prepared_store(dataset, root, pinned)
        patches = arguments.patches or (240 if ct else 2000)
        few = arguments.queue_patches or patches // 10
        job = {
            **facts,
            "workers": arguments.workers,
            "augment": True,
            "in_memory": False,
            "store": str(store),
            "arrays": str(root / "arrays"),
            "volumes": str(root / "volumes"),
            "folder": str(root / "nnunet"),
            "batches": max(8, patches // facts["batch"]),
        }
        plain, queued = {**job, "augment": False}, {**job, "batches": max(8, few // facts["batch"])}
        theirs = [("nnU-Net", arguments.nnunet_python, "nnunet", job)] if arguments.nnunet_python else []
        sides = [
            ("ours", sys.executable, "ours", job),
            *theirs,
            ("tio.Queue", sys.executable, "queue", queued),
            ("ours, no augmentation", sys.executable, "ours", plain),
            ("reading alone", sys.executable, "reading", plain),
            ("copying alone", sys.executable, "reading", {**plain, "in_memory": True}),
        ]
        shape = " x ".join(map(str, facts["patch"]))
        print(f"\n{dataset.name}, patch {shape}, batch {facts['batch']}, {arguments.workers} worker process(es)")
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
        )
        results = {}
        for name, python, side, asked in sides:
            result = results[name] = measure(python, side, asked)
            early, late = result["memory"]
            print(
                f"{name:22} {result['rate']:8.1f} patches/s   longest wait {result['stall']:6.1f} medians"
                f"   memory {early:.2f} -> {late:.2f} GB",
                flush=True,
            )
        if arguments.gpu:
            rate = measure(sys.executable, "gpu", job)["rate"]
            print(f"on a GPU               {1000 * facts['batch'] / rate:8.2f} ms for the augmentation of a batch")
    for side in ("nnU-Net", "tio.Queue"):
        if side in results:
            print(f"ours / {side}: {results['ours']['rate'] / results[side]['rate']:.2f}")
    ideal = results["ours, no augmentation"]["rate"] / results["reading alone"]["rate"]
    print(f"share of ideal throughput without augmentation: {ideal:.0%}")


if __name__ == "__main__":
    main()
