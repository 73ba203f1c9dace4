"""Read which cases belong together, such as a patient's: from groups.csv, or the key `groups` of dataset.json."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from umamba.datasets.findings import Finding
from umamba.io import UserError
from umamba.io.rows import read_columns

FILE = "groups.csv"
_HEADER = ("case", "group")


def read_groups(
    root: Path, declared: Mapping[str, Any], case_ids: Collection[str], findings: list[Finding]
) -> dict[str, str]:
    """Return the group of each case that has one.

    Args:
        root: the dataset's folder; its groups.csv has the columns case and group, one case a line.
        declared: the content of dataset.json; its key `groups` maps cases to groups.
        case_ids: the training cases; groups of other cases are left out, with a warning.
        findings: mistakes are added to it.
    """
    path = root / FILE
    if "groups" not in declared and not path.exists():
        return {}
    file = FILE if path.exists() else "dataset.json"
    if "groups" in declared and path.exists():
        findings.append(Finding("", FILE, "error", "dataset.json has groups, too. Keep one of the two."))
        return {}
    groups: dict[str, str] = {}
    entries, mistake = _rows(path) if path.exists() else _entries(declared["groups"])
    if mistake:
        findings.append(Finding("", file, "error", mistake))
        return {}
    for case_id, group in entries:
        if groups.setdefault(case_id, group) != group:
            message = f"the case is in the groups {groups[case_id]} and {group}. Keep one line of it."
            findings.append(Finding(case_id, file, "error", message))
    unknown = sorted(set(groups) - set(case_ids))
    if unknown and not any(finding.severity == "error" for finding in findings):
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        message = f"groups: names {len(unknown)} cases that are no training cases: {shown}. Is a name misspelt?"
        findings.append(Finding("", file, "warning", message))
    return {case_id: group for case_id, group in groups.items() if case_id in set(case_ids)}


def _entries(groups: Any) -> tuple[list[tuple[str, str]], str]:
    """Return cases and groups of dataset.json, or what is wrong."""
    plain = isinstance(groups, Mapping) and all(isinstance(group, str | int) for group in groups.values())
    if not plain:
        return [], 'groups: must map each case to the name of its group, like {"case_1": "patient_7"}.'
    return [(str(case_id), str(group)) for case_id, group in groups.items()], ""


def _rows(path: Path) -> tuple[list[tuple[str, str]], str]:
    """Return cases and groups of a CSV file, or what is wrong."""
    try:
        rows = read_columns(path, _HEADER)
    except UserError as error:
        return [], str(error).removeprefix(f"{path}: ")
    incomplete = [line for line, (case_id, group) in rows if not case_id or not group]
    if incomplete:
        return [], f"line {incomplete[0]} has no case or no group."
    return [(case_id, group) for _, (case_id, group) in rows], ""
