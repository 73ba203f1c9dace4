"""Write the tables of a study as CSV, Markdown and LaTeX, in the paper's form: a row a method, or a row a label."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas

from umamba.evaluation.claims import FEWEST_CASES, claims_table
from umamba.evaluation.power import ALPHA
from umamba.io import escape
from umamba.io.tabular import write_table
from umamba.reporting.compare import REFERENCE, Claim, Number
from umamba.reporting.names import claim_words, dataset_name, method_name
from umamba.reporting.results import AVERAGE

CSV_COLUMNS = (
    *("dataset", "method", "label", "metric", "mean", "sd", "cases", "published_mean", "published_sd", "difference"),
    *("p_value", "runs_done", "runs_planned", "split", "rules"),
)
MISSING = "missing"
NO_CASE = "no case"


def legend(found: Sequence[Number]) -> str:
    """Return what bold and starred numbers mean; of the star nothing if the reference is not among the methods.

    Args:
        found: the numbers of all tables.
    """
    starred = any(number.method == REFERENCE for number in found)
    return (
        "Bold: shown to be better than every other method. "
        + (f"*: shown to differ from {method_name(REFERENCE)}. " if starred else "")
        + f"A difference is shown if its paired t test over cases and trainings stays below {ALPHA} after Holm's "
        "correction over the table, and its bootstrap interval excludes 0; it needs "
        f"{FEWEST_CASES} cases and two trainings of each method."
    )


def write_csv(path: Path, found: Sequence[Number]) -> None:
    """Write all numbers of a report at full precision; cells without a number are empty.

    Args:
        path: the CSV file.
        found: the numbers.
    """
    rows = []
    for number in found:
        printed = number.published
        paper = (printed.mean if printed else math.nan, printed.sd if printed and printed.sd else math.nan)
        rows.append(
            (
                *(number.dataset, number.method, number.label, number.metric, number.mean, number.sd, number.cases),
                *(*paper, number.difference, number.p_value, number.done, number.planned, number.images, number.rules),
            )
        )
    write_table(path, pandas.DataFrame(rows, columns=list(CSV_COLUMNS)))


def write_claims(path: Path, claims: Sequence[Claim]) -> None:
    """Write all comparisons of methods at full precision; cells without a number are empty.

    Args:
        path: the CSV file.
        claims: the comparisons.
    """
    write_table(path, claims_table(claims))


def ours(number: Number) -> str:
    """Return our mean ± standard deviation as text; * marks a difference from the reference that is shown.

    Args:
        number: the number; if it is not measured, the text says why.
    """
    if math.isnan(number.mean):
        return NO_CASE if number.scored else MISSING
    deviation = "" if math.isnan(number.sd) else f"±{number.sd:.4f}"
    return f"{number.mean:.4f}{deviation}{'*' if number.significant else ''}"


def counted(number: Number, found: Sequence[Number]) -> str:
    """Return the number of cases as text if fewer cases have this score than another one of the dataset.

    Args:
        number: the number.
        found: the numbers of all tables.
    """
    most = max((other.cases for other in found if other.dataset == number.dataset), default=0)
    return f" (n={number.cases})" if 0 < number.cases < most else ""


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


class NumberTable(NamedTuple):
    """Numbers arranged in a table.

    Attributes:
        title: what the table shows.
        names: name of each row.
        rows: the numbers, a column a metric for averages, otherwise a column a method.
        averages: whether the rows are methods and their averages over labels.
    """

    title: str
    names: list[str]
    rows: list[list[Number]]
    averages: bool


def tables(found: Sequence[Number]) -> list[NumberTable]:
    """Arrange the numbers in tables: for each dataset the averages by method, then each metric by label and method.

    Args:
        found: the numbers.
    """
    made = []
    for dataset in dict.fromkeys(number.dataset for number in found):
        own = [number for number in found if number.dataset == dataset]
        methods = list(dict.fromkeys(number.method for number in own))
        averages = [[n for n in own if n.label == AVERAGE and n.method == method] for method in methods]
        made.append(
            NumberTable(
                f"{dataset_name(dataset)}, {own[0].images} images: averages",
                [*map(method_name, methods)],
                averages,
                True,
            )
        )
        labels = [label for label in dict.fromkeys(number.label for number in own) if label != AVERAGE]
        for metric in dict.fromkeys(number.metric for number in own):
            rows = [[n for n in own if n.label == label and n.metric == metric] for label in labels]
            kept = [(label, row) for label, row in zip(labels, rows, strict=True) if row]
            if kept:
                title = f"{dataset_name(dataset)}, {own[0].images} images: {metric.upper()} by label"
                made.append(NumberTable(title, [k[0] for k in kept], [k[1] for k in kept], False))
    return made


def markdown(found: Sequence[Number], remark: str, claims: Sequence[Claim] = (), remarks: Sequence[str] = ()) -> str:
    """Return all tables in Markdown; bold: shown to be better than every other method. Then what the averages show.

    Args:
        found: the numbers.
        remark: text above the tables.
        claims: the comparisons of the methods.
        remarks: sentences on the comparisons, such as how well the datasets separate the methods.
    """
    text = (f"{escape.markdown(remark)}\n\n" if remark else "") + "\n".join(
        f"### {escape.markdown(table.title)}\n\n{_rules(table)}{_markdown_table(table, found)}"
        for table in tables(found)
    )
    told = "".join(
        f"- {escape.markdown(sentence)}\n"
        for sentence in (
            *(f"{dataset_name(claim.dataset)}, {claim_words(claim)}" for claim in claims if claim.label == AVERAGE),
            *remarks,
        )
    )
    return text + (f"\n### What the averages show\n\n{escape.markdown(legend(found))}\n\n{told}" if told else "")


def _rules(table: NumberTable) -> str:
    rules = table.rows[0][0].rules
    return f"{escape.markdown(rules)}\n\n" if rules else ""


def _markdown_table(table: NumberTable, found: Sequence[Number]) -> str:
    head = [escape.markdown(column) for column in _columns(table)]
    published = any(number.published for row in table.rows for number in row)
    beside = ("ours", "paper", "difference")
    lines = [["", *(f"{name} {what}" for name in head for what in beside)] if published else ["", *head]]
    for name, row in zip(table.names, table.rows, strict=True):
        cells = [escape.markdown(name)]
        for number in row:
            cells += [_marked(number, found, "**{}**"), *([theirs(number), difference(number)] if published else [])]
        lines.append(cells)
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"


def latex(found: Sequence[Number], remark: str) -> str:
    """Return all tables in LaTeX (booktabs): our numbers, with the paper's in small print below, bold as in Markdown.

    Args:
        found: the numbers.
        remark: comment above the tables.
    """
    return (
        (f"% {escape.printable(remark)}\n" if remark else "")
        + f"% {legend(found)}\n"
        + "\n".join(_latex_table(table, found) for table in tables(found))
    )


def _latex_table(table: NumberTable, found: Sequence[Number]) -> str:
    head, rules = _columns(table), table.rows[0][0].rules
    lines = [
        f"% {escape.printable(table.title)}",
        *([f"% {escape.printable(rules)}"] if rules else []),
        rf"\begin{{tabular}}{{l{'c' * len(head)}}}",
        r"\toprule",
        " & ".join(["", *map(escape.latex, head)]) + r" \\",
        r"\midrule",
    ]
    for name, row in zip(table.names, table.rows, strict=True):
        cells = [_marked(number, found, r"\textbf{{{}}}") for number in row]
        lines.append(" & ".join([escape.latex(name), *(cell.replace("±", r"$\pm$") for cell in cells)]) + r" \\")
        if any(number.published for number in row):
            papers = [rf"\scriptsize paper {theirs(n)} {difference(n)}".replace("±", r"$\pm$") for n in row]
            lines.append(" & ".join(["", *papers]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _columns(table: NumberTable) -> list[str]:
    """Return the titles of the columns: metrics in the table of averages, methods in the others."""
    return [number.metric.upper() if table.averages else method_name(number.method) for number in table.rows[0]]


def _marked(number: Number, found: Sequence[Number], best: str) -> str:
    """Return our number as text, in the format for the best method if it is shown to be that."""
    text = ours(number) + counted(number, found)
    return best.format(text) if number.best else text
