"""Scores of segmentations against references: of arrays, of files, and of folders in parallel.

The generic rules give DSC and NSD for each label. A label in neither map has no score (NaN) and does not enter the
means (nnU-Net's rule; the challenge scripts give 1). A label in only one map, which is missed or invented, scores 0.
Between such maps there is no distance, so HD95 leaves the case out; HD95 with misses counts it with the worst value,
the image's diagonal, because a mean over found structures alone rewards a method that finds few (Maier-Hein et al.,
Metrics Reloaded, https://doi.org/10.1038/s41592-023-02151-z). Voxels with the ignore label in the reference are not
counted. The rules of the benchmarks are in `protocols` and `instances`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pandas
from skimage.measure import label as connected_components

from umamba.evaluation.detection import DETECTED, detection_scores
from umamba.evaluation.instances import score_cells
from umamba.evaluation.objects import match_parts
from umamba.evaluation.overlap import BoundingBox, common_box, dice, label_boxes
from umamba.evaluation.panoptic import panoptic_scores
from umamba.evaluation.protocols import ENDOSCOPY_TOLERANCE_PX, endoscopy_classes, score_abdomen
from umamba.evaluation.rules import Rules
from umamba.evaluation.surface import surface_dice, surface_distances
from umamba.io import Geometry, Image, UserError, geometry_difference, oriented_like, read_label
from umamba.io.resources import available_cpus
from umamba.io.tabular import write_table
from umamba.io.voice import tracked
from umamba.labels import LabelSet
from umamba.labels.instance_maps import WATERSHED, grouped_instances
from umamba.labels.label_set import MOST_VALUE

WITH_MISSES = "hd95_with_misses_mm"
TITLES = {
    **{"dsc": "DSC", "nsd": "NSD", "f1": "F1", "precision": "precision", "recall": "recall", "hd95_mm": "HD95 (mm)"},
    WITH_MISSES: "HD95 with misses (mm)",
    **{"pq": "PQ", "ap_mean": "AP", "object_f1": "object F1", "object_dsc": "object DSC"},
}
# The metrics that methods are compared by, the most important first.
_COMPARED = ("f1", "dsc", "nsd", "hd95_mm", WITH_MISSES, "pq", "ap_mean", "object_f1", "object_dsc")
CELLS = "cells"  # stands in the column "label" of the cells' scores
_CASES_PER_PROCESS = 8  # scoring fewer cases takes less time than the imports of a new process

Scores = dict[str, dict[str, float]]  # label -> metric -> value


def score_case(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], rules: Rules
) -> dict[str, dict[str, float]]:
    """Score a label map by the generic rules against a reference.

    Args:
        prediction: integers (Z, Y, X).
        truth: integers (Z, Y, X) of the reference.
        spacing: (Z, Y, X) in mm; for a 2D image Z is the thickness of the slab (see `surface`).
        rules: labels, tolerance_mm, details and objects are read.

    Returns:
        {name: {"dsc": ..., "nsd": ...}} in the order of the label set; NaN where neither map has the label. With
        details also hd95_mm (NaN unless both maps have the label); hd95_with_misses_mm, which is the image's diagonal
        in mm if only one map has the label; volume_ml, true_volume_ml and volume_error (predicted / true - 1);
        true_parts and predicted_parts, the numbers of connected parts; and detected_parts, the number of their pairs
        with an IoU of at least 0.1. With objects also the scores of `panoptic_scores` and `detection_scores` of the
        connected parts.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    labels, tolerances = rules.labels, rules.tolerance_mm
    if labels.ignore is not None:
        counted = truth != labels.ignore
        prediction, truth = prediction * counted, truth * counted
    boxes = label_boxes(prediction, truth)
    diagonal_mm = math.hypot(*(length * step for length, step in zip(truth.shape, spacing, strict=True)))
    scores = {}
    for name, values in zip(labels.names, labels.values, strict=True):
        tolerance = tolerances[name] if isinstance(tolerances, Mapping) else tolerances
        found = [boxes[value] for value in values if value in boxes]
        box = common_box(found) if found else (slice(0, 0),) * truth.ndim
        masks = _mask(prediction, box, values), _mask(truth, box, values)
        if rules.details:
            scores[name] = _details(*masks, spacing, tolerance, diagonal_mm)
        else:
            scores[name] = _overlaps(*masks, spacing, tolerance)
        if rules.objects:
            found_parts, true_parts = (connected_components(mask, connectivity=mask.ndim) for mask in masks)
            panoptic = panoptic_scores(true_parts, found_parts).to_metrics()
            scores[name] |= {**panoptic, **detection_scores(true_parts, found_parts)}
    return scores


