"""Pictures of test cases with the segmentation of every method, as in the paper's figures 2 and 3.

Each method has a panel: for a volume the axial, coronal and sagittal slice with the largest labelled area, in
radiological convention and with the patient's directions at their edges; for an image the image itself.
"""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from umamba.datasets import RawCase, RawDataset, list_findings
from umamba.io import Image, oriented_like, read_image, read_label
from umamba.labels import LabelSet
from umamba.labels.colours import PALETTE_SIZE, colours
from umamba.labels.masks import mask_of
from umamba.labels.painting import draw_plane, paint_labels, scaled
from umamba.labels.view import View, largest_slice, letters_of, plane_size, planes_shown
from umamba.records import RunFolder
from umamba.records.config_file import read_config
from umamba.reporting.names import method_name
from umamba.reporting.results import Results

_PANEL_INCHES = 3.6  # largest width and height of a panel
_LOWEST_INCHES = 0.3
_GAP = 0.015  # between two planes, as a part of the panel's width
_DPI = 150
_QUALITY = 80  # of WebP
_LETTERS_PT = 10


@dataclass(frozen=True)
class Plane:
    """A slice of a turned volume.

    Attributes:
        axis: the turned axis across the slice.
        index: of the slice along this axis.
        name: axial, coronal or sagittal, or the axis if directions are not known, and the index in the file.
        edges: the patient's direction at the left, right, top and bottom edge; empty if it is not known.
        size: height and width in mm.
    """

    axis: int
    index: int
    name: str
    edges: tuple[str, str, str, str]
    size: tuple[float, float]

    def cut(self, turned: np.ndarray) -> np.ndarray:
        """Return the slice of a turned volume (Z, Y, X) or (Z, Y, X, 3)."""
        return np.take(turned, self.index, axis=self.axis)


@dataclass(frozen=True)
class Panel:
    """What one method made of a case.

    Attributes:
        title: the method, or image, or reference.
        webp: content of the picture's file.
    """

    title: str
    webp: bytes


@dataclass(frozen=True)
class Drawing:
    """Pictures of one image with several label maps.

    Attributes:
        place: the slices and the window of the grey values, in words.
        panels: the image, and one for each label map.
        legend: name and RGB colour of each label that is drawn.
    """

    place: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, tuple[int, int, int]], ...]

    @property
    def size(self) -> int:
        """Bytes of all panels in the page, where base64 makes four characters of three bytes."""
        return sum(4 * math.ceil(len(panel.webp) / 3) for panel in self.panels)


@dataclass(frozen=True)
class CasePicture:
    """The pictures of one case.

    Attributes:
        case: the case.
        rank: lowest, median or highest; empty for other cases.
        score: mean score over methods and labels.
        metric: name of this score.
        drawing: the image, the reference and each method's segmentation.
    """

    case: str
    rank: str
    score: float
    metric: str
    drawing: Drawing


def gallery(results: Results, dataset: str, most_bytes: float) -> list[CasePicture]:
    """Draw cases: those with the lowest, median and highest mean score over methods, then the others from the lowest.

    Args:
        results: the results of the study.
        dataset: the benchmark.
        most_bytes: size of all pictures at which no further one is added.

    Returns:
        The pictures; none without scores, predictions or the raw dataset.
    """
    rows = results.scores[results.scores["dataset"] == dataset]
    folders = {
        state.run.method: state.run.folder
        for state in reversed(results.states)  # reversed, so that the first fold and seed of a method is kept
        if state.run.dataset == dataset and state.state == "done"
    }
    raw = raw_dataset(next(iter(folders.values()))) if folders and most_bytes > 0 else None
    if rows.empty or raw is None:
        return []
    metric = rows["metric"].iloc[0]
    means = rows[rows["metric"] == metric].groupby("case")["value"].mean().sort_values(kind="stable")
    known = {case.case_id: case for case in raw.test}
    ordered = {method: folders[method] for method in results.methods(dataset) if method in folders}
    found: list[CasePicture] = []
    size = 0
    for position, rank in _by_interest(len(means)):
        case = str(means.index[position])
        if case not in known:
            continue
        drawn = picture(known[case], raw, ordered, rank, float(means.iloc[position]), metric)
        size += drawn.drawing.size
        if size > most_bytes:
            break
        found.append(drawn)
    return found


