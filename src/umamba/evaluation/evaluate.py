"""Folders of segmentations against a folder of references: tables, tests between methods, and pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from rich.table import Table

from umamba.evaluation.protocols import ABDOMEN_ORGANS
from umamba.evaluation.score import TITLES, Rules, metrics_of, score_pairs, score_table, worst_median_best
from umamba.evaluation.statistics import MEAN, compare_methods, summarize
from umamba.io import UserError, atomic_path, read_image, read_json, read_label, supported_endings
from umamba.io.voice import shown
from umamba.labels import LabelSet
from umamba.settings import EvaluateSettings

log = logging.getLogger(__name__)

_DIGITS = 4  # of the official scripts' tables
_CELL_SUFFIX = "_label"
_FIRST_CHANNEL = "_0000"
_CELL_COLUMNS = {
    "true_cells": "true_num",
    "predicted_cells": "pred_num",
    "found_cells": "correct_num(TP)",
    "missed_cells": "missed_num(FN)",
    "wrong_cells": "wrong_num(FP)",
    "precision": "precision",
    "recall": "recall",
    "dsc": "dice",
    "f1": "F1",
}


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        scores: one table for each method: case, label, metrics.
        comparison: tests between methods, None with a single method.
        problems: what is wrong with the cases that were not scored; the others are.
    """

    scores: Mapping[str, pandas.DataFrame]
    comparison: pandas.DataFrame | None
    problems: tuple[str, ...]


def evaluate(settings: EvaluateSettings, *, progress: bool = True) -> Evaluation:
    """Score folders of segmentations; see `evaluate_folders` for the files it writes.

    Args:
        settings: folders, protocol and options.
        progress: show the tables.

    Raises:
        UserError: a folder is absent or empty, or no case can be scored.
    """
    with shown(progress):
        rules = Rules(
            label_names(settings.truth, settings.dataset_json, settings.protocol),
            settings.protocol,
            settings.tolerance_mm,
            details=True,
            strict_official=settings.strict_official,
            iou_threshold=settings.iou_threshold,
            count_edge_cells=settings.count_edge_cells,
        )
        return evaluate_folders(
            settings.methods, settings.truth, settings.output, rules, settings.images, settings.workers
        )


def evaluate_folders(
    predictions: Mapping[str, Path],
    truth: Path,
    output: Path,
    rules: Rules,
    images: Path | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Score the folders of one or several methods, report the tables, and write tables and pictures.

    In `output`: scores.csv (one row a case and label), summary.csv, boxplots.png; with generic rules and details
    volumes.png; with images overlays/; with strict_official the official scripts' own tables. Of several methods each
    has a folder of its own, and comparison.csv holds the tests between them.

    Args:
        predictions: folder of segmentations by the method's name.
        truth: folder of references of the same names; protocol=cell: also NAME_label.EXT.
        output: folder of the results, made if absent.
        rules: by which is scored.
        images: folder of the images for overlays, NAME or NAME_0000.
        workers: processes; None: the CPUs of the allocation.

    Returns:
        The scores, the comparison, and what is wrong with the cases that were not scored.

    Raises:
        UserError: a folder is absent or empty, or no case can be scored.
    """
    scores: dict[str, pandas.DataFrame] = {}
    problems: list[str] = []
    for method, folder in predictions.items():
        pairs, missing = find_pairs(folder, truth, rules)
        table, found = score_pairs(pairs, rules, workers)
        problems += [*missing, *found]
        if table.empty:
            raise UserError("No case could be scored:\n" + "\n".join(problems))
        scores[method] = table
        target = output / method if len(predictions) > 1 else output
        _write_tables(table, pairs, rules, target)
        log.info(score_table(table, f"{method}: {table['case'].nunique()} cases"))
        if images is not None and rules.protocol != "cell":
            draw_overlays(table, pairs, images, rules.labels, target / "overlays")
    metrics = metrics_of(next(iter(scores.values())))
    _draw_scores(scores, metrics, output)
    comparison = None
    if len(scores) > 1:
        comparison = compare_methods(scores, metrics)
        _write_csv(comparison, output / "comparison.csv")
        log.info(comparison_table(comparison))
    return Evaluation(scores, comparison, tuple(problems))


def find_pairs(predictions: Path, truth: Path, rules: Rules) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return the files (prediction, reference) of each case, and what is missing.

    Every reference wants a prediction; with strict_official the predictions say which cases there are, as in the
    scripts. Predictions without a reference are passed over.

    Raises:
        UserError: a folder is absent, or holds no label map.
    """
    predicted, true = _files(predictions, "predictions"), _files(truth, "truth")
    if rules.protocol == "cell":
        true = {case.removesuffix(_CELL_SUFFIX): path for case, path in true.items()}
    pairs = {case: (predicted[case], path) for case, path in true.items() if case in predicted}
    missing = [] if rules.strict_official else sorted(true.keys() - predicted.keys())
    return pairs, [f"{predictions}: no segmentation of {case} ({true[case].name} in {truth})." for case in missing]


def _files(folder: Path, key: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in supported_endings() if path.name.lower().endswith(ending)), None)
        if ending and path.is_file() and not path.name.startswith("."):
            found[path.name[: -len(ending)]] = path
    if not found:
        raise UserError(f"{key}={folder}: holds no label map ({', '.join(supported_endings())}).")
    return found


