"""One trained network with what is needed to use it: its plan, labels, device, precision and engine."""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from umamba.inference.digests import weights_digest
from umamba.inference.forward import (
    Forward,
    Start,
    at_once,
    by_single_threads,
    refuse_scale,
    tile_forward,
    tile_start,
    tile_window,
)
from umamba.inference.precision import choose_precision
from umamba.io import UserError, file_digest
from umamba.labels import LabelSet
from umamba.labels.case_classes import CaseHeads
from umamba.networks import build_network
from umamba.networks.budget import stored_numbers, weight_budget
from umamba.networks.heads import CaseHead, build_case_head
from umamba.planning import Configuration, Plan
from umamba.records import read_checkpoint
from umamba.records.checkpoint import Checkpoint
from umamba.settings.prediction import NO_OPENVINO, Engine
from umamba.settings.recipe import Precision
from umamba.settings.validate import wrong_choice

if TYPE_CHECKING:
    from umamba.inference.openvino_network import OpenVinoNetwork


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
            deep supervision off. Its weights are freed when OpenVINO computes it and `reload` can build it again.
        plan: the plan under which it was trained.
        configuration: the configuration of that plan.
        labels: the label set.
        num_channels: channels of an image.
        device: where the network runs.
        file_ending: ending of the segmentations, such as ".nii.gz".
        precision: Lightning's name, 32-true, bf16-mixed or 16-mixed; auto: what the device computes fast, which the
            constructor puts in its place.
        identity: a text that differs between networks, such as the hash of the checkpoint.
        weights: SHA-256 of all parameters and buffers; empty: the constructor computes it.
        source: file of the checkpoint; None: there is none.
        mirror_axes: patch axes that training mirrored, along which test-time augmentation may flip; None: all.
        engine: what computes the network: torch, openvino (on the CPU), or auto, see `umamba.inference.engine`.
        reproducible: give the same bits for any number of threads and any memory: float32 by PyTorch on the CPU, each
            tile by one thread.
        tile_scale: edge of a tile in patches of training.
        reload: builds the network again; None: `network` is kept.
        heads: what the network answers about a whole case; None: it segments only.
        case_head: the classification head that answers; None: there is none.
        compiled: the network in OpenVINO, which then computes it instead of PyTorch; None: PyTorch computes it.
        torch_is_faster: whether engine=auto has chosen PyTorch.

    Raises:
        UserError: the precision or the engine is none of these, the engine cannot compute on the device, or the weights
            are tied to the patch and tile_scale is not 1.
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
    weights: str = ""
    source: Path | None = None
    mirror_axes: tuple[int, ...] | None = None
    engine: str = "auto"
    reproducible: bool = False
    tile_scale: int = 1
    reload: Callable[[], nn.Module] | None = None
    heads: CaseHeads | None = None
    case_head: CaseHead | None = None
    compiled: "OpenVinoNetwork | None" = field(default=None, init=False)
    torch_is_faster: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("precision", self.precision, typing.get_args(Precision)),
            ("engine", self.engine, typing.get_args(Engine)),
        ):
            if value not in choices:
                raise UserError(wrong_choice(name, value, choices))
        if self.reproducible:
            self._settle_reproducible()
        refuse_scale(self.network, self.tile_scale)
        if self.engine == "openvino":
            refuse_openvino(self.device)
        if self.precision == "auto":
            self.precision = choose_precision(self.device)
        if not self.weights:
            self.weights = weights_digest(self.network.state_dict())
        self._prepare_network()

    def _settle_reproducible(self) -> None:
        wrong = {"device": self.device.type, "precision": self.precision, "engine": self.engine}
        right = {"device": ("cpu",), "precision": ("auto", "32-true"), "engine": ("auto", "torch")}
        for name, value in wrong.items():
            if value not in right[name]:
                raise UserError(
                    f"reproducible=true: needs {name}={right[name][-1]}, not {name}={value}. Leave {name} away, or "
                    "give reproducible=false."
                )
        self.precision, self.engine = "32-true", "torch"

    def _prepare_network(self) -> None:
        if getattr(self.network, "deep_supervision", False):
            self.network.deep_supervision = False  # type: ignore[assignment]
        self.network.to(self.device).eval()
        if self.case_head is not None:
            self.case_head.to(self.device).eval()

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        device: torch.device,
        precision: str = "auto",
        trust: str | Sequence[str] = (),
        engine: str = "auto",
        reproducible: bool = False,
        tile_scale: int = 1,
    ) -> "Model":
        """Build the network of a checkpoint; nothing else is needed.

        Args:
            path: checkpoint of a run, or of nnU-Net or U-Mamba, or a results folder of these two.
            device: where the network runs.
            precision: Lightning's name; auto: what the device computes fast.
            trust: packages whose functions may build the network, if it is none of this project's.
            engine: auto, torch or openvino.
            reproducible: see `Model`.
            tile_scale: see `Model`.

        Raises:
            UserError: the file is no such checkpoint, its weights do not fit the network that it names, or that network
                is built by code that is not trusted; the engine cannot be used.
        """
        checkpoint = read_checkpoint(path, trust)
        record, identity = checkpoint.record, file_digest(checkpoint.path)
        network = _trained_network(checkpoint)
        return cls(
            network,
            record.plan,
            record.configuration,
            record.labels,
            record.num_channels,
            device,
            file_ending=record.file_ending,
            precision=precision,
            identity=identity,
            weights=weights_digest(checkpoint.weights),
            source=checkpoint.path,
            mirror_axes=record.mirror_axes,
            engine=engine,
            reproducible=reproducible,
            tile_scale=tile_scale,
            # A head needs the network in PyTorch, whatever engine segments.
            reload=None if record.heads is not None else partial(_read_again, path, trust, identity),
            heads=record.heads,
            case_head=_trained_head(checkpoint, network),
        )

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: those of an image and, in a cascade, of the previous stage's labels."""
        return self.configuration.input_channels(self.num_channels, self.labels)

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of a tile along the axes of the file; 1 across the slices of a 2D network."""
        return tile_window(self.configuration, self.plan.transpose_backward, self.tile_scale)

    @property
    def sums_dtype(self) -> torch.dtype:
        """Type of the sums over tiles: float32 for a float32 network, else float16."""
        return torch.float32 if self.precision == "32-true" else torch.float16

    @property
    def tiles_per_pass(self) -> int:
        """Tiles in one pass: 8 slices or one volume, because larger passes are no faster and leave a CPU's cache.

        A reproducible pass has one, because the last bits of a tile depend on the number of tiles beside it.
        """
        return 8 if self.configuration.dim == 2 and not self.reproducible else 1

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Shape of the network's input in one pass, (B, C, *tile)."""
        edges = [self.tile_scale * edge for edge in self.configuration.patch_size]
        return (self.tiles_per_pass, self.input_channels, *edges)

    def torch_forward(self, tta: bool, precision: str = "") -> Forward:
        """Return PyTorch's function from tiles to logits, both along the axes of the file.

        Args:
            tta: average over all flips of the patch axes that training mirrored.
            precision: Lightning's name; empty: that of the model.

        Returns:
            A function from (B, C, *window) to (B, num_classes, *window).
        """
        return tile_forward(
            self.network,
            self.configuration,
            self.device,
            precision or self.precision,
            transpose_forward=self.plan.transpose_forward,
            transpose_backward=self.plan.transpose_backward,
            flipped_axes=self.flipped_axes(tta),
        )

    def start(self, tta: bool) -> Start:
        """Return the function that begins the computation of tiles by the model's engine, along the axes of the file.

        Args:
            tta: average over all flips of the patch axes that training mirrored.

        Returns:
            A function from (B, C, *window), B at most `tiles_per_pass`, to a function that waits for the logits
            (B, num_classes, *window). At most `in_flight` may be waited for at a time.
        """
        if self.reproducible:
            return by_single_threads(self.torch_forward(tta), self.in_flight(tta))
        if self.compiled is None:
            return at_once(self.torch_forward(tta))
        return self.openvino_start(self.compiled, tta)

    def openvino_start(self, compiled: "OpenVinoNetwork", tta: bool) -> Start:
        """Return what `start` returns, for the network in OpenVINO.

        Args:
            compiled: the network, compiled for `tile_shape`.
            tta: average over all flips of the patch axes that training mirrored.
        """
        return tile_start(
            compiled,
            self.configuration,
            batch=self.tiles_per_pass,
            in_flight=compiled.requests,
            transpose_forward=self.plan.transpose_forward,
            transpose_backward=self.plan.transpose_backward,
            flipped_axes=self.flipped_axes(tta),
        )

    def in_flight(self, tta: bool) -> int:
        """Return how many passes may be begun at a time; with `tta` the flips of one tile take this place.

        Args:
            tta: average over all flips.
        """
        if self.reproducible:
            return torch.get_num_threads()
        return 1 if self.compiled is None or tta else self.compiled.requests

    def use(self, compiled: "OpenVinoNetwork | None") -> None:
        """Choose what computes the network from now on; weights that are not needed any more are freed.

        Args:
            compiled: the network in OpenVINO; None: PyTorch.

        Raises:
            UserError: the weights were freed, and the checkpoint is not there any more.
        """
        if self.compiled is not None and self.compiled is not compiled:
            self.compiled.close()
        self.compiled = compiled
        if compiled is not None and self.reload is not None:
            self.network = FreedNetwork()
        elif compiled is None and isinstance(self.network, FreedNetwork):
            assert self.reload is not None
            self.network = self.reload()
            self._prepare_network()

    def flipped_axes(self, tta: bool) -> tuple[int, ...]:
        """Return the patch axes along which test-time augmentation flips.

        Args:
            tta: whether it does.
        """
        if not tta:
            return ()
        return tuple(range(self.configuration.dim)) if self.mirror_axes is None else self.mirror_axes


