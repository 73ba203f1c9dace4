"""Pictures of a test case with the segmentation of every method, as in the paper's figures 2 and 3."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from omegaconf import OmegaConf

from umamba.datasets import RawCase, RawDataset, list_findings
from umamba.io import Geometry, read_image, read_label
from umamba.labels import LabelSet, colours
from umamba.records import RunFolder
from umamba.reporting.results import Results

_ALPHA = 0.45
_PANEL_INCHES = 2.2
_COLUMNS = 4


@dataclass(frozen=True)
class Picture:
    """The picture of one case.

    Attributes:
        case: the case.
        caption: text below the picture.
        png: content of the PNG file.
    """

    case: str
    caption: str
    png: bytes


def gallery(results: Results, dataset: str) -> list[Picture]:
    """Draw the cases with the lowest, median and highest mean score over methods.

    Args:
        results: the results of the study.
        dataset: the benchmark.

    Returns:
        The pictures; none without scores, predictions or the raw dataset.
    """
    rows = results.scores[results.scores["dataset"] == dataset]
    folders = {
        state.run.method: state.run.folder
        for state in reversed(results.states)  # reversed, so that the first fold and seed of a method is kept
        if state.run.dataset == dataset and state.state == "done"
    }
    raw = raw_dataset(next(iter(folders.values()))) if folders else None
    if rows.empty or raw is None:
        return []
    metric = rows["metric"].iloc[0]
    means = rows[rows["metric"] == metric].groupby("case")["value"].mean().sort_values(kind="stable")
    order = [str(case) for case in means.index]
    chosen = {order[0]: "lowest", order[len(order) // 2]: "median", order[-1]: "highest"}
    known = {case.case_id: case for case in raw.test}
    ordered = {method: folders[method] for method in results.methods(dataset) if method in folders}
    return [
        Picture(
            case,
            f"{case}: {rank} mean {metric.upper()} over methods, {means[case]:.3f}",
            picture(known[case], raw, ordered),
        )
        for case, rank in chosen.items()
        if case in known
    ]


def raw_dataset(folder: RunFolder) -> RawDataset | None:
    """Read the raw dataset that a run was trained on.

    Args:
        folder: the run folder.

    Returns:
        The dataset; None if its folder no longer exists.
    """
    if not folder.config.exists():
        return None
    root = Path(str(OmegaConf.select(OmegaConf.load(folder.config), "dataset.root")))
    return list_findings(root)[0] if root.is_dir() else None


def picture(case: RawCase, raw: RawDataset, folders: Mapping[str, RunFolder]) -> bytes:
    """Draw the image, the reference and each method's segmentation of a case.

    The slice is the axial one with the largest labelled area. It has the radiologists' orientation: the patient's front
    is at the top, the right side at the left.

    Args:
        case: the case.
        raw: its dataset.
        folders: method -> run folder.

    Returns:
        Content of a PNG file.
    """
    image = read_image(case.images)
    truth = (
        read_label(case.label).array[0] if case.label is not None else np.zeros(image.array.shape[1:], dtype=np.uint8)
    )
    areas = np.isin(truth, [value for values in raw.labels.values for value in values]).sum(axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else len(areas) // 2
    background = _display(image.array[:, index])
    panels: dict[str, np.ndarray | None] = {"image": None, "truth": truth[index]}
    for method, folder in folders.items():
        path = folder.predictions / f"{case.case_id}{raw.file_ending}"
        if path.exists():
            panels[method] = read_label(path).array[0, index]
    flipped = _flips(image.geometry)
    background = background[flipped]
    panels = {title: None if plane is None else plane[flipped] for title, plane in panels.items()}
    height = background.shape[0] * image.geometry.spacing[1]
    width = background.shape[1] * image.geometry.spacing[2]
    lines = -(-len(panels) // _COLUMNS)
    legend = -(-len(raw.labels.names) // _COLUMNS)
    size = (_COLUMNS * _PANEL_INCHES, lines * (_PANEL_INCHES * height / width + 0.35) + 0.2 * legend + 0.2)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axes, (title, segmentation) in zip(grid, panels.items(), strict=False):
        axes.imshow(background, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        axes.set_title(title, fontsize=10)
        if segmentation is not None:
            _paint(axes, segmentation, raw.labels, width, height)
    for axes in grid:
        axes.axis("off")
    handles = [
        Patch(facecolor=colour / 255, label=name)
        for name, colour in zip(raw.labels.names, colours(len(raw.labels.names)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS, fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _flips(geometry: Geometry) -> tuple[slice, slice]:
    """Return the slices that turn the Y and X axes towards the patient's back and left."""
    dim = round(len(geometry.direction_xyz) ** 0.5)
    along_x, along_y = geometry.direction_xyz[0], geometry.direction_xyz[dim + 1]
    return slice(None, None, -1 if along_y < 0 else 1), slice(None, None, -1 if along_x < 0 else 1)


def _display(plane: np.ndarray) -> np.ndarray:
    """Scale a slice (C, Y, X) to 0..1: RGB images become (Y, X, 3), others the first channel as (Y, X)."""
    if plane.shape[0] == 3 and plane.dtype == np.uint8:
        return np.moveaxis(plane, 0, -1) / 255.0
    grey = plane[0].astype(np.float32)
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.clip((grey - low) / max(float(high - low), 1e-8), 0.0, 1.0)


def _paint(axes: Axes, segmentation: np.ndarray, labels: LabelSet, width: float, height: float) -> None:
    """Draw the labels of a segmentation (Y, X) over the image."""
    layer = np.zeros((*segmentation.shape, 4))
    for values, colour in zip(labels.values, colours(len(labels.names)) / 255.0, strict=True):
        layer[np.isin(segmentation, values)] = (*colour, _ALPHA)
    axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")
