"""The comparison of methods whose folders were scored: a table for comparison.csv, and what is printed of it."""

from collections.abc import Mapping, Sequence

import pandas
from rich.table import Table

from umamba.evaluation.claims import Claim, claims_table, compare, judged
from umamba.evaluation.equivalence import MARGIN
from umamba.evaluation.score import TITLES
from umamba.evaluation.statistics import with_case_means
from umamba.io.escape import rich_text


def compare_methods(
    scores: Mapping[str, pandas.DataFrame], methods: Mapping[str, str], metrics: Sequence[str], margin: float = MARGIN
) -> pandas.DataFrame:
    """Compare every pair of methods for each label and metric.

    A family of Holm's correction is the mean over labels by all metrics, or all labels by one metric.

    Args:
        scores: training -> table with the columns case, label and metrics.
        methods: training -> its method.
        metrics: the metrics to compare.
        margin: the largest difference that does not matter.

    Returns:
        The columns of `claims_table` without the dataset, a row for each label, metric and pair.
    """
    complete = {name: with_case_means(table, metrics) for name, table in scores.items()}
    labels = list(dict.fromkeys(label for table in complete.values() for label in table["label"]))
    *single, summary = labels  # the means over labels are the last rows, or there is one label
    families = [*([(label, metric) for label in single] for metric in metrics), [(summary, m) for m in metrics]]
    found: list[Claim] = []
    for family in families:
        compared: list[Claim] = []
        for label, metric in family:
            compared += compare(_by_method(complete, methods, label, metric), metric, margin, label=label)
        found += judged(compared)
    return claims_table(found).drop(columns="dataset")


def _by_method(
    scores: Mapping[str, pandas.DataFrame], methods: Mapping[str, str], label: str, metric: str
) -> dict[str, pandas.DataFrame]:
    """Return the scores of each method: a row for each training, a column for each case."""
    rows = {
        name: table[table["label"] == label].set_index("case")[metric].rename(name) for name, table in scores.items()
    }
    return {
        method: pandas.DataFrame([rows[name] for name in rows if methods[name] == method])
        for method in dict.fromkeys(methods[name] for name in rows)
    }


def comparison_table(comparison: pandas.DataFrame) -> Table:
    """Return the printable table of differences: of the means over labels, or of a single label."""
    table = Table(
        title="Differences between methods: 95 % interval; P(false): probability that the better mean is not better"
    )
    for column in ("metric", "methods", "cases", "difference", "interval", "P(false)"):
        table.add_column(column)
    for _, row in _over_labels(comparison).iterrows():
        known = not pandas.isna(row["ci_low"])
        interval = f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}" if known else "few cases"
        p_false = f"{row['p_false']:.3g}" if known else "few cases"
        methods, difference = rich_text(f"{row['first']} - {row['second']}"), f"{row['difference']:+.4f}"
        table.add_row(TITLES[row["metric"]], methods, str(row["cases"]), difference, interval, p_false)
    return table


def comparison_sentences(comparison: pandas.DataFrame) -> list[str]:
    """Return what is shown of each pair of methods: over the means of all labels, or the scores of a single label."""
    return [
        f"{TITLES[row['metric']]}, {row['first']} and {row['second']}: {row['sentence']}"
        for _, row in _over_labels(comparison).iterrows()
    ]


def _over_labels(comparison: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows of the means of all labels, if there are any, which are the last ones."""
    return comparison[comparison["label"] == comparison["label"].iloc[-1]]
