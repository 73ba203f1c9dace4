"""Run commands of the program on a real file system that is too small, many times, from one warm process.

    python full_disk.py FOLDER COMMAND=POINTS ...

Each point is a process in a mount namespace of its own, in which a tmpfs of random size or number of files lies at
FOLDER/disk; at every second point the home and the temporary folder lie there, too. The command runs, its disk grows,
and the same command runs again. Two further points are a read-only disk, and links under all names of the command's
files. A line of JSON for each point goes to the standard output: exit codes, what was printed, and the files after each
run. The first line is whether this system lets a user mount a file system at all.
"""

import contextlib
import csv
import ctypes
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18
ROOMY = "size=1g,nr_inodes=0"
LIMIT_S = 300
PLAN = [
    "plan.patch_size=[8,16,16]",
    "plan.features_per_stage=[4,8,8]",
    "plan.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "plan.kernel_sizes=[[3,3,3],[3,3,3],[3,3,3]]",
    "plan.encoder_blocks=[1,1,1]",
    "plan.decoder_blocks=[1,1]",
    "plan.batch_size=2",
]
PHANTOM = [
    "dataset=phantom",
    "dataset.phantom.num_training=5",
    "dataset.phantom.num_test=2",
    "dataset.phantom.voxel_mm=12.0",
    "architecture=unet",
    *PLAN,
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.deterministic=true",
    "predict.engine=torch",  # auto would choose by times that are measured, again where home is on the disk
    "data.num_workers=0",
    "data.prepare_workers=1",
    "augmentation=none",
    "logger=csv",
    "logger.panels_every=1",
]
RUN = "runs/tiny/3d_fullres/fold_0/seed_0"
STUDY = "question: Does a full disk harm?\nruns: ['name=tiny']\nfolds: [0]\nseeds: [0]\n"
# Keys and columns that differ between two equal runs: times, memory, the hash of a checkpoint that holds times, and the
# state of the checkout, in which somebody may work meanwhile.
VOLATILE = ("time/iteration_s", "memory/peak_gb", "used", "continuations", "network", "provenance")