class FreedNetwork(nn.Module):
    """Stands where a network was whose weights OpenVINO holds."""


def refuse_openvino(device: torch.device) -> None:
    """Refuse the engine openvino where it cannot compute.

    Args:
        device: of the network.

    Raises:
        UserError: the device is not the CPU, or the package is not installed.
    """
    if device.type != "cpu":
        raise UserError(
            f"engine=openvino: computes on the CPU, not on device={device}. Give device=cpu or engine=torch."
        )
    if find_spec("openvino") is None:
        raise UserError(f"engine=openvino: {NO_OPENVINO}, or give engine=auto.")


def _trained_network(checkpoint: Checkpoint) -> nn.Module:
    """Build the network of a checkpoint with its weights."""
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
                record.input_channels,
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
            f"Another version of this project wrote it, or a trainer that changes the network. {str(error)[:2000]}"
        ) from None
    return network


def _trained_head(checkpoint: Checkpoint, network: nn.Module) -> CaseHead | None:
    """Build the classification head of a checkpoint with its weights; None: it has none."""
    record = checkpoint.record
    if record.heads is None:
        return None
    head = build_case_head(network, record.architecture.name, record.heads.sizes)
    try:
        head.load_state_dict(checkpoint.head_weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path}: the weights of its classification head do not fit its record. The file was changed. "
            f"{str(error)[:500]}"
        ) from None
    return head


def _read_again(path: Path, trust: str | Sequence[str], identity: str) -> nn.Module:
    """Build the network of a checkpoint that was read before."""
    checkpoint = read_checkpoint(path, trust)
    if file_digest(checkpoint.path) != identity:
        raise UserError(f"{checkpoint.path}: changed since it was read. Load it again.")
    return _trained_network(checkpoint)
