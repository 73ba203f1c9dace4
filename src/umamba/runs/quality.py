"""What is expected of segmentations that were just made: quality.csv, the list of those to look at, and a page."""

import logging
from collections.abc import Sequence
from pathlib import Path

from umamba.evaluation.quality import Calibration
from umamba.evaluation.quality_estimates import Estimate, estimate, quality_table, worst_first
from umamba.inference import Predictor
from umamba.inference.agreement import CaseSigns
from umamba.inference.cases import find_cases
from umamba.inference.manifest import Manifest
from umamba.inference.outputs import Outputs
from umamba.io import UserError, read_json, storage_errors
from umamba.io.documents import OWN_BYTES
from umamba.io.tabular import write_table
from umamba.reporting.quality_page import write_quality_page
from umamba.settings import PredictSettings

log = logging.getLogger(__name__)

_LISTED = 40  # cases of the list in the log; quality.csv has all


def read_calibration(path: Path, predictor: Predictor, settings: PredictSettings) -> Calibration:
    """Read a calibration that is used with networks and settings.

    Args:
        path: JSON file of `umamba calibrate`.
        predictor: the networks.
        settings: the sliding window and test-time augmentation.

    Raises:
        UserError: the file is no calibration, or one for other labels, another number of networks or other settings.
    """
    found = Calibration.read(path)
    if found.names != predictor.labels.names:
        raise UserError(
            f"quality={path}: was calibrated for the labels {', '.join(found.names)}, and the network has "
            f"{', '.join(predictor.labels.names)}. Give the calibration of this network."
        )
    if found.networks != len(predictor.models):
        raise UserError(
            f"quality={path}: was calibrated for {found.networks} network(s) that decide together, and checkpoint "
            f"names {len(predictor.models)}, which agree in another way. Give as many networks, or calibrate these: "
            "umamba calibrate checkpoint=... images=... labels=..."
        )
    for name in ("tile_step_size", "tile_scale", "tta"):
        if getattr(found, name) != getattr(settings, name):
            value = str(getattr(found, name)).lower()
            raise UserError(
                f"quality={path}: was calibrated with {name}={value}. Give {name}={value}, or calibrate again."
            )
    if not {model.identity for model in predictor.models} <= set(found.identities):
        log.warning(
            "%s was calibrated with other networks than those of checkpoint. Expected scores and intervals hold for "
            "these as far as they are alike.",
            path,
        )
    return found


def estimates_of(
    calibration: Calibration, predictor: Predictor, outputs: Outputs, settings: PredictSettings
) -> tuple[list[Estimate], list[str]]:
    """Write quality.csv, log the list of segmentations to look at, and return what is expected.

    Segmentations of earlier commands in the same folder, of other images, are among them.

    Args:
        calibration: what was learned.
        predictor: the networks.
        outputs: where the segmentations are.
        settings: `input`, `agreement` and `review_below`.

    Returns:
        The estimates, and the cases in the order in which they should be looked at.

    Raises:
        UserError: the signs of a case are damaged.
        StorageError: the table cannot be written.
    """
    names = [case.case_id for case in find_cases(settings.input, predictor.num_channels, warn=False)[0]]
    if outputs.record.exists():
        names += Manifest(outputs, read_json(outputs.record, OWN_BYTES)).other_cases(names)
    found: dict[str, list[Estimate]] = {}
    for name in names:
        files = outputs.case(name, settings)
        if files.agreement is not None and files.complete():
            signs = CaseSigns.read(files.agreement)
            found[name] = estimate(
                *(calibration, name, signs.labels, signs.distances, signs.differences),
                review_below=settings.review_below,
            )
    order = worst_first([own for rows in found.values() for own in rows], calibration.overall)
    estimates = [own for case in order for own in found[case]]
    with storage_errors(outputs.quality):
        write_table(outputs.quality, quality_table(estimates))
    _say(estimates, order, calibration.overall)
    return estimates, order


def write_page(calibration: Calibration, estimates: Sequence[Estimate], order: Sequence[str], outputs: Outputs) -> None:
    """Write quality.html with the pictures that were drawn.

    Args:
        calibration: what was learned.
        estimates: of all cases.
        order: the cases, those to look at first.
        outputs: where the segmentations and pictures are.

    Raises:
        StorageError: the page cannot be written.
    """
    pictures = {case: outputs.preview(case) for case in order if outputs.preview(case).exists()}
    with storage_errors(outputs.quality_page):
        write_quality_page(outputs.quality_page, calibration, estimates, order, pictures)
    log.info("How far to trust the segmentations, the worst first: %s", outputs.quality_page)


def _say(estimates: Sequence[Estimate], order: Sequence[str], overall: str) -> None:
    by_case = {case: [own for own in estimates if own.case == case and own.review] for case in order}
    looked = [case for case in order if by_case[case]]
    if not looked:
        expected = [own.scores["dsc"][0] for own in estimates if own.label == overall and "dsc" in own.scores]
        seen = f" (expected DSC {min(expected):.3f} to {max(expected):.3f})" if expected else ""
        log.info(
            "None of %d segmentations%s has a sign that it is worse than usual in the calibration.", len(order), seen
        )
        return
    lines = []
    for case in looked[:_LISTED]:
        whole = next((own for own in by_case[case] if own.label == overall), None)
        rows = [whole] if whole is not None and not whole.scores else by_case[case]
        lines.append(f"  {case}: " + "; ".join(_in_words(own, overall) for own in rows))
    if len(looked) > _LISTED:
        lines.append(f"  and {len(looked) - _LISTED} more, see quality.csv")
    log.info("Look at %d of %d segmentations first:\n%s", len(looked), len(order), "\n".join(lines))


def _in_words(own: Estimate, overall: str) -> str:
    label = "" if own.label == overall else f"{own.label}: "
    if "dsc" not in own.scores:
        return f"{label}{own.reason}"
    expected, low, high = own.scores["dsc"]
    return f"{label}expected DSC {expected:.3f} ({low:.3f} to {high:.3f})"
