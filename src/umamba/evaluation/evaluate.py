"""Score folders of segmentations, and write the tables and pictures of each method and the comparison of methods."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas

from umamba.evaluation.comparison import compare_methods, comparison_sentences, comparison_table
from umamba.evaluation.equivalence import MARGIN
from umamba.evaluation.froc_table import write_froc
from umamba.evaluation.official_tables import official_tables
from umamba.evaluation.pairs import files_of, find_pairs, renamed
from umamba.evaluation.protocols import ABDOMEN_ORGANS
from umamba.evaluation.rules import Rules
from umamba.evaluation.score import TITLES, metrics_of, score_pairs, worst_median_best
from umamba.evaluation.statistics import summarize
from umamba.evaluation.terminal_table import score_tables
from umamba.io import (
    Geometry,
    StorageError,
    UserError,
    below,
    geometry_difference,
    oriented_like,
    read_image,
    read_json,
    read_label,
)
from umamba.io.tabular import write_table
from umamba.io.voice import shown
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_beside
from umamba.labels.instance_depth import level_count
from umamba.settings import EvaluateSettings
from umamba.settings.dataset import CELL_PROTOCOLS

log = logging.getLogger(__name__)

_NAMES = ["label", "metric"]
_CLASSES = "classes.csv"
_FIRST_CHANNEL = "_0000"


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        scores: one table for each method: case, label, metrics; empty if only classes were scored.
        comparison: what is shown of each pair of methods, None with a single method.
        problems: what is wrong with the cases that were not scored; the others are.
        undrawn: what is wrong with the pictures that were not drawn; no score depends on them.
    """

    scores: Mapping[str, pandas.DataFrame]
    comparison: pandas.DataFrame | None
    problems: tuple[str, ...]
    undrawn: tuple[str, ...] = ()


def evaluate(settings: EvaluateSettings, *, progress: bool = True) -> Evaluation:
    """Score folders of segmentations; see `evaluate_folders` and `evaluate_classes` for the files it writes.

    Args:
        settings: folders, protocol and options.
        progress: show the tables.

    Raises:
        UserError: a folder is absent or empty, a table that is read would be replaced, or no case can be scored.
    """
    with shown(progress):
        if settings.classes is not None:
            _class_targets(settings.methods, settings.classes, settings.output)
        if settings.truth.suffix == ".csv":
            return Evaluation({}, None, tuple(evaluate_classes(settings.methods, settings.truth, settings.output)))
        labels = label_names(settings.truth, settings.dataset_json, settings.protocol)
        rules = Rules(
            labels,
            settings.protocol,
            settings.tolerance_mm,
            details=True,
            strict_official=settings.strict_official,
            iou_threshold=settings.iou_threshold,
            count_edge_cells=settings.count_edge_cells,
            annotated=_annotated(settings, labels),
            objects=settings.objects,
        )
        found = evaluate_folders(
            settings.methods,
            settings.truth,
            settings.output,
            rules,
            settings.images,
            settings.workers,
            trainings=settings.trainings,
            margin=settings.margin,
        )
        if settings.classes is None:
            return found
        return replace(
            found, problems=(*found.problems, *evaluate_classes(settings.methods, settings.classes, settings.output))
        )


def evaluate_classes(predictions: Mapping[str, Path], truth: Path, output: Path) -> list[str]:
    """Score the classes.csv of each folder; write classes.csv and classes.png into `output`, or a folder a method.

    Args:
        predictions: method's name -> folder of its predictions.
        truth: table of the true classes.
        output: folder of the results.

    Returns:
        What is wrong with the tables that could not be scored.

    Raises:
        UserError: a table that is read would be replaced by the scores. Nothing is scored then.
    """
    from umamba.evaluation.classification import class_table, write_class_scores

    problems = []
    targets = _class_targets(predictions, truth, output)
    for method, folder in predictions.items():
        scored = [folder / _CLASSES], truth, targets[method]
        try:
            log.info(class_table(write_class_scores(*scored), f"{method}: classes"))
        except UserError as error:
            problems.append(str(error))
    return problems


def _class_targets(predictions: Mapping[str, Path], truth: Path, output: Path) -> dict[str, Path]:
    """Return the table of scores of each method; refuse one that is a table of predicted or true classes."""
    targets = {method: folder / _CLASSES for method, folder in _targets(predictions, output).items()}
    read = {path.resolve() for path in (truth, *(folder / _CLASSES for folder in predictions.values()))}
    for target in targets.values():
        if target.resolve() in read:
            raise UserError(
                f"output={output}: the scores would replace {target}, which holds predicted or true classes. Give "
                "another folder."
            )
    return targets


