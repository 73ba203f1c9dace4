"""How often the paper's claims would be false: its printed means and deviations under Christodoulou et al.'s formula.

A table claims that a U-Mamba is better than each network whose mean it exceeds. The correlation over cases between two
networks is not printed, so it is a range. Tables 5 to 7 print no deviations. There the deviation of each network's
average over organs stands in for that of an organ. The deviation of an average is at most the mean of the organs'
deviations, so the probabilities of a typical organ are rather higher than these.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas
from scipy.special import stdtrit

from umamba.evaluation.claims import false_claim_probability
from umamba.evaluation.power import ALPHA
from umamba.reporting.names import dataset_name, method_name, metric_name
from umamba.reporting.results import AVERAGE, Published

CORRELATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLAIMANTS = ("umamba_bot", "umamba_enc")
# Test cases of Table 1. Frames of a video resemble each other, so endoscopy is also counted by its ten videos.
CASES = {"flare": (50,), "amos": (50,), "amos2d": (50,), "endovis": (1200, 10), "cell": (101,)}
COLUMNS = (
    *("dataset", "label", "metric", "method", "other", "difference", "cases", "sd_method", "sd_other", "sd_source"),
    *(f"p_false_r{correlation}" for correlation in CORRELATIONS),
    "r_needed",
)
_CLOSEST = (
    " For each organ and metric the table has one claim: that of the better U-Mamba over the closest of the networks "
    "that it exceeds. A network that exceeds both U-Mambas is not in the table."
)
_SHOWN = (0.3, 0.5, 0.7, 0.9)
Numbers = Mapping[tuple[str, str, str, str], Published]


def published_claims(printed: Numbers, averages: Numbers) -> pandas.DataFrame:
    """Return P(false claim) of each claim of a table, a column for each correlation.

    Args:
        printed: (dataset, method, label, metric) -> number of the table.
        averages: the numbers of the table that has the deviations of the averages.

    Returns:
        COLUMNS; r_needed is the smallest correlation from which on the probability is below 5 % (empty: none).
    """
    rows = []
    for (dataset, method, label, metric), own in printed.items():
        if method not in CLAIMANTS or (label == AVERAGE and own.sd is None):
            continue  # averages without a deviation are those of another table
        others = [key for key in printed if (key[0], *key[2:]) == (dataset, label, metric) and key[1] not in CLAIMANTS]
        for key in others:
            difference = round(own.mean - printed[key].mean, 10)
            if difference <= 0:
                continue
            sd, sd_other = (_deviation(printed, averages, (dataset, name, label, metric)) for name in (method, key[1]))
            source = "printed" if own.sd is not None else "average over organs"
            for cases in CASES[dataset]:
                probabilities = [
                    round(false_claim_probability(difference, 0.0, sd, sd_other, correlation, cases), 6)
                    for correlation in CORRELATIONS
                ]
                needed = _correlation_needed(difference, sd, sd_other, cases)
                names = (dataset, label, metric, method, key[1])
                rows.append((*names, difference, cases, sd, sd_other, source, *probabilities, needed))
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def summary(claims: pandas.DataFrame, printed: Numbers) -> str:
    """Return the claims as Markdown: how many have P(false) below 5 %, and a row for each claim or each organ.

    Args:
        claims: the table of `published_claims`, not empty.
        printed: the numbers of the table.
    """
    parts = []
    for (dataset, cases), own in claims.groupby(["dataset", "cases"], sort=False):
        organs = own["label"].iloc[0] != AVERAGE
        rows = _closest(own) if organs else own
        counts = ", ".join(f"{_kept(own, r)} at r = {r}" for r in _SHOWN)
        spread = "" if organs else _spread(str(dataset), int(cases), printed)
        unit = "videos" if (dataset, cases) == ("endovis", 10) else "test cases"
        parts += [
            f"## {dataset_name(str(dataset))}, {cases} {unit}",
            f"Of {len(own)} claims, P(false) is below 5 % for {counts}." + (_CLOSEST if organs else spread),
            _table(rows),
        ]
    return "\n\n".join(parts) + "\n"


def _spread(dataset: str, cases: int, printed: Numbers) -> str:
    """Say how far the methods' means spread beside the error of one mean over cases; trainings are not printed."""
    told = []
    for metric in dict.fromkeys(key[3] for key in printed if key[0] == dataset):
        row = [value for key, value in printed.items() if (key[0], *key[2:]) == (dataset, AVERAGE, metric)]
        variances = [value.sd**2 / cases for value in row if value.sd is not None]
        ratio = float(np.std([value.mean for value in row], ddof=1)) / math.sqrt(sum(variances) / len(variances))
        told.append(f"{ratio:.1f} ({metric_name(metric)})")
    return (
        f" The {len(row)} means spread {' and '.join(told)} times as much as the standard error of one mean over cases."
    )


def _table(rows: pandas.DataFrame) -> str:
    head = ["label", "metric", "claim", "difference", *(f"r = {r}" for r in _SHOWN), "r needed"]
    lines = [head, ["---"] * len(head)]
    for row in rows.to_dict("records"):
        needed = row["r_needed"]
        lines.append(
            [
                row["label"],
                metric_name(row["metric"]),
                f"{method_name(row['method'])} over {method_name(row['other'])}",
                f"{row['difference']:.4f}",
                *(_percent(row[f"p_false_r{r}"]) for r in _SHOWN),
                "none" if math.isnan(needed) else "any" if needed <= -1 else f"{needed:.2f}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _closest(own: pandas.DataFrame) -> pandas.DataFrame:
    """Return for each label and metric the claim of the better U-Mamba over the closest network below it."""
    largest = own.groupby(["label", "metric", "method"])["difference"].transform("max")
    best = own[largest == largest.groupby([own["label"], own["metric"]]).transform("max")]
    closest = best.loc[best.groupby(["label", "metric"])["difference"].idxmin()]
    order = {label: place for place, label in enumerate(own["label"].unique())}
    return closest.sort_values("label", key=lambda labels: labels.map(order), kind="stable")


def _kept(own: pandas.DataFrame, correlation: float) -> int:
    return int((own[f"p_false_r{correlation}"] < ALPHA).sum())


def _percent(probability: float) -> str:
    text = "< 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"
    return text if probability < ALPHA else f"**{text}**"


def _deviation(printed: Numbers, averages: Numbers, key: tuple[str, str, str, str]) -> float:
    """Return the printed deviation of a number, or that of its network's average over organs."""
    own = printed[key].sd
    found = own if own is not None else averages[key[0], key[1], AVERAGE, key[3]].sd
    if found is None:
        raise ValueError(f"{key}: neither the table nor the averages have a standard deviation.")
    return found


def _correlation_needed(difference: float, sd_a: float, sd_b: float, cases: int) -> float:
    """Return the smallest correlation with which P(false) is at most 5 %; NaN if no correlation up to 1 has it."""
    variance = cases * (difference / float(stdtrit(cases - 1, 1 - ALPHA))) ** 2
    needed = round((sd_a**2 + sd_b**2 - variance) / (2 * sd_a * sd_b), 6)
    return math.nan if needed > 1 else max(-1.0, needed)
