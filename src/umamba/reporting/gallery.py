"""Pictures of a test case with the segmentation of every method, as in the paper's figures 2 and 3."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba.datasets import RawCase, RawDataset, list_findings
from umamba.io import read_image, read_label
from umamba.io.escape import mathtext
from umamba.labels.painting import draw_plane, label_legend, new_figure, paint_labels, scaled
from umamba.labels.view import View, largest_slice, letters_of, plane_size
from umamba.records import RunFolder
from umamba.records.config_file import read_config
from umamba.reporting.results import Results

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
    dataset = (read_config(folder.config) or {}).get("dataset")
    root = dataset.get("root") if isinstance(dataset, dict) else None
    return list_findings(Path(root))[0] if isinstance(root, str) and os.path.isdir(root) else None


def picture(case: RawCase, raw: RawDataset, folders: Mapping[str, RunFolder]) -> bytes:
    """Draw the image, the reference and each method's segmentation of a case.

    The slice is the one with the largest labelled area in the plane of the highest resolution, in radiological
    convention.

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
    view = View.of(letters_of(image.geometry))
    volumes: dict[str, np.ndarray | None] = {"image": None, "truth": view.turn(truth)}
    for method, folder in folders.items():
        path = folder.predictions / f"{case.case_id}{raw.file_ending}"
        if path.exists():
            volumes[method] = view.turn(read_label(path).array[0])
    spacing = view.turn_axes(image.geometry.spacing)
    segmented = np.isin(view.turn(truth), [value for values in raw.labels.values for value in values])
    axis = int(np.argmax(spacing))  # across the slices of the highest resolution
    index = largest_slice(segmented, axis)
    size = plane_size(segmented.shape, spacing, axis)
    background, window = scaled(view.turn(image.array), segmented=segmented)
    lines = -(-len(volumes) // _COLUMNS)
    legend = -(-len(raw.labels.names) // _COLUMNS)
    figure = new_figure(
        _COLUMNS * _PANEL_INCHES, lines * (_PANEL_INCHES * size[0] / size[1] + 0.35) + 0.2 * legend + 0.5
    )
    grid = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    drawn: set[int] = set()
    for axes, (title, volume) in zip(grid, volumes.items(), strict=False):
        draw_plane(axes, np.take(background, index, axis=axis), size, view.edges(axis))
        axes.set_title(mathtext(title), fontsize=10)
        if volume is not None:
            drawn |= paint_labels(axes, np.take(volume, index, axis=axis), size, raw.labels)
    for axes in grid[len(volumes) :]:
        axes.set_visible(False)
    slices = segmented.shape[axis]
    place = f"{view.name(axis)} {view.stored_index(axis, index, slices)}, " if slices > 1 else ""
    figure.suptitle(mathtext(f"{case.case_id}: {place}{window}"), fontsize=8)
    label_legend(figure, raw.labels, drawn)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