def commands(inputs: Path, disk: Path) -> dict[str, list[str]]:
    """Return each command that is tested, with its inputs beside the disk and its outputs on it."""
    dataset = next((inputs / "raw").glob("Dataset*"))
    run = inputs / RUN
    whole = [f"paths.raw={inputs / 'raw'}", f"paths.preprocessed={inputs / 'preprocessed'}"]
    study_overrides = json.dumps([*PHANTOM, *whole]).replace('"', "'")
    return {
        "convert": [
            "convert",
            "archive=folders",
            f"source={inputs / 'patients'}",
            "name=Dataset500_Mine",
            "label=_seg.nii.gz",
            "workers=1",
            f"paths.raw={disk / 'raw'}",
        ],
        "prepare": [
            "prepare",
            *PHANTOM,
            f"paths.raw={inputs / 'raw'}",
            f"paths.preprocessed={disk / 'preprocessed'}",
            "preview=true",
            f"nnunet_plans={disk / 'nnUNetPlans.json'}",
        ],
        "train": ["train", *PHANTOM, *whole, f"paths.runs={disk / 'runs'}", "name=tiny"],
        "predict": [
            "predict",
            f"checkpoint={run / 'checkpoints' / 'last.ckpt'}",
            f"input={dataset / 'imagesTs'}",
            f"output={disk / 'segmentations'}",
            "probabilities=true",
            "engine=torch",
        ],
        "evaluate": [
            "evaluate",
            f"predictions={run / 'predictions'}",
            f"truth={dataset / 'labelsTs'}",
            f"images={dataset / 'imagesTs'}",
            f"output={disk / 'evaluation'}",
            "workers=1",
        ],
        "report": [
            "report",
            f"study={inputs / 'study'}",
            f"paths.runs={inputs / 'runs'}",
            f"output={disk / 'report'}",
            f"overrides={study_overrides}",
        ],
        "export": ["export", f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", f"output={disk / 'nnunet'}"],
    }


def make_inputs(inputs: Path) -> None:
    """Write the phantom, prepare it, train a tiny network, and lay the phantom out as a folder for each patient."""
    paths = [f"paths.{name}={inputs / name}" for name in ("raw", "preprocessed", "runs")]
    code, said = in_a_child(lambda: run_command(["train", *PHANTOM, *paths, "name=tiny"], inputs / "home"))
    assert code == 0, said
    (inputs / "study").mkdir()
    (inputs / "study" / "sweep.yaml").write_text(STUDY)
    dataset = next((inputs / "raw").glob("Dataset*"))
    for image in sorted((dataset / "imagesTr").iterdir()):
        case = image.name.removesuffix("_0000.nii.gz")
        folder = inputs / "patients" / case
        folder.mkdir(parents=True)
        (folder / f"{case}_ct.nii.gz").write_bytes(image.read_bytes())
        (folder / f"{case}_seg.nii.gz").write_bytes((dataset / "labelsTr" / f"{case}.nii.gz").read_bytes())


def run_command(arguments: list[str], home: Path) -> int:
    """Run a command as a process of its own would, with its home and temporary folder at `home`."""
    from umamba.cli.main import main

    with contextlib.suppress(OSError):
        (home / "tmp").mkdir(parents=True, exist_ok=True)
    os.environ |= {"HOME": str(home), "TMPDIR": str(home / "tmp"), "XDG_CACHE_HOME": str(home / ".cache")}
    tempfile.tempdir = None
    return main(arguments)


def in_a_child(work: Callable[[], int]) -> tuple[int, str]:
    """Call a function in a fork of this process; return its exit code and all that it printed."""
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            for descriptor in (1, 2):
                os.dup2(printed.fileno(), descriptor)
            code = 70
            try:
                signal.alarm(LIMIT_S)
                code = work()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read().decode(errors="replace")


def mount(target: Path, options: str, flags: int = 0) -> None:
    """Mount a tmpfs, or change the options of one that is mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(target), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {options}")


def own_mounts() -> None:
    """Give this process a user and a mount namespace of its own; needs no root where the system allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "mount --make-private")


def digest(value: Any) -> str:
    """Return a hash of nested plain values and tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return hashlib.sha256(repr((value.dtype, value.shape)).encode() + value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return digest([(str(name), digest(item)) for name, item in value.items() if name not in VOLATILE])
    if isinstance(value, list | tuple):
        return hashlib.sha256("".join(digest(item) for item in value).encode()).hexdigest()
    return hashlib.sha256(repr(value).encode()).hexdigest()


def content(path: Path) -> str:
    """Return a hash of a file's content, without times; raise an error if the file is cut off or empty."""
    import numpy as np
    import torch
    from PIL import Image

    data = path.read_bytes()
    if path.suffix in (".ckpt", ".pth"):
        return digest(torch.load(io.BytesIO(data), weights_only=False))
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data)) as arrays:
            return digest([(name, arrays[name].tobytes()) for name in sorted(arrays)])
    if path.suffix == ".json":
        return digest(json.loads(data))
    if path.name == "metrics.csv":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        return digest([{name: text for name, text in row.items() if name not in VOLATILE} for row in rows])
    if path.name == "progress.png":  # it shows seconds
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
        return "a picture"
    if not data:
        raise ValueError("empty")
    return hashlib.sha256(data).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Return the content of each file below a folder; locks, the home folder and folders for themselves left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("home/") or (path.is_dir() and not path.is_symlink()) or path.name.endswith(".lock"):
            continue
        try:
            found[name] = "a link" if path.is_symlink() else content(path)
        except Exception as error:
            found[name] = f"DAMAGED {path.stat().st_size} bytes: {error!r}"
    return found


def used(disk: Path) -> tuple[int, int]:
    """Return the bytes and the number of files that a file system holds."""
    facts = os.statvfs(disk)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize, facts.f_files - facts.f_ffree


