"""A picture of augmented training patches: one row for each patch, first without and then with augmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torchio as tio
from matplotlib.axes import Axes

from umamba.io import atomic_path
from umamba.io.escape import mathtext
from umamba.labels import LabelSet
from umamba.labels.painting import draw_plane, label_legend, new_figure, paint_labels
from umamba.labels.view import View, largest_slice, plane_size
from umamba.patches.augmentation import read_margin, read_size, training_transforms
from umamba.patches.cutmix import PasteBox
from umamba.patches.dataset import PatchDataset
from umamba.patches.patch import Patch
from umamba.patches.sampling import as_3d
from umamba.patches.seeding import kept_torch, seed_torch
from umamba.patches.spatial import crop_centre
from umamba.settings import AugmentationSettings

if TYPE_CHECKING:
    from umamba.planning import Configuration
    from umamba.preprocessing import CaseStore


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
    paste = next((step for step in transforms.transforms if isinstance(step, PasteBox)), None)
    figure = new_figure(2.2 * columns, 2.2 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    spacing = (1.0,) * (3 - len(patch_size)) + tuple(configuration.spacing)
    drawn: set[int] = set()
    for row in range(rows):
        region = regions[row]
        for column in range(columns):
            patch = Patch(*(region.get_image(name).data.clone() for name in ("image", "label")))
            if column and paste is not None:
                patch["partner"] = regions.partner_of(row * columns + column, paste)
            subject = patch.subject()
            if column:
                with kept_torch():
                    seed_torch(seed, "preview", row, column)
                    subject = transforms(subject)
            image = crop_centre(subject.get_image("image").data, as_3d(patch_size)).numpy()
            label = crop_centre(subject.get_image("label").data, as_3d(patch_size)).numpy()[0]
            view = View.of(store.letters(str(region["case_id"])))
            drawn |= draw_patch(grid[row, column], image, label, labels, spacing, view, named=column == 0)
            if column == 0:
                grid[row, 0].set_title(mathtext(f"{region['case_id']}: not augmented"), fontsize=7)
    label_legend(figure, labels, drawn)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def draw_patch(
    axes: Axes,
    image_CZYX: np.ndarray,
    label_ZYX: np.ndarray,
    labels: LabelSet,
    spacing: Sequence[float],
    view: View,
    named: bool,
) -> set[int]:
    """Draw the slice with most foreground and its labels.

    Args:
        axes: where to draw.
        image_CZYX: three channels are drawn in colour, otherwise the first channel in grey.
        label_ZYX: integers of the same size.
        labels: values and names of the labels.
        spacing: (Z, Y, X) in mm.
        view: how the slice is turned.
        named: whether letters at the edges name the patient's sides, which mirroring would change.

    Returns:
        The positions in the label set of the labels that were drawn.
    """
    foreground = np.isin(label_ZYX, sorted({value for values in labels.values for value in values}))
    index = largest_slice(foreground, 0)
    natural = len(image_CZYX) == 3
    picture = np.moveaxis(image_CZYX[:, index], 0, -1) if natural else image_CZYX[0, index]
    low, high = np.percentile(picture, (1, 99))
    shown = np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
    axis = view.order.index(0)  # across the slices in the turned patch
    size = plane_size(tuple(label_ZYX.shape[stored] for stored in view.order), view.turn_axes(spacing), axis)
    if natural:
        turned = np.stack([np.take(view.turn(shown[None, ..., c]), 0, axis=axis) for c in range(3)], axis=-1)
    else:
        turned = np.take(view.turn(shown[None]), 0, axis=axis)
    draw_plane(axes, turned, size, view.edges(axis) if named else ("",) * 4)
    return paint_labels(axes, np.take(view.turn(label_ZYX[index][None]), 0, axis=axis), size, labels)