def _mask(label_map: np.ndarray, box: BoundingBox, values: Sequence[int]) -> np.ndarray:
    part = label_map[box]
    return part == values[0] if len(values) == 1 else np.isin(part, values)


def _overlaps(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    return {"dsc": dice(prediction, truth), "nsd": surface_dice(prediction, truth, spacing, tolerance)}


def _details(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float, diagonal_mm: float
) -> dict[str, float]:
    distances = surface_distances(prediction, truth, spacing)
    in_one = bool(prediction.any() or truth.any())  # read only where at least one map is empty
    hd95_mm = math.nan if distances is None else distances.hausdorff(0.95)
    worst_mm = diagonal_mm if in_one else math.nan
    voxel_ml = math.prod(spacing) / 1000
    volume, true_volume = (np.count_nonzero(mask) * voxel_ml for mask in (prediction, truth))
    parts = match_parts(prediction, truth, DETECTED)
    return {
        "dsc": dice(prediction, truth),
        "nsd": (0.0 if in_one else math.nan) if distances is None else distances.dice(tolerance),
        "hd95_mm": hd95_mm,
        WITH_MISSES: worst_mm if distances is None else hd95_mm,
        "volume_ml": volume,
        "true_volume_ml": true_volume,
        "volume_error": volume / true_volume - 1 if true_volume else math.nan,
        "true_parts": parts.true,
        "predicted_parts": parts.predicted,
        "detected_parts": parts.hits,
    }


def score_arrays(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], rules: Rules) -> Scores:
    """Score a label map by the rules of the protocol.

    Args:
        prediction: integers (Z, Y, X).
        truth: integers (Z, Y, X) of the reference.
        spacing: (Z, Y, X) in mm; see `surface_spacing` for 2D images.
        rules: the labels and the protocol.

    Returns:
        {label: {metric: value}}.

    >>> rules = Rules(LabelSet(("liver", "spleen"), ((1,), (2,))))
    >>> truth = np.array([[[0, 1, 1, 2]]])
    >>> scores = score_arrays(np.array([[[0, 0, 1, 2]]]), truth, (1.0, 1.0, 1.0), rules)
    >>> for name, values in scores.items():
    ...     print(f"{name}: DSC {values['dsc']:.2f}, NSD {values['nsd']:.2f}")
    liver: DSC 0.67, NSD 1.00
    spleen: DSC 1.00, NSD 1.00
    """
    match rules.protocol:
        case "abdomen":
            organs = score_abdomen(prediction, truth, spacing, rules.strict_official)
            return dict(zip(rules.labels.names, organs.values(), strict=True))
        case "endoscopy":
            pixels = Rules(rules.labels, tolerance_mm=ENDOSCOPY_TOLERANCE_PX)
            scores = score_case(prediction, truth, (1, 1, 1), pixels)
            counted = set(endoscopy_classes(prediction, truth, rules.strict_official))
            unscored = {"dsc": math.nan, "nsd": math.nan}
            each = zip(rules.labels.names, rules.labels.values, strict=True)
            return {name: scores[name] if counted & set(values) else unscored for name, values in each}
        case "cell" | "whole_cells":
            asked = rules.iou_threshold, rules.count_edge_cells, rules.strict_official
            metrics = score_cells(prediction[0], truth[0], *asked, rules.labels, rules.grouping).to_metrics()
            if rules.objects:  # of whole cells, as the reference has them
                whole = grouped_instances(prediction[0], rules.labels, WATERSHED)
                metrics |= panoptic_scores(truth[0], whole).to_metrics()
            return {CELLS: metrics}
        case _:
            return score_case(prediction, truth, spacing, rules)


