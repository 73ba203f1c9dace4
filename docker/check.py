"""Run the steps of the Dockerfile in a folder, for machines without Docker, then segment with what they made.

    python docker/check.py FOLDER [--device cpu|cuda] [--torch-cpu-index URL] [--python PYTHON]

Every RUN and COPY is executed as the Dockerfile writes it; the places /opt, /build and /tmp/cache move into FOLDER.
What needs an image is left out and named: FROM, USER, the RUN that makes a user. At the end the entry point segments
a small image with an untrained network, while Python cannot open a connection.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MOVED = re.compile(r"(?<![\w.])(/opt/|/build\b|/tmp/cache)")
_NETWORK = """
import numpy as np, SimpleITK as sitk, sys, torch
from umamba.labels import LabelSet
from umamba.networks import build_network, configuration_for_patch
from umamba.planning import Plan
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import NETWORK, store_record
from umamba.settings import UNetSettings
folder = sys.argv[1]
configuration = configuration_for_patch((16, 16, 16))
axes = (0, 1, 2)
configurations = {"3d_fullres": configuration}
plan = Plan("Dataset001_Check", "nnunet", axes, axes, (1.0, 1.0, 1.0), (16.0, 16.0, 16.0), (), configurations)
network = build_network("unet", configuration, in_channels=1, num_classes=2)
content = {"state_dict": {NETWORK + key: value for key, value in network.state_dict().items()}}
labels = LabelSet(("organ",), ((1,),))
store_record(content, CheckpointRecord(plan, "3d_fullres", UNetSettings(), labels, ("MRI",), ".nii.gz"))
torch.save(content, folder + "/weights/last.ckpt")
image = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
sitk.WriteImage(sitk.GetImageFromArray(image), folder + "/input/case.nii.gz")
"""
_NO_NETWORK = """
import socket
def _refuse(*arguments, **more):
    raise OSError("the container has no network")
socket.create_connection = socket.getaddrinfo = _refuse
"""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with what follows them; continued lines are one.

    Args:
        text: the Dockerfile.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def main() -> int:
    """Run the steps; return 0 if the entry point wrote a segmentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--torch-cpu-index")
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    folder.mkdir(parents=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    entry = ""
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        moved = _MOVED.sub(lambda found: f"{folder}{found.group()}", rest)
        if name == "ARG":
            key, _, value = rest.partition("=")
            environment[key] = {"DEVICE": given.device, "TORCH_CPU_INDEX": given.torch_cpu_index}.get(key) or value
        elif name == "COPY" and not rest.startswith("--from"):
            *sources, target = moved.split()
            for source in sources:
                _copy(ROOT / source, Path(target), into=target.endswith("/"))
        elif name == "RUN" and "useradd" not in rest:
            print(f"RUN {rest}", flush=True)
            command = moved.replace("python3 -m venv", f"{given.python} -m venv")
            subprocess.run(["/bin/bash", "-o", "pipefail", "-c", command], env=environment, check=True)
        elif name == "ENV":
            for pair in moved.split():
                key, _, value = pair.partition("=")
                environment[key] = (
                    os.path.expandvars(value) if key != "PATH" else value.replace("$PATH", environment["PATH"])
                )
        elif name == "ENTRYPOINT":
            entry = moved
        else:
            print(f"left out: {name} {rest}", flush=True)
    return _segment(folder, entry, environment)


def _copy(source: Path, target: Path, into: bool) -> None:
    place = target / source.name if into else target
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "results"))
    else:
        shutil.copy(source, place)


def _segment(folder: Path, entry: str, environment: dict[str, str]) -> int:
    """Run the entry point as a container would, on a small image; return its exit code."""
    for name in ("input", "output", "weights", "offline"):
        (folder / name).mkdir()
    python = folder / "opt" / "umamba" / "bin" / "python"
    subprocess.run([python, "-c", _NETWORK, folder], env=environment, check=True)
    (folder / "offline" / "sitecustomize.py").write_text(_NO_NETWORK)
    places = {name.upper(): str(folder / name) for name in ("input", "output", "weights")}
    command = [part.strip().strip('"') for part in entry.strip("[]").split(",")]
    done = subprocess.run(
        command, env={**environment, **places, "PYTHONPATH": str(folder / "offline")}, check=False, cwd=folder
    )
    written = sorted(path.name for path in (folder / "output").glob("*.nii.gz"))
    print(f"exit code {done.returncode}, written: {', '.join(written) or 'nothing'}")
    return done.returncode or int(written != ["case.nii.gz"])


if __name__ == "__main__":
    raise SystemExit(main())
