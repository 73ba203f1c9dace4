"""The classification head of a run: its tasks and classes from the table of `heads.case`."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from umamba.labels.case_classes import UNKNOWN, CaseHeads, read_case_table
from umamba.runs.preparation import PlannedDataset
from umamba.settings import TrainSettings

log = logging.getLogger(__name__)
_LISTED = 5


def case_heads(settings: TrainSettings, planned: PlannedDataset) -> CaseHeads | None:
    """Return the tasks of a run's classification head; None: it has none.

    The classes are those of all training cases, whatever the fold, so that the folds of an experiment answer the same.

    Args:
        settings: the settings of the run.
        planned: the dataset.

    Raises:
        UserError: the table cannot be used.
    """
    if settings.heads.case is None:
        return None
    cases = [case.case_id for case in planned.dataset.training]
    return CaseHeads(read_case_table(settings.heads.case).tasks(cases), settings.heads.alone)


def case_classes(settings: TrainSettings, heads: CaseHeads | None) -> dict[str, tuple[int, ...]]:
    """Return case -> number of its class in each task; empty without a head.

    Args:
        settings: the settings of the run.
        heads: its tasks.

    Raises:
        UserError: the table cannot be read.
    """
    if heads is None or settings.heads.case is None:
        return {}
    return read_case_table(settings.heads.case).targets(heads.tasks)


def with_class(cases: Sequence[str], classes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the cases that have a class in a task at least.

    Args:
        cases: names of cases.
        classes: as `case_classes` returns them.
    """
    return [case for case in cases if max(classes.get(case, (UNKNOWN,))) >= 0]


def heads_identity(settings: TrainSettings, heads: CaseHeads | None, cases: Collection[str]) -> dict[str, Any]:
    """Return what a run learns of its cases' classes, for its identity; empty without a head.

    Args:
        settings: the settings of the run.
        heads: its tasks.
        cases: the training and validation cases.
    """
    if heads is None:
        return {}
    classes = case_classes(settings, heads)
    known = sorted((case, classes[case]) for case in cases if case in classes)
    digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=4).hexdigest()
    found = {"tasks": str(heads), "classes": f"{len(known)} cases ({digest})"}
    return {"heads": {**found, "weight": settings.heads.weight, "alone": heads.alone}}


def warn_of_classes(settings: TrainSettings, heads: CaseHeads | None, train_cases: Collection[str]) -> None:
    """Log a warning about cases without a class, names that are no cases, and classes that no training case has.

    Args:
        settings: the settings of the run.
        heads: its tasks.
        train_cases: cases of the fold that are trained on.
    """
    classes = case_classes(settings, heads)
    if heads is None:
        return
    without = sorted(set(train_cases) - {case for case, numbers in classes.items() if max(numbers) >= 0})
    if without:
        what = "give nothing to learn" if heads.alone else "train the segmentation only"
        log.warning("%d training cases without a class %s: %s", len(without), what, _listed(without))
    for index, task in enumerate(heads.tasks):
        present = {classes[case][index] for case in train_cases if case in classes}
        absent = [name for number, name in enumerate(task.classes) if number not in present]
        if absent:
            log.warning("%s: no training case of this fold has the class %s.", task.name, _listed(absent))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
