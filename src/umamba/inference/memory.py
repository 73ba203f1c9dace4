"""How the limit `max_memory_gb` is kept: the memory that is left for logits beside everything else in the process."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from umamba.inference.forward import HOST_PASSES
from umamba.inference.model import Model
from umamba.inference.slabs import SlabLayout, View, choose_layout
from umamba.io import UserError
from umamba.io.resources import peak_resident_bytes, resident_bytes

# Share of the free GPU memory that the sums over tiles may take; larger sums are kept in main memory.
_GPU_SHARE = 0.6
# Bytes for deciding labels beside the logits, and for small objects.
_SCRATCH = 256 << 20
# Bytes for each voxel and channel while an image is read and preprocessed, or while its segmentation is written.
_READING = 24
# Bytes for each voxel of the image while its label map is post-processed and written.
_WRITING = 5
# Share of the limit that images may take that are read ahead or written behind.
_QUEUE_SHARE = 1 / 8


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of the process's resident memory.

    Attributes:
        bytes: the limit; None: there is none.
        pass_bytes: memory that one forward pass takes beside what is resident between passes.
    """

    bytes: float | None = None
    pass_bytes: int = 0

    def left(self, voxels: int) -> float | None:
        """Return the bytes that are left for logits at this moment.

        Args:
            voxels: of the image, one channel.

        Returns:
            Bytes, negative where the limit is exceeded already; None: no limit.
        """
        if self.bytes is None:
            return None
        return self.bytes - resident_bytes() - self.pass_bytes - _SCRATCH - _WRITING * voxels

    def cases_at_once(self, most: int, voxels: int) -> int:
        """Return how many cases may be read ahead, and as many written behind; 0: one case after the other.

        Args:
            most: the number without a limit.
            voxels: of the largest image, all channels.

        >>> MemoryLimit().cases_at_once(most=2, voxels=600 * 512 * 512)
        2
        >>> MemoryLimit(bytes=8 * 2**30).cases_at_once(most=2, voxels=600 * 512 * 512)
        0
        """
        if self.bytes is None:
            return most
        return most if 2 * most * _READING * voxels <= self.bytes * _QUEUE_SHARE else 0


def measure_limit(max_memory_gb: float | None, models: Sequence[Model], tta: bool) -> MemoryLimit:
    """Return the limit, after one forward pass of each network that shows how much memory a pass takes.

    Args:
        max_memory_gb: GiB of the whole process; None: no limit, and nothing is measured.
        models: the networks.
        tta: whether their inputs are mirrored.
    """
    if max_memory_gb is None:
        return MemoryLimit()
    before = resident_bytes()
    for model in models:
        _run_passes(model, tta)
    if all(model.compiled is not None for model in models):
        # OpenVINO keeps the memory of a pass for the next one, so that it is resident already.
        before = resident_bytes()
    return MemoryLimit(max_memory_gb * 2**30, max(0, peak_resident_bytes() - before))


def _run_passes(model: Model, tta: bool) -> None:
    tiles = torch.zeros((model.tiles_per_pass, model.input_channels, *model.window))
    start = model.start(tta)
    for wait in [start(tiles) for _ in range(model.in_flight(tta))]:
        wait()


def place_sums(views: Sequence[View], crop_shape: Sequence[int], left: float | None) -> tuple[torch.device, SlabLayout]:
    """Choose where the sums over tiles are kept and how the image is cut.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        left: bytes of main memory; None: no limit.

    Returns:
        The device, that of the networks if the sums of one strip fit there, else the CPU; and the layout.

    Raises:
        UserError: not even a slab of a single row fits.
    """
    device = views[0].model.device
    if device.type == "cuda":
        images = sum({id(view.image): view.image.nbytes for view in views}.values())
        layout = choose_layout(views, crop_shape, _room_on(device) - images)
        if layout is not None and layout.strips == 1:
            return device, layout
        if left is not None:
            left -= HOST_PASSES * max(_logits_bytes(view.model) for view in views)
    layout = choose_layout(views, crop_shape, left)
    if layout is None:
        raise UserError(
            "max_memory_gb: too little for this image, because not even one row of voxels of all classes fits beside "
            "the image and the network. Give more, or null for no limit."
        )
    return torch.device("cpu"), layout


def sums_device(device: torch.device, bytes_needed: int) -> torch.device:
    """Return where sums over tiles are kept that are not cut: on a GPU if they fit there, else on the CPU.

    Args:
        device: of the network.
        bytes_needed: of the sums and the image.
    """
    return device if device.type == "cuda" and bytes_needed <= _room_on(device) else torch.device("cpu")


def _room_on(device: torch.device) -> float:
    """Return the bytes of a GPU's memory that images and sums over tiles may take."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def _logits_bytes(model: Model) -> int:
    """Return at most how many bytes the logits of one pass take."""
    return 4 * model.tiles_per_pass * model.labels.num_classes * math.prod(model.window)
