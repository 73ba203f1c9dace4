"""The FROC of the probabilities that `umamba predict probabilities=true` writes beside its segmentations."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas
from skimage.measure import label as connected_components

from umamba.evaluation.detection import RATES, Candidates, candidates, froc
from umamba.io import UserError, oriented_like, read_label, supported_endings
from umamba.io.tabular import write_table
from umamba.io.voice import tracked
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated

log = logging.getLogger(__name__)
NOTHING_PARTIAL: Annotated = {}


def write_froc(
    pairs: Mapping[str, tuple[Path, Path]], labels: LabelSet, output: Path, annotated: Annotated = NOTHING_PARTIAL
) -> list[str]:
    """Write the sensitivity of each label at seven numbers of false objects for each case that is annotated for it.

    Args:
        pairs: files (prediction, reference) of each case; NAME.npz beside the prediction holds `probabilities`
            (num_classes, Z, Y, X).
        labels: the label set.
        annotated: labels of the partly labelled cases; nothing is known of the others there.
        output: CSV file: label, false_per_case, sensitivity, objects, cases; the row `mean` is the mean over the seven.

    Returns:
        What is wrong with the probabilities; then nothing is written, because a FROC needs all cases. Without any
        probabilities nothing is written and nothing is wrong.
    """
    files = {case: prediction.with_name(_name(prediction) + ".npz") for case, (prediction, _) in pairs.items()}
    present = [case for case, file in files.items() if file.is_file()]
    if not present:
        log.info("No FROC: there are no probabilities (NAME.npz) beside the segmentations.")
        return []
    absent = [case for case in pairs if case not in present]
    if absent:
        return [f"{files[absent[0]]}: there is no such file, so there is no FROC. Predict with probabilities=true."]
    found: dict[str, list[Candidates]] = {name: [] for name in labels.names}
    try:
        for case, (prediction, truth) in tracked(pairs.items(), "FROC", len(pairs)):
            known = annotated.get(case, labels.names)
            for name, own in zip(labels.names, _of_case(files[case], prediction, truth, labels), strict=True):
                found[name] += [own] if name in known else []
    except UserError as error:
        return [str(error)]
    rows = []
    for name, cases in found.items():
        curve = froc(cases)
        counts = {"objects": curve.objects, "cases": curve.cases}
        rows += [{"label": name, "false_per_case": str(r), "sensitivity": curve.at(r), **counts} for r in RATES]
        rows.append({"label": name, "false_per_case": "mean", "sensitivity": curve.mean, **counts})
    write_table(output, pandas.DataFrame(rows))
    return []


def _name(prediction: Path) -> str:
    ending = next(ending for ending in supported_endings() if prediction.name.lower().endswith(ending))
    return prediction.name[: -len(ending)]


def _of_case(file: Path, prediction: Path, truth: Path, labels: LabelSet) -> list[Candidates]:
    true = oriented_like(read_label(truth), read_label(prediction).geometry).array[0]
    try:
        with np.load(file, allow_pickle=False) as content:
            probabilities = content["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: its probabilities cannot be read ({error}). Predict again.") from None
    if probabilities.shape != (labels.num_classes, *true.shape):
        raise UserError(
            f"{file}: its probabilities have the shape {probabilities.shape}, not {(labels.num_classes, *true.shape)}. "
            "Predict again."
        )
    first = 0 if labels.has_regions else 1
    found = []
    for probability, values in zip(probabilities[first:], labels.values, strict=True):
        if labels.ignore is not None:
            probability = np.where(true == labels.ignore, 0, probability)
        parts = connected_components(np.isin(true, values), connectivity=true.ndim)
        found.append(candidates(probability, parts))
    return found