def _targets(predictions: Mapping[str, Path], output: Path) -> dict[str, Path]:
    """Return the folder of the results of each method."""
    return {method: below(output, method) if len(predictions) > 1 else output for method in predictions}


def evaluate_folders(
    predictions: Mapping[str, Path],
    truth: Path,
    output: Path,
    rules: Rules,
    images: Path | None = None,
    workers: int | None = None,
    *,
    trainings: Mapping[str, str] | None = None,
    margin: float = MARGIN,
) -> Evaluation:
    """Score the folders of one or several methods, report the tables, and write tables and pictures.

    Files in `output`:
        scores.csv: one row for each case and label.
        summary.csv: means, standard deviations and confidence intervals, each with the number of cases it was made of;
            rows of the NSD also have its tolerance.
        boxplots.png: the scores of all labels.
        volumes.png: with generic rules and details.
        froc.csv: with objects and generic rules, if there are probabilities beside all predictions.
        overlays/: if images are given.
        The official scripts' tables: with strict_official.
    With several folders, each has its own folder in `output`. comparison.csv holds what is shown of each pair of
    methods.

    Args:
        predictions: method's name -> folder of its segmentations.
        truth: folder of the references, with the same file names; for cells also NAME_label.EXT.
        output: folder of the results; it is created if it does not exist.
        rules: how segmentations are scored.
        images: folder of the images for overlays, named NAME or NAME_0000.
        workers: number of processes; None: the CPUs of the allocation.
        trainings: name in `predictions` -> method that was trained for it; None: each is a method of its own.
        margin: the largest difference of DSC, NSD or F1 between methods that does not matter.

    Returns:
        The scores, the comparison, and what is wrong with the cases that were not scored or drawn.

    Raises:
        UserError: a folder does not exist or is empty, or no case can be scored.
    """
    if images is not None:
        files_of(images, "images")  # an empty folder is refused before any work
    scores: dict[str, pandas.DataFrame] = {}
    problems: list[str] = []
    all_pairs: dict[str, Mapping[str, tuple[Path, Path]]] = {}
    targets = _targets(predictions, output)
    for method, folder in predictions.items():
        pairs, missing = find_pairs(folder, truth, rules)
        table, found = score_pairs(pairs, rules, workers)
        problems += [*missing, *found]
        if table.empty:
            raise UserError("No case could be scored:\n" + "\n".join(problems))
        scores[method], all_pairs[method] = table, pairs
        _write_tables(table, pairs, rules, targets[method])
        if rules.objects and rules.protocol == "generic":
            problems += write_froc(pairs, rules.labels, targets[method] / "froc.csv", rules.annotated)
        log.info(score_tables(table, method, rules.sentence, expected=len(pairs) + len(missing)))
    metrics = metrics_of(next(iter(scores.values())))
    _draw_scores(scores, metrics, output, targets)
    methods = trainings or {name: name for name in scores}
    comparison = None
    if len(set(methods.values())) > 1:
        comparison = compare_methods(scores, methods, metrics, margin)
        write_table(output / "comparison.csv", comparison)
        log.info(comparison_table(comparison))
        log.info("\n".join(comparison_sentences(comparison)))
    undrawn: list[str] = []
    if images is not None:
        for method, table in scores.items():
            undrawn += draw_overlays(table, all_pairs[method], images, rules, targets[method] / "overlays")
    return Evaluation(scores, comparison, tuple(problems), tuple(dict.fromkeys(undrawn)))


