"""Partly labelled cases: the labels that the label map of a case carries.

A case that is not listed carries all labels. In the label map of a listed case, 0 means "none of the labels that this
case carries": background, or a label that nobody looked for.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from umamba.io import UserError, read_json
from umamba.io.rows import read_columns
from umamba.labels.label_set import LabelSet
from umamba.settings.wording import nearest, shown

FILE = "annotated_labels.csv"
KEY = "annotated_labels"
_HEADER = ("case", "label")

Annotated = Mapping[str, tuple[str, ...]]  # case -> names of the labels that it carries, for cases that lack some


def read_annotated(
    root: Path, declared: Mapping[str, Any], labels: LabelSet, cases: Collection[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the labels that each partly labelled case carries, and what is wrong with the declaration.

    It is the key `annotated_labels` of dataset.json: {"case_1": ["liver"]}, or ["liver"] for all cases. Or it is the
    file annotated_labels.csv beside it, with the columns case and label and one label a line.

    Args:
        root: the dataset's folder.
        declared: the content of dataset.json.
        labels: the label set.
        cases: training and test cases.

    Returns:
        Case -> labels in the order of the label set, without cases that carry all; and a sentence for each mistake.
    """
    path = root / FILE
    if KEY not in declared and not path.exists():
        return {}, []
    if KEY in declared and path.exists():
        return {}, [f"{KEY}: both dataset.json and {FILE} have them. Keep one of the two."]
    try:
        entries = _rows(path) if path.exists() else _entries(declared[KEY], cases)
    except UserError as error:
        return {}, [str(error).removeprefix(f"{root}{os.sep}")]  # the caller names the dataset
    file = FILE if path.exists() else KEY
    problems = []
    unknown = sorted(set(entries) - set(cases))
    if unknown:
        named = shown(", ".join(unknown[:5]))
        problems.append(f"{file}: the dataset does not have {named} (cases: {len(unknown)}). Correct the names.")
    for name in sorted(set().union(*entries.values()) - set(labels.names)):
        where = [case_id for case_id, names in entries.items() if name in names]
        first = where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more"
        close = nearest(name, labels.names)
        hint = f" Did you mean {close}?" if close else ""
        problems.append(f"{file}: {first}: {shown(name)} is none of the labels {shown(', '.join(labels.names))}.{hint}")
    for case_id, names in entries.items():
        if not names:
            problems.append(f"{file}: {case_id} carries no label. Remove the case, or name its labels.")
    if problems:
        return {}, problems
    ordered = {case_id: tuple(name for name in labels.names if name in names) for case_id, names in entries.items()}
    return {case_id: names for case_id, names in ordered.items() if len(names) < len(labels.names)}, []


def annotated_beside(path: Path, labels: LabelSet, cases: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the labels that each partly labelled case carries, as a dataset.json and the CSV file beside it say.

    Args:
        path: the dataset.json; without it no case is partly labelled.
        labels: the label set.
        cases: the cases that are asked for; entries of others are left out.

    Raises:
        UserError: the declaration has mistakes.
    """
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, Mapping):
        return {}
    declared = content.get(KEY)
    known = set(declared) if isinstance(declared, Mapping) else set()
    if (path.parent / FILE).exists():
        known |= set(_rows(path.parent / FILE))
    found, problems = read_annotated(path.parent, content, labels, known | set(cases))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return {case_id: names for case_id, names in found.items() if case_id in set(cases)}


def values_of(labels: LabelSet, names: Sequence[str]) -> set[int]:
    """Return the values that the label map of a case with these labels may hold, background and ignore included.

    Args:
        labels: the label set.
        names: labels that the case carries.

    >>> sorted(values_of(LabelSet(("liver", "spleen"), ((1,), (2,)), ignore=3), ["spleen"]))
    [0, 2, 3]
    """
    found = {0} if labels.ignore is None else {0, labels.ignore}
    return found.union(*(values for name, values in zip(labels.names, labels.values, strict=True) if name in names))


def annotated_mask(labels: LabelSet, annotated: Annotated, case_ids: Sequence[str]) -> np.ndarray:
    """Return which labels the cases carry.

    Args:
        labels: the label set.
        annotated: labels of the partly labelled cases.
        case_ids: B cases.

    Returns:
        (B, number of labels without background) bool.

    >>> annotated_mask(LabelSet(("liver", "spleen"), ((1,), (2,))), {"a": ("spleen",)}, ["a", "b"]).tolist()
    [[False, True], [True, True]]
    """
    rows = [[name in annotated.get(case_id, labels.names) for name in labels.names] for case_id in case_ids]
    return np.array(rows, dtype=np.bool_)


def annotated_sentence(labels: LabelSet, annotated: Annotated, case_ids: Sequence[str]) -> str:
    """Return how many cases are partly labelled, and how many carry each label.

    Args:
        labels: the label set.
        annotated: labels of the partly labelled cases.
        case_ids: the cases.

    >>> annotated_sentence(LabelSet(("liver", "spleen"), ((1,), (2,))), {"a": ("spleen",)}, ["a", "b"])
    'Partly labelled: 1 of 2 cases. Cases that carry each label: liver 1, spleen 2.'
    """
    partly = sum(case_id in annotated for case_id in case_ids)
    counts = annotated_mask(labels, annotated, case_ids).sum(0)
    each = ", ".join(f"{name} {count}" for name, count in zip(labels.names, counts, strict=True))
    return f"Partly labelled: {partly} of {len(case_ids)} cases. Cases that carry each label: {each}."


def _entries(given: Any, cases: Collection[str]) -> dict[str, set[str]]:
    """Return the labels of each case in dataset.json."""
    if isinstance(given, list):
        given = dict.fromkeys(sorted(cases), given)
    right = isinstance(given, Mapping) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in given.values()
    )
    if not right:
        raise UserError(
            f'{KEY}: must map each partly labelled case to its labels, like {{"case_1": ["liver"]}}, or be a list of '
            "the labels that every case carries."
        )
    return {str(case_id): set(names) for case_id, names in given.items()}


def _rows(path: Path) -> dict[str, set[str]]:
    """Return the labels of each case in the CSV file."""
    found: dict[str, set[str]] = {}
    for line, (case_id, name) in read_columns(path, _HEADER):
        if not case_id or not name:
            raise UserError(f"{path}: line {line} has no case or no label. Complete or remove it.")
        found.setdefault(case_id, set()).add(name)
    return found