def surface_spacing(geometry: Geometry) -> tuple[float, float, float]:
    """Return the spacing (Z, Y, X) in mm for surface scores; a 2D image is a slab as thick as its larger pixel edge."""
    _, height, width = geometry.spacing
    return (max(height, width), height, width) if geometry.is_2d else geometry.spacing


def score_files(prediction: Path, truth: Path, rules: Rules) -> Scores:
    """Score a file against a reference file; see `score_arrays`.

    Args:
        prediction: file of the segmentation.
        truth: file of the reference.
        rules: the labels and the protocol.

    Raises:
        UserError: a file cannot be read or contains undeclared values, or the grids differ; the file is named.
    """
    predicted = read_label(prediction)
    true = oriented_like(read_label(truth), predicted.geometry)
    difference = geometry_difference(true.geometry, predicted.geometry)
    if difference:
        raise UserError(
            f"{prediction}: its grid differs from that of the reference {truth}: {difference}. "
            "Segment the image that the reference belongs to."
        )
    numbered = rules.of_cells
    maps = (
        _label_map(predicted, prediction, rules.labels),
        _label_map(true, truth, None if numbered else rules.labels),
    )
    if numbered and len(maps[0]) > 1:
        raise UserError(
            f"{prediction}: has {len(maps[0])} slices, but protocol={rules.protocol} scores images. "
            "Use another protocol."
        )
    try:
        scores = score_arrays(*maps, surface_spacing(true.geometry), rules)
    except ValueError as error:  # a rule of the protocol that does not fit this image
        raise UserError(f"{prediction}: {error}.") from error
    return {name: _without_volume(found) for name, found in scores.items()} if true.geometry.is_2d else scores


