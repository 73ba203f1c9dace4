"""Which differences are shown: against scipy and statsmodels, by hand, and on scores whose truth is known."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas
import pytest
from scipy import stats
from scipy.integrate import quad

from umamba.evaluation.claims import (
    COLUMNS,
    FEWEST_CASES,
    Claim,
    claims_table,
    compare,
    false_claim_probability,
    judged,
)
from umamba.evaluation.equivalence import equivalent_within
from umamba.evaluation.power import detectable_difference, power_of
from umamba.evaluation.spread import Spreads, suitability, uncertainty
from umamba.evaluation.statistics import holm, mean_interval


def table(values: np.ndarray) -> pandas.DataFrame:
    """Return scores (trainings, cases) as a table."""
    return pandas.DataFrame(np.atleast_2d(values), columns=[f"case_{i}" for i in range(np.atleast_2d(values).shape[1])])


def one(a: np.ndarray, b: np.ndarray, metric: str = "dsc", margin: float = 0.01) -> Claim:
    """Return the only claim of two methods."""
    (claim,) = judged(compare({"a": table(a), "b": table(b)}, metric, margin))
    return claim


def drawn(
    seed: int, cases: int, trainings: int, spreads: Spreads, effect: float = 0.0, case_sd: float = 0.08
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores (trainings, cases) of two methods from the model of `spread`."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0.8, case_sd, cases)
    parts = []
    for sign in (1, -1):
        own = base + rng.normal(0, spreads.difference / math.sqrt(2), cases) + sign * effect / 2
        noise = rng.normal(0, 1, (trainings, 1)) * spreads.training
        parts.append(own + noise + rng.normal(0, 1, (trainings, cases)) * spreads.residual)
    return parts[0], parts[1]


def test_one_training_is_the_paired_t_test() -> None:
    a, b = drawn(0, 20, 1, Spreads(0.02, 0, 0), effect=0.01)
    claim = one(a, b)
    expected = stats.ttest_rel(a[0], b[0])
    interval = expected.confidence_interval(0.95)
    assert claim.p_false == pytest.approx(expected.pvalue / 2)
    assert claim.ci_t == pytest.approx((interval.low, interval.high))
    assert claim.correlation == pytest.approx(stats.pearsonr(a[0], b[0]).statistic)
    # The formula of the cited paper from means, deviations and correlation alone.
    better, other = (a[0], b[0]) if a.mean() > b.mean() else (b[0], a[0])
    printed = (better.mean(), other.mean(), better.std(ddof=1), other.std(ddof=1))
    assert false_claim_probability(*printed, claim.correlation, 20) == pytest.approx(claim.p_false)
    assert false_claim_probability(*printed, claim.correlation, 20) == pytest.approx(
        stats.ttest_rel(better, other, alternative="greater").pvalue
    )


def test_the_formula_of_false_claims_by_hand() -> None:
    # Two cases: t with one degree of freedom is Cauchy's distribution, so P = 1/2 - arctan(t) / pi, and
    # t = sqrt(2) 0.1 / sqrt(0.1^2 + 0.1^2 - 2 0.1 0.1 0.5) = sqrt(2).
    assert false_claim_probability(0.8, 0.7, 0.1, 0.1, 0.5, 2) == pytest.approx(0.5 - math.atan(math.sqrt(2)) / math.pi)
    # U-Mamba_Bot over nnU-Net in Table 3 (CT, DSC) with r = 0.9: the tail of t with 49 degrees of freedom, integrated.
    t = math.sqrt(50) * 0.0068 / math.sqrt(0.0808**2 + 0.0790**2 - 2 * 0.0808 * 0.0790 * 0.9)
    scale = math.gamma(25) / (math.sqrt(49 * math.pi) * math.gamma(24.5))
    tail, _ = quad(lambda x: scale * (1 + x**2 / 49) ** -25, t, math.inf)
    assert false_claim_probability(0.8683, 0.8615, 0.0808, 0.0790, 0.9, 50) == pytest.approx(tail)
    assert tail == pytest.approx(0.0926, abs=1e-4)
    assert false_claim_probability(0.7, 0.8, 0.1, 0.1, 0.5, 2) > 0.5
    assert false_claim_probability(0.8, 0.8, 0.1, 0.1, 1.0, 9) == 0.5
    assert false_claim_probability(0.9, 0.8, 0.1, 0.1, 1.0, 9) == 0.0


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_the_error_over_cases_and_trainings_is_that_of_a_mixed_model() -> None:
    """REML of the same model equals the analysis of variance where no component is negative."""
    formulas = pytest.importorskip("statsmodels.formula.api")
    spreads = Spreads(0.03, 0.02, 0.015)
    a, b = drawn(3, 8, 3, spreads, effect=0.05)
    known = uncertainty(a, b)
    assert min(known.spreads.difference, known.spreads.training) > 0
    rows = [
        {"score": value, "method": method, "training": f"{method}{training}", "case": f"c{case}"}
        for method, values in (("a", a), ("b", b))
        for (training, case), value in np.ndenumerate(values)
    ]
    frame = pandas.DataFrame(rows).assign(both=lambda t: t["method"] + t["case"], group=1)
    terms = {"case": "0 + C(case)", "both": "0 + C(both)", "training": "0 + C(training)"}
    fitted = formulas.mixedlm("score ~ method", frame, groups="group", vc_formula=terms).fit(reml=True)
    components = dict(zip(sorted(terms), fitted.vcomp, strict=True))
    assert known.error == pytest.approx(fitted.bse["method[T.b]"], rel=1e-3)
    assert known.spreads.training**2 == pytest.approx(components["training"], rel=0.01)
    assert known.spreads.difference**2 == pytest.approx(2 * components["both"], rel=0.01)
    assert known.spreads.residual**2 == pytest.approx(fitted.scale, rel=0.01)


def test_mean_squares_by_the_slow_obvious_way() -> None:
    a, b = drawn(5, 7, 3, Spreads(0.03, 0.01, 0.02))
    b = b[:2]  # as many trainings are not needed
    known = uncertainty(a, b)
    rest = trainings = 0.0
    for part in (a, b):
        for s, row in enumerate(part):
            trainings += (row.mean() - part.mean()) ** 2
            for c, value in enumerate(row):
                rest += (value - part[s].mean() - part[:, c].mean() + part.mean()) ** 2
    rest, trainings = rest / (3 * 6), trainings / 3
    cases = np.var(a.mean(axis=0) - b.mean(axis=0), ddof=1)
    share = 1 / 3 + 1 / 2
    variance = max(cases / 7 + share * trainings - share * rest / 7, cases / 7, share * trainings)
    assert known.error**2 == pytest.approx(variance)
    below = (cases / 7) ** 2 / 6 + (share * trainings) ** 2 / 3 + (share * rest / 7) ** 2 / 18
    assert known.freedom == pytest.approx(variance**2 / below)


def test_equivalence_is_two_one_sided_tests() -> None:
    statsmodels = pytest.importorskip("statsmodels.stats.api")
    for effect in (0.0, 0.002, -0.02):
        a, b = drawn(1, 30, 1, Spreads(0.01, 0, 0), effect=effect)
        known = uncertainty(a, b)
        smallest = equivalent_within(float((a - b).mean()), known.error, known.freedom)
        for share, expected in ((0.99, False), (1.01, True)):  # of the smallest margin: is equivalence shown?
            p_value = statsmodels.ttost_paired(a[0], b[0], -share * smallest, share * smallest)[0]
            assert (p_value < 0.05) == expected
        assert statsmodels.ttost_paired(a[0], b[0], -smallest, smallest)[0] == pytest.approx(0.05)
        assert one(a, b).equivalent_within == pytest.approx(smallest)


def test_holm_is_that_of_statsmodels() -> None:
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    p_values = dict(enumerate(np.random.default_rng(0).uniform(0, 0.2, 9)))
    assert list(dict(sorted(holm(p_values).items())).values()) == pytest.approx(
        multipletests(list(p_values.values()), method="holm")[1]
    )


def test_the_bootstrap_interval_of_a_skewed_mean_is_moved_to_its_tail() -> None:
    values = np.r_[np.zeros(18), 0.5, 0.7]
    low, high = mean_interval(values)
    assert high - values.mean() > values.mean() - low
    assert mean_interval(values) == (low, high)
    normal = np.random.default_rng(0).normal(0.1, 1, 300)
    assert mean_interval(normal) == pytest.approx(
        stats.t.interval(0.95, 299, normal.mean(), stats.sem(normal)), abs=0.02
    )
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)
    assert np.isnan(mean_interval(np.ones(1))).all()


def test_a_large_difference_with_trainings_is_shown() -> None:
    claim = one(*drawn(0, 20, 3, Spreads(0.02, 0.003, 0.01), effect=0.06))
    assert claim.survives
    assert (claim.better, claim.seeds, claim.n_cases) == ("a", (3, 3), 20)
    assert claim.sentence.startswith("Shown: a is better than b by 0.0")
    assert "probability of a false claim" in claim.sentence
    turned = one(*drawn(0, 20, 3, Spreads(0.02, 0.003, 0.01), effect=0.06)[::-1])
    assert turned.better == "b"
    assert turned.sentence.startswith("Shown: b is better than a by 0.0")
    low, high = (float(word) for word in re.search(r"interval (\S+) to (\S+);", turned.sentence).groups())  # type: ignore[union-attr]
    assert (low, high) == pytest.approx((-turned.ci_t[1], -turned.ci_t[0]), abs=6e-4), "the interval of what is told"
    assert turned.mean_difference == pytest.approx(-claim.mean_difference)
    assert turned.p_false == pytest.approx(claim.p_false)


def test_lower_distances_are_better_and_have_no_margin() -> None:
    a, b = drawn(0, 20, 3, Spreads(0.02, 0.003, 0.01), effect=0.06)
    claim = one(a, b, "hd95_mm")
    assert claim.better == "b"
    assert math.isnan(claim.margin)
    assert not claim.equivalent
    assert claim.sentence.startswith("Shown: b is better than a by 0.0")
    assert "HD95 mm" in claim.sentence


def test_equal_methods_are_called_equivalent_or_not_shown() -> None:
    close = one(*drawn(2, 100, 3, Spreads(0.003, 0.0005, 0.003)))
    assert close.equivalent
    assert close.sentence.startswith("Equivalent: the difference of a and b is within the margin of 0.010 DSC")
    unseen = one(*drawn(2, 20, 3, Spreads(0.03, 0.01, 0.02)))
    assert not unseen.survives
    assert not unseen.equivalent
    assert unseen.sentence.startswith(
        f"Not shown: with 20 cases and this seed spread a difference below {unseen.detectable:.3f} could not be seen"
    )
    # What could not be seen is what a test of this error sees in four of five studies.
    assert power_of(unseen.detectable, unseen.error, unseen.freedom) == pytest.approx(0.8, abs=1e-4)


def test_trainings_that_differ_much_could_show_nothing() -> None:
    case = np.linspace(0.6, 0.9, 20)
    claim = one(pandas.DataFrame([case, case - 0.3]), pandas.DataFrame([case - 0.1, case - 0.35]))
    assert claim.detectable > 1
    assert "with 20 cases and this seed spread no difference between 0 and 1 could be seen" in claim.sentence


def test_one_training_shows_nothing_of_the_methods_however_clear() -> None:
    a, b = drawn(0, 20, 1, Spreads(0.01, 0, 0), effect=0.2)
    claim = one(a, b)
    assert claim.p_holm < 1e-6
    assert not claim.survives
    assert claim.sentence.startswith("Not shown of the methods, because one training does not show how much trainings")
    assert "a is better than b by 0.198 DSC" in claim.sentence
    assert not one(np.vstack([a, a + 0.001]), b).survives, "one of them was trained once"
    assert "even between these two networks" in one(*drawn(0, 20, 1, Spreads(0.01, 0, 0))).sentence


def test_identical_methods_and_constant_differences_have_an_answer() -> None:
    a = drawn(0, 12, 2, Spreads(0.02, 0.01, 0.01))[0]
    same = one(a, a)
    assert (same.mean_difference, same.p_false, same.survives) == (0, 0.5, False)
    assert same.error > 0, "the trainings of a method differ, so other trainings would, too"
    (single, _) = drawn(0, 12, 1, Spreads(0.02, 0, 0))
    equal = one(single, single)
    assert (equal.mean_difference, equal.p_false, equal.p_holm, equal.equivalent_within) == (0, 0.5, 1, 0)
    assert equal.ci_t == equal.ci_bootstrap == (0, 0)
    assert equal.better is None
    assert equal.sentence.startswith("No difference: a and b have the same DSC in each case (12 cases")
    perfect = np.ones((2, 12))
    constant = one(perfect, perfect)
    assert constant.sentence.startswith("No difference")
    assert math.isnan(constant.correlation)
    assert not constant.survives
    shifted = one(perfect, perfect - 0.1)
    assert (shifted.p_false, shifted.mean_difference) == (0, pytest.approx(0.1))
    assert shifted.survives
    assert shifted.ci_t == pytest.approx((0.1, 0.1))


def test_too_few_cases_have_an_answer() -> None:
    a, b = drawn(0, FEWEST_CASES - 1, 3, Spreads(0.001, 0.001, 0.001), effect=0.3)
    few = one(a, b)
    assert few.p_false < 0.001
    assert math.isnan(few.p_holm)
    assert not few.survives
    assert few.sentence == "Not shown: 5 cases do not show how much cases differ; at least 6 are needed."
    single = one(a[:, :1], b[:, :1])
    assert single.mean_difference == pytest.approx(a[:, 0].mean() - b[:, 0].mean())
    assert np.isnan([*single.ci_t, *single.ci_bootstrap, single.p_false, single.equivalent_within]).all()
    assert single.sentence == "Not shown: 1 case does not show how much cases differ; at least 6 are needed."


def test_missing_scores_and_other_cases_are_left_out_and_counted() -> None:
    a, b = drawn(0, 12, 2, Spreads(0.02, 0.01, 0.01), effect=0.1)
    whole = one(a[:, 2:], b[:, 2:])
    holes = a.copy()
    holes[1, 0] = math.nan  # an organ that one training found nothing of, and the reference lacks
    other = table(b).drop(columns="case_1").assign(new=0.1)
    (claim,) = judged(compare({"a": table(holes), "b": other}, "dsc", 0.01))
    assert (claim.n_cases, claim.left_out) == (10, 3)
    assert claim.mean_difference == pytest.approx(whole.mean_difference)
    assert claim.p_false == pytest.approx(whole.p_false)
    assert "3 cases without a score from each training left out" in claim.sentence
    renamed = table(b).rename(columns=lambda name: f"other_{name}")
    (none,) = judged(compare({"a": table(a), "b": renamed}, "dsc", 0.01))
    assert (none.n_cases, none.left_out) == (0, 24)
    assert none.sentence == "Not compared: a and b have no case that all of their trainings have a score of."
    assert math.isnan(none.mean_difference)
    absent = np.full((2, 12), math.nan)
    assert one(absent, b).n_cases == 0
    empty = judged(compare({"a": table(a), "b": table(b).iloc[:0]}, "dsc", 0.01))
    assert empty[0].sentence.startswith("Not compared")


def test_a_family_is_corrected_together() -> None:
    scores = {}
    for index, name in enumerate("abcd"):
        scores[name] = table(drawn(0, 20, 2, Spreads(0.02, 0.004, 0.01))[0] + 0.03 * index)
    family = judged(compare(scores, "dsc", 0.01))
    assert len(family) == 6
    expected = holm({index: 2 * claim.p_false for index, claim in enumerate(family)})
    assert [claim.p_holm for claim in family] == pytest.approx(list(dict(sorted(expected.items())).values()))
    alone = one(scores["a"].to_numpy(), scores["b"].to_numpy())
    assert family[0].p_false == pytest.approx(alone.p_false)
    assert family[0].detectable > alone.detectable
    assert list(claims_table(family).columns) == list(COLUMNS)
    assert claims_table([]).empty


def test_suitability_by_hand() -> None:
    # Means 0.7 and 0.9: deviation between 0.1414; within both methods 0.1414.
    assert suitability([[0.6, 0.8], [0.8, 1.0]]) == pytest.approx(1.0)
    assert math.isnan(suitability([[0.6], [0.8]]))
    assert math.isnan(suitability([[0.6, 0.8], []]))
    assert suitability([[0.6, 0.6], [0.8]]) == math.inf


# What is claimed of scores whose truth is known. The model's and skewed scores: failures, a ceiling at 1, heavy tails.


def skewed(seed: int, cases: int, trainings: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores of one method, trained under different seeds, as both methods: bounded, with failed cases."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(8, 1.5, cases)
    parts = []
    for _ in range(2):
        values = difficulty + 0.01 * rng.standard_normal((trainings, 1)) + 0.02 * rng.standard_t(3, (trainings, cases))
        values[rng.random((trainings, cases)) < 0.02] = 0.0  # a training misses the organ
        parts.append(np.clip(values, 0, 1))
    return parts[0], parts[1]


def false_claims(draw: Callable[[int], tuple[np.ndarray, np.ndarray]], comparisons: int) -> float:
    """Return the share of comparisons in which a claim survives."""
    return sum(one(*draw(seed)).survives for seed in range(comparisons)) / comparisons


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [2, 3])
@pytest.mark.parametrize(
    "kind", ["cases and trainings", "trainings differ much", "trainings do not differ", "skewed with failures"]
)
def test_the_same_network_under_other_seeds_is_rarely_claimed_to_be_better(kind: str, trainings: int) -> None:
    spreads = {
        "cases and trainings": Spreads(0, 0.005, 0.02),
        "trainings differ much": Spreads(0, 0.02, 0.01),
        "trainings do not differ": Spreads(0, 0, 0.03),
    }

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        if kind in spreads:
            return drawn(seed, 24, trainings, spreads[kind])
        return skewed(seed, 24, trainings)

    share = false_claims(draw, 1000)
    print(f"{kind}, {trainings} trainings: {share:.3f} false claims")
    assert share <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_seeds_as_methods_in_one_table_are_rarely_claimed_to_differ() -> None:
    """Three methods that are one network: a table with any claim is a false one."""
    wrong = 0
    for seed in range(200):  # 600 comparisons
        parts = [part for half in (0, 1) for part in drawn(2 * seed + half, 20, 3, Spreads(0, 0.01, 0.02), case_sd=0.0)]
        scores = {name: table(part) for name, part in zip("abc", parts[:3], strict=True)}
        wrong += any(claim.survives for claim in judged(compare(scores, "dsc", 0.01)))
    assert wrong <= 200 * 0.05 + 2 * math.sqrt(200 * 0.05 * 0.95)


def seen(effect: float, cases: int, trainings: int, spreads: Spreads, studies: int) -> float:
    """Return the share of studies in which the right claim survives; the studies are the same for each effect."""
    found = [one(*drawn(seed, cases, trainings, spreads, effect)) for seed in range(studies)]
    return sum(claim.survives and claim.better == "a" for claim in found) / studies


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "trainings"), [(20, 3), (50, 3)])
@pytest.mark.parametrize("spreads", [Spreads(0.02, 0.005, 0.02), Spreads(0.01, 0.01, 0.02)])
def test_power_grows_and_the_planned_difference_is_met(cases: int, trainings: int, spreads: Spreads) -> None:
    """Predictions of one method are degraded by a known amount; the share of right claims is a power curve."""
    planned = detectable_difference(spreads, cases, trainings)
    effects = planned * np.array([0.0, 0.4, 0.8, 1.0, 1.2, 1.6])
    curve = [seen(effect, cases, trainings, spreads, 200) for effect in effects]
    assert curve == sorted(curve)
    assert curve[-1] > 0.95
    measured = float(np.interp(0.8, curve[1:], effects[1:]))
    print(f"{cases} cases, {trainings} trainings: planned {planned:.4f}, measured {measured:.4f}, curve {curve}")
    assert measured == pytest.approx(planned, rel=0.2)


def test_a_claim_is_frozen_text_and_numbers() -> None:
    claim = one(*drawn(0, 20, 3, Spreads(0.02, 0.003, 0.01), effect=0.06))
    assert replace(claim, sentence="") != claim
    row = claims_table([claim]).iloc[0]
    assert (row["first"], row["second"], bool(row["shown"])) == ("a", "b", True)
    assert row["p_false"] == claim.p_false
