"""A picture of augmented training patches: one row for each patch, first without and then with augmentation."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torchio as tio
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from umamba.io import atomic_path
from umamba.labels import LabelSet, colours
from umamba.patches.augmentation import read_margin, read_size, training_transforms
from umamba.patches.dataset import PatchDataset, make_subject
from umamba.patches.sampling import as_3d
from umamba.patches.seeding import seeded_torch
from umamba.patches.spatial import crop_centre
from umamba.settings import AugmentationSettings

if TYPE_CHECKING:
    from umamba.planning import Configuration
    from umamba.preprocessing import CaseStore

ALPHA = 0.4  # opacity of the labels


def draw_preview(
    store: "CaseStore",
    configuration: "Configuration",
    labels: LabelSet,
    augmentation: AugmentationSettings,
    path: Path,
    *,
    seed: int = 0,
    rows: int = 4,
    columns: int = 6,
) -> None:
    """Draw patches into a PNG: each row shows one patch, first without and then with several draws of augmentation.

    The patches are forced to contain foreground. Each picture shows the slice with most foreground.

    Args:
        store: the preprocessed cases.
        configuration: the plan's configuration; patch size, spacing and masked channels are read.
        labels: values and names of the labels, which also determine the colours.
        augmentation: kinds, probabilities and ranges.
        path: the file to write, ending in .png.
        seed: seed of the patches and of the augmentation.
        rows: number of patches.
        columns: pictures of each patch, including the one without augmentation.

    Raises:
        UserError: mirroring is asked for along an axis that the patch does not have.
    """
    patch_size = tuple(configuration.patch_size)
    regions = PatchDataset(
        store,
        store.case_ids,
        labels,
        tio.Compose([]),
        read_size=read_size(augmentation, patch_size),
        margin=read_margin(augmentation, patch_size, configuration.spacing),
        patch_size=as_3d(patch_size),
        dim=len(patch_size),
        batch_size=1,
        iterations=rows,
        oversample_foreground=1.0,
        seed=seed,
        stream="preview",
    )
    transforms = training_transforms(augmentation, patch_size, configuration.use_mask_for_norm, configuration.spacing)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows + 0.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        region = regions[row]
        for column in range(columns):
            subject = make_subject(*(region.get_image(name).data.clone() for name in ("image", "label")))
            if column:
                with seeded_torch(seed, "preview", row, column):
                    subject = transforms(subject)
            image = crop_centre(subject.get_image("image").data, as_3d(patch_size)).numpy()
            label = crop_centre(subject.get_image("label").data, as_3d(patch_size)).numpy()[0]
            title = f"{region['case_id']}: not augmented" if column == 0 else ""
            draw_patch(grid[row, column], image, label, labels, title)
    handles = [
        Patch(color=colour / 255, label=name)
        for name, colour in zip(labels.names, colours(len(labels.names)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def draw_patch(axes: Axes, image_CZYX: np.ndarray, label_ZYX: np.ndarray, labels: LabelSet, title: str) -> None:
    """Draw the slice with most foreground and its labels.

    Args:
        axes: where to draw.
        image_CZYX: three channels are drawn in colour, otherwise the first channel in grey.
        label_ZYX: integers of the same size.
        labels: values and names of the labels.
        title: text above the picture.
    """
    foreground = np.isin(label_ZYX, sorted({value for values in labels.values for value in values}))
    index = int(foreground.sum(axis=(1, 2)).argmax())
    natural = len(image_CZYX) == 3
    picture = np.moveaxis(image_CZYX[:, index], 0, -1) if natural else image_CZYX[0, index]
    low, high = np.percentile(picture, (1, 99))
    shown = np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    overlay = np.zeros((*label_ZYX.shape[1:], 4))
    for values, colour in zip(labels.values, colours(len(labels.names)), strict=True):
        overlay[np.isin(label_ZYX[index], values)] = [*(colour / 255), ALPHA]
    axes.imshow(overlay, interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
