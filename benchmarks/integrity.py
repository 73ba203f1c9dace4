"""How much of the time of loading goes to the checksums, which find flipped bits: a checkpoint, and a store of cases.

python benchmarks/integrity.py

Checkpoint: `Predictor.from_checkpoint` of nnU-Net's 3D U-Net (31 million weights), with and without the comparison,
which runs in threads beside torch.load; also with a file that is not in the system's cache. Store: comparing all files
with their checksums, which each training does once when it starts, against reading all voxels once, and against the
patches of one epoch (250 batches of 2), which are read by one process. The sides alternate; medians of the repeats.
"""

import argparse
import os
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine

from umamba.inference import Predictor
from umamba.io.checksums import check_archive, checksums, read_checked
from umamba.io.resources import available_cpus
from umamba.networks import build_network, configuration_for_patch
from umamba.planning import Plan
from umamba.preprocessing.store import _open, _write
from umamba.records import checkpoint

PATCH, CASE = (128, 128, 128), (180, 240, 240)


def seconds(action: Callable[[], Any]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def paired(sides: dict[str, Callable[[], Any]], repeats: int, before: Callable[[], None]) -> dict[str, float]:
    """Return the median seconds of several actions that alternate.

    Args:
        sides: the actions by name.
        repeats: how often each is timed.
        before: runs before each of them, and is not timed.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, action in sides.items():
            before()
            found[name].append(seconds(action))
    return {name: statistics.median(times) for name, times in found.items()}


def forget(paths: list[Path]) -> None:
    """Take files out of the system's cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def unchecked(_: Path, read: Callable[[], Any]) -> Any:
    """Read without comparing checksums, as before they were compared."""
    return read()


def write_checkpoint(path: Path) -> None:
    """Write the checkpoint of an nnU-Net U-Net with random weights, without an optimiser."""
    configuration = configuration_for_patch(PATCH)
    axes = (0, 1, 2)
    plan = Plan(
        "Dataset001_Speed", "nnunet", axes, axes, (1.0,) * 3, (200.0,) * 3, (), {configuration.name: configuration}
    )
    network = build_network("unet", configuration, 1, 14)
    labels = {"background": 0, **{f"organ {value}": value for value in range(1, 14)}}
    record = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": configuration.name,
        "architecture": {"name": "unet"},
        "labels": {"labels": labels, "regions_class_order": None},
        "channel_names": ["CT"],
        "file_ending": ".nii.gz",
        "recipe": {},
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"umamba": record, "state_dict": weights}, path)


def main() -> None:
    """Time both, and print the shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", type=int, default=4)
    arguments = parser.parse_args()
    repeats = arguments.repeats
    print(machine(), f"torch {torch.__version__}, {available_cpus()} CPUs for this process")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        write_checkpoint(path)
        size = path.stat().st_size / 1e6

        def load(checking: bool) -> None:
            other = read_checked if checking else unchecked
            with unittest.mock.patch.object(checkpoint, "read_checked", other):
                Predictor.from_checkpoint(path, device="cpu", precision="32-true")

        sides: dict[str, Callable[[], Any]] = {
            "check": lambda: check_archive(path),
            "with": lambda: load(True),
            "without": lambda: load(False),
        }
        for kind, before in (("cached", lambda: None), ("from disk", lambda: forget([path]))):
            found = paired(sides, 3 * repeats, before)
            check, checking, plain = found["check"], found["with"], found["without"]
            print(
                f"checkpoint of {size:.0f} MB, {kind}: loading {checking:.3f} s with and {plain:.3f} s without the "
                f"comparison, which is {checking / plain - 1:+.1%}; alone it takes {check:.3f} s "
                f"({size / 1e3 / check:.1f} GB/s)"
            )
        rng = np.random.default_rng(0)
        files = [Path(folder) / f"{case}.b2nd" for case in range(arguments.cases)]
        for file in files:
            smooth = np.linspace(-1, 1, CASE[-1], dtype=np.float32) + rng.normal(0, 0.2, CASE).astype(np.float32)
            _write(file, np.round(smooth, 3)[None], flat=False)
        size = sum(file.stat().st_size for file in files) / 1e6
        opened = [_open(file) for file in files]
        corners = [[int(rng.integers(0, length - 96)) for length in CASE] for _ in range(50)]

        def patches() -> None:
            for number, (z, y, x) in enumerate(corners):
                opened[number % len(opened)][:, z : z + 96, y : y + 96, x : x + 96]

        workers = available_cpus()
        reading: dict[str, Callable[[], Any]] = {
            "check": lambda: checksums(files, workers),
            "voxels": lambda: [case[:] for case in opened],
            "patches": patches,
        }
        for kind, before in (("cached", lambda: None), ("from disk", lambda: forget(files))):
            found = paired(reading, repeats, before)
            check, voxels, epoch = found["check"], found["voxels"], found["patches"] * 500 / len(corners)
            print(
                f"store of {len(files)} cases, {size:.0f} MB, {kind}: check {check:.3f} s in {workers} threads "
                f"({size / 1e3 / check:.1f} GB/s), all voxels once {voxels:.3f} s, patches of an epoch {epoch:.1f} s"
            )
            print(
                f"  the check, once a training, is {check / (check + voxels):.1%} of check and voxels, "
                f"{check / (check + epoch):.1%} of check and one epoch's patches, "
                f"{check / (check + 1000 * epoch):.4%} of check and 1000 epochs' patches"
            )


if __name__ == "__main__":
    main()
