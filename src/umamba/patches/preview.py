"""A picture of training patches as the network gets them: a row a patch, plain and augmented several times."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torchio as tio
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from umamba.io import atomic_path
from umamba.labels import LabelSet, colours
from umamba.patches.augmentation import read_size, training_transforms
from umamba.patches.dataset import PatchDataset
from umamba.patches.seeding import seeded_torch
from umamba.patches.settings import read_augmentation
from umamba.patches.spatial import crop_centre

if TYPE_CHECKING:
    from umamba.planning import Configuration
    from umamba.preprocessing import CaseStore

ALPHA = 0.4


def draw_preview(
    store: "CaseStore",
    configuration: "Configuration",
    labels: LabelSet,
    augmentation: Mapping[str, Any],
    path: Path,
    *,
    seed: int = 0,
    rows: int = 4,
    columns: int = 6,
) -> None:
    """Draw a grid into a PNG: each row is one patch, first as it is cut, then under several draws of the augmentation.

    The patches are forced to hold foreground; shown is the slice of the patch that holds most of it.

    Args:
        store: the preprocessed cases.
        configuration: patch size and channels with masked normalisation.
        labels: values and colours.
        augmentation: the `augmentation` group.
        path: the file to write, ending in .png.
        seed: which patches, and which draws.
        rows: patches.
        columns: pictures of each patch, the plain one included.
    """
    patch_size = tuple(configuration.patch_size)
    whole = (1,) * (3 - len(patch_size)) + patch_size
    settings = read_augmentation(augmentation, len(patch_size))
    masked = tuple(channel for channel, used in enumerate(configuration.use_mask_for_norm) if used)
    boxes = PatchDataset(
        store,
        store.case_ids,
        labels,
        tio.Compose([]),
        read_size=read_size(settings, patch_size),
        patch_size=whole,
        dim=len(patch_size),
        batch_size=1,
        iterations=rows,
        oversample_foreground=1.0,
        seed=seed,
        stream="preview",
    )
    transforms = training_transforms(settings, patch_size, masked)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows + 0.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        box = boxes[row]
        for column in range(columns):
            subject = tio.Subject(
                image=tio.ScalarImage(tensor=box.get_image("image").data.clone()),
                label=tio.LabelMap(tensor=box.get_image("label").data.clone()),
            )
            if column:
                with seeded_torch(seed, "preview", row, column):
                    subject = transforms(subject)
            image = crop_centre(subject.get_image("image").data, whole).numpy()
            label = crop_centre(subject.get_image("label").data, whole).numpy()[0]
            title = f"{box['case_id']}: as cut" if column == 0 else ""
            draw_patch(grid[row, column], image, label, labels, title)
    handles = [
        Patch(color=colour / 255, label=name)
        for name, colour in zip(labels.names, colours(len(labels.names)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def draw_patch(axes: Axes, image_CZYX: np.ndarray, label_ZYX: np.ndarray, labels: LabelSet, title: str) -> None:
    """Draw the slice with most foreground, grey or in colour, with the labels over it."""
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
