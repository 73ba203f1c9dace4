"""A problem of a data set, and many of them as one readable table."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MAX_ROWS = 100


@dataclass(frozen=True)
class Finding:
    """One problem: errors forbid training on the data set, warnings are worth a look.

    Attributes:
        case_id: the case concerned; empty for the data set as a whole.
        file: file concerned, relative to the data set's folder where it lies in it.
        severity: "error" or "warning".
        message: what is wrong and what to do.
    """

    case_id: str
    file: str
    severity: Literal["error", "warning"]
    message: str


def findings_table(findings: Iterable[Finding]) -> str:
    """Return one text table sorted by case, errors of a case first; at most 100 rows, then how many more there are.

    If rows are left out, warnings are, before errors.
    """
    findings = list(findings)
    if not findings:
        return "no findings"
    ordered = sorted(findings, key=lambda finding: (finding.severity != "error", finding.case_id, finding.file))
    shown = sorted(
        ordered[:_MAX_ROWS], key=lambda finding: (finding.case_id, finding.severity != "error", finding.file)
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("case", "file", "severity", "finding"):
        table.add_column(heading, overflow="fold")
    for finding in shown:
        row = (finding.case_id or "(data set)", finding.file, finding.severity, finding.message)
        table.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]
    hidden = len(ordered) - len(shown)
    return "\n".join(lines + ([f"+{hidden} more"] if hidden else []))
