"""How the promise of `max_memory_gb` is kept: what is left for logits beside everything else in the process."""

from collections.abc import Sequence

import torch

from umamba.inference.model import Model
from umamba.inference.slabs import Layout, View, choose_layout
from umamba.io import UserError
from umamba.io.resources import peak_resident_bytes, resident_bytes

# Share of the free GPU memory that sums over tiles may take; more than that and they are kept in main memory.
_GPU_SHARE = 0.6
# What deciding labels takes beside logits, and small things.
_SCRATCH = 256 << 20
# Bytes a voxel and channel while an image is read and prepared, and while its segmentation is written.
READING = 24


class MemoryLimit:
    """A limit of the process's resident memory."""

    def __init__(self, max_memory_gb: float | None, models: Sequence[Model], tta: bool) -> None:
        """Find out, where there is a limit, what a pass of the networks takes.

        Args:
            max_memory_gb: GiB; None: no limit.
            models: the networks.
            tta: whether their inputs are mirrored.

        Raises:
            UserError: the limit is not above 0.
        """
        self.bytes = None if max_memory_gb is None else max_memory_gb * 2**30
        self._pass = 0
        if self.bytes is None:
            return
        if self.bytes <= 0:
            raise UserError(f"max_memory_gb={max_memory_gb}: give a number above 0, or null for no limit.")
        before = resident_bytes()
        for model in models:
            tiles = torch.zeros((model.tiles_at_once, model.num_channels, *model.window))
            model.forward(tta)(tiles)
        self._pass = max(0, peak_resident_bytes() - before)

    def left(self, voxels: int) -> float | None:
        """Return the bytes that are left for the logits of an image of so many voxels now; None: no limit."""
        if self.bytes is None:
            return None
        return self.bytes - resident_bytes() - self._pass - _SCRATCH - 5 * voxels

    def cases_at_once(self, most: int, voxels: int) -> int:
        """Return how many cases may be read ahead, and as many written behind; 0: one case after the other.

        Args:
            most: the number without a limit.
            voxels: of the largest image, all channels.
        """
        if self.bytes is None:
            return most
        return most if 2 * most * READING * voxels <= self.bytes / 8 else 0


def place_sums(views: Sequence[View], crop_shape: Sequence[int], left: float | None) -> tuple[torch.device, Layout]:
    """Return where the sums over tiles are kept, beside the networks if they fit there, and how the image is cut.

    Args:
        views: the image as each network sees it.
        crop_shape: voxels of the crop, axes of the file.
        left: bytes of main memory; None: no limit.

    Raises:
        UserError: not even a single row fits.
    """
    device = views[0].model.device
    if device.type == "cuda":
        images = sum(view.image.nbytes for view in views)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        layout = choose_layout(views, crop_shape, _GPU_SHARE * free - images)
        if layout is not None and layout.strips == 1:
            return device, layout
    layout = choose_layout(views, crop_shape, left)
    if layout is None:
        raise UserError(
            "max_memory_gb: too little for this image, not even one row of voxels of all classes fits beside the image "
            "and the network. Give more, or null for no limit."
        )
    return torch.device("cpu"), layout
