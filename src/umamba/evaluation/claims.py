"""Which differences between methods are shown: one verdict and one plain sentence for each pair.

A claim says that a method is better than another one on other cases and after other trainings. It survives if

- the p value of the two-sided t test of the paired difference, with the error of `spread`, is below 5 % after Holm's
  correction over the family, which is everything that one table compares,
- the bootstrap interval of the mean difference excludes 0, and
- there are at least six cases and two trainings of each method, because fewer do not show how much cases or trainings
  differ.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas
from scipy.special import stdtr, stdtrit

from umamba.evaluation.equivalence import equivalent_within
from umamba.evaluation.power import ALPHA, detectable
from umamba.evaluation.score import TITLES
from umamba.evaluation.spread import Spreads, uncertainty
from umamba.evaluation.statistics import holm, mean_interval

FEWEST_CASES = 6  # with fewer cases nothing is claimed, because they do not show how much cases differ
COLUMNS = (
    *("dataset", "label", "metric", "first", "second", "cases", "cases_left_out", "trainings_first"),
    *("trainings_second", "difference", "ci_low", "ci_high", "bootstrap_low", "bootstrap_high", "correlation"),
    *("sd_difference", "sd_trainings", "sd_rest", "p_false", "p_holm", "equivalent_within", "margin", "detectable"),
    *("shown", "sentence"),
)
_UNKNOWN = Spreads(math.nan)
_NOWHERE = (math.nan, math.nan)
_DISTANCE = "_mm"  # ends the names of distances, of which smaller ones are better


@dataclass(frozen=True)
class Claim:
    """The comparison of two methods by one metric on the same cases.

    Attributes:
        a: the first method.
        b: the second method.
        metric: name of the score.
        n_cases: number of cases that every training of both methods has a score of.
        seeds: numbers of trainings (seeds and folds) of a and of b.
        mean_difference: mean of a - b over cases and trainings; NaN without a common case.
        ci_t: 95 % interval of the difference over other cases and, with several trainings, other trainings.
        ci_bootstrap: 95 % bootstrap interval (BCa) of the mean difference over other cases, for these trainings.
        correlation: correlation r over cases of the methods' scores; NaN if one of them is constant.
        p_false: probability that the method with the better mean is not the better one (Christodoulou et al., arXiv
            2505.04720; with several trainings the error contains their spread, too).
        p_holm: two-sided p value (2 * p_false), corrected by Holm's method over the family; NaN if it was not tested.
        equivalent_within: the smallest margin within which the methods are shown to be equivalent (two one-sided t
            tests at 5 %).
        sentence: the result in plain words.
        survives: whether the difference is shown.
        dataset: the benchmark; empty if there is only one.
        label: name of the label, or of the mean over labels.
        left_out: number of cases without a score from some of the trainings.
        margin: the largest difference that does not matter; NaN if the metric has none.
        error: standard error of the difference over cases and, with several trainings, trainings.
        freedom: degrees of freedom of the error.
        spreads: standard deviations over cases and over trainings.
        detectable: the difference that is detected with a probability of 80 % with these cases and this spread, at the
            strictest step of Holm's correction.
    """

    a: str
    b: str
    metric: str
    n_cases: int
    seeds: tuple[int, int]
    mean_difference: float
    ci_t: tuple[float, float] = _NOWHERE
    ci_bootstrap: tuple[float, float] = _NOWHERE
    correlation: float = math.nan
    p_false: float = math.nan
    p_holm: float = math.nan
    equivalent_within: float = math.nan
    sentence: str = ""
    survives: bool = False
    dataset: str = ""
    label: str = ""
    left_out: int = 0
    margin: float = math.nan
    error: float = math.nan
    freedom: float = math.nan
    spreads: Spreads = _UNKNOWN
    detectable: float = math.nan

    @property
    def better(self) -> str | None:
        """The method with the better mean; None if the means are equal or unknown."""
        if math.isnan(self.mean_difference) or self.mean_difference == 0:
            return None
        return self.a if (self.mean_difference > 0) == (not self.metric.endswith(_DISTANCE)) else self.b

    @property
    def equivalent(self) -> bool:
        """Whether the methods are shown to be equivalent within the margin."""
        return self.n_cases >= FEWEST_CASES and min(self.seeds) > 1 and self.equivalent_within < self.margin


def compare(
    scores: Mapping[str, pandas.DataFrame],
    metric: str,
    margin: float,
    dataset: str = "",
    label: str = "",
    pairs: Collection[tuple[str, str]] = (),
) -> list[Claim]:
    """Compare pairs of methods; `judged` adds the verdicts, because they depend on the whole family.

    Args:
        scores: method -> scores, a row for each training and a column for each case; NaN: no score.
        metric: name of the score.
        margin: the largest difference that does not matter; it does not hold for metrics in mm.
        dataset: the benchmark.
        label: name of the label.
        pairs: the pairs that are compared, in any order; none: every pair.
    """
    chosen = {frozenset(pair) for pair in pairs}
    margin = math.nan if metric.endswith(_DISTANCE) else margin
    found = []
    for a, b in combinations(scores, 2):
        if chosen and {a, b} not in chosen:
            continue
        values_a, values_b, left_out = _common(scores[a], scores[b])
        claim = Claim(
            *(a, b, metric, values_a.shape[1], (len(scores[a]), len(scores[b]))),
            mean_difference=float(values_a.mean() - values_b.mean()) if values_a.size else math.nan,
            dataset=dataset,
            label=label,
            left_out=left_out,
            margin=margin,
        )
        found.append(_measured(claim, values_a, values_b) if claim.n_cases > 1 else claim)
    return found


def _measured(claim: Claim, a: np.ndarray, b: np.ndarray) -> Claim:
    """Return a claim with the numbers of the scores (trainings, cases) of its methods."""
    known = uncertainty(a, b)
    mean = claim.mean_difference if known.error or abs(claim.mean_difference) > 1e-12 else 0.0
    half = float(stdtrit(known.freedom, 1 - ALPHA / 2)) * known.error if known.error else 0.0
    over_cases = (a.mean(axis=0), b.mean(axis=0))
    constant = any(np.ptp(values) < 1e-12 for values in over_cases)
    return replace(
        claim,
        mean_difference=mean,
        ci_t=(mean - half, mean + half),
        ci_bootstrap=mean_interval(over_cases[0] - over_cases[1]),
        correlation=math.nan if constant else float(np.corrcoef(*over_cases)[0, 1]),
        p_false=_tail(mean, known.error, known.freedom),
        equivalent_within=equivalent_within(mean, known.error, known.freedom),
        error=known.error,
        freedom=known.freedom,
        spreads=known.spreads,
    )


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims of one family, such as all comparisons of one table, with their verdicts and sentences.

    Args:
        claims: the claims as `compare` returns them.
    """
    p_values = {i: min(1.0, 2 * c.p_false) for i, c in enumerate(claims) if c.n_cases >= FEWEST_CASES}
    tested = {index: p_value for index, p_value in p_values.items() if not math.isnan(p_value)}
    corrected = holm(tested)
    made = []
    for index, claim in enumerate(claims):
        p_holm = corrected.get(index, math.nan)
        low, high = claim.ci_bootstrap
        judgement = replace(
            claim,
            p_holm=p_holm,
            survives=p_holm < ALPHA and min(claim.seeds) > 1 and (low > 0 or high < 0),
            detectable=detectable(claim.error, claim.freedom, ALPHA / len(tested)) if index in tested else math.nan,
        )
        made.append(replace(judgement, sentence=sentence_of(judgement)))
    return made


