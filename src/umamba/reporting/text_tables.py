"""Write the tables of a study as CSV, Markdown and LaTeX, in the paper's form: a row a method, or a row a label."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from umamba.io import atomic_path
from umamba.reporting.compare import Number, best_two
from umamba.reporting.results import AVERAGE

CSV_COLUMNS = (
    *("dataset", "method", "label", "metric", "mean", "sd", "cases", "published_mean", "published_sd", "difference"),
    *("p_value", "runs_done", "runs_planned"),
)
MISSING = "missing"
NO_CASE = "no case"


def write_csv(path: Path, found: Sequence[Number]) -> None:
    """Write all numbers of a report at full precision; cells without a number are empty.

    Args:
        path: the CSV file.
        found: the numbers.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for number in found:
            printed = number.published
            values = (number.mean, number.sd, float(number.cases))
            paper = (printed.mean if printed else math.nan, printed.sd if printed and printed.sd else math.nan)
            writer.writerow(
                (
                    *(number.dataset, number.method, number.label, number.metric),
                    *(_plain(value) for value in values[:2]),
                    number.cases,
                    *(_plain(value) for value in (*paper, number.difference, number.p_value)),
                    *(number.done, number.planned),
                )
            )


def _plain(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def ours(number: Number) -> str:
    """Return our mean ± standard deviation as text; * marks a significant difference from the reference.

    Args:
        number: the number; if it is not measured, the text says why.
    """
    if math.isnan(number.mean):
        return NO_CASE if number.scored else MISSING
    deviation = "" if math.isnan(number.sd) else f"±{number.sd:.4f}"
    return f"{number.mean:.4f}{deviation}{'*' if number.significant else ''}"


def theirs(number: Number) -> str:
    """Return the paper's mean ± standard deviation as text.

    Args:
        number: the number; if the paper has none, the text is empty.
    """
    if number.published is None:
        return ""
    return f"{number.published.mean:.4f}" + (f"±{number.published.sd:.4f}" if number.published.sd else "")


def difference(number: Number) -> str:
    """Return our mean minus the published one as text with its sign.

    Args:
        number: the number; if one of the means is missing, the text is empty.
    """
    return "" if math.isnan(number.difference) else f"{number.difference:+.4f}"


def tables(found: Sequence[Number]) -> list[tuple[str, list[str], list[list[Number]]]]:
    """Arrange the numbers in tables: for each dataset the averages by method, then each metric by label and method.

    Args:
        found: the numbers.

    Returns:
        Title, row names and rows of each table.
    """
    made = []
    for dataset in dict.fromkeys(number.dataset for number in found):
        own = [number for number in found if number.dataset == dataset]
        methods = list(dict.fromkeys(number.method for number in own))
        averages = [[n for n in own if n.label == AVERAGE and n.method == method] for method in methods]
        made.append((f"{dataset}: averages", methods, averages))
        labels = [label for label in dict.fromkeys(number.label for number in own) if label != AVERAGE]
        for metric in dict.fromkeys(number.metric for number in own):
            rows = [[n for n in own if n.label == label and n.metric == metric] for label in labels]
            kept = [(label, row) for label, row in zip(labels, rows, strict=True) if row]
            if kept:
                made.append((f"{dataset}: {metric.upper()} by label", [k[0] for k in kept], [k[1] for k in kept]))
    return made


def markdown(found: Sequence[Number], remark: str) -> str:
    """Return all tables in Markdown; our best number is bold, the second best underlined.

    Args:
        found: the numbers.
        remark: text above the tables.
    """
    return (f"{remark}\n\n" if remark else "") + "\n".join(
        f"### {title}\n\n{_markdown_table(names, rows, 'averages' in title, found)}"
        for title, names, rows in tables(found)
    )


def _markdown_table(names: Sequence[str], rows: Sequence[list[Number]], averages: bool, found: Sequence[Number]) -> str:
    head = _columns(rows[0], averages)
    lines = [["", *(f"{name} {what}" for name in head for what in ("ours", "paper", "difference"))]]
    for name, row in zip(names, rows, strict=True):
        cells = [name]
        for number in row:
            cells += [_marked(number, found, "**{}**", "<u>{}</u>"), theirs(number), difference(number)]
        lines.append(cells)
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"


def latex(found: Sequence[Number], remark: str) -> str:
    """Return all tables in LaTeX (booktabs): our numbers, with the paper's in small print below.

    Args:
        found: the numbers.
        remark: comment above the tables.
    """
    return (f"% {remark}\n" if remark else "") + "\n".join(
        _latex_table(title, names, rows, "averages" in title, found) for title, names, rows in tables(found)
    )


def _latex_table(
    title: str, names: Sequence[str], rows: Sequence[list[Number]], averages: bool, found: Sequence[Number]
) -> str:
    head = _columns(rows[0], averages)
    lines = [
        f"% {title}",
        rf"\begin{{tabular}}{{l{'c' * len(head)}}}",
        r"\toprule",
        " & ".join(["", *map(_escape, head)]) + r" \\",
        r"\midrule",
    ]
    for name, row in zip(names, rows, strict=True):
        cells = [_marked(number, found, r"\textbf{{{}}}", r"\underline{{{}}}") for number in row]
        lines.append(" & ".join([_escape(name), *(cell.replace("±", r"$\pm$") for cell in cells)]) + r" \\")
        if any(number.published for number in row):
            papers = [rf"\scriptsize paper {theirs(n)} {difference(n)}".replace("±", r"$\pm$") for n in row]
            lines.append(" & ".join(["", *papers]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _columns(row: Iterable[Number], averages: bool) -> list[str]:
    """Return the titles of the columns: metrics in the table of averages, methods in the others."""
    return [number.metric.upper() if averages else number.method for number in row]


def _marked(number: Number, found: Sequence[Number], best: str, second: str) -> str:
    """Return our number as text, in the format for the best or second best method if it is one of these."""
    key = (number.dataset, number.label, number.metric)
    first, next_best = best_two([other for other in found if (other.dataset, other.label, other.metric) == key])
    text = ours(number)
    return best.format(text) if number.method == first else second.format(text) if number.method == next_best else text


def _escape(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
