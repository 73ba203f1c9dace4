"""One image through all networks: preprocessed as each of them was trained, its labels painted slab by slab."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from umamba.inference.agreement import Agreement
from umamba.inference.canvas import Canvas, Placement, Slab, grid_maps
from umamba.inference.device_work import aside, pinned
from umamba.inference.memory import MemoryLimit, place_sums
from umamba.inference.model import Model
from umamba.inference.resize import VoxelBox
from umamba.inference.slabs import SlabLayout, View, count_tiles, give_slabs
from umamba.io import Geometry, Image, UserError, orientation_of
from umamba.labels.masks import one_hot
from umamba.preprocessing import preprocess_case
from umamba.settings import SlidingWindowSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedImage:
    """An image as each network sees it, and what is needed to map the result back to the image.

    Attributes:
        views: the image on the grid of each network.
        placement: of the crop in the image.
        geometry: of the image.
        further: views that do not decide, but whose agreement with the others is measured.
    """

    views: tuple[View, ...]
    placement: Placement
    geometry: Geometry
    further: tuple[View, ...] = ()


def same_bits(models: Sequence[Model]) -> AbstractContextManager[object]:
    """Return a context in which images are prepared with the same bits by any number of threads, if a network asks.

    Resampling multiplies matrices, whose library adds in an order that depends on its number of threads on some
    processors. It has one thread in this context, in the whole process.

    Args:
        models: the networks, see `Model.reproducible`.
    """
    return threadpool_limits(1, "blas") if any(model.reproducible for model in models) else nullcontext()


def prepare_image(
    image: Image, models: Sequence[Model], name: str = "", previous: Image | None = None
) -> PreparedImage:
    """Preprocess an image for each network; networks of the same plan share the result.

    Args:
        image: the image, (C, Z, Y, X).
        models: the networks.
        name: of the image, for warnings.
        previous: the segmentation by the previous stage (1, Z, Y, X) on the grid of the image, which cascades need.

    Raises:
        UserError: a cascade lacks the segmentation of the previous stage, or it has another shape or other labels; the
            image has another number of channels than the networks were trained with, cannot be normalised or turned, or
            the networks' plans read images differently.
    """
    check_previous(models, "" if previous is None else "previous")
    expected = models[0].num_channels
    if len(image.array) != expected:
        channels = "channel" if len(image.array) == 1 else "channels"
        raise UserError(
            f"the image has {len(image.array)} {channels}, the network was trained with {expected}. "
            "Give the same channels in the same order."
        )
    if any(model.plan.reader != models[0].plan.reader for model in models):
        raise UserError(
            "checkpoint: some of the networks see images turned to RAS (NibabelIOWithReorient), the others as they are "
            "stored. Average networks of one reader."
        )
    views: list[View] = []
    for model in models:
        same = next(
            (v for v in views if (v.model.plan, v.model.configuration) == (model.plan, model.configuration)), None
        )
        if same is not None:
            views.append(replace(same, model=model))
            continue
        # As nnU-Net does, the segmentation is cropped and resampled as the label of a training case.
        label = None if model.configuration.previous_stage is None else previous
        data, found, properties = preprocess_case(image, label, model.plan, model.configuration, model.labels, name)
        if found is not None:
            data = np.concatenate([data, one_hot(found[0], model.labels)])
        held = pinned(torch.from_numpy(data), model.device)
        grid = held.permute(0, *(axis + 1 for axis in model.plan.transpose_backward))
        placement = Placement.of(properties, model.plan)
        maps = grid_maps(grid.shape[1:], placement, properties.seen_geometry.spacing, model.plan, model.configuration)
        views.append(View(model, grid, maps))
    return PreparedImage(tuple(views), placement, image.geometry)


def check_previous(models: Sequence[Model], given: str) -> None:
    """Refuse a cascade without its first stage, and a first stage without a cascade.

    Args:
        models: the networks.
        given: the key that gives the first stage; empty: none is given.

    Raises:
        UserError: the networks and the key do not fit.
    """
    first = next((each for model in models if (each := model.configuration.previous_stage) is not None), None)
    if first is None and given:
        raise UserError(
            f"{given}: none of the networks of checkpoint is the second stage of a cascade. Leave {given} away."
        )
    if first is not None and not given:
        raise UserError(
            f"the network is the second stage of a cascade, and needs the segmentation of the image by {first}: "
            "give previous_checkpoint=... (the checkpoints of that configuration) or previous_stage=FOLDER."
        )


def warn_of_orientation(name: str, geometry: Geometry, models: Sequence[Model], seen: set[str]) -> None:
    """Log a warning if an image is stored in another orientation than the training images; once for several images.

    Where those of the training are not known, the first image sets the orientation that is expected of the others.
    Networks whose reader turns the images need no warning.

    Args:
        name: of the image, for the message.
        geometry: of the image.
        models: the networks.
        seen: the same set for all images of a call; it begins empty, and what must be remembered is added.
    """
    found = orientation_of(geometry)
    trained = sorted({name for model in models for name in model.plan.orientations})
    if found is None or any(model.plan.reader is not None for model in models) or found in trained or found in seen:
        return
    if trained and not seen:
        log.warning(
            "%s is stored in the orientation %s, but the training images in %s. The network sees it turned or mirrored "
            "and may confuse left and right. Store it like them, for example with "
            'SimpleITK.DICOMOrient(image, "%s"). Further images of this kind are not named.',
            *(name, found, " and ".join(trained), trained[0]),
        )
    elif not trained and len(seen) == 1:
        log.warning(
            "%s is stored in the orientation %s, images before it in %s. At most one of the two is that of the "
            "training images; the network may confuse left and right in the other. Further images of this kind are not "
            "named.",
            *(name, found, *seen),
        )
    seen.add(found)


def paint(
    prepared: PreparedImage,
    canvas: Canvas,
    settings: SlidingWindowSettings,
    limit: MemoryLimit,
    progress: Callable[[int, int], None],
    agreement: Agreement | None = None,
) -> Callable[[], None]:
    """Run the networks over an image and paint its labels.

    Args:
        prepared: the image.
        canvas: receives the labels.
        settings: the layout of the tiles and test-time augmentation.
        limit: of the memory.
        progress: called with the number of finished tiles and that of all tiles of the image.
        agreement: receives the logits of all views, too; None: it is not measured.

    Returns:
        A function that does the rest of the work. Where the image is not cut into slabs this is the painting itself, so
        that another thread can do it while the networks compute the next image.

    Raises:
        UserError: the memory does not suffice, or logits are not finite.
    """
    shape, deciding = prepared.placement.crop_shape, len(prepared.views)
    views = prepared.views if agreement is None else (*prepared.views, *prepared.further)
    sums_on, layout = place_sums(views, shape, limit.left(canvas.segmentation.size))
    if sums_on.type != "cpu":
        images = {id(view.image): view.image for view in views}  # networks of one plan share an image
        moved = {key: image.to(sums_on, non_blocking=True) for key, image in images.items()}
        views = tuple(replace(view, on_device=moved[id(view.image)]) for view in views)
    total, done = count_tiles(views, shape, layout, settings.tile_step_size), 0

    def advance(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(done, total)

    def add(box: VoxelBox, slabs: Sequence[Slab]) -> None:
        canvas.add(box, slabs[:deciding])
        if agreement is not None:
            agreement.add(box, slabs)

    slabs = give_slabs(views, shape, layout, settings, sums_on=sums_on, advance=advance)
    if layout == SlabLayout(1, shape[0]):
        return aside(sums_on, partial(add, *next(slabs)))
    for box, slab in slabs:
        add(box, slab)
        del slab  # give_slabs needs its memory for the next one
    return lambda: None
