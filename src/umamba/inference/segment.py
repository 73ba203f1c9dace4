"""One image through all networks: prepared as each of them was trained, its labels painted slab by slab."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from umamba.inference.export import Canvas, Placement, grid_maps
from umamba.inference.memory import MemoryLimit, place_sums
from umamba.inference.model import Model
from umamba.inference.slabs import Layout, View, count_tiles, give_slabs
from umamba.io import Geometry, Image, UserError
from umamba.preprocessing import preprocess_case


@dataclass(frozen=True)
class Settings:
    """How images are gone through.

    Attributes:
        tile_step_size: largest step between tiles as a fraction of the patch.
        tta: average over mirrored images.
        limit: of the memory.
    """

    tile_step_size: float
    tta: bool
    limit: MemoryLimit

    def __post_init__(self) -> None:
        if not 0 < self.tile_step_size <= 1:
            raise UserError(f"tile_step_size={self.tile_step_size}: give a fraction of the patch above 0, at most 1.")


@dataclass(frozen=True)
class Prepared:
    """An image as each network sees it, and what is needed to lead a result back.

    Attributes:
        views: one a network.
        placement: of the crop in the image.
        geometry: of the image.
    """

    views: tuple[View, ...]
    placement: Placement
    geometry: Geometry


def prepare_image(image: Image, models: Sequence[Model]) -> Prepared:
    """Preprocess an image for each network, once for those of the same plan.

    Raises:
        UserError: it has another number of channels than the networks were trained with, or cannot be normalised.
    """
    expected = models[0].num_channels
    if len(image.array) != expected:
        raise UserError(
            f"the image has {len(image.array)} channels, the network was trained with {expected}. "
            "Give the same channels in the same order."
        )
    views: list[View] = []
    for model in models:
        same = next(
            (v for v in views if (v.model.plan, v.model.configuration) == (model.plan, model.configuration)), None
        )
        if same is not None:
            views.append(replace(same, model=model))
            continue
        data, _, properties = preprocess_case(image, None, model.plan, model.configuration, model.labels)
        grid = torch.from_numpy(data).permute(0, *(axis + 1 for axis in model.plan.transpose_backward))
        placement = Placement.of(properties, model.plan)
        maps = grid_maps(grid.shape[1:], placement, image.geometry.spacing, model.plan, model.configuration)
        views.append(View(model, grid, maps))
    return Prepared(tuple(views), placement, image.geometry)


def paint(
    prepared: Prepared, canvas: Canvas, settings: Settings, progress: Callable[[int, int], None]
) -> Callable[[], None]:
    """Run the networks over an image and paint its labels; return what is left to do.

    An image that need not be cut is left to be painted, which another thread may do beside the networks' next image.

    Args:
        prepared: the image.
        canvas: what is painted on.
        settings: how the image is gone through.
        progress: is told the tiles that are done and those of the whole image.

    Raises:
        UserError: the memory does not suffice, or logits are not finite.
    """
    shape, views = prepared.placement.crop_shape, prepared.views
    sums_on, layout = place_sums(views, shape, settings.limit.left(canvas.segmentation.size))
    if sums_on.type != "cpu":
        views = tuple(replace(view, image=view.image.to(sums_on)) for view in views)
    total, done = count_tiles(views, shape, layout, settings.tile_step_size), 0

    def advance(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(done, total)

    slabs = give_slabs(
        views,
        shape,
        layout,
        tile_step_size=settings.tile_step_size,
        tta=settings.tta,
        sums_on=sums_on,
        advance=advance,
    )
    if layout == Layout(1, shape[0]):
        return partial(canvas.add, *next(slabs))
    for box, own in slabs:
        canvas.add(box, own)
        del own  # as give_slabs asks
    return _nothing


def _nothing() -> None:
    pass
