"""The printable table of scores: what was scored by which rules, and of how many cases each number is made."""

import pandas
from rich.console import Group
from rich.table import Table

from umamba.evaluation.score import TITLES, WITH_MISSES, metrics_of
from umamba.evaluation.statistics import mean_label
from umamba.io.escape import rich_text

_COLUMNS = 4  # metrics that 80 characters hold
MISSES_RULE = (
    "A label in only one of prediction and reference counts as DSC and NSD 0; HD95 leaves it out, HD95 with misses "
    "counts it with the image's diagonal."
)


def score_tables(
    scores: pandas.DataFrame, title: str | None = None, rules: str | None = None, expected: int | None = None
) -> Group:
    """Return the printable tables of many metrics, a few of them in each, so that a narrow terminal shows all digits.

    Args:
        scores: as for `score_table`.
        title: of each table.
        rules: caption of the first one.
        expected: as for `score_table`.
    """
    metrics = metrics_of(scores)
    others = [column for column in scores if column not in metrics]
    parts = [metrics[start : start + _COLUMNS] for start in range(0, len(metrics), _COLUMNS)] or [[]]
    return Group(
        *(
            score_table(scores[[*others, *part]], title, None if number else rules, expected)
            for number, part in enumerate(parts)
        )
    )


def score_table(
    scores: pandas.DataFrame, title: str | None = None, rules: str | None = None, expected: int | None = None
) -> Table:
    """Return the printable table of scores: mean ± standard deviation over the cases for each label.

    Cases without a score (NaN) are left out. Where a metric has a score for fewer cases than the row counts, their
    number n stands behind its mean. With several labels the last row averages the labels of each case first, and then
    the cases.

    Args:
        scores: columns case, label and metrics.
        title: what was scored, such as "Test images"; the number of cases is added.
        rules: sentence on the rules of the scores (`Rules.sentence`), which becomes the caption; None: no caption.
        expected: number of cases that should have been scored; None: those of the table.
    """
    metrics = metrics_of(scores)
    number = scores["case"].nunique()
    counted = f"{number} cases" if expected in (None, number) else f"{number} of {expected} cases"
    table = Table(title=rich_text(f"{title}: {counted}" if title else f"Scores of {counted}"))
    if rules is not None:
        table.caption = rich_text(" ".join([rules, *([MISSES_RULE] if WITH_MISSES in metrics else [])]))
    for column in ("label", "cases", *(TITLES[metric] for metric in metrics)):
        table.add_column(column, justify="left" if column == "label" else "right")
    if not metrics:
        return table
    labels = scores["label"].unique()
    for label in labels:
        _add_row(table, str(label), scores.loc[scores["label"] == label, metrics])
    if len(labels) > 1:
        table.add_section()
        _add_row(table, mean_label(labels), scores.groupby("case")[metrics].mean())
    return table


def _add_row(table: Table, name: str, values: pandas.DataFrame) -> None:
    cases = int(values.count().max())
    table.add_row(rich_text(name), str(cases), *(_mean_and_sd(values[metric], cases) for metric in values))


def _mean_and_sd(values: pandas.Series, cases: int) -> str:
    if not values.count():
        return "no case"
    deviation = f" ± {values.std():.4f}" if values.count() > 1 else ""
    return f"{values.mean():.4f}{deviation}{'' if values.count() == cases else f', n={values.count()}'}"
