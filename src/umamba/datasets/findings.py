"""Problems of a dataset, and a table of them."""

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
    """A problem of a dataset.

    Attributes:
        case_id: the case that has it; empty for a problem of the whole dataset.
        file: the file that has it, relative to the dataset's folder if it is inside it.
        severity: "error" (the dataset cannot be used for training) or "warning" (the user should check it).
        message: what is wrong and what to do.
    """

    case_id: str
    file: str
    severity: Literal["error", "warning"]
    message: str


def findings_table(findings: Iterable[Finding]) -> str:
    """Return a text table of problems, sorted by case, with the errors of a case first.

    Args:
        findings: the problems. If there are more than 100, the table shows 100, errors before warnings, and the number
            of the others.
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
        row = (finding.case_id or "(dataset)", finding.file, finding.severity, finding.message)
        table.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]
    hidden = len(ordered) - len(shown)
    return "\n".join(lines + ([f"+{hidden} more"] if hidden else []))