def label_names(truth: Path, dataset_json: Path | None, protocol: str) -> LabelSet:
    """Return the labels of the references: those of dataset.json, or those that the protocol defines.

    With the protocol abdomen they are its organs, unless there is a dataset.json that declares other values.

    Args:
        truth: folder of references; without `dataset_json` the dataset.json beside this folder is read.
        dataset_json: the dataset.json that declares the labels; the protocol abdomen needs none, and cell only for
            levels of depth.
        protocol: see `Rules`.

    Raises:
        UserError: the file does not exist or declares no labels.
    """
    path = dataset_json or truth.parent / "dataset.json"
    if protocol == "abdomen":
        names = tuple(name for name, _ in ABDOMEN_ORGANS)
        organs = LabelSet(names, tuple((value,) for value in range(1, len(names) + 1)))
        given = label_names(truth, path, "generic") if path.is_file() else organs
        return organs if given.values == organs.values else given  # which `Rules` refuses
    if protocol in CELL_PROTOCOLS:
        declared = label_names(truth, path, "generic") if path.is_file() else None
        if declared is not None and level_count(declared):
            return declared
        return LabelSet(("interior", "boundary"), ((1,), (2,)))
    if not path.is_file():
        below = next((truth / name for name in ("labelsTs", "labelsTr") if (truth / name).is_dir()), None)
        remedy = "dataset_json=PATH" if below is None else f"truth={below}, the folder of the references"
        raise UserError(f"{path}: there is no such file, so the labels have no names. Give {remedy}.")
    content = read_json(path)
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f"{path}: it has no entry 'labels'. Give a dataset.json in nnU-Net's raw layout.")
    try:
        return LabelSet.from_json(content["labels"], content.get("regions_class_order"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _annotated(settings: EvaluateSettings, labels: LabelSet) -> Annotated:
    """Return the labels that dataset.json declares for partly labelled references, under the names in `labels`."""
    path = settings.dataset_json or settings.truth.parent / "dataset.json"
    if settings.protocol in CELL_PROTOCOLS or not path.is_file():
        return {}
    declared = label_names(settings.truth, settings.dataset_json, "generic")
    own = dict(zip(declared.names, labels.names, strict=False))
    found = annotated_beside(path, declared, files_of(settings.truth, "truth"))
    return {case: tuple(own[name] for name in names if name in own) for case, names in found.items()}


def draw_overlays(
    scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], images: Path, rules: Rules, folder: Path
) -> list[str]:
    """Draw image, truth and prediction of the worst, the median and the best case.

    Args:
        scores: columns case, label and metrics.
        pairs: files (prediction, reference) of each case.
        images: folder of the images, named NAME or NAME_0000.
        rules: by which they were scored.
        folder: where the PNG files are written.

    Returns:
        What is wrong with the cases that could not be drawn: without an image, or with one that cannot be read or lies
        on another grid.

    Raises:
        UserError: the folder holds no image.
        StorageError: a picture cannot be written.
    """
    from umamba.evaluation.overlay import case_figure, write_overlay

    problems = []
    found = renamed(files_of(images, "images"), [*pairs, *(f"{case}{_FIRST_CHANNEL}" for case in pairs)])
    for rank, case in worst_median_best(scores).items():
        path = found.get(case, found.get(f"{case}{_FIRST_CHANNEL}"))
        try:
            if path is None:
                raise UserError(f"images={images}: contains no image of {case}. Give the folder of the images.")
            image = read_image([path], time_is_channels=True)
            prediction, truth = (_on_grid(file, image.geometry, path) for file in pairs[case])
            figure = case_figure(image, truth, prediction, rules, scores, case)
            write_overlay(figure, folder / f"{rank}_{case}.png")
        except StorageError:
            raise
        except UserError as error:
            problems.append(str(error))
    return problems


def _on_grid(segmentation: Path, image: Geometry, path: Path) -> np.ndarray:
    """Return a segmentation (Z, Y, X) in the orientation of its image; refuse an image on another grid."""
    found = oriented_like(read_label(segmentation), image)
    flat = image.is_2d or found.geometry.is_2d  # of photographs only the shape counts, because PNG keeps no spacing
    difference = None if flat and image.shape == found.geometry.shape else geometry_difference(image, found.geometry)
    if difference is not None:
        raise UserError(
            f"{path}: its grid differs from that of {segmentation}: {difference}. Give the image that was segmented."
        )
    return found.array[0]


def _draw_scores(
    scores: Mapping[str, pandas.DataFrame], metrics: Sequence[str], output: Path, targets: Mapping[str, Path]
) -> None:
    from umamba.evaluation.plots import (
        bland_altman,
        box_plots,
    )  # imported late, because Matplotlib needs memory that scoring can use

    box_plots(scores, {metric: TITLES[metric] for metric in metrics}, output / "boxplots.png")
    for method, table in scores.items():
        if "volume_ml" in table.columns:
            bland_altman(table, targets[method] / "volumes.png")


def _tolerance(rules: Rules, label: str, metric: str) -> float:
    """Return the tolerance of a row of summary.csv; NaN for other metrics, and for a mean over different tolerances."""
    values = set(rules.tolerances().values())
    common = values.pop() if len(values) == 1 else math.nan
    return rules.tolerances().get(label, common) if metric == "nsd" else math.nan


def _write_tables(scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], rules: Rules, folder: Path) -> None:
    write_table(folder / "scores.csv", scores)
    summary = summarize(scores, metrics_of(scores))
    if rules.tolerances():
        summary["tolerance_mm"] = [_tolerance(rules, label, metric) for label, metric in summary[_NAMES].to_numpy()]
    write_table(folder / "summary.csv", summary)
    if rules.strict_official:
        for name, table in official_tables(scores, pairs, rules).items():
            write_table(folder / name, table)