def claims_table(claims: Sequence[Claim]) -> pandas.DataFrame:
    """Return claims as a table, a row for each pair, label and metric; `shown` is 1 or 0.

    Args:
        claims: the claims with their verdicts.
    """
    rows = [
        {
            **{"dataset": claim.dataset, "label": claim.label, "metric": claim.metric},
            **{"first": claim.a, "second": claim.b, "cases": claim.n_cases, "cases_left_out": claim.left_out},
            **{"trainings_first": claim.seeds[0], "trainings_second": claim.seeds[1]},
            **{"difference": claim.mean_difference, "ci_low": claim.ci_t[0], "ci_high": claim.ci_t[1]},
            **{"bootstrap_low": claim.ci_bootstrap[0], "bootstrap_high": claim.ci_bootstrap[1]},
            **{"correlation": claim.correlation, "sd_difference": claim.spreads.difference},
            **{"sd_trainings": claim.spreads.training, "sd_rest": claim.spreads.residual},
            **{"p_false": claim.p_false, "p_holm": claim.p_holm, "equivalent_within": claim.equivalent_within},
            **{"margin": claim.margin, "detectable": claim.detectable, "shown": int(claim.survives)},
            "sentence": claim.sentence,
        }
        for claim in claims
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def sentence_of(claim: Claim) -> str:
    """Return the result of a comparison in plain words.

    Args:
        claim: a claim with its verdict.
    """
    name = TITLES.get(claim.metric, claim.metric.replace("_", " ").upper()).removesuffix(" (mm)")
    unit = f"{name} mm" if claim.metric.endswith(_DISTANCE) else name
    common = f"{claim.n_cases} cases, {claim.seeds[0]} and {claim.seeds[1]} trainings"
    if claim.left_out:
        common += f", {claim.left_out} cases without a score from each training left out"
    if claim.n_cases == 0:
        return f"Not compared: {claim.a} and {claim.b} have no case that all of their trainings have a score of."
    if claim.n_cases < FEWEST_CASES:
        return (
            f"Not shown: {claim.n_cases} {'case does' if claim.n_cases == 1 else 'cases do'} not show how much cases "
            f"differ; at least {FEWEST_CASES} are needed."
        )
    if claim.error == 0 and claim.mean_difference == 0:
        return f"No difference: {claim.a} and {claim.b} have the same {name} in each case ({common})."
    low, high = claim.ci_t
    interval = f"95 % interval {_short(low)} to {_short(high)}"
    if claim.mean_difference < 0:
        low, high = -high, -low  # of the difference as it is told, which is above 0
    seen = (
        f"{claim.better or claim.a} is better than {claim.b if claim.better != claim.b else claim.a} by "
        f"{_short(abs(claim.mean_difference))} {unit} (95 % interval {_short(low)} to {_short(high)}; probability of a "
        f"false claim {_percent(claim.p_false)}; {common})"
    )
    bounded = not claim.metric.endswith(_DISTANCE)
    unseen = f"a difference below {_short(claim.detectable)} could not be seen"
    if bounded and claim.detectable >= 1:
        unseen = "no difference between 0 and 1 could be seen"
    if min(claim.seeds) < 2:
        judged_so = (
            seen
            if claim.p_holm < ALPHA
            else f"with {claim.n_cases} cases {unseen} even between these two networks ({common})"
        )
        return f"Not shown of the methods, because one training does not show how much trainings differ: {judged_so}."
    small = f"the difference of {claim.a} and {claim.b} is within the margin of {_short(claim.margin)} {unit}"
    if claim.survives:
        return f"Shown: {seen}.{' It is small: ' + small + '.' if claim.equivalent else ''}"
    if claim.p_holm < ALPHA:
        return f"Not shown: a few cases decide, because the bootstrap interval over cases contains 0 ({seen})."
    if claim.equivalent:
        return f"Equivalent: {small} (shown within {_short(claim.equivalent_within)}; {common})."
    return (
        f"Not shown: with {claim.n_cases} cases and this seed spread {unseen} ({claim.a} - {claim.b}: {interval}; "
        f"{common})."
    )


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.00995 else f"{value:.4f}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.2g} %" if probability >= 0.0001 else "below 0.01 %"


def false_claim_probability(
    mean_a: float, mean_b: float, sd_a: float, sd_b: float, correlation: float, cases: int
) -> float:
    """Return the probability that method A is not better than method B although its mean is higher.

    It is t_{n-1}(sqrt(n) (m_B - m_A) / sqrt(s_A^2 + s_B^2 - 2 s_A s_B r)) of Christodoulou et al., arXiv 2505.04720.

    Args:
        mean_a: mean of the method that is claimed to be better.
        mean_b: mean of the other method.
        sd_a: standard deviation of A over cases.
        sd_b: standard deviation of B over cases.
        correlation: correlation over cases of the two methods' scores.
        cases: number of cases, at least two.
    """
    variance = sd_a**2 + sd_b**2 - 2 * sd_a * sd_b * correlation
    difference = mean_a - mean_b
    if variance <= 0:
        return 0.5 if difference == 0 else float(difference < 0)
    return float(stdtr(cases - 1, -math.sqrt(cases) * difference / math.sqrt(variance)))


def _tail(mean: float, error: float, freedom: float) -> float:
    """Return P(false): the probability beyond 0 of a t distribution around the mean difference."""
    if error == 0:
        return 0.5 if mean == 0 else 0.0
    return float(stdtr(freedom, -abs(mean) / error))


def _common(a: pandas.DataFrame, b: pandas.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the scores of the cases that every training of both methods has, and the number of the other cases."""
    if not len(a) or not len(b):
        return np.empty((len(a), 0)), np.empty((len(b), 0)), max(a.shape[1], b.shape[1])
    together = pandas.concat([a, b])
    complete = together.dropna(axis=1)
    values = complete.to_numpy(dtype=np.float64)
    return values[: len(a)], values[len(a) :], together.shape[1] - complete.shape[1]
