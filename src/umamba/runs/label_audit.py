"""Audit the labels of a training set with the segmentations of cross-validation, and write tables and a page.

Each training case was segmented by networks that were not trained on it: the validation cases of each fold.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from umamba.datasets import RawCase, RawDataset, over_cases, read_dataset
from umamba.evaluation.audit import CaseFacts, inspect_labels
from umamba.evaluation.audit_ranking import RankedCase, rank_cases, weakness
from umamba.evaluation.audit_tables import write_tables
from umamba.io import Image, UserError, oriented_like, read_image
from umamba.io.resources import available_cpus
from umamba.labels import LabelSet
from umamba.reporting.audit_page import AuditPicture, write_audit_page
from umamba.reporting.gallery import draw_case
from umamba.runs.out_of_fold import out_of_fold, vote
from umamba.settings import AuditSettings

log = logging.getLogger(__name__)

_LEAST_PICTURES = 12  # cases that are drawn, even if fewer are listed for review


@dataclass(frozen=True)
class Audit:
    """What `audit` returns.

    Attributes:
        page: index.html.
        ranked: all cases, the most suspicious one first.
        names: label value -> name.
        review: how many of them, from the first on, are listed for review.
    """

    page: Path
    ranked: tuple[RankedCase, ...]
    names: Mapping[int, str]
    review: int


def audit(settings: AuditSettings) -> Audit:
    """Rank what is probably labelled wrongly, and write cases.csv, parts.csv, slices.csv, pairs.csv and index.html.

    Args:
        settings: the runs, their dataset and the output.

    Raises:
        UserError: the dataset cannot be read, a folder of runs has no segmentation of its validation cases, or none of
            the cases can be compared.
        StorageError: the output cannot be written.
    """
    dataset = read_dataset(settings.raw_dataset)
    segmented = out_of_fold(settings.folders, dataset)
    cases = [case for case in dataset.training if case.case_id in segmented]
    absent = len(dataset.training) - len(cases)
    if absent:
        message = "%d of %d training cases are left out, because no fold has segmented them, such as %s."
        missing = next(case.case_id for case in dataset.training if case.case_id not in segmented)
        log.warning(message, absent, len(dataset.training), missing)
    facts = _facts(cases, segmented, dataset, settings.workers or available_cpus())
    ranked = rank_cases(facts)
    if weak := weakness(ranked):
        log.warning("%s", weak)
    names = value_names(dataset.labels)
    present = sorted({value for each in facts.values() for value in each.overlaps})
    names |= {value: f"undeclared value {value}" for value in present if value not in names}
    review = sum(each.score >= settings.review_from for each in ranked)
    label_files = {case.case_id: case.label for case in cases if case.label is not None}
    write_tables(settings.output, ranked, names, label_files, review)
    pictures = _pictures(ranked[: max(review, _LEAST_PICTURES)], dataset, segmented, settings.pictures_mb)
    page = settings.output / "index.html"
    write_audit_page(page, dataset.name, ranked, names, review, pictures)
    return Audit(page, tuple(ranked), names, review)


def value_names(labels: LabelSet) -> dict[int, str]:
    """Return the name of each label value; of a value that only regions have, the names of the regions.

    Args:
        labels: the label set.

    >>> value_names(LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2)))
    {1: 'whole', 2: 'core'}
    """
    names = {}
    for value in labels.all_values:
        own = [(len(values), name) for name, values in zip(labels.names, labels.values, strict=True) if value in values]
        if own:
            fewest = min(own)[0]
            names[value] = " and ".join(name for count, name in own if count == fewest)
    return names


def _facts(
    cases: Sequence[RawCase], segmented: Mapping[str, tuple[Path, ...]], dataset: RawDataset, workers: int
) -> dict[str, CaseFacts]:
    inspect = partial(_inspect, segmented=segmented, dataset=dataset)
    found = over_cases(inspect, cases, workers, f"Auditing {dataset.name}", "workers")
    facts = {case.case_id: own for case, own in zip(cases, found, strict=True) if isinstance(own, CaseFacts)}
    problems = [own for own in found if isinstance(own, str)]
    if not facts:
        raise UserError("No case can be compared.\n" + "\n".join(problems))
    if problems:
        log.warning("%d cases are left out:\n%s", len(problems), "\n".join(problems))
    return facts


def _inspect(case: RawCase, segmented: Mapping[str, tuple[Path, ...]], dataset: RawDataset) -> CaseFacts | str:
    """Return what the comparison of a case gives, or the reason why it cannot be compared."""
    try:
        found = vote(
            *(case, segmented[case.case_id], dataset.labels, dataset.file_ending),
            carried=dataset.annotated.get(case.case_id),
        )
    except UserError as error:
        return str(error)
    return inspect_labels(found.given, found.predicted.array[0], found.margin, dataset.labels.ignore)


def _pictures(
    ranked: Sequence[RankedCase], dataset: RawDataset, segmented: Mapping[str, tuple[Path, ...]], most_mb: float
) -> list[AuditPicture]:
    """Draw the most suspicious cases in the slices where labels and segmentation differ most."""
    found: list[AuditPicture] = []
    known = {case.case_id: case for case in dataset.training}
    left, ignore = most_mb * 1e6, dataset.labels.ignore
    for each in ranked:
        if left <= 0:
            break
        case = known[each.case]
        try:
            image = read_image(case.images, time_is_channels=True)
            maps = vote(
                *(case, segmented[each.case], dataset.labels, dataset.file_ending),
                carried=dataset.annotated.get(each.case),
            )
        except UserError as error:
            log.warning("%s is not drawn. %s", each.case, error)
            continue
        wrong = (maps.given != maps.predicted.array[0]) & (True if ignore is None else maps.given != ignore)
        # The slices are chosen in the image's own orientation, which the segmentation may not have.
        difference = Image(wrong[None].astype(np.uint8), maps.predicted.geometry)
        focus = oriented_like(difference, image.geometry).array[0].astype(bool)
        labels = Image(maps.given[None], maps.predicted.geometry)
        drawing = draw_case(
            image,
            {"labels": labels, "segmentation out of fold": maps.predicted},
            dataset.labels,
            focus if focus.any() and focus.shape == image.array.shape[1:] else None,
        )
        left -= drawing.size
        if left >= 0:
            found.append(AuditPicture(each.case, drawing))
    return found
