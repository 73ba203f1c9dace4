"""One trained network with what is needed to use it: its plan, labels, device and precision."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from umamba.inference.forward import Forward, tile_forward, tile_window
from umamba.inference.precision import choose_precision
from umamba.io import UserError, file_digest
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.budget import stored_numbers, weight_budget
from umamba.planning import Configuration, Plan
from umamba.records import read_checkpoint
from umamba.settings.recipe import Precision
from umamba.settings.validate import wrong_choice


def choose_device(device: str) -> torch.device:
    """Return the device of a name.

    Args:
        device: cpu, cuda, cuda:1, ...; auto: CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: there is no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"device={device}: cannot be used here ({reason}). Use auto or cpu.") from None
    return chosen


@dataclass
class Model:
    """A network and what it was trained for.

    Attributes:
        network: in any mode, on any device; the constructor moves it to `device`, sets it to evaluation and turns its
            deep supervision off.
        plan: the plan under which it was trained.
        configuration: the configuration of that plan.
        labels: the label set.
        num_channels: channels of an image.
        device: where the network runs.
        file_ending: ending of the segmentations, such as ".nii.gz".
        precision: Lightning's name, 32-true, bf16-mixed or 16-mixed; auto: what the device computes fast, which the
            constructor puts in its place.
        identity: a text that differs between networks, such as the hash of the checkpoint.
        mirror_axes: patch axes that training mirrored, along which test-time augmentation may flip; None: all.

    Raises:
        UserError: the precision is none of these.
    """

    network: nn.Module
    plan: Plan
    configuration: Configuration
    labels: LabelSet
    num_channels: int
    device: torch.device
    file_ending: str = ".nii.gz"
    precision: str = "auto"
    identity: str = ""
    mirror_axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.precision not in typing.get_args(Precision):
            raise UserError(wrong_choice("precision", self.precision, typing.get_args(Precision)))
        if self.precision == "auto":
            self.precision = choose_precision(self.device)
        if getattr(self.network, "deep_supervision", False):
            self.network.deep_supervision = False  # type: ignore[assignment]
        self.network.to(self.device).eval()

    @classmethod
    def from_checkpoint(
        cls, path: Path, device: torch.device, precision: str = "auto", trust: str | Sequence[str] = ()
    ) -> "Model":
        """Build the network of a checkpoint; nothing else is needed.

        Args:
            path: checkpoint of a run, or of nnU-Net or U-Mamba, or a results folder of these two.
            device: where the network runs.
            precision: Lightning's name; auto: what the device computes fast.
            trust: packages whose functions may build the network, if it is none of this project's.

        Raises:
            UserError: the file is no such checkpoint, its weights do not fit the network that it names, or that network
                is built by code that is not trusted.
        """
        checkpoint = read_checkpoint(path, trust)
        record = checkpoint.record
        unfit = (
            f"{checkpoint.path}: the weights do not fit the network {record.architecture.name} of its plan, which has "
            "more of them. The file was changed, or another version of this project wrote it."
        )
        try:
            with weight_budget(2 * stored_numbers(checkpoint.weights.values()), unfit):
                network = build_network(
                    record.architecture,
                    record.configuration,
                    record.num_channels,
                    record.labels.num_classes,
                    deep_supervision=record.deep_supervision,
                )
        except UserError as error:
            raise UserError(f"{checkpoint.path}: {str(error).removeprefix(f'{checkpoint.path}: ')}") from None
        try:
            network.load_state_dict(checkpoint.weights, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint.path}: the weights do not fit the network {record.architecture.name} of its plan. "
                f"Another version of this project wrote it, or a trainer that changes the network. "
                f"{str(error)[:2000]}"
            ) from None
        return cls(
            network,
            record.plan,
            record.configuration,
            record.labels,
            record.num_channels,
            device,
            file_ending=record.file_ending,
            precision=precision,
            identity=file_digest(checkpoint.path),
            mirror_axes=record.mirror_axes,
        )

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of a tile along the axes of the file; 1 across the slices of a 2D network."""
        return tile_window(self.configuration, self.plan.transpose_backward)

    @property
    def sums_dtype(self) -> torch.dtype:
        """Type of the sums over tiles: float32 for a float32 network, else float16."""
        return torch.float32 if self.precision == "32-true" else torch.float16

    @property
    def tiles_per_pass(self) -> int:
        """Tiles in one pass: 8 slices or one volume, because larger passes are no faster and leave a CPU's cache."""
        return 8 if self.configuration.dim == 2 else 1

    def forward(self, tta: bool) -> Forward:
        """Return the function from tiles to logits, both along the axes of the file.

        Args:
            tta: average over all flips of the patch axes that training mirrored.

        Returns:
            A function from (B, C, *window) to (B, num_classes, *window).
        """
        axes = tuple(range(self.configuration.dim)) if self.mirror_axes is None else self.mirror_axes
        return tile_forward(
            self.network,
            self.configuration,
            self.device,
            self.precision,
            transpose_forward=self.plan.transpose_forward,
            transpose_backward=self.plan.transpose_backward,
            flipped_axes=axes if tta else (),
        )