def _by_interest(cases: int) -> Iterator[tuple[int, str]]:
    """Yield the position of each of some sorted cases, the most telling ones first, and its rank in words."""
    named = {0: "lowest", cases // 2: "median", cases - 1: "highest"}
    yield from named.items()
    yield from ((position, "") for position in range(cases) if position not in named)


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


def picture(
    case: RawCase, raw: RawDataset, folders: Mapping[str, RunFolder], rank: str, score: float, metric: str
) -> CasePicture:
    """Draw the image, the reference and each method's segmentation of a case.

    Args:
        case: the case.
        raw: its dataset.
        folders: method -> run folder.
        rank: lowest, median, highest, or empty.
        score: mean score over methods and labels.
        metric: name of this score.
    """
    image = read_image(case.images)
    maps = {} if case.label is None else {"reference": read_label(case.label)}
    for method, folder in folders.items():
        path = folder.predictions / f"{case.case_id}{raw.file_ending}"
        if path.exists():
            maps[method_name(method)] = read_label(path)
    return CasePicture(case.case_id, rank, score, metric, draw_case(image, maps, raw.labels))


def draw_case(image: Image, maps: Mapping[str, Image], labels: LabelSet, focus: np.ndarray | None = None) -> Drawing:
    """Draw an image and label maps of it.

    Args:
        image: the image.
        maps: title -> label map; those of another shape are left out.
        labels: the label set.
        focus: booleans (Z, Y, X) of the image; the slices with most of it are drawn. None: those with most labelled
            voxels of the first label map.
    """
    view = View.of(letters_of(image.geometry))
    background = view.turn(image.array)
    segmented = np.zeros(background.shape[1:], dtype=bool)
    volumes = {title: _turned(own, image, view) for title, own in maps.items()}
    volumes = {title: volume for title, volume in volumes.items() if volume.shape == segmented.shape}
    if volumes:  # the reference, or the first method if there is none
        values = [value for own in labels.values for value in own]
        segmented = mask_of(next(iter(volumes.values())), values)
    grey, window = scaled(background, segmented=segmented)
    planes = planes_of(view, segmented if focus is None else view.turn(focus), image.geometry.spacing)
    drawn: set[int] = set()
    panels = [Panel("image", _panel(planes, grey, None, labels, drawn))]
    panels += [Panel(title, _panel(planes, grey, volume, labels, drawn)) for title, volume in volumes.items()]
    place = ", ".join([*(plane.name for plane in planes if plane.name), window])
    return Drawing(place, tuple(panels), _legend(labels, drawn))


def _turned(label: Image, image: Image, view: View) -> np.ndarray:
    return view.turn(oriented_like(label, image.geometry).array[0])


def planes_of(view: View, segmented: np.ndarray, spacing: Sequence[float]) -> list[Plane]:
    """Return the slices in which a case is drawn: those with the largest labelled area, one across each axis.

    Args:
        view: how the volume was turned.
        segmented: booleans of the turned volume.
        spacing: of the stored axes (Z, Y, X) in mm.
    """
    turned = view.turn_axes(spacing)
    found = []
    for axis in planes_shown(segmented.shape):
        index, slices = largest_slice(segmented, axis), segmented.shape[axis]
        name = f"{view.name(axis)} {view.stored_index(axis, index, slices)}" if slices > 1 else ""
        found.append(Plane(axis, index, name, view.edges(axis), plane_size(segmented.shape, turned, axis)))
    return found


def _panel(
    planes: Sequence[Plane], grey: np.ndarray, volume: np.ndarray | None, labels: LabelSet, drawn: set[int]
) -> bytes:
    """Draw planes side by side in one scale, and add the labels that were drawn to a set."""
    across, high = sum(plane.size[1] for plane in planes), max(plane.size[0] for plane in planes)
    width = _PANEL_INCHES * min(1.0, across / high)
    height = max(_LOWEST_INCHES, width * high / across)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    left, gap = 0.0, _GAP if len(planes) > 1 else 0.0
    for plane in planes:
        part = plane.size[1] / across * (1 - gap * (len(planes) - 1))
        axes = figure.add_axes((left, 0.0, part, 1.0))
        axes.set_axis_off()
        draw_plane(axes, plane.cut(grey), plane.size, plane.edges, _LETTERS_PT)
        if volume is not None:
            drawn |= paint_labels(axes, plane.cut(volume), plane.size, labels)
        left += part + gap
    stream = io.BytesIO()
    figure.savefig(stream, format="webp", facecolor="black", pil_kwargs={"quality": _QUALITY})
    return stream.getvalue()


def _legend(labels: LabelSet, drawn: set[int]) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    numbered = len(labels.names) > PALETTE_SIZE  # colours repeat, and the picture shows the numbers
    palette = colours(len(labels.names)).tolist()
    return tuple(
        (f"{number + 1} {labels.names[number]}" if numbered else labels.names[number], tuple(palette[number]))
        for number in sorted(drawn)
    )
