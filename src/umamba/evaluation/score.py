"""Scores of segmentations against references: one case, or a folder of predictions in parallel; their table.

DSC and NSD per label. A label in neither map has no score (NaN) and is left out of the means (nnU-Net's rule, where the
challenge scripts give 1); in only one of them it scores 0. Voxels with the ignore label in the reference count nowhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas
from rich.progress import track
from rich.table import Table

from umamba.evaluation.overlap import dice_from_histogram, joint_histogram
from umamba.evaluation.surface import surface_dice
from umamba.io import Geometry, Image, UserError, atomic_path, geometry_difference, read_label
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet

COLUMNS = ("case", "label", "dsc", "nsd")


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    labels: LabelSet,
    spacing: Sequence[float],
    tolerance_mm: float | Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Score a label map (Z, Y, X) of integers against a reference of the same shape.

    Args:
        prediction: the segmentation.
        truth: the reference.
        labels: names and values; the values of both maps are among them.
        spacing: (Z, Y, X) in mm; for a 2D image Z is the thickness of the slab (see `surface`).
        tolerance_mm: tolerance of the NSD, one for all labels or one for each name.

    Returns:
        {name: {"dsc": ..., "nsd": ...}} in the order of the label set; NaN where neither map has the label.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    if labels.ignore is not None:
        counted = truth != labels.ignore
        prediction, truth = prediction * counted, truth * counted
    histogram = joint_histogram(prediction, truth, labels.all_values[-1] + 1)
    scores = {}
    for name, values in zip(labels.names, labels.values, strict=True):
        tolerance = tolerance_mm[name] if isinstance(tolerance_mm, Mapping) else tolerance_mm
        masks = (np.isin(prediction, values), np.isin(truth, values))
        nsd = surface_dice(*masks, spacing, tolerance)
        scores[name] = {"dsc": dice_from_histogram(histogram, values), "nsd": nsd}
    return scores


def surface_spacing(geometry: Geometry) -> tuple[float, float, float]:
    """Return the spacing (Z, Y, X) in mm for surface scores: a 2D image is a slab as thick as its larger pixel edge."""
    _, height, width = geometry.spacing
    return (max(height, width), height, width) if geometry.is_2d else geometry.spacing


def score_files(
    prediction: Path, truth: Path, labels: LabelSet, tolerance_mm: float | Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Score a file against a reference file, as `score_case`.

    Raises UserError naming the file if one cannot be read, holds undeclared values, or the grids differ.
    """
    predicted, true = read_label(prediction), read_label(truth)
    difference = geometry_difference(true.geometry, predicted.geometry)
    if difference:
        raise UserError(
            f"{prediction}: its grid differs from that of the reference {truth}: {difference}. "
            "Predict the same image as the reference belongs to."
        )
    return score_case(
        _label_map(predicted, prediction, labels),
        _label_map(true, truth, labels),
        labels,
        surface_spacing(true.geometry),
        tolerance_mm,
    )


def _label_map(image: Image, path: Path, labels: LabelSet) -> np.ndarray:
    """Return the integers (Z, Y, X) of a label image, or raise UserError naming values that are not declared."""
    unknown = sorted(set(np.unique(image.array).tolist()) - set(labels.all_values))
    if unknown:
        raise UserError(
            f"{path}: holds the values {unknown[:10]}, which are not among the labels {list(labels.all_values)}. "
            "Score it with the label set it was made with."
        )
    return image.array[0].astype(np.int64, copy=False)


def score_folder(
    predictions: Path,
    truths: Mapping[str, Path],
    labels: LabelSet,
    file_ending: str,
    *,
    tolerance_mm: float | Mapping[str, float],
    output: Path | None = None,
    workers: int | None = None,
) -> pandas.DataFrame:
    """Score predictions/<case><file_ending> for every case that has a reference, in parallel.

    Args:
        predictions: folder of segmentations.
        truths: reference file of each case.
        labels: the label set of both.
        file_ending: of the predictions.
        tolerance_mm: tolerance of the NSD, one for all labels or one for each name.
        output: where the table is written as CSV, atomically; None: nowhere.
        workers: processes; None: the CPUs of the allocation.

    Returns:
        Columns case, label, dsc, nsd; rows in the order of `truths` and of the labels.

    Raises:
        UserError: all files that are missing or cannot be scored, together; then nothing is written.
    """
    jobs = {case: (Path(predictions) / f"{case}{file_ending}", Path(truth)) for case, truth in truths.items()}
    processes = min(workers or available_cpus(), len(jobs))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    problems: list[str] = []
    if jobs:
        with ProcessPoolExecutor(max(1, processes), mp_context=get_context("spawn")) as pool:
            futures = {
                pool.submit(score_files, predicted, true, labels, tolerance_mm): case
                for case, (predicted, true) in jobs.items()
            }
            for future in track(as_completed(futures), "Scoring", len(futures), transient=True):
                try:
                    scores[futures[future]] = future.result()
                except UserError as error:
                    problems.append(str(error))
    if problems:
        raise UserError("These cases could not be scored:\n" + "\n".join(sorted(problems)))
    rows = [(case, name, score["dsc"], score["nsd"]) for case in truths for name, score in scores.get(case, {}).items()]
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    if output is not None:
        with atomic_path(output) as temporary:
            table.to_csv(temporary, index=False)
    return table


def score_table(scores: pandas.DataFrame) -> Table:
    """Return the table of scores: mean ± standard deviation over the cases per label, and of the cases' means.

    Cases without a score (NaN) are left out. The last row is the mean over the labels of each case, then over cases.
    """
    table = Table(title=f"Scores of {scores['case'].nunique()} cases")
    for column in ("label", "cases", "DSC", "NSD"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label in scores["label"].unique():
        rows = scores[scores["label"] == label]
        table.add_row(str(label), str(rows["dsc"].count()), _mean_and_sd(rows["dsc"]), _mean_and_sd(rows["nsd"]))
    means = scores.groupby("case")[["dsc", "nsd"]].mean()
    table.add_section()
    table.add_row("mean", str(means["dsc"].count()), _mean_and_sd(means["dsc"]), _mean_and_sd(means["nsd"]))
    return table


def _mean_and_sd(values: pandas.Series) -> str:
    if not values.count():
        return "no case"
    deviation = f" ± {values.std():.4f}" if values.count() > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def worst_median_best(scores: pandas.DataFrame) -> dict[str, str]:
    """Return the cases of lowest, median and highest mean DSC, {"worst": case, "median": ..., "best": ...}.

    No case is named twice: two cases are the worst and the best, one is the best. Cases without a score are left out.
    """
    means = scores.groupby("case")["dsc"].mean().dropna()
    ranked: Iterable[str] = means.sort_values(kind="stable").index
    order = list(ranked)
    chosen = {"worst": order[:1], "median": order[len(order) // 2 :][:1], "best": order[-1:]}
    if len(order) < 3:
        chosen["median"] = []
    if len(order) < 2:
        chosen["worst"] = []
    return {rank: cases[0] for rank, cases in chosen.items() if cases}