def _without_volume(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of a two-dimensional file, whose pixels have no thickness and thus no millilitres."""
    return {name: math.nan if name in ("volume_ml", "true_volume_ml") else value for name, value in scores.items()}


def _label_map(image: Image, path: Path, labels: LabelSet | None) -> np.ndarray:
    """Return the integers (Z, Y, X) of a label image.

    Raises:
        UserError: values are not integers, are negative, or are not declared in `labels`.
    """
    array = image.array[0]
    if not np.issubdtype(array.dtype, np.integer):
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise UserError(
                f"{path}: contains values that are not integers. If it was resampled, do so by nearest neighbour."
            )
        array = whole
    if array.size and array.min() < 0:
        raise UserError(f"{path}: contains the value {array.min()}, but labels are 0 or more. Export it again.")
    most = int(array.max(initial=0))
    if labels is not None and most > MOST_VALUE:  # the boxes of all values up to it would not fit the memory
        raise UserError(f"{path}: contains the value {most}, but labels are {MOST_VALUE} at most. Is it a label map?")
    array = array.astype(np.min_scalar_type(most), copy=False)
    unknown = sorted(label_boxes(array).keys() - set(labels.all_values)) if labels is not None else []
    if unknown and labels is not None:
        raise UserError(
            f"{path}: contains the values {unknown[:10]}, which are not among the labels {list(labels.all_values)}. "
            "Use the dataset.json that declares the labels of this file."
        )
    return array


def score_pairs(
    pairs: Mapping[str, tuple[Path, Path]], rules: Rules, workers: int | None = None
) -> tuple[pandas.DataFrame, list[str]]:
    """Score pairs of files in parallel.

    Args:
        pairs: case -> files (prediction, reference).
        rules: the labels and the protocol.
        workers: number of processes; None: the CPUs of the allocation, or fewer for few cases. With 1 the scores are
            computed in this process.

    Returns:
        A table with the columns case, label and the metrics, its rows in the order of `pairs` and of the labels; and a
        message for each case that could not be scored.
    """
    scores: dict[str, Scores] = {}
    problems: list[str] = []
    score = partial(score_files, rules=replace(rules, annotated={}))  # each process gets a copy
    processes = min(workers or min(available_cpus(), len(pairs) // _CASES_PER_PROCESS), len(pairs))

    def keep(case: str, get: Callable[[], Scores]) -> None:
        try:
            scores[case] = _carried(get(), rules.annotated.get(case))
        except UserError as error:
            problems.append(str(error))
        except BrokenProcessPool:
            problems.append(f"{pairs[case][0]}: its process was killed, probably for lack of memory. Give workers=1.")
        except Exception as error:  # of one case; the others are scored
            problems.append(f"{pairs[case][0]}: could not be scored ({type(error).__name__}: {error}).")

    if processes <= 1:
        for case, files in tracked(pairs.items(), "Scoring", len(pairs)):
            keep(case, partial(score, *files))
    else:
        with ProcessPoolExecutor(processes, mp_context=_context()) as pool:
            futures = {pool.submit(score, *files): case for case, files in pairs.items()}
            for future in tracked(as_completed(futures), "Scoring", len(futures)):
                keep(futures[future], future.result)
    rows = [
        {"case": case, "label": name, **metrics} for case in pairs for name, metrics in scores.get(case, {}).items()
    ]
    return pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=["case", "label"]), sorted(problems)


def _carried(scores: Scores, names: Sequence[str] | None) -> Scores:
    """Return the scores of a case without those of labels that its reference does not carry; None: it carries all."""
    if names is None:
        return scores
    return {label: metrics if label in names else dict.fromkeys(metrics, math.nan) for label, metrics in scores.items()}


def _context() -> BaseContext:
    """Return how workers are started: if possible, forked from a server process that did the imports once."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def score_folder(
    predictions: Path,
    truths: Mapping[str, Path],
    rules: Rules,
    file_ending: str,
    *,
    output: Path | None = None,
    workers: int | None = None,
) -> pandas.DataFrame:
    """Score predictions/<case><file_ending> for every case that has a reference, in parallel.

    Args:
        predictions: folder of segmentations.
        truths: case -> reference file.
        rules: the labels and the protocol.
        file_ending: ending of the predictions' names, such as ".nii.gz".
        output: CSV file for the table, written atomically; None: the table is not written.
        workers: number of processes; None: the CPUs of the allocation.

    Returns:
        A table with the columns case, label and the metrics, its rows in the order of `truths` and of the labels.

    Raises:
        UserError: some files are missing or cannot be scored; all are named, and nothing is written.
    """
    pairs = {case: (Path(predictions) / f"{case}{file_ending}", Path(truth)) for case, truth in truths.items()}
    table, problems = score_pairs(pairs, rules, workers)
    if problems:
        raise UserError("These cases could not be scored:\n" + "\n".join(problems))
    if output is not None:
        write_table(output, table)
    return table


def metrics_of(scores: pandas.DataFrame) -> list[str]:
    """Return the metrics of a table of scores that methods are compared by, the most important first."""
    return [metric for metric in _COMPARED if metric in scores.columns]


def worst_median_best(scores: pandas.DataFrame) -> dict[str, str]:
    """Return the cases with the lowest, median and highest mean DSC (for cells: F1).

    Args:
        scores: columns case, label and metrics; cases without a score are left out.

    Returns:
        {"worst": case, "median": case, "best": case}. No case is returned twice: of two cases one is the worst and one
        the best, and a single case is the best.
    """
    means = scores.groupby("case")[metrics_of(scores)[0]].mean().dropna()
    ranked: Iterable[str] = means.sort_values(kind="stable").index
    order = list(ranked)
    chosen = {"worst": order[:1], "median": order[len(order) // 2 :][:1], "best": order[-1:]}
    if len(order) < 3:
        chosen["median"] = []
    if len(order) < 2:
        chosen["worst"] = []
    return {rank: cases[0] for rank, cases in chosen.items() if cases}