def label_names(truth: Path, dataset_json: Path | None, protocol: str) -> LabelSet:
    """Return the labels that references carry: of dataset.json, or the protocol's own.

    Raises:
        UserError: neither is there, or the file is none.
    """
    if protocol == "abdomen":
        names = tuple(name for name, _ in ABDOMEN_ORGANS)
        return LabelSet(names, tuple((value,) for value in range(1, len(names) + 1)))
    if protocol == "cell":
        return LabelSet(("interior", "boundary"), ((1,), (2,)))
    path = dataset_json or truth.parent / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path}: not there, so the labels have no names. Give the dataset's: dataset_json=PATH.")
    content = read_json(path)
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f"{path}: has no entry labels. Give the dataset.json of nnU-Net's raw layout.")
    return LabelSet.from_json(content["labels"], content.get("regions_class_order"))


def draw_overlays(
    scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], images: Path, labels: LabelSet, folder: Path
) -> None:
    """Draw the worst, median and best case: image, truth and prediction."""
    from umamba.evaluation.overlay import overlay_figure

    found = _files(images, "images")
    for rank, case in worst_median_best(scores).items():
        path = found.get(case, found.get(f"{case}{_FIRST_CHANNEL}"))
        if path is None:
            raise UserError(f"images={images}: holds no image of {case}. Give the folder of the images.")
        image = read_image([path])
        prediction, truth = (read_label(file).array[0] for file in pairs[case])
        target = folder / f"{rank}_{case}.png"
        overlay_figure(image.array, truth, prediction, image.geometry.spacing, labels, target)


def comparison_table(comparison: pandas.DataFrame) -> Table:
    """Return the table of paired tests: all labels' means, or the single label's scores."""
    shown = comparison[comparison["label"] == MEAN] if (comparison["label"] == MEAN).any() else comparison
    table = Table(title="Paired differences (Wilcoxon's signed-rank test, Holm's correction)")
    for column in ("metric", "methods", "cases", "difference", "p", "p corrected"):
        table.add_column(column)
    for _, row in shown.iterrows():
        p_values = ("few cases" if pandas.isna(row[key]) else f"{row[key]:.4g}" for key in ("p_value", "p_holm"))
        methods = f"{row['first']} - {row['second']}"
        table.add_row(TITLES[row["metric"]], methods, str(row["cases"]), f"{row['difference']:+.4f}", *p_values)
    return table


def official_tables(
    scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], rules: Rules
) -> dict[str, pandas.DataFrame]:
    """Return the tables that the official scripts write, by file name: one row a case, four decimals."""
    names = {case: prediction.name for case, (prediction, _) in pairs.items()}
    rounded = scores.round(_DIGITS)
    match rules.protocol:
        case "abdomen":
            tables = {}
            for metric in ("dsc", "nsd"):
                wide = rounded.pivot(index="case", columns="label", values=metric)[list(rules.labels.names)]
                wide.columns = [f"{label}_{metric.upper()}" for label in wide.columns]
                tables[f"{metric.upper()}.csv"] = wide
        case "endoscopy":
            means = scores.groupby("case")[["dsc", "nsd"]].mean().round(_DIGITS)
            tables = {f"{m.upper()}.csv": means[[m]].rename(columns={m: m.upper()}) for m in ("dsc", "nsd")}
        case "cell":
            wide = rounded.set_index("case")[list(_CELL_COLUMNS)].rename(columns=_CELL_COLUMNS)
            tables = {f"cells-{rules.iou_threshold}.csv": wide}
        case _:
            raise UserError("strict_official=true: the generic protocol has no official script. Leave it out.")
    column = "names" if rules.protocol == "cell" else "Name"
    return {
        name: table.rename(index=names).rename_axis(column).sort_index().reset_index() for name, table in tables.items()
    }


def _draw_scores(scores: Mapping[str, pandas.DataFrame], metrics: Sequence[str], output: Path) -> None:
    from umamba.evaluation.plots import bland_altman, box_plots  # not while voxels need the memory

    box_plots(scores, {metric: TITLES[metric] for metric in metrics}, output / "boxplots.png")
    for method, table in scores.items():
        if "volume_ml" in table.columns:
            bland_altman(table, (output / method if len(scores) > 1 else output) / "volumes.png")


def _write_tables(scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], rules: Rules, folder: Path) -> None:
    _write_csv(scores, folder / "scores.csv")
    _write_csv(summarize(scores, metrics_of(scores)), folder / "summary.csv")
    if rules.strict_official:
        for name, table in official_tables(scores, pairs, rules).items():
            _write_csv(table, folder / name)


def _write_csv(table: pandas.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
