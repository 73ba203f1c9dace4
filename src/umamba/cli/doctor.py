"""`umamba doctor`: test this machine: versions, devices, engines, scan backends, a network's forward and backward."""

import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import torch
from rich.table import Table
from torch import Tensor

from umamba.inference import autocast, choose_precision, cpu_has_bfloat16
from umamba.inference.engine import openvino_problem
from umamba.io import UserError, provenance
from umamba.io.resources import available_cpus
from umamba.networks import build_network
from umamba.networks.scan.backend_states import BackendState, backend_states
from umamba.planning import Configuration

log = logging.getLogger(__name__)

EXIT_BROKEN = 1
# Plan of a small network whose Mamba layers use both kinds of tokens: voxels and channels.
_TINY = Configuration(
    name="3d_fullres",
    spacing=(1.0, 1.0, 1.0),
    median_shape=(8.0, 16.0, 16.0),
    patch_size=(8, 16, 16),
    batch_size=1,
    batch_dice=False,
    normalization=("ZScoreNormalization",),
    use_mask_for_norm=(False,),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    features_per_stage=(8, 16, 32),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1),
    residual_encoder=False,
)


@dataclass(frozen=True)
class Trial:
    """A forward and backward pass of a small U-Mamba Enc on a device.

    Attributes:
        precision: the precision that `auto` chooses on the device, by Lightning's name.
        problem: what failed; None if nothing did.
        seconds: time of the second pass, which does not compile anything; 0 if it failed.
    """

    precision: str
    problem: str | None
    seconds: float


def devices() -> list[str]:
    """Return the device types that PyTorch can use here."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def try_device(device: str) -> Trial:
    """Run a small network forward and backward on a device and check that every gradient is finite.

    Args:
        device: PyTorch's name of the device.
    """
    precision = choose_precision(torch.device(device))
    try:
        torch.manual_seed(0)
        network = build_network("umamba_enc", _TINY, 1, 2).to(device)
        image = torch.randn((2, 1, *_TINY.patch_size), device=device)
        for _ in range(2):
            start = time.perf_counter()
            with autocast(torch.device(device), precision):
                logits: list[Tensor] = network(image)
            torch.stack([scale.float().square().mean() for scale in logits]).sum().backward()
            gradients = [parameter.grad for parameter in network.parameters()]
            finite = all(bool(gradient is not None and gradient.isfinite().all()) for gradient in gradients)
            seconds = time.perf_counter() - start
    except Exception as error:  # a broken installation may raise anything, and the report shows it
        lines = str(error).strip().splitlines()
        return Trial(precision, f"{type(error).__name__}: {lines[0] if lines else 'no message'}", 0.0)
    return Trial(precision, None if finite else "gradients are missing or not finite", seconds)


def no_gpu_reason() -> tuple[str, str | None]:
    """Return why PyTorch sees no GPU, and the command that repairs it; None if the machine may have no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch was built without CUDA", "pip install --force-reinstall torch  # on Linux, with CUDA"
    if not os.path.exists("/dev/nvidiactl"):
        return "no NVIDIA driver is loaded; there may be no GPU", None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "set") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs", "unset CUDA_VISIBLE_DEVICES"
    return (
        f"the driver does not work with CUDA {torch.version.cuda} of this PyTorch",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126  # for an older driver",
    )


def versions_table() -> Table:
    """Return the table of versions of all packages that results depend on."""
    record = provenance()
    table = Table("version", "", title="Versions", title_justify="left")
    table.add_row("umamba", str(record["umamba"] or "not installed, runs from its folder"))
    table.add_row("Python", platform.python_version())
    table.add_row("system", platform.platform())
    for package, version in record["packages"].items():
        table.add_row(package, version or "not installed")
    table.add_row("CUDA of PyTorch", torch.version.cuda or "none")
    return table


def devices_table(trials: dict[str, Trial]) -> Table:
    """Return the table of devices, with the result of each trial.

    Args:
        trials: the trial of each device.
    """
    table = Table("device", "what", "precision", "forward and backward", title="Devices", title_justify="left")
    for device, trial in trials.items():
        done = f"FAILED: {trial.problem}" if trial.problem else f"works, {trial.seconds * 1000:.0f} ms"
        table.add_row(device, _described(device), trial.precision, done)
    return table


def _described(device: str) -> str:
    if device == "cpu":
        return (
            f"{available_cpus()} CPUs, {torch.get_num_threads()} threads, bfloat16 in hardware: "
            f"{'yes' if cpu_has_bfloat16() else 'no'}"
        )
    cards = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        cards.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}")
    return "\n".join(cards)


def engine_line() -> str:
    """Return what computes networks in prediction on the CPU, and the command that installs the faster engine."""
    problem = openvino_problem()
    if problem is None:
        return (
            f"Prediction on the CPU: openvino {metadata.version('openvino')} works; engine=auto takes the faster one."
        )
    return f"Prediction on the CPU: torch, because {problem}."


def backends_table(states: dict[str, list[BackendState]]) -> Table:
    """Return the table of the scan backends of each device, the fastest first.

    Args:
        states: the states of the backends on each device.
    """
    table = Table("device", "backend", "state", "to repair it", title="Selective scan", title_justify="left")
    for device, entries in states.items():
        for entry in entries:
            state = "chosen" if entry.chosen else f"refused: {entry.refusal}" if entry.refusal else "works, slower"
            table.add_row(device, entry.name, state, entry.remedy or "")
    return table


def main(arguments: Sequence[str] = ()) -> int:
    """Show the report.

    Args:
        arguments: must be empty.

    Returns:
        The exit code: 1 if the network does not train on a device, else 0.

    Raises:
        UserError: arguments are given; the command takes none.
    """
    if arguments:
        raise UserError(f"umamba doctor takes no arguments, but {arguments[0]} was given. Leave it out.")
    log.info(versions_table())
    trials = {device: try_device(device) for device in devices()}
    log.info(devices_table(trials))
    if "cuda" not in trials:
        reason, remedy = no_gpu_reason()
        log.info("No GPU: %s.%s", reason, f" To repair it: {remedy}" if remedy else "")
    log.info(engine_line())
    log.info(backends_table({device: backend_states(device) for device in trials}))
    return EXIT_BROKEN if any(trial.problem for trial in trials.values()) else 0
