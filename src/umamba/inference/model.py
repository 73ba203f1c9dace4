"""One trained network with what is needed to use it: its plan, labels, device and precision."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from umamba.inference.checkpoint import load_checkpoint
from umamba.inference.official import find_checkpoint
from umamba.inference.precision import choose_precision
from umamba.inference.tiling import Forward, mirrored
from umamba.io import UserError, file_digest
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Plan

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA where there is a GPU, else the CPU. UserError if it cannot be."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"device={device} cannot be used here ({reason}). Use auto or cpu.") from None
    return chosen


@dataclass
class Model:
    """A network and what it was trained for.

    Attributes:
        network: in any mode, on any device; it is moved to `device` and set to evaluation.
        plan: the plan it was trained under.
        configuration: the configuration of that plan.
        labels: the label set.
        num_channels: channels of an image.
        device: where the network runs.
        file_ending: of the dataset's files.
        precision: Lightning's name of the precision, 32-true, bf16-mixed or 16-mixed; None: `choose_precision`.
        identity: what tells this network from others, such as the hash of its checkpoint.
        mirror_axes: patch axes that training mirrored, along which test-time augmentation may flip; None: all.
    """

    network: nn.Module
    plan: Plan
    configuration: Configuration
    labels: LabelSet
    num_channels: int
    device: torch.device
    file_ending: str = ".nii.gz"
    precision: str | None = None
    identity: str = ""
    mirror_axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.precision = self.precision or choose_precision(self.device)
        if self.precision not in ("32-true", *_AUTOCAST):
            raise UserError(f"precision={self.precision}: choose one of auto, 32-true, {', '.join(_AUTOCAST)}.")
        if getattr(self.network, "deep_supervision", False):
            self.network.deep_supervision = False  # type: ignore[assignment]
        self.network.to(self.device).eval()

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device, precision: str | None = None) -> "Model":
        """Build the network of a checkpoint, which is all that is needed.

        Args:
            path: checkpoint of a run, or of nnU-Net or U-Mamba, or a results folder of these two.
            device: where it runs.
            precision: see the class.

        Raises:
            UserError: the file is no checkpoint of this project or of these two, or its weights do not fit the network
                it names.
        """
        path = find_checkpoint(path)
        content = load_checkpoint(path)
        record: dict[str, Any] = content["umamba"]
        plan, labels = Plan.from_json(record["plan"]), LabelSet.from_json(record["labels"])
        configuration = plan.configuration(record["configuration"])
        num_channels = len(record["channel_names"])
        network = build_network(
            record["architecture"],
            configuration,
            num_channels,
            labels.num_classes,
            deep_supervision=record["recipe"].get("deep_supervision", True),
        )
        prefix = "network."
        weights = {
            name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
        }
        try:
            network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{path}: the weights do not fit the network {record['architecture'].get('name')} of its plan. Another "
                f"version of this project wrote it, or a trainer that changes the network. {error}"
            ) from None
        ending, identity = record["file_ending"], file_digest(path)
        axes = record.get("mirror_axes")
        mirror = None if axes is None else tuple(int(axis) for axis in axes)
        return cls(network, plan, configuration, labels, num_channels, device, ending, precision, identity, mirror)

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of a tile along the axes of the file; 1 across the slices of a 2D network."""
        patch = (1,) * (3 - self.configuration.dim) + tuple(self.configuration.patch_size)
        z, y, x = (patch[axis] for axis in self.plan.transpose_backward)
        return z, y, x

    @property
    def sums_dtype(self) -> torch.dtype:
        """Precision in which its tiles are summed: half where the network's own is no better."""
        return torch.float32 if self.precision == "32-true" else torch.float16

    @property
    def tiles_at_once(self) -> int:
        """Tiles in one pass: 8 slices, or one volume; more of them gain nothing, and on a CPU they leave its cache."""
        return 8 if self.configuration.dim == 2 else 1

    def forward(self, tta: bool) -> Forward:
        """Return the map from tiles (B, C, *window) along the file's axes to logits (B, num_classes, *window).

        With `tta` these are the mean over all flips of the patch's axes that training mirrored.
        """
        forth = (0, 1, *(axis + 2 for axis in self.plan.transpose_forward))
        back = (0, 1, *(axis + 2 for axis in self.plan.transpose_backward))
        flat = self.configuration.dim == 2
        axes = tuple(range(self.configuration.dim)) if self.mirror_axes is None else self.mirror_axes

        def network(tiles: Tensor) -> Tensor:
            output = self.network(tiles)
            return output[0] if isinstance(output, (list, tuple)) else output

        def forward(tiles: Tensor) -> Tensor:
            tiles = tiles.permute(forth).to(self.device).contiguous()
            tiles = tiles.squeeze(2) if flat else tiles
            with torch.inference_mode(), _cudnn(), autocast(self.device, str(self.precision)):
                logits = _mean_of_flips(network, tiles, axes) if tta else network(tiles)
            return (logits.unsqueeze(2) if flat else logits).permute(back)

        return forward


def _mean_of_flips(network: Forward, tiles: Tensor, axes: Sequence[int]) -> Tensor:
    share = 0.5 ** len(axes)
    each = mirrored(network, tiles, axes)
    mean = next(each).float() * share
    for logits in each:
        mean.add_(logits, alpha=share)
    return mean


def _cudnn() -> AbstractContextManager:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a network runs, for Lightning's name of a precision."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    return nullcontext()
