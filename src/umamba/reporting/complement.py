"""Do two methods complement each other? Wins by case, and the oracle that takes the better of two for each case.

The oracle of two gains by chance alone, because the better of two numbers is at least their mean. So each pair of
methods stands beside the pairs of trainings of one method: only what two methods gain beyond two seeds of one of them
says that they complement each other.
"""

from itertools import combinations_with_replacement, product

import pandas

from umamba.reporting.compare import by_method
from umamba.reporting.results import AVERAGE, METRICS, Results

COLUMNS = (
    "dataset",
    "metric",
    "first",
    "second",
    "pairs",
    "cases",
    "wins_first",
    "wins_second",
    "ties",
    "oracle",
    "gain",
)


def complement(results: Results) -> pandas.DataFrame:
    """Compare each pair of methods case by case, and the trainings of each method with each other.

    Args:
        results: the results of the study.

    Returns:
        COLUMNS: `pairs` is the number of pairs of trainings, over which all values but `cases` are averaged. Wins and
        ties are numbers of cases. `oracle` is the mean over cases of the better score, and `gain` what it has above the
        better of the two trainings.
    """
    rows: list[tuple[object, ...]] = []
    for dataset in results.datasets:
        own = results.scores[results.scores["dataset"] == dataset]
        for metric in METRICS:
            scores = by_method(own, results.methods(dataset), AVERAGE, metric)
            for first, second in combinations_with_replacement(scores, 2):
                rows += _of_pair(dataset, metric, first, second, scores[first], scores[second])
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _of_pair(
    dataset: str, metric: str, first: str, second: str, a: pandas.DataFrame, b: pandas.DataFrame
) -> list[tuple[object, ...]]:
    """Return the row of two methods; none if they have no pair of trainings, or no case in common."""
    cases = a.dropna(axis="columns").columns.intersection(b.dropna(axis="columns").columns)
    chosen = product(range(len(a)), range(len(b)))
    pairs = [(i, j) for i, j in chosen if first != second or i < j]
    if not pairs or not len(cases):
        return []
    found = []
    for i, j in pairs:
        x, y = a[cases].iloc[i], b[cases].iloc[j]
        oracle = float(x.where(x > y, y).mean())
        found.append(((x > y).sum(), (y > x).sum(), (x == y).sum(), oracle, oracle - max(x.mean(), y.mean())))
    means = pandas.DataFrame(found).mean()
    return [(dataset, metric, first, second, len(pairs), len(cases), *map(float, means))]