def point(disk: Path, arguments: list[str], options: str, home: Path, whole: dict[str, str]) -> dict[str, Any]:
    """Run a command on a disk of its own; unless that gave all files, let the disk grow and run it again.

    Args:
        disk: where the disk is mounted.
        arguments: the command.
        options: of the disk: its size, its number of files; "ro": read-only; "links": each name of the undisturbed
            command is a link that leads to nothing beside the disk; "shm": the disk has room, but /dev/shm is full.
        home: the home folder of the command.
        whole: the files of the undisturbed command.
    """
    own_mounts()
    outside = disk.with_name("outside")
    mount(disk, options if options.startswith("size") else ROOMY)
    if options == "ro":
        mount(disk, ROOMY, MS_REMOUNT | MS_RDONLY)
    if options == "shm":
        mount(Path("/dev/shm"), "size=16k")
    if options == "links":
        outside.mkdir(exist_ok=True)
        for number, name in enumerate(whole):
            (disk / name).parent.mkdir(parents=True, exist_ok=True)
            (disk / name).symlink_to(outside / str(number))
    runs: list[dict[str, Any]] = []
    while len(runs) < 2 and not (runs and runs[0]["tree"] == whole):
        if runs:
            mount(disk, ROOMY, MS_REMOUNT)
        began = time.monotonic()
        more = ["data.num_workers=1"] if options == "shm" and not runs else []
        code, said = in_a_child(partial(run_command, [*arguments, *more], home))
        seconds = time.monotonic() - began
        size, files = used(disk)
        runs.append({"code": code, "said": said, "tree": tree(disk), "size": size, "files": files, "seconds": seconds})
    escaped = sorted(os.listdir(outside)) if outside.exists() else []
    return {"options": options, "home": str(home), "runs": runs, "escaped": escaped}


def sizes(most: tuple[int, int], number: int, seed: str) -> list[tuple[str, bool]]:
    """Return mount options and whether home is on the disk, too: random sizes, and numbers of files at a third."""
    chance = random.Random(seed)
    found = []
    for index in range(number):
        if index % 3 == 2:
            options = f"size=1g,nr_inodes={chance.randint(2, most[1] + 2)}"
        else:
            options = f"size={4096 * chance.randint(1, most[0] // 4096 + 1)}"
        found.append((options, index % 2 == 1))
    return found


def answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function returns that is called in a fork of this process."""
    with tempfile.TemporaryFile() as stream:

        def write() -> int:
            stream.write(json.dumps(work()).encode())
            stream.flush()
            return 0

        code, said = in_a_child(write)
        stream.seek(0)
        return json.loads(stream.read()) if code == 0 else {"failed": said}


def may_mount(folder: Path) -> dict[str, Any]:
    """Return {"mounts": True}, or raise an error if this system lets no user mount a file system."""
    own_mounts()
    mount(folder, "size=1m")
    return {"mounts": True}


def main() -> None:
    """Run the campaign."""
    folder, wanted = Path(sys.argv[1]), dict(argument.split("=") for argument in sys.argv[2:])
    disk, inputs = folder / "disk", folder / "inputs"
    disk.mkdir(parents=True, exist_ok=True)
    allowed = answer(lambda: may_mount(disk))
    print(json.dumps(allowed), flush=True)
    if "failed" in allowed:
        return
    import umamba.cli.sweep
    import umamba.evaluation.evaluate
    import umamba.inference.nnunet_export
    import umamba.patches.preview
    import umamba.reporting
    import umamba.runs.prediction
    import umamba.runs.whole_run  # noqa: F401

    if not inputs.exists():
        make_inputs(inputs)
    for name, arguments in commands(inputs, disk).items():
        if name not in wanted:
            continue
        whole = answer(partial(point, disk, arguments, "size=1g", folder / "home", {}))
        print(json.dumps({"command": name, **whole}), flush=True)
        if "failed" in whole:
            continue
        first = whole["runs"][0]
        most = (first["size"], first["files"])
        special = ["links", "ro", *(["shm"] if name == "train" else [])]
        for options, small_home in [*((option, False) for option in special), *sizes(most, int(wanted[name]), name)]:
            home = disk / "home" if small_home else folder / "home"
            found = answer(partial(point, disk, arguments, options, home, first["tree"]))
            print(json.dumps({"command": name, **found}), flush=True)


if __name__ == "__main__":
    main()
